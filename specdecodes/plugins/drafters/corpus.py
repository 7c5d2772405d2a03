"""Texts as documents of token ids, for the drafters that look candidates up in a corpus."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from specdecodes.data import texts


def read_corpus(source: str, tokenizer: Any, field: str | None = None) -> Iterator[list[int]]:  # noqa: ANN401
    """The documents of a text or JSONL file, or of whatever :func:`specdecodes.data.texts` reads, as token ids.

    Args:
        source, field: as there. tokenizer: the target's, or None where it has none.

    Raises:
        ValueError: no tokenizer, a source that cannot be read, or one that holds no text.
    """
    if tokenizer is None:
        raise ValueError("corpus: expected a target with a tokenizer, got none; name one with tokenizer=")
    found = texts(source, field=field)
    while batch := list(islice(found, 1000)):
        yield from tokenizer(batch, add_special_tokens=False)["input_ids"]
