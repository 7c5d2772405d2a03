"""Trees of a fixed shape: a chain is one with no siblings."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specdecodes.core.tree import Proposal, Topology, Tree
from specdecodes.hookspecs import hookimpl
from specdecodes.plugins.trees.shape import TreeShape

if TYPE_CHECKING:
    from specdecodes.core.state import DecodeState
    from specdecodes.plugin import Context


class Static:
    """Keep a fixed shape, such as 3,2.1,2.1,3 (STree's 13 nodes) or a JSON growmap.

    ``tree`` is the shape (see :meth:`TreeShape.parse`). Children are the drafter's best (``draws = none``) or drawn
    from it, and stay in draw order. Where the drafter has no candidate, the node and what hangs below it become
    padding, so that every tree has the same number of nodes T.
    """

    draws = ("none", "without_replacement", "iid")
    needs_marginals = False
    capturable = True

    def __init__(self, context: Context | None = None, *, tree: str = "3,2.1,2.1,3") -> None:
        self._plan(TreeShape.parse(tree), context)

    def _plan(self, shape: TreeShape, context: Context | None) -> None:
        device = torch.device("cpu") if context is None else context.target.device
        self.shape = shape
        self.max_nodes = len(shape.parents)
        self.max_depth = shape.depth
        self.chain = shape.is_chain
        self._levels = plan_levels(shape, device)

    @hookimpl
    def build_tree(self, state: DecodeState, proposal: Proposal) -> Tree:
        """Ask level by level: [B, n] slots, their K best or drawn tokens, then expand those with children."""
        tokens, slots, logq = [state.root], [torch.zeros_like(state.root)], None
        above = slots[0]
        for level in self._levels:
            asked = above if level.asked is None else above[:, level.asked]
            if state.draws == "none":
                drawn, _ = proposal.topk(asked, level.width)
            else:
                rows = proposal.logq(asked)
                logq = rows.new_zeros(rows.shape[0], self.max_nodes, rows.shape[-1]) if logq is None else logq
                logq[:, level.parents] = rows
                flat = state.rng.draws(rows.flatten(0, 1).exp(), level.width, state.draws == "iid")
                drawn = flat.view(*rows.shape[:2], level.width)
            drawn = drawn.flatten(1) if level.taken is None else drawn.flatten(1)[:, level.taken]
            tokens.append(drawn)
            if level.expanded is None:
                slots.append(torch.full_like(drawn, -1))
            else:
                parent_slots = asked[:, level.owner]
                above = proposal.expand(parent_slots[:, level.expanded], drawn[:, level.expanded].clamp(min=0))
                slots.append(torch.full_like(drawn, -1).index_copy(1, level.expanded, above))
        return self._finish(torch.cat(tokens, 1), torch.cat(slots, 1), logq, state.draws)

    def _finish(self, tokens: Tensor, slots: Tensor, logq: Tensor | None, draws: str) -> Tree:
        rows = tokens.shape[0]
        missing = tokens < 0
        if not bool(missing.any()):
            topology = topology_of((self.shape.parents,) * rows, tokens.device)
            return Tree(tokens, topology.parents, None, slots, logq, draws, topology)
        order, parents, counts = zip(*(drop(self.shape.parents, row) for row in missing.tolist()), strict=True)
        topology = topology_of(parents, tokens.device)
        index = torch.tensor(order, device=tokens.device)
        if logq is not None:
            logq = logq.gather(1, index[..., None].expand_as(logq))
        num_nodes = torch.tensor(counts, device=tokens.device)
        real = torch.arange(self.max_nodes, device=tokens.device) < num_nodes[:, None]
        tokens = tokens.gather(1, index).masked_fill(~real, 0)
        slots = slots.gather(1, index).masked_fill(~real, -1)
        return Tree(tokens, topology.parents, num_nodes, slots, logq, draws, topology)


class Chain(Static):
    """A chain of ``depth`` drafted tokens: vanilla speculative decoding."""

    draws = ("none", "iid", "without_replacement")

    def __init__(self, context: Context | None = None, *, depth: int = 4) -> None:
        self._plan(TreeShape.chain(depth), context)


class Root:
    """No drafted token: plain decoding as a tree of one node."""

    draws = ("none",)
    needs_marginals = False
    capturable = True
    chain = True
    max_nodes = 1
    max_depth = 0

    def __init__(self, context: Context | None = None) -> None:
        pass

    @hookimpl
    def build_tree(self, state: DecodeState, proposal: Proposal) -> Tree:
        """The root alone; a drafter that runs it (slot 0) commits it."""
        topology = topology_of(((-1,),) * state.root.shape[0], state.root.device)
        return Tree(state.root, topology.parents, None, torch.zeros_like(state.root), None, "none", topology)


class Level:
    """Index tensors of one level of a static shape (None where the identity would do).

    asked: which nodes of the level above have children; parents: their node ids; width: the most children of any;
    taken: which of the n * width candidates become nodes; owner: for each node, its parent's place in ``asked``;
    expanded: which nodes have children themselves (None: none has).
    """

    def __init__(
        self, counts: tuple[int, ...], above: list[int], first: int, deeper: tuple[int, ...], device: torch.device
    ) -> None:
        def index(values: list[int]) -> Tensor:
            return torch.tensor(values, device=device)

        with_children = [place for place, count in enumerate(counts) if count]
        self.width = max(counts)
        self.asked = None if len(with_children) == len(above) else index(with_children)
        self.parents = index([above[place] for place in with_children])
        taken = [i * self.width + k for i, place in enumerate(with_children) for k in range(counts[place])]
        self.taken = None if len(taken) == len(with_children) * self.width else index(taken)
        self.owner = index([i for i, place in enumerate(with_children) for _ in range(counts[place])])
        self.nodes = list(range(first, first + len(taken)))
        places = [place for place, count in enumerate(deeper) if count]
        self.expanded = index(places) if places else None


def plan_levels(shape: TreeShape, device: torch.device) -> list[Level]:
    """The levels of ``shape``; below the first, a level is asked about only the nodes that were expanded."""
    levels: list[Level] = []
    above, first = [0], 1
    for depth, counts in enumerate(shape.levels):
        deeper = shape.levels[depth + 1] if depth + 1 < shape.depth else ()
        if depth:  # the slots at hand are those of the expanded nodes, which all have children
            above = [node for node, count in zip(above, counts, strict=False) if count]
            counts = tuple(count for count in counts if count)
        level = Level(counts, above, first, deeper, device)
        levels.append(level)
        above, first = level.nodes, first + len(level.nodes)
    return levels


@lru_cache(maxsize=4096)
def topology_of(parents: tuple[tuple[int, ...], ...], device: torch.device) -> Topology:
    """The topology of these parents (one tuple per row), built once."""
    return Topology(torch.tensor(parents, device=device))


def drop(parents: tuple[int, ...], missing: list[bool]) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Move missing nodes and their subtrees behind the others, as padding: (node order, new parents, nodes left)."""
    place = {0: 0}
    order = [0]
    for node in range(1, len(parents)):
        if not missing[node] and parents[node] in place:
            place[node] = len(order)
            order.append(node)
    left = len(order)
    new_parents = [-1, *(place[parents[node]] for node in order[1:]), *([0] * (len(parents) - left))]
    order += [node for node in range(len(parents)) if node not in place]
    return tuple(order), tuple(new_parents), left
