"""Keep one state per node; select the accepted one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from specdecodes.plugins.states.base import StateBackend

if TYPE_CHECKING:
    from specdecodes.models.target import Target


class StateCopy(StateBackend):
    """Keep one conv window and one recurrent state per node; select the last accepted node's."""

    keep = "states"
    capturable = True

    def __init__(self, context: object = None) -> None:
        pass

    def move(self, target: Target, path: Tensor) -> None:
        """Copy the state of the last node of each row's path."""
        last = path.gather(1, (path >= 0).sum(1, keepdim=True) - 1)[:, 0]
        for stack, kept in zip(target.stacks, target.kept, strict=True):
            stack.select(last, *kept)

    @staticmethod
    def bytes_per_node(target: Target) -> int:
        """Per layer: W * C window entries in the model's dtype, and a state in the state's."""
        return sum(stack.bytes_per_node("states", target.dtype.itemsize) for stack in target.stacks)
