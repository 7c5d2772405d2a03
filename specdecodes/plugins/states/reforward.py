"""Keep nothing; run the accepted path again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from specdecodes.plugins.states.base import StateBackend

if TYPE_CHECKING:
    from specdecodes.models.target import Target


class Reforward(StateBackend):
    """Keep nothing but the state before the step; run the accepted path again (one more forward per step)."""

    keep = "nothing"

    def __init__(self, context: object = None) -> None:
        pass

    def move(self, target: Target, path: Tensor) -> None:
        """Scoring wrote no state, so there is nothing to restore: run the path's tokens from the prefix."""
        nodes = path[:, : int((path[0] >= 0).sum())]
        target.run_again(target.scored.tokens.gather(1, nodes))
