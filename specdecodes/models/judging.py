"""Judging a tree inside the run that scores it, from tensors alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from specdecodes.core.tree import Topology, Tree

Judge = Callable[[Tensor, Tree], tuple[Tensor, ...]]
"""What is made of a tree's logits [B, T, V]; it draws nothing and reads no value on the host."""


def parts_of(tree: Tree, judge: Judge | None) -> tuple[Tensor | None, ...]:
    """What a judge sees of a tree beside its tokens, as inputs of a run; nothing without a judge."""
    if judge is None:
        return ()
    structure, (rows, count) = tree.structure, tree.shape
    # Few shapes, since each is a graph of the whole model: paths of a power of two, and always a number of nodes.
    deepest = structure.paths.shape[-1]
    paths = pad(structure.paths, (0, (1 << (deepest - 1).bit_length()) - deepest), value=-1)
    num_nodes = tree.num_nodes
    if num_nodes is None:
        num_nodes = torch.full((rows,), count, device=tree.tokens.device)
    return num_nodes, tree.slots, structure.parents, structure.ancestors, structure.depths, paths


def judged(judge: Judge | None, logits: Tensor, tokens: Tensor, parts: Sequence[Any]) -> tuple[Tensor, ...] | None:
    """What the judge makes of it; ``parts``: :func:`parts_of`, or copies of them."""
    if judge is None:
        return None
    num_nodes, slots, *structure = parts
    topology = Topology.of(*structure)
    return judge(logits, Tree(tokens, topology.parents, num_nodes, slots, topology=topology))
