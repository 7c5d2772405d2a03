"""Best-first trees over the independent marginals of a parallel drafter."""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import TYPE_CHECKING

from specdecodes.core.tree import Proposal, Tree
from specdecodes.hookspecs import hookimpl
from specdecodes.plugins.trees.drafted import Drafted, assemble, check_positive

if TYPE_CHECKING:
    from specdecodes.core.state import DecodeState
    from specdecodes.plugin import Context


class Marginal:
    """Keep the most probable paths of a parallel drafter, whose depths are independent of each other.

    Such a drafter gives one distribution per depth (``Proposal.marginals``); the probability of a path is the product
    along it, and nothing has to be run to go deeper. The best ``max_nodes - 1`` paths over the ``topk`` best tokens of
    each depth, by best-first search. Chosen by score (``draws = none``). ``max_nodes`` counts the root.
    """

    draws: tuple[str, ...] = ("none",)
    needs_marginals = True
    capturable = False
    max_slots = 1

    def __init__(self, context: Context | None = None, *, max_nodes: int = 13, depth: int = 4, topk: int = 8) -> None:
        check_positive(max_nodes=max_nodes, depth=depth, topk=topk)
        self.topk = topk
        self.max_nodes = max_nodes
        self.max_depth = min(depth, max_nodes - 1)
        self.chain = topk == 1 or max_nodes <= 2

    @hookimpl
    def build_tree(self, state: DecodeState, proposal: Proposal) -> Tree:
        """One top-k over all depths, then a heap."""
        marginals = proposal.marginals
        if marginals is None:
            raise ValueError(
                "tree builder 'marginal': expected per-depth marginals, got none from this drafter; "
                "use 'best-first' with drafters that are asked level by level"
            )
        marginals = marginals[:, : self.max_depth]
        logq, tokens = marginals.topk(min(self.topk, marginals.shape[-1]), dim=-1)
        rows = []
        for history, *best in zip(state.history, tokens.tolist(), logq.tolist(), strict=True):
            row = Drafted(history[-1], 0.0)
            self._search(row, *best)
            rows.append(row)
        return assemble(state, rows, [range(len(row)) for row in rows], self.max_nodes)

    def _search(self, row: Drafted, tokens: list[list[int]], logq: list[list[float]]) -> None:
        """Add paths, the most probable first; ``tokens`` and ``logq`` per depth, best first.

        A node's next sibling and its first child are the only ones that can follow it, so two pushes per node do.
        """
        # (minus the log-probability, order of arrival, parent, depth, rank)
        heap: list[tuple[float, int, int, int, int]] = []
        arrival = count()

        def push(parent: int, depth: int, rank: int) -> None:
            if depth < len(tokens) and rank < len(tokens[depth]) and logq[depth][rank] > -inf:
                # Rounding may put a certain token above 0.
                score = row.scores[parent] + min(logq[depth][rank], 0.0)
                heappush(heap, (-score, next(arrival), parent, depth, rank))

        push(0, 0, 0)
        while heap and len(row) < self.max_nodes:
            score, _, parent, depth, rank = heappop(heap)
            row.add(parent, tokens[depth][rank], -score)
            push(parent, depth, rank + 1)
            push(len(row) - 1, depth + 1, 0)
