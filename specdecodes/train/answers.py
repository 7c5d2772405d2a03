"""The target's own answers to training prompts: what a drafter will meet, and so should be trained on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from transformers import AutoModelForCausalLM, AutoTokenizer

from specdecodes.models.dense import DensePass
from specdecodes.models.interpose import install, serving
from specdecodes.models.loading import resolve
from specdecodes.train.data import Document
from specdecodes.train.pretrain import load_documents
from specdecodes.train.recipe import Recipe


def read_answers(path: Path) -> list[Document]:
    """Read what :func:`write_answers` wrote.

    Raises:
        ValueError: a line that is not {"messages": [...]}, with its number.
    """
    documents = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            documents.append(json.loads(line)["messages"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f'{path}: line {number}: expected {{"messages": [...]}}, got {error!r}') from error
    return documents


def write_answers(
    recipe: Recipe, output: Path, target: str, data: Path | None, count: int, max_new_tokens: int = 160, rows: int = 32
) -> int:
    """Answer ``count`` training prompts greedily with ``target`` and write one {"messages": [...]} a line.

    Batches of ``rows`` prompts of similar length through stock ``generate`` with our sequence ops; the held-out
    documents are not touched.

    Returns:
        The number of answers written.
    """
    documents, _ = load_documents(recipe, data)
    prompts = [d[0]["content"] for d in documents if d[0]["role"] == "user" and len(d) == 2]
    prompts = sorted(prompts[:count], key=len)
    source = resolve(target)
    tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    install(model)
    partial = output.with_suffix(output.suffix + ".partial")
    written = 0
    with partial.open("w", encoding="utf-8") as file:
        batches = [prompts[i : i + rows] for i in range(0, len(prompts), rows)]
        for batch in track(batches, description="answers"):
            for prompt, answer in zip(batch, _answer(model, tokenizer, batch, max_new_tokens), strict=True):
                messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
                file.write(json.dumps({"messages": messages}) + "\n")
                written += 1
    os.replace(partial, output)
    return written


def _answer(model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int) -> Iterator[str]:  # noqa: ANN401
    chats = [
        tokenizer.apply_chat_template([{"role": "user", "content": p}], add_generation_prompt=True, tokenize=False)
        for p in prompts
    ]
    inputs = tokenizer(chats, return_tensors="pt", padding=True, add_special_tokens=False, return_token_type_ids=False)
    with torch.inference_mode(), serving(DensePass()):
        ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    for row in ids[:, inputs["input_ids"].shape[1] :]:
        yield tokenizer.decode(row, skip_special_tokens=True)
