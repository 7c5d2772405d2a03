"""What was drafted and what was accepted, by depth in the tree and by rank among siblings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specdecodes.core.parents import children_of, depths_of
from specdecodes.hookspecs import hookimpl

if TYPE_CHECKING:
    from specdecodes.core.decoder import Generation
    from specdecodes.core.state import DecodeState
    from specdecodes.core.tree import Tree, Verdict

Shape = tuple[Tensor, Tensor | None, Tensor]
"""Of one step: parents [B, T], number of nodes [B] or None, accepted path of row 0 [D]."""


class Acceptance:
    """Puts counts into ``Generation.extras["acceptance"]``: ``drafted``, and four lists by depth.

    ``drafted`` counts the drafted nodes of all steps; ``offered[d - 1]`` the steps whose tree had a node at depth d;
    ``accepted[d - 1]`` the steps that accepted one there. ``offered_by_rank[d - 1][r - 1]`` counts the steps in which
    an accepted node (or the root) had an r-th child, at depth d; ``accepted_by_rank[d - 1][r - 1]`` those that
    accepted it. A step copies nothing to the host: the trees' shapes are read when the generation is finished.
    Row 0 only.
    """

    def __init__(self, context: object = None) -> None:
        pass

    @hookimpl
    def generation_started(self, state: DecodeState) -> None:
        """Start from nothing."""
        state.extras["acceptance"] = []

    @hookimpl
    def step_finished(self, state: DecodeState, tree: Tree, verdict: Verdict) -> None:
        """Remember the tree's shape and the path."""
        # A component may reuse its buffers in the next step; a topology belongs to a shape and is never written again.
        parents = tree.parents.clone() if tree.topology is None else tree.topology.parents
        count = None if tree.num_nodes is None else tree.num_nodes.clone()
        state.extras.setdefault("acceptance", []).append((parents, count, verdict.path[0].clone()))

    @hookimpl
    def generation_finished(self, state: DecodeState, generation: Generation) -> None:
        """Count."""
        parents, paths = _on_host(state.extras.get("acceptance", []))
        generation.extras["acceptance"] = count_steps(parents, paths, generation.accept_lengths)


def count_steps(
    parents: Sequence[Sequence[int]], paths: Sequence[Sequence[int]], accept_lengths: Sequence[int]
) -> dict[str, int | list[int] | list[list[int]]]:
    """Count drafted nodes, and what was offered and accepted by depth and by rank (see :class:`Acceptance`).

    Args:
        parents: per step, the parent of every real node of its tree, -1 at the root.
        paths: per step, the accepted nodes from the root on.
        accept_lengths: per step, the emitted tokens, bonus included; only emitted ones count as accepted.
    """
    offered: list[int] = []
    accepted: list[int] = []
    offered_by_rank: list[list[int]] = []
    accepted_by_rank: list[list[int]] = []
    for step, path, emitted in zip(parents, paths, accept_lengths, strict=True):
        for depth in range(max(depths_of(step))):
            _count(offered, depth)
            _count(accepted, depth, int(depth < emitted - 1))
        children = children_of(step)
        walked = path[:emitted]
        for depth, node in enumerate(walked):
            for rank, child in enumerate(children[node]):
                _count(_row(offered_by_rank, depth), rank)
                _count(_row(accepted_by_rank, depth), rank, int(child in walked))
    return {
        "drafted": sum(len(step) - 1 for step in parents),
        "offered": offered,
        "accepted": accepted,
        "offered_by_rank": offered_by_rank,
        "accepted_by_rank": accepted_by_rank,
    }


def _row(rows: list[list[int]], index: int) -> list[int]:
    while len(rows) <= index:
        rows.append([])
    return rows[index]


def _count(counts: list[int], index: int, by: int = 1) -> None:
    counts += [0] * (index + 1 - len(counts))
    counts[index] += by


def _on_host(steps: Sequence[Shape]) -> tuple[list[list[int]], list[list[int]]]:
    """Every step's parents and path: one copy each for all shapes, counts and paths."""
    if not steps:
        return [], []
    shapes = {id(parents): parents for parents, _, _ in steps}
    above: Iterator[int] = iter(torch.cat([parents[0] for parents in shapes.values()]).tolist())
    known = {key: [next(above) for _ in range(parents.shape[1])] for key, parents in shapes.items()}
    whole = {key: parents.new_tensor([parents.shape[1]]) for key, parents in shapes.items()}
    counts = torch.cat([whole[id(parents)] if count is None else count[:1] for parents, count, _ in steps]).tolist()
    nodes: Iterator[int] = iter(torch.cat([path for _, _, path in steps]).tolist())
    paths = [[next(nodes) for _ in range(path.shape[0])] for _, _, path in steps]
    trees = [known[id(parents)][:count] for (parents, _, _), count in zip(steps, counts, strict=True)]
    return trees, [[node for node in path if node >= 0] for path in paths]
