"""Trees of the most probable paths, chosen anew at every step."""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import count
from math import log
from typing import TYPE_CHECKING, Any

from torch import Tensor

from specdecodes.core.tree import HostProposal, Proposal, Tree
from specdecodes.hookspecs import hookimpl
from specdecodes.plugins.trees import on_device
from specdecodes.plugins.trees.drafted import Drafted, assemble, check_positive, levels, widths

if TYPE_CHECKING:
    from specdecodes.core.state import DecodeState
    from specdecodes.plugin import Context


class BestFirst:
    """Keep the most probable paths of the draft: a new shape at every step, a fixed number of nodes.

    Level by level, the ``width`` best nodes of the last level (by the probability of their path) are run and their
    ``topk`` best children become candidates, down to ``depth``; the best ``max_nodes - 1`` of all candidates form the
    tree (EAGLE-2: Li et al., arXiv 2406.16858, section 4; OPT-Tree: Wang et al., arXiv 2406.17276). With a drafter
    that knew the target's probabilities this would be the largest expected number of accepted tokens. Drafting ends
    early where no deeper node can be among the best any more; that changes nothing but the time. A drafter that looks
    candidates up instead of running nodes (:class:`HostProposal`) is asked at the nodes that enter the tree alone, best
    first, and ``width`` does not bind it.

    Children are chosen by score (``draws = none``). ``max_nodes`` counts the root; missing nodes are padding.
    """

    draws: tuple[str, ...] = ("none",)
    needs_marginals = False
    capturable = True

    def __init__(
        self, context: Context | None = None, *, max_nodes: int = 13, depth: int = 5, topk: int = 4, width: int = 4
    ) -> None:
        check_positive(max_nodes=max_nodes, depth=depth, topk=topk, width=width)
        self.topk = topk
        self.width = min(width, max(max_nodes - 1, 1))  # no node beyond that place of its level can enter the tree
        self.max_depth = min(depth, max_nodes - 1)
        self.max_slots = max(sum(widths(depth=self.max_depth, topk=topk, width=self.width)), 1)
        # What the levels can give: one root, then topk children of each node that is run.
        self.max_nodes = min(max_nodes, 1 + topk * self.max_slots)
        self.chain = topk == 1 or self.max_nodes <= 2
        self._prepare = on_device.prepare_of(context)

    @hookimpl
    def build_tree(self, state: DecodeState, proposal: Proposal) -> Tree:
        """Draft until nothing better can come, then keep the best."""
        if isinstance(proposal, HostProposal):
            looked_up = [self._search(proposal, row, history[-1]) for row, history in enumerate(state.history)]
            return assemble(state, looked_up, [range(len(row)) for row in looked_up], self.max_nodes)
        if (run := on_device.run_of(proposal, self.topk)) is not None:
            return on_device.assemble(state, *run(self._drafted, state.root))
        rows = [Drafted(history[-1], 0.0) for history in state.history]
        count = self.max_nodes - 1
        best: list[list[int]] = [[] for _ in rows]
        for level in levels(state, proposal, rows, depth=self.max_depth, topk=self.topk, width=self.width):
            best = [row.best(range(1, len(row)), count) for row in rows]
            if all(_full(row, top, new, count) for row, top, new in zip(rows, best, level, strict=True)):
                break
        return assemble(state, rows, [[0, *nodes] for nodes in best], self.max_nodes)

    def _drafted(self, proposal: Proposal, root: Tensor) -> tuple[Any, ...]:
        """All levels, then the best of all candidates."""
        candidates, _ = on_device.grow(proposal, root, depth=self.max_depth, topk=self.topk, width=self.width)
        kept = on_device.best(candidates, self.max_nodes - 1)
        return on_device.parts_of(candidates, kept, self.max_depth, self._prepare)

    def _search(self, proposal: HostProposal, row: int, root: int) -> Drafted:
        """Add paths, the most probable first."""
        drafted = Drafted(root, 0.0)
        # (minus the log-probability, order of arrival, parent, token)
        heap: list[tuple[float, int, int, int]] = []
        arrival, depths, node = count(), [0], 0
        while True:
            if depths[node] < self.max_depth:
                score = drafted.scores[node]
                for token, probability in proposal.candidates(row, drafted.slots[node], self.topk):
                    heappush(heap, (max(-log(probability), 0.0) - score, next(arrival), node, token))
            if not heap:
                return drafted
            negative, _, parent, token = heappop(heap)
            node = len(drafted)
            drafted.add(parent, token, -negative)
            depths.append(depths[parent] + 1)
            if len(drafted) == self.max_nodes:
                return drafted
            drafted.slots[node] = proposal.enter(row, drafted.slots[parent], token)


def _full(row: Drafted, best: list[int], level: list[int], count: int) -> bool:
    """Whether no node below this level (its best nodes) can enter the ``best`` ones."""
    if not level:
        return True
    scores = row.scores
    return len(best) == count and max(scores[node] for node in level) <= min(scores[node] for node in best)
