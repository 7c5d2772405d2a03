"""Keep the ops' inputs; jump along the accepted path in closed form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from specdecodes.plugins.states.base import StateBackend

if TYPE_CHECKING:
    from specdecodes.models.target import Target


class Replay(StateBackend):
    """Keep the ops' inputs; jump along the accepted path in closed form (STree's activation replay)."""

    keep = "inputs"
    capturable = True

    def __init__(self, context: object = None) -> None:
        pass

    def move(self, target: Target, path: Tensor) -> None:
        """One closed-form jump for all layers of a shape."""
        for stack, kept in zip(target.stacks, target.kept, strict=True):
            stack.jump(path, *kept)

    @staticmethod
    def bytes_per_node(target: Target) -> int:
        """Per layer: C conv inputs in the model's dtype, and what the scan's jump needs (Mamba-2: H step sizes)."""
        return sum(stack.bytes_per_node("inputs", target.dtype.itemsize) for stack in target.stacks)
