"""Beam search: the beams of all levels form the tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from specdecodes.core.tree import Proposal, Tree
from specdecodes.hookspecs import hookimpl
from specdecodes.plugins.trees import on_device
from specdecodes.plugins.trees.drafted import Drafted, assemble, check_positive, levels, widths

if TYPE_CHECKING:
    from specdecodes.core.state import DecodeState
    from specdecodes.plugin import Context


class Beam:
    """Keep the ``width`` best nodes of every level by the probability of their path, and expand each.

    STree's beam drafts (arXiv 2505.14969; its code calls the strategy MIL-bs): ``1 + width * depth`` nodes, of which
    those below the last level may be without children. Children are chosen by score (``draws = none``); where the
    drafter has fewer candidates, missing nodes are padding.
    """

    draws: tuple[str, ...] = ("none",)
    needs_marginals = False
    capturable = True

    def __init__(self, context: Context | None = None, *, width: int = 3, depth: int = 4) -> None:
        check_positive(width=width, depth=depth)
        self.width = width
        self.max_depth = depth
        self.max_nodes = 1 + width * depth
        self.max_slots = sum(widths(depth=depth, topk=width, width=width))
        self.chain = width == 1
        self._prepare = on_device.prepare_of(context)

    @hookimpl
    def build_tree(self, state: DecodeState, proposal: Proposal) -> Tree:
        """Level by level, the beams."""
        if (run := on_device.run_of(proposal, self.width)) is not None:
            return on_device.assemble(state, *run(self._drafted, state.root))
        rows = [Drafted(history[-1], 0.0) for history in state.history]
        kept = [[0] for _ in rows]
        for level in levels(state, proposal, rows, depth=self.max_depth, topk=self.width, width=self.width):
            for beams, new in zip(kept, level, strict=True):
                beams += new
        return assemble(state, rows, kept, self.max_nodes)

    def _drafted(self, proposal: Proposal, root: Tensor) -> tuple[Any, ...]:
        candidates, beams = on_device.grow(proposal, root, depth=self.max_depth, topk=self.width, width=self.width)
        return on_device.parts_of(candidates, beams, self.max_depth, self._prepare)
