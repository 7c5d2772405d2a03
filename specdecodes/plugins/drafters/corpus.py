"""Texts as documents of token ids, for what is looked up in a corpus."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from specdecodes.data import texts

BATCH = 1000
"""Texts that are tokenized at a time."""


def read_corpus(
    source: str,
    tokenizer: Any,  # noqa: ANN401 - tokenizers have no common base
    *,
    split: str | None = None,
    field: str | None = None,
    limit: int | None = None,
) -> Iterator[list[int]]:
    """The documents of whatever :func:`specdecodes.data.texts` reads as token ids, without special tokens.

    Args:
        source, split, field, limit: as there. tokenizer: the target's, or None where it has none.

    Raises:
        ValueError: no tokenizer, a source that cannot be read, or one that holds no text.
    """
    if tokenizer is None:
        raise ValueError("tokenizer: expected one beside the target, got none; name one with --tokenizer (tokenizer=)")
    found = texts(source, split=split, field=field, limit=limit)
    while batch := list(islice(found, BATCH)):
        yield from tokenizer(batch, add_special_tokens=False)["input_ids"]
