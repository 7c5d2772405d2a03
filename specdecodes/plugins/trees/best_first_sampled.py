"""Dynamic trees of drawn children: where the next draw goes depends on past draws only."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

import torch

from specdecodes.core.tree import Proposal, Tree
from specdecodes.hookspecs import hookimpl
from specdecodes.plugins.trees.drafted import Drafted, assemble, check_positive, expand, widths

if TYPE_CHECKING:
    from specdecodes.core.state import DecodeState
    from specdecodes.plugin import Context


class BestFirstSampled:
    """Draw children without replacement where they are most likely to be needed; keep every draw.

    Level by level the next draw goes to the node at which it is most likely to be of use: the probability that the
    target gets there, times that it takes none of the children drawn there before (both as the draft estimates them).
    A level ends where that falls below ``threshold`` or the budget is spent; then its ``width`` most probable nodes
    are run. DySpec (Xiong et al., arXiv 2410.11744) spends its draws like this, one run of the draft per draw; level
    by level takes one run per level.

    ``max_nodes`` counts the root; nodes that were not drawn are padding. At most ``topk`` children per node.
    """

    draws: tuple[str, ...] = ("without_replacement",)
    needs_marginals = False
    capturable = False

    def __init__(
        self,
        context: Context | None = None,
        *,
        max_nodes: int = 13,
        depth: int = 5,
        topk: int = 4,
        width: int = 4,
        threshold: float = 0.1,
    ) -> None:
        check_positive(max_nodes=max_nodes, depth=depth, topk=topk, width=width)
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold: expected a probability from 0 to 1, got {threshold}")
        self.topk = topk
        self.width = width
        self.threshold = float(threshold)
        self.max_depth = min(depth, max_nodes - 1)
        self.max_slots = max(sum(widths(depth=self.max_depth, topk=topk, width=width)), 1)
        self.max_nodes = max_nodes
        self.chain = topk == 1 or max_nodes <= 2

    @hookimpl
    def build_tree(self, state: DecodeState, proposal: Proposal) -> Tree:
        """Draw a level, run its most probable nodes, until the budget is spent or nothing is worth a draw."""
        rows = [Drafted(history[-1], 1.0) for history in state.history]
        asked, slots, kept_logq = [[0] for _ in rows], torch.zeros_like(state.root), None
        for level in range(self.max_depth):
            logq = proposal.logq(slots)
            if kept_logq is None:
                kept_logq = logq.new_zeros(logq.shape[0], self.max_nodes, logq.shape[-1])
            # All that a node may need, in draw order; a draw nobody asks for is never looked at.
            drawn = state.rng.draws(logq.flatten(0, 1).exp(), self.topk, False).view(*slots.shape, self.topk)
            chances = logq.gather(-1, drawn.clamp(min=0)).exp().tolist()
            chosen = []
            for i, (row, nodes) in enumerate(zip(rows, asked, strict=True)):
                kept_logq[i, nodes] = logq[i, : len(nodes)]
                first = len(row)
                self._draw(row, nodes, drawn[i].tolist(), chances[i])
                worth = [node for node in range(first, len(row)) if row.scores[node] >= self.threshold]
                chosen.append(row.best(worth, self.width) if len(row) < self.max_nodes else [])
            if level + 1 == self.max_depth or not any(chosen):
                break
            slots = expand(state, proposal, rows, chosen, min(self.width, self.topk ** (level + 1)))
            asked = chosen
        return assemble(state, rows, [range(len(row)) for row in rows], self.max_nodes, kept_logq)

    def _draw(self, row: Drafted, nodes: list[int], drawn: list[list[int]], chances: list[list[float]]) -> None:
        """Take draws of one level in the order of their use.

        Args:
            nodes: who may have children. drawn, chances: per node, the tokens in draw order and their probabilities.
        """
        # (minus the use, where the node stands in ``nodes``, which of its draws comes next)
        heap = [(-row.scores[node], i, 0) for i, node in enumerate(nodes)]
        heapify(heap)
        left = [1.0] * len(nodes)
        while heap and len(row) < self.max_nodes and -heap[0][0] >= self.threshold:
            _, i, k = heappop(heap)
            token, chance = drawn[i][k], chances[i][k]
            if token < 0:  # everything possible has been drawn
                continue
            reach = row.scores[nodes[i]]
            row.add(nodes[i], token, reach * chance)
            left[i] = max(left[i] - chance, 0.0)
            if k + 1 < self.topk:
                heappush(heap, (-reach * left[i], i, k + 1))
