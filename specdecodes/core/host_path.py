"""What was accepted, on the host: read from the device at once, by whoever needs it first."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from specdecodes.core.tree import Tree, Verdict


class HostPath(NamedTuple):
    """What was accepted in one row: nodes from the root on, their tokens and slots (None: without any), the bonus."""

    nodes: list[int]
    tokens: list[int]
    slots: list[int] | None
    bonus: int

    def cut(self, emitted: list[int]) -> HostPath:
        """The path of a row that emits these tokens alone: the last of them is run later, whatever it was."""
        length = len(emitted)
        slots = None if self.slots is None else self.slots[:length]
        return HostPath(self.nodes[:length], self.tokens[:length], slots, emitted[-1])


def numbers_of(verdict: Verdict, tree: Tree) -> Tensor:
    """All that a host must know of a verdict, in one tensor: int64 [B, 2 + 2 D], or 2 + 3 D with slots.

    ``num_accepted``, ``bonus``, ``path``, and of the path's nodes tokens and, where the tree has them, slots.
    """
    nodes = verdict.path.clamp(min=0)
    numbers = [verdict.num_accepted[:, None], verdict.bonus[:, None], verdict.path, tree.tokens.gather(1, nodes)]
    return torch.cat(numbers if tree.slots is None else [*numbers, tree.slots.gather(1, nodes)], dim=1)


def read(verdict: Verdict, tree: Tree, numbers: Tensor | None = None) -> list[HostPath]:
    """The paths of all rows, in one device-to-host copy; ``numbers``: :func:`numbers_of` both, where it is there."""
    if numbers is None and verdict.path.device.type == "cpu":
        return _looked_up(verdict, tree)
    numbers = numbers_of(verdict, tree) if numbers is None else numbers
    width, found = verdict.path.shape[1], []
    for accepted, bonus, *parts in numbers.tolist():
        nodes, tokens, slots = (parts[i * width : (i + 1) * width][: accepted + 1] for i in range(3))
        found.append(HostPath(nodes, tokens, slots or None, bonus))
    return found


def _looked_up(verdict: Verdict, tree: Tree) -> list[HostPath]:
    """On a CPU reading lists costs less than gathering first."""
    tokens, slots = tree.tokens.tolist(), None if tree.slots is None else tree.slots.tolist()
    found = []
    rows = zip(verdict.num_accepted.tolist(), verdict.bonus.tolist(), verdict.path.tolist(), strict=True)
    for row, (accepted, bonus, path) in enumerate(rows):
        nodes = path[: accepted + 1]
        of_nodes = None if slots is None else [slots[row][node] for node in nodes]
        found.append(HostPath(nodes, [tokens[row][node] for node in nodes], of_nodes, bonus))
    return found
