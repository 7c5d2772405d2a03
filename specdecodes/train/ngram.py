"""Count the static back-off table of the n-gram drafter: the target's training text and its own answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from specdecodes.models.loading import resolve
from specdecodes.plugins.drafters.ngram_table import NgramTable
from specdecodes.train.blocks import text_of
from specdecodes.train.data import Document, load_documents
from specdecodes.train.recipe import Recipe


def build_table(
    recipe: Recipe,
    output: Path,
    target: str,
    data: Path | None = None,
    answers: Sequence[Document] = (),
    max_bytes: int = 1_000_000,
    answer_weight: int = 1,
) -> dict[str, Any]:
    """Count the recipe's training documents (the held-out ones are left out) and the answers into ``output``.

    Args:
        target: a folder, a hub id or "embedded"; its tokenizer and the size of its vocabulary are what matters.
        answers: the target's own answers (see :mod:`specdecodes.train.answers`).
        max_bytes: size of the file at most.
        answer_weight: count every answer so many times.

    Returns:
        What came out: documents, answers, tokens counted, contexts by order, successors, bytes.

    Raises:
        ValueError: a setting out of range, a target without a tokenizer or a configuration.
    """
    if answer_weight < 1:
        raise ValueError(f"answer_weight: expected at least 1, got {answer_weight}")
    tokenizer, vocab_size = _vocabulary(target)
    documents, _ = load_documents(recipe, data)
    texts = [text_of(document, tokenizer) for document in [*documents, *list(answers) * answer_weight]]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    table = NgramTable.build(ids, vocab_size, max_bytes=max_bytes)
    output.parent.mkdir(parents=True, exist_ok=True)
    table.save(output)
    return {
        "documents": len(documents),
        "answers": len(answers),
        "tokens": sum(len(document) for document in ids),
        "contexts": list(table.orders),
        "successors": len(table.successors),
        "bytes": output.stat().st_size,
        "output": str(output),
    }


def _vocabulary(target: str) -> tuple[Any, int]:
    """The target's tokenizer and the size of its vocabulary (that of its embeddings, which may be padded)."""
    source = resolve(target)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise ValueError(f"--target: expected a model with a tokenizer, got {target!r} ({reason})") from error
    return tokenizer, config.get_text_config().vocab_size
