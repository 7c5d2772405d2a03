"""Counting n-grams in documents, for :mod:`specdecodes.plugins.drafters.ngram_table`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DISCOUNT = 0.75
"""What each count gives up to the shorter context; tau is the same for any value from 0.4 to 0.9."""

Integers = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Level:
    """All contexts of one order, with their successors.

    Attributes:
        contexts: int64 [N]: number of the shorter context * vocab_size + oldest token, ascending.
        owner: int64 [S]: the context of each successor, ascending.
        successors, counts: int64 [S]; a context's most frequent successor first.
        probabilities: float64 [S]: (count - ``DISCOUNT``) / count of the context.
        extensions: int64 [N]: how many contexts of the next order lie below each (empty at the last order).
    """

    contexts: Integers
    owner: Integers
    successors: Integers
    counts: Integers
    probabilities: Integers
    extensions: Integers


def count(
    documents: Iterable[Sequence[int] | Integers], vocab_size: int, min_counts: Sequence[int], max_successors: int
) -> list[Level]:
    """Count contexts of ``len(min_counts)`` orders; see :meth:`NgramTable.build`.

    Raises:
        ValueError: an id outside the vocabulary, no document of two tokens.
    """
    ids, place = _flatten(documents, vocab_size)
    levels = []
    before = np.zeros(len(ids), dtype=np.int64)  # per token, the number of the context before it; -1: none is kept
    for order, min_count in enumerate(min_counts, 1):
        contexts, totals, before = _contexts(ids, place, before, order, min_count, vocab_size)
        owner, successors, counts = _successors(ids, before, max_successors, vocab_size)
        probabilities = (counts - DISCOUNT) / totals[owner]
        levels.append(Level(contexts, owner, successors, counts, probabilities, np.empty(0, dtype=np.int64)))
    return levels


def trim(levels: Sequence[Level], vocab_size: int, max_bytes: int) -> list[Level]:
    """Keep the most frequent n-grams, of equal ones the shortest, as many as fit; fills in ``extensions``.

    A context stays while one of its successors does. Its shorter suffix then stays too: that one's best successor is
    at least as frequent and comes first.
    """
    trimmed: list[Level] = []
    for level, stays in reversed(list(zip(levels, _fitting(levels, vocab_size, max_bytes), strict=True))):
        contexts = np.unique(level.owner[stays])
        extensions = level.extensions
        if trimmed:
            above = trimmed[0].contexts // vocab_size
            extensions = np.bincount(above, minlength=len(level.contexts))[contexts]
            assert extensions.sum() == len(above)
        owner = np.searchsorted(contexts, level.owner[stays])
        successors, counts, probabilities = level.successors[stays], level.counts[stays], level.probabilities[stays]
        trimmed.insert(0, Level(level.contexts[contexts], owner, successors, counts, probabilities, extensions))
    return trimmed


def _fitting(levels: Sequence[Level], vocab_size: int, max_bytes: int) -> list[Integers]:
    """Per level, bool [S]: which successors stay."""
    order = np.repeat(np.arange(len(levels)), [len(level.owner) for level in levels])
    first = np.cumsum([0, *(len(level.contexts) for level in levels)])
    owner = np.concatenate([level.owner + start for level, start in zip(levels, first, strict=False)])
    counts, probabilities = (np.concatenate([getattr(x, name) for x in levels]) for name in ("counts", "probabilities"))
    ranking = np.lexsort((-probabilities, order, -counts))
    # A successor costs its token and a byte; the first of a context brings in that context.
    # The widths before trimming; a small table may turn out smaller than it had to.
    token = smallest([t for level in levels for t in (level.successors, level.contexts % vocab_size)]).itemsize
    extensions = smallest([np.bincount(level.contexts // vocab_size) for level in levels[1:]]).itemsize
    cost = np.full(len(ranking), token + 1)
    brings_in = np.unique(owner[ranking], return_index=True)[1]
    cost[brings_in] += token + 1 + np.where(order[ranking[brings_in]] < len(levels) - 1, extensions, 0)
    stays = np.zeros(len(ranking), dtype=bool)
    stays[ranking[: np.searchsorted(np.cumsum(cost), max_bytes, side="right")]] = True
    return [stays[order == place] for place in range(len(levels))]


def smallest(parts: Sequence[Integers]) -> Integers:
    """The parts one after the other, in the smallest unsigned type that holds them."""
    values = np.concatenate([np.empty(0, dtype=np.int64), *parts])
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))


def _flatten(documents: Iterable[Sequence[int] | Integers], vocab_size: int) -> tuple[Integers, Integers]:
    """All ids one after the other, and the place of each in its document."""
    arrays = [np.asarray(document, dtype=np.int64) for document in documents]
    if not any(len(array) > 1 for array in arrays):
        raise ValueError("documents: expected at least one of two tokens or more, got none")
    ids = np.concatenate(arrays)
    if not 0 <= ids.min() <= ids.max() < vocab_size:
        raise ValueError(f"documents: expected token ids 0 to {vocab_size - 1}, got {ids.min()} to {ids.max()}")
    return ids, np.concatenate([np.arange(len(array)) for array in arrays])


def _contexts(
    ids: Integers, place: Integers, shorter: Integers, order: int, min_count: int, vocab_size: int
) -> tuple[Integers, Integers, Integers]:
    """The contexts of one order that occur ``min_count`` times or more before some token.

    Args:
        shorter: per token, the number of the context of order - 1 before it, or -1.

    Returns:
        :attr:`Level.contexts` [N], their counts [N], and per token the number of its context of this order, or -1.
    """
    at = np.flatnonzero((place >= order) & (shorter >= 0))
    keys = shorter[at] * vocab_size + ids[at - order]
    contexts, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    kept = counts >= min_count
    before = np.full(len(ids), -1, dtype=np.int64)
    before[at] = np.where(kept, np.cumsum(kept) - 1, -1)[inverse]
    return contexts[kept], counts[kept], before


def _successors(
    ids: Integers, before: Integers, max_successors: int, vocab_size: int
) -> tuple[Integers, Integers, Integers]:
    """Owner, token and count of each context's most frequent successors."""
    at = np.flatnonzero(before >= 0)
    keys, counts = np.unique(before[at] * vocab_size + ids[at], return_counts=True)
    owner, token = np.divmod(keys, vocab_size)
    ranking = np.lexsort((token, -counts, owner))
    owner, token, counts = owner[ranking], token[ranking], counts[ranking]
    kept = np.arange(len(owner)) - np.searchsorted(owner, owner) < max_successors
    return owner[kept], token[kept], counts[kept]
