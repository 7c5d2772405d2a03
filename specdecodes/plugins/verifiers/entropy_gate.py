"""Forgive a mismatch that the draft recovers from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from specdecodes.plugins.verifiers.base import MatchingVerifier

GATES = ("low-entropy", "high-entropy", "probability")


class EntropyGate(MatchingVerifier):
    """Token matching that forgives a mismatch, lossy: a gate must open, and exact matches must follow (after subspec).

    As with token-match, the child that equals the target's choice is entered. Where there is none, a child x is
    accepted if both hold:

    1. the gate is open: ``low-entropy``: H(p) / ln V < ``threshold`` (subspec's); ``high-entropy``: H(p) / ln V >=
       ``threshold`` (the target is undecided); ``probability``: p(x) >= ``threshold``;
    2. below x at least ``window_size`` drafted tokens in a row equal the target's choices there.

    Of several the one with the longest run of matches is entered, then the first drafted. p and its entropy H are the
    target's after temperature, top-k and the like (temperature 0: at temperature 1). What p rules out is never
    accepted. ``window_size`` may be 0.
    """

    serves = ("greedy", "sampling")

    def __init__(
        self, context: object = None, *, gate: str = "low-entropy", threshold: float = 0.3, window_size: int = 2
    ) -> None:
        if gate not in GATES:
            raise ValueError(f"gate: expected one of {', '.join(GATES)}, got {gate!r}")
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold: expected 0 to 1, got {threshold}")
        if window_size < 0:
            raise ValueError(f"window_size: expected 0 matches or more, got {window_size}")
        self.gate = gate
        self.threshold = threshold
        self.window_size = window_size

    def otherwise(
        self,
        scores: Tensor,
        node: int,
        children: Sequence[int],
        tokens: Sequence[int],
        match: Callable[[int], int | None],
    ) -> int | None:
        """See the class."""
        p = scores.softmax(-1)
        if self.gate != "probability":
            entropy = float(torch.special.entr(p).sum()) / math.log(len(p))
            if (entropy < self.threshold) != (self.gate == "low-entropy"):
                return None
        least = self.threshold if self.gate == "probability" else 0.0
        chances = {child: float(p[tokens[child]]) for child in children}
        runs = {child: _matches_below(child, match) for child, chance in chances.items() if 0 < chance >= least}
        best = max(runs, key=runs.__getitem__, default=None)  # the first of equals
        return best if best is not None and runs[best] >= self.window_size else None


def _matches_below(node: int, match: Callable[[int], int | None]) -> int:
    """How many tokens in a row below ``node`` equal the target's choices."""
    count = 0
    below = match(node)
    while below is not None:
        count += 1
        below = match(below)
    return count
