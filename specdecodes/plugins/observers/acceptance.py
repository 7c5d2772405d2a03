"""What was drafted and what was accepted, by depth in the tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specdecodes.hookspecs import hookimpl

if TYPE_CHECKING:
    from specdecodes.core.decoder import Generation
    from specdecodes.core.state import DecodeState
    from specdecodes.core.tree import Tree, Verdict


class Acceptance:
    """Puts ``drafted``, ``offered`` and ``accepted`` into ``Generation.extras["acceptance"]``.

    ``drafted`` counts the drafted nodes of all steps; ``offered[d - 1]`` the steps whose tree had a node at depth d;
    ``accepted[d - 1]`` the steps that accepted one there. A step copies nothing to the host: the trees' shapes are
    read when the generation is finished. Row 0 only.
    """

    def __init__(self, context: object = None) -> None:
        pass

    @hookimpl
    def generation_started(self, state: DecodeState) -> None:
        """Start from nothing."""
        state.extras["acceptance"] = []

    @hookimpl
    def step_finished(self, state: DecodeState, tree: Tree, verdict: Verdict) -> None:
        """Remember the tree's shape."""
        # A builder may reuse its buffers in the next step; depths belong to a shape and are never written again.
        count = None if tree.num_nodes is None else tree.num_nodes.clone()
        state.extras.setdefault("acceptance", []).append((tree.structure.depths, count))

    @hookimpl
    def generation_finished(self, state: DecodeState, generation: Generation) -> None:
        """Count."""
        depths = _depths(state.extras.get("acceptance", []))
        generation.extras["acceptance"] = count_by_depth(depths, generation.accept_lengths)


def count_by_depth(depths: Sequence[Sequence[int]], accept_lengths: Sequence[int]) -> dict[str, int | list[int]]:
    """Count drafted nodes, and per depth the steps that offered one and the steps that accepted one.

    Args:
        depths: per step, the depth of every real node of its tree, the root (0) first.
        accept_lengths: per step, the emitted tokens, bonus included.
    """
    deepest = max((max(step) for step in depths), default=0)
    offered, accepted = [0] * deepest, [0] * deepest
    for step, emitted in zip(depths, accept_lengths, strict=True):
        for depth in range(max(step)):
            offered[depth] += 1
        for depth in range(emitted - 1):
            accepted[depth] += 1
    return {"drafted": sum(len(step) - 1 for step in depths), "offered": offered, "accepted": accepted}


def _depths(shapes: Sequence[tuple[Tensor, Tensor | None]]) -> list[list[int]]:
    """Every step's depths on the host: one copy for all counts, one for each distinct shape."""
    rows = {id(depths): depths for depths, _ in shapes}
    known = {key: depths[0].tolist() for key, depths in rows.items()}
    counts = [len(known[id(depths)]) if count is None else -1 for depths, count in shapes]
    if device_counts := [count[0] for _, count in shapes if count is not None]:
        real = iter(torch.stack(device_counts).tolist())
        counts = [next(real) if count < 0 else count for count in counts]
    return [known[id(depths)][:count] for (depths, _), count in zip(shapes, counts, strict=True)]
