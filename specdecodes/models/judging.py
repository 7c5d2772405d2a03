"""Judging a tree inside the run that scores it, from tensors alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from specdecodes.core.tree import Topology, Tree

Judge = Callable[[Tensor, Tree], tuple[Tensor, ...]]
"""What is made of a tree's logits [B, T, V]; it draws nothing and reads no value on the host."""


def parts_of(tree: Tree, judge: Judge | None) -> tuple[Tensor | None, ...]:
    """What a judge sees of a tree beside tokens and topology; nothing without a judge."""
    return () if judge is None else (tree.structure.all_nodes if tree.num_nodes is None else tree.num_nodes, tree.slots)


def judged(
    judge: Judge | None, logits: Tensor, tokens: Tensor, nodes: Topology, parts: Sequence[Tensor | None]
) -> tuple[Tensor, ...] | None:
    """What the judge makes of it; ``parts``: :func:`parts_of`, or copies of them."""
    if judge is None:
        return None
    num_nodes, slots = parts
    return judge(logits, Tree(tokens, nodes.parents, num_nodes, slots, topology=nodes))
