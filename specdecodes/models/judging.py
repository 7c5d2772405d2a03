"""A tree as the run that scores it gets it, and judging it there, from tensors alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from specdecodes.core.tree import Topology, Tree
from specdecodes.models.placement import Behind

Judge = Callable[..., tuple[Tensor, ...]]
"""What is made of a tree's logits [B, T, V] and what was given beside them; it draws nothing, and reads no value on the
host."""


class Asked(NamedTuple):
    """What a run is asked about: a tree, and the judge's part.

    Attributes:
        tokens: [B, T]. nodes: the topology, or a view of it. behind: where the nodes stand.
        judge: None: nobody judges. num_nodes, slots: of the tree, where somebody judges. given: what the judge gets.
    """

    tokens: Tensor
    nodes: Topology
    behind: Behind
    judge: Judge | None
    num_nodes: Tensor | None
    slots: Tensor | None
    given: tuple[Any, ...]

    @classmethod
    def about(cls, tree: Tree, nodes: Topology, behind: Behind, judge: Judge | None, given: Sequence[Any]) -> Asked:
        """Of trees of one size, with and without padding, the same shapes."""
        if judge is None:
            return cls(tree.tokens, nodes, behind, None, None, None, ())
        num_nodes = tree.structure.all_nodes if tree.num_nodes is None else tree.num_nodes
        return cls(tree.tokens, nodes, behind, judge, num_nodes, tree.slots, tuple(given))

    def judged(self, logits: Tensor) -> tuple[Tensor, ...] | None:
        """What the judge makes of it."""
        if self.judge is None:
            return None
        tree = Tree(self.tokens, self.nodes.parents, self.num_nodes, self.slots, topology=self.nodes)
        return self.judge(logits, tree, *self.given)
