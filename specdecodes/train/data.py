"""From public data sets to documents: chat messages or plain text."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from specdecodes.data import hub_records, json_lines, passages
from specdecodes.train.recipe import Recipe, Source

Document = list[dict[str, str]]
"""Chat messages ({role, content}); a plain text is one message of the role ``text``.

A last message may have ``"end": "cut"``: it is an answer that went on, and no end of text belongs behind it.
"""

ROLES = ("system", "user", "assistant")


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
    messages = [{"role": m["role"], "content": m["content"].strip()} for m in record["messages"]]
    if not messages or any(message["role"] not in ROLES for message in messages):
        raise TypeError(f"expected messages of the roles {', '.join(ROLES)}")
    if record["messages"][-1].get("end") == "cut":
        messages[-1]["end"] = "cut"
    return messages


def _text(record: dict[str, Any]) -> Document:
    if not isinstance(record["text"], str):
        raise TypeError(f"expected text, got {type(record['text']).__name__}")
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


def load_documents(recipe: Recipe, folder: Path | None) -> tuple[list[Document], list[Document]]:
    """Training and held-out documents of all sources of the recipe.

    Raises:
        ValueError, FileNotFoundError: as :func:`read_source`; formats are checked before anything is read.
    """
    for source in recipe.data:
        if source.format not in FORMATS:
            known = ", ".join(sorted(FORMATS))
            raise ValueError(f"data source {source.name}: unknown format {source.format!r}; known: {known}")
    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(f"--data: expected a folder, got {folder}; no such folder")
    documents = [document for source in recipe.data for document in read_source(source, folder)]
    return split_documents(documents, recipe.training.held_out, recipe.training.seed)


def read_source(source: Source, folder: Path | None) -> list[Document]:
    """Return the documents of ``source``, from ``folder / source.file`` when a folder is given, else from the hub.

    Raises:
        ValueError: a record of another format (with its number), a source without records, a hub out of reach.
        FileNotFoundError: the file is not in the folder.
    """
    records = _records_from_file(source, folder) if folder is not None else _records_from_hub(source)
    documents = convert(records, source.format, f"data source {source.name}")
    if not documents:
        raise ValueError(f"data source {source.name}: no records")
    return documents


def convert(records: Iterator[Any], format_name: str, where: str) -> list[Document]:
    """Turn records into documents.

    Raises:
        ValueError: a record that is not of this format, with its number.
    """
    documents = []
    for number, record in enumerate(records, 1):
        try:
            documents.append(FORMATS[format_name](record))
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(f"{where}: record {number} is not of format {format_name!r} ({error!r})") from error
    return documents


def read_lines(path: Path) -> Iterator[Any]:
    """The JSON values of a file with one a line; blank lines are skipped.

    Raises:
        ValueError: a line that is not JSON, with its number.
    """
    # Not splitlines(): JSON may hold the other line breaks of Unicode, U+2028 for one, as they are.
    for _, record in json_lines(str(path), path.read_text(encoding="utf-8").split("\n")):
        yield record


def _records_from_file(source: Source, folder: Path) -> Iterator[Any]:
    path = folder / source.file
    if not path.is_file():
        raise FileNotFoundError(f"data source {source.name}: expected the file {source.file} in {folder}")
    if path.suffix == ".jsonl":
        yield from read_lines(path)
    elif path.suffix == ".txt":
        yield from _passages(path.read_text(encoding="utf-8"))
    else:
        try:
            records = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: not JSON ({error})") from error
        if not isinstance(records, list):
            raise ValueError(f"{path}: expected a JSON list of records, got {type(records).__name__}")
        yield from records


def _records_from_hub(source: Source) -> Iterator[Any]:
    if not source.hub:
        raise ValueError(f"data source {source.name}: no hub id in the recipe; give its folder with --data")
    way_out = f"give a folder that holds {source.file} with --data"
    records = hub_records(
        f"data source {source.name}", way_out, source.hub, source.config, source.split, data_files=source.data_files
    )
    if source.hub == "text":  # one record per line
        records = _passages("\n".join(record["text"] for record in records))
    yield from records


def _passages(text: str) -> Iterator[dict[str, Any]]:
    """A long text in passages, so that shuffling mixes them in."""
    return ({"text": passage} for passage in passages(text))


def split_documents(documents: Sequence[Document], held_out: float, seed: int) -> tuple[list[Document], list[Document]]:
    """Shuffle and split into training and held-out documents, the same way for every run with this seed."""
    order = list(documents)
    random.Random(seed).shuffle(order)
    count = int(len(order) * held_out)
    return order[count:], order[:count]
