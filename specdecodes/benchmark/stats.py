"""The arithmetic of a benchmark: pure functions on counts and seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A bootstrap interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Pair:
    """One question decoded twice: tokens and seconds of the baseline and of the mode compared with it."""

    base_tokens: float
    base_seconds: float
    tokens: float
    seconds: float


def rate(tokens: float, seconds: float) -> float:
    """Tokens per second; 0 where no time was measured."""
    return tokens / seconds if seconds > 0 else 0.0


def speed_ratio(pairs: Sequence[Pair]) -> float:
    """Tokens per second of all questions together, over the baseline's (0 where nothing was measured)."""
    base = rate(sum(p.base_tokens for p in pairs), sum(p.base_seconds for p in pairs))
    own = rate(sum(p.tokens for p in pairs), sum(p.seconds for p in pairs))
    return own / base if base > 0 else 0.0


def bootstrap_ratio(
    pairs: Sequence[Pair], *, resamples: int = RESAMPLES, confidence: float = CONFIDENCE, seed: int = 0
) -> Interval | None:
    """Percentile bootstrap of :func:`speed_ratio`: whole questions are drawn with replacement, both sides together.

    Returns:
        None with fewer than two questions, or where no resample measured anything: then there is no spread to report.
    """
    if len(pairs) < 2:
        return None
    rows = [(p.base_tokens, p.base_seconds, p.tokens, p.seconds) for p in pairs]
    base_tokens, base_seconds, tokens, seconds = _resampled(rows, resamples, seed)
    return _percentiles((tokens * base_seconds) / (seconds * base_tokens), confidence)


def mean_difference(differences: Sequence[Sequence[float]]) -> float:
    """Mean over all answers; ``differences`` holds those of each question's answers."""
    return sum(map(sum, differences)) / sum(map(len, differences))


def bootstrap_difference(
    differences: Sequence[Sequence[float]],
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval | None:
    """Percentile bootstrap of :func:`mean_difference`: whole questions are drawn with replacement.

    Returns:
        None with fewer than two questions.
    """
    if len(differences) < 2:
        return None
    sums, counts = _resampled([(sum(own), len(own)) for own in differences], resamples, seed)
    return _percentiles(sums / counts, confidence)


def _resampled(rows: Sequence[Sequence[float]], resamples: int, seed: int) -> tuple[Tensor, ...]:
    """The columns of ``rows`` (one per question), each summed over every resample: float64 [resamples]."""
    table = torch.tensor(rows, dtype=torch.float64)
    drawn = torch.randint(len(rows), (resamples, len(rows)), generator=torch.Generator().manual_seed(seed))
    return table[drawn].sum(1).unbind(1)


def _percentiles(values: Tensor, confidence: float) -> Interval | None:
    values = values[values.isfinite()]
    if values.numel() == 0:
        return None
    tail = (1 - confidence) / 2
    low, high = torch.quantile(values, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(low, high)


def distinct_ngrams(tokens: Sequence[int], n: int = 4) -> tuple[int, int]:
    """How many different n-grams ``tokens`` holds, and how many in all."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(set(grams)), len(grams)


def first_mismatch(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """The first place where two answers differ (the shorter one's length if it begins the other), or None."""
    for index, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        if a != b:
            return index
    return None if len(ours) == len(theirs) else min(len(ours), len(theirs))


def add_by_depth(counts: Sequence[Sequence[int]]) -> list[int]:
    """Add lists of counts by depth; a list that ends early counts 0 from there on."""
    return [sum(column) for column in zip_longest(*counts, fillvalue=0)]


def add_by_rank(counts: Sequence[Sequence[Sequence[int]]]) -> list[list[int]]:
    """Add lists of counts by depth and rank, of any lengths."""
    return [add_by_depth(ranks) for ranks in zip_longest(*counts, fillvalue=())]


def acceptance_by_depth(offered: Sequence[int], accepted: Sequence[int]) -> list[float]:
    """Per depth, the share of the steps with a drafted token there that accepted one (0 where none was offered)."""
    return [a / o if o else 0.0 for o, a in zip(offered, accepted, strict=True)]
