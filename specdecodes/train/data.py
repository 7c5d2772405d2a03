"""From public data sets to packed blocks of token ids."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from specdecodes.train.recipe import Source

Document = list[dict[str, str]]
"""Chat messages ({role, content}); a plain text is one message of the role ``text``."""


def _gsm8k(record: dict[str, Any]) -> Document:
    # The calculator annotations <<48/2=24>> are an aid for tools, not something to say.
    answer = re.sub(r"<<.*?>>", "", record["answer"]).replace("####", "The answer is")
    return _exchange(record["question"], answer)


def _gpteacher(record: dict[str, Any]) -> Document:
    request = "\n".join(part for part in (record["instruction"], record["input"]) if part)
    return _exchange(request, record["response"])


def _self_instruct(record: dict[str, Any]) -> Document:
    instance = record["instances"][0]
    request = "\n".join(part for part in (record["instruction"], instance["input"]) if part)
    return _exchange(request, instance["output"])


def _messages(record: dict[str, Any]) -> Document:
    return list(record["messages"])


def _text(record: dict[str, Any]) -> Document:
    return [{"role": "text", "content": record["text"]}]


def _exchange(request: str, answer: str) -> Document:
    return [{"role": "user", "content": request.strip()}, {"role": "assistant", "content": answer.strip()}]


FORMATS: dict[str, Callable[[dict[str, Any]], Document]] = {
    "gsm8k": _gsm8k,
    "gpteacher": _gpteacher,
    "self-instruct": _self_instruct,
    "messages": _messages,
    "text": _text,
}


def read_source(source: Source, folder: Path | None) -> list[Document]:
    """Return the documents of ``source``, from ``folder / source.file`` when a folder is given, else from the hub.

    Raises:
        ValueError: unknown format, an unreadable record (with its number), a source without records.
        FileNotFoundError: the file is not in the folder.
    """
    if source.format not in FORMATS:
        raise ValueError(
            f"data source {source.name}: unknown format {source.format!r}; known: {', '.join(sorted(FORMATS))}"
        )
    records = _records_from_file(source, folder) if folder is not None else _records_from_hub(source)
    documents = []
    for number, record in enumerate(records, 1):
        try:
            documents.append(FORMATS[source.format](record))
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(
                f"data source {source.name}: record {number} is not of format {source.format!r} ({error!r})"
            ) from error
    if not documents:
        raise ValueError(f"data source {source.name}: no records")
    return documents


def _records_from_file(source: Source, folder: Path) -> Iterator[dict[str, Any]]:
    path = folder / source.file
    if not path.exists():
        raise FileNotFoundError(f"data source {source.name}: expected the file {source.file} in {folder}")
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".txt":
        yield from _passages(text)
    elif path.suffix == ".jsonl":
        for number, line in enumerate(text.splitlines(), 1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}: line {number} is not JSON ({error})") from error
    else:
        yield from json.loads(text)


def _records_from_hub(source: Source) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset

    if not source.hub:
        raise ValueError(f"data source {source.name}: no hub id in the recipe; give its folder with --data")
    records = load_dataset(source.hub, source.config, split=source.split, data_files=source.data_files)
    if source.hub == "text":  # one record per line
        records = _passages("\n".join(record["text"] for record in records))
    yield from records


def _passages(text: str) -> Iterator[dict[str, Any]]:
    """Cut a long text at blank lines into passages of about 2,000 characters, so that shuffling mixes them in."""
    passage = ""
    for paragraph in text.split("\n\n"):
        passage += paragraph + "\n\n"
        if len(passage) > 2000:
            yield {"text": passage}
            passage = ""
    if passage:
        yield {"text": passage}


def split_documents(documents: Sequence[Document], held_out: float, seed: int) -> tuple[list[Document], list[Document]]:
    """Shuffle and split into training and held-out documents, the same way for every run with this seed."""
    order = list(documents)
    random.Random(seed).shuffle(order)
    count = int(len(order) * held_out)
    return order[count:], order[:count]


def render(document: Document, eos: str) -> str:
    """Turn a document into the text that the chat template would produce for it (plain text just ends with ``eos``)."""
    if document[0]["role"] == "text":
        return document[0]["content"] + eos
    return "".join(f"<|{message['role']}|>{message['content']}{eos}" for message in document)


class Blocks(Dataset):
    """Token ids of all documents, one after the other, cut into blocks: item ``i`` is {input_ids, labels} of [block]."""

    def __init__(self, documents: Sequence[Document], tokenizer: Any, block: int) -> None:  # noqa: ANN401 - any tokenizer
        ids: list[int] = []
        for encoded in tokenizer([render(d, tokenizer.eos_token) for d in documents], add_special_tokens=False)[
            "input_ids"
        ]:
            ids.extend(encoded)
        count = len(ids) // block
        if count == 0:
            raise ValueError(
                f"data: expected at least one block of {block} tokens, got {len(ids)} tokens; lower training.block"
            )
        self.blocks: Tensor = torch.tensor(ids[: count * block], dtype=torch.long).view(count, block)

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.blocks[index], "labels": self.blocks[index]}
