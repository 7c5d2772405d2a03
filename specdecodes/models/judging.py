"""Judging a tree inside the run that scores it, from tensors alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from specdecodes.core.tree import Topology, Tree

Judge = Callable[..., tuple[Tensor, ...]]
"""What is made of a tree's logits [B, T, V] and what was given beside them; it draws nothing, and reads no value on the
host."""


def parts_of(tree: Tree, judge: Judge | None, given: Sequence[Any]) -> tuple[Any, ...]:
    """What a judge gets beside a tree's tokens and topology; nothing without a judge."""
    if judge is None:
        return ()
    return tree.structure.all_nodes if tree.num_nodes is None else tree.num_nodes, tree.slots, *given


def judged(
    judge: Judge | None, logits: Tensor, tokens: Tensor, nodes: Topology, parts: Sequence[Any]
) -> tuple[Tensor, ...] | None:
    """What the judge makes of it; ``parts``: :func:`parts_of`, or copies of them."""
    if judge is None:
        return None
    num_nodes, slots, *given = parts
    return judge(logits, Tree(tokens, nodes.parents, num_nodes, slots, topology=nodes), *given)
