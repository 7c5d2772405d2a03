"""The target's own answers to training prompts: what a drafter will meet, and so should be trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from specdecodes.benchmark.journal import replace, to_line
from specdecodes.models.dense import DensePass
from specdecodes.models.interpose import install, serving
from specdecodes.models.loading import load_model, load_tokenizer, parse_device, parse_dtype
from specdecodes.train.data import Document, convert, load_documents, read_lines
from specdecodes.train.recipe import Recipe


def read_answers(path: Path) -> list[Document]:
    """Read what :func:`write_answers` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is not {"messages": [...]}, with its number.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--answers: expected a file written by the task 'answers', got {path}; no such file")
    return convert(read_lines(path), "messages", str(path))


def write_answers(
    recipe: Recipe, output: Path, target: str, data: Path | None, count: int, max_new_tokens: int = 160, rows: int = 32
) -> int:
    """Answer ``count`` training prompts greedily with ``target`` and write one {"messages": [...]} a line.

    Batches of ``rows`` prompts of similar length through stock ``generate`` with our sequence ops; the held-out
    documents are not touched. A prompt is the first message of a chat.

    Returns:
        The number of answers written.

    Raises:
        ValueError, FileNotFoundError: what a user can mend, in one line.
    """
    documents, _ = load_documents(recipe, data)
    prompts = [document[0]["content"] for document in documents if document[0]["role"] == "user"]
    if not prompts:
        raise ValueError(f"--recipe: expected data with chats, whose prompts can be answered; {recipe.path} has none")
    prompts = sorted(prompts[:count], key=len)
    device = parse_device(None)
    model = load_model(target, "target", device, parse_dtype(None, device))
    tokenizer = load_tokenizer(target, target)
    if tokenizer.chat_template is None or tokenizer.pad_token is None:
        raise ValueError(f"--target: expected a tokenizer with a chat template and a padding token, got {target}'s")
    tokenizer.padding_side = "left"
    install(model)
    lines = []
    batches = [prompts[i : i + rows] for i in range(0, len(prompts), rows)]
    for batch in track(batches, description="answers"):
        for prompt, answer in zip(batch, _answer(model, tokenizer, batch, max_new_tokens), strict=True):
            lines.append(to_line({"messages": [{"role": "user", "content": prompt}, answer]}))
    output.parent.mkdir(parents=True, exist_ok=True)
    replace(output, lines)
    return len(lines)


def _answer(
    model: Any,  # noqa: ANN401
    tokenizer: Any,  # noqa: ANN401
    prompts: Sequence[str],
    max_new_tokens: int,
) -> Iterator[dict[str, str]]:
    """One message for each prompt; ``"end": "cut"`` where ``max_new_tokens`` ended it and not the target."""
    chats = [
        tokenizer.apply_chat_template([{"role": "user", "content": p}], add_generation_prompt=True, tokenize=False)
        for p in prompts
    ]
    inputs = tokenizer(chats, return_tensors="pt", padding=True, add_special_tokens=False, return_token_type_ids=False)
    with torch.inference_mode(), serving(DensePass()):
        ids = model.generate(**inputs.to(model.device), max_new_tokens=max_new_tokens, do_sample=False)
    ends = torch.tensor(model.generation_config.eos_token_id, device=ids.device)
    for row in ids[:, inputs["input_ids"].shape[1] :]:
        message = {"role": "assistant", "content": tokenizer.decode(row, skip_special_tokens=True)}
        yield message if torch.isin(row, ends).any() else {**message, "end": "cut"}
