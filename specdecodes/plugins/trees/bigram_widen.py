"""A static tree with common followers of its tokens as further leaves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch.nn.functional import pad

from specdecodes.core.parents import children_of, depths_of
from specdecodes.core.transfer import sent
from specdecodes.core.tree import Proposal, Tree, topology_of
from specdecodes.hookspecs import hookimpl
from specdecodes.plugins.bigrams import BigramTable, bigrams_of
from specdecodes.plugins.trees.static import Static

if TYPE_CHECKING:
    from specdecodes.core.state import DecodeState
    from specdecodes.plugin import Context


class BigramWiden:
    """A static tree, widened before it is scored: a bigram table's followers of its tokens become leaves (ours).

    To every node of the shape, up to ``followers`` of its token that are not among its children already are added as
    further children, most frequent first; they have none themselves. The target judges them as it judges any draft,
    so that nothing is lost, where common-sense verification accepts them unasked. The drafter has not run them.

    ``tree``: the shape (see ``static``). ``levels``: which nodes are widened: ``all``, or levels by dots, 0 the root,
    such as ``0.1``. ``bigrams``: path of a table; by default the embedded one for the embedded target. The number of
    nodes T is fixed: a follower that is missing becomes padding. Children are chosen by score (``draws = none``).
    """

    draws = ("none",)
    needs_marginals = False
    capturable = True
    chain = False

    def __init__(
        self,
        context: Context,
        *,
        tree: str = "3,2.1,2.1,3",
        followers: int = 2,
        levels: str = "all",
        bigrams: str | Path | BigramTable | None = None,
    ) -> None:
        if followers < 1:
            raise ValueError(f"followers: expected at least 1 per node, got {followers}")
        self._base = Static(context, tree=tree)
        self._levels = _parse_levels(levels, self._base.max_depth)
        self._followers = followers
        self._table = bigrams_of(context, bigrams)
        self.max_slots = self._base.max_slots
        depths = depths_of(self._base.shape.parents)
        self.max_nodes = self._base.max_nodes + followers * sum(depth in self._levels for depth in depths)
        self.max_depth = max(self._base.max_depth, max(self._levels) + 1)

    @hookimpl
    def build_tree(self, state: DecodeState, proposal: Proposal) -> Tree:
        """Build the static tree, then look its tokens up; the nodes of the static tree keep their numbers."""
        base = self._base.build_tree(state, proposal)
        rows, size = base.shape
        sizes = [base.count(row) for row in range(rows)]
        given = zip(base.tokens.tolist(), base.parents.tolist(), sizes, strict=True)
        widened = [self._widen(tokens[:count], parents[:count]) for tokens, parents, count in given]
        counts = [len(tokens) for tokens, _ in widened]
        device = base.tokens.device
        tokens = sent([self._padded(tokens) for tokens, _ in widened], device)
        topology = topology_of(tuple(tuple(self._padded(parents)) for _, parents in widened), device)
        full = min(counts) == self.max_nodes
        num_nodes = None if full else sent(counts, device)
        assert base.slots is not None  # a static tree has them
        slots = pad(base.slots, (0, self.max_nodes - size), value=-1)
        return Tree(tokens, topology.parents, num_nodes, slots, None, "none", topology)

    def _widen(self, tokens: list[int], parents: list[int]) -> tuple[list[int], list[int]]:
        """Tokens and parents of one row's real nodes, the followers behind them."""
        all_tokens, all_parents = list(tokens), list(parents)
        for node, (depth, children) in enumerate(zip(depths_of(parents), children_of(parents), strict=True)):
            if depth in self._levels:
                there = {tokens[child] for child in children}
                new = [other for other in self._table.after(tokens[node]) if other not in there][: self._followers]
                all_tokens += new
                all_parents += [node] * len(new)
        return all_tokens, all_parents

    def _padded(self, values: list[int]) -> list[int]:
        return values + [0] * (self.max_nodes - len(values))


def _parse_levels(levels: str, depth: int) -> frozenset[int]:
    """Level numbers of the static shape, 0 to ``depth``."""
    if levels == "all":
        return frozenset(range(depth + 1))
    parts = levels.split(".")
    if not all(part.isdecimal() and int(part) <= depth for part in parts):
        raise ValueError(f"levels: expected 'all' or levels 0 (the root) to {depth} by dots ('0.1'), got {levels!r}")
    return frozenset(int(part) for part in parts)
