"""Accept a draft that usually follows the token before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from specdecodes.plugins.bigrams import BigramTable, bigrams_of
from specdecodes.plugins.verifiers.base import MatchingVerifier

if TYPE_CHECKING:
    from specdecodes.plugin import Context


class Commonsense(MatchingVerifier):
    """Token matching that also accepts drafted common followers, lossy: what a bigram table lists after the parent.

    As with token-match, the child that equals the target's choice is entered. Where there is none, a drafted child
    that is among the parent token's followers is accepted, of several the one that the target finds most probable;
    none that the target rules out. What is accepted is always a drafted node, so its cache, state and logits were
    computed for the very token that is emitted. (The idea is that of common-sense token verification; there the first
    child is overwritten with another token after it was scored, and everything after it is conditioned on a token that
    was never emitted.) The tree builder ``bigram-widen`` has the same gain without the loss.

    ``bigrams``: path of a table (``specdecodes bigrams build``); by default the embedded one for the embedded target.
    """

    serves = ("greedy", "sampling")

    def __init__(self, context: Context, *, bigrams: str | Path | BigramTable | None = None) -> None:
        self.table = bigrams_of(context, bigrams)

    def otherwise(
        self,
        scores: Tensor,
        node: int,
        children: Sequence[int],
        tokens: Sequence[int],
        match: Callable[[int], int | None],
    ) -> int | None:
        """See the class."""
        followers = set(self.table.after(tokens[node]))
        common = {child: float(scores[tokens[child]]) for child in children if tokens[child] in followers}
        best = max(common, key=common.__getitem__, default=None)
        return best if best is not None and common[best] > -math.inf else None
