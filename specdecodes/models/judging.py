"""Judging a tree inside the run that scores it, from tensors alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from specdecodes.core.tree import Topology, Tree

Judge = Callable[[Tensor, Tree], tuple[Tensor, ...]]
"""What is made of a tree's logits [B, T, V]; it draws nothing and reads no value on the host."""


def parts_of(tree: Tree, judge: Judge | None) -> tuple[Tensor | None, ...]:
    """What a judge sees of a tree beside its tokens, as inputs of a run; nothing without a judge."""
    if judge is None:
        return ()
    structure = tree.structure
    return tree.num_nodes, tree.slots, structure.parents, structure.ancestors, structure.depths, structure.paths


def judged(judge: Judge | None, logits: Tensor, tokens: Tensor, parts: Sequence[Any]) -> tuple[Tensor, ...] | None:
    """What the judge makes of it; ``parts``: :func:`parts_of`, or copies of them."""
    if judge is None:
        return None
    num_nodes, slots, *structure = parts
    topology = Topology.of(*structure)
    return judge(logits, Tree(tokens, topology.parents, num_nodes, slots, topology=topology))
