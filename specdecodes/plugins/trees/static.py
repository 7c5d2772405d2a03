"""Trees of a fixed shape: a chain is one with no siblings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from specdecodes.core.parents import children_of
from specdecodes.core.sampling import first_arrivals
from specdecodes.core.transfer import sent
from specdecodes.core.tree import HostProposal, Proposal, Tree, topology_of
from specdecodes.hookspecs import hookimpl
from specdecodes.plugins.trees.drafted import Drafted, assemble
from specdecodes.plugins.trees.shape import TreeShape

if TYPE_CHECKING:
    from specdecodes.core.state import DecodeState
    from specdecodes.plugin import Context


class Static:
    """Keep a fixed shape, such as 3,2.1,2.1,3 (STree's 13 nodes) or a growmap.

    ``tree`` is the shape or the path of a growmap file (see :meth:`TreeShape.parse`). Children are the drafter's best
    (``draws = none``) or drawn from it, and stay in draw order. Where the drafter has no candidate, the node and what
    hangs below it become padding, so that every tree has the same number of nodes T.
    """

    draws: tuple[str, ...] = ("none", "without_replacement", "iid")
    needs_marginals = False
    capturable = True

    def __init__(self, context: Context | None = None, *, tree: str = "3,2.1,2.1,3") -> None:
        self._use(TreeShape.parse(tree), context)

    def _use(self, shape: TreeShape, context: Context | None) -> None:
        device = torch.device("cpu") if context is None else context.target.device
        self.shape = shape
        self.max_nodes = len(shape.parents)
        self.max_depth = shape.depth
        self.chain = shape.is_chain
        self._plan = plan_of(shape, device)
        self._widest = max((level.width for level in self._plan.levels), default=0)
        self._children = children_of(shape.parents)
        self.max_slots = 1 + sum(len(level.owners) for level in self._plan.levels)

    @hookimpl
    def build_tree(self, state: DecodeState, proposal: Proposal) -> Tree:
        """Ask level by level: the K best or drawn children of n slots, then expand those that have children."""
        if state.draws == "none" and isinstance(proposal, HostProposal):
            found = [self._look_up(proposal, row, ids[-1]) for row, ids in enumerate(state.history)]
            return assemble(state, found, [range(len(row)) for row in found], self.max_nodes)
        if state.draws == "none":
            run = getattr(proposal, "in_one", None)
            tokens, slots = self._best(proposal, state.root) if run is None else run(self._best, state.root)
            whole = getattr(proposal, "at_least", 0) >= self._widest
            return self._finish(tokens, slots, None, state.draws, whole)
        iid, asked = state.draws == "iid", cast("Any", proposal)
        run = getattr(proposal, "in_one", None)
        if run is None or (iid and self._widest > 1):
            tokens, slots, logq = self._drawn(proposal, state.root, partial(state.rng.draws, replacement=iid))
        else:
            counts = [len(state.root) * len(level.parents) for level in self._plan.levels]
            noise = [state.rng.noise((count, asked.at_least), asked.dtype) for count in counts]
            tokens, slots, logq = run(self._drawn_by, state.root, *noise)
        return self._finish(tokens, slots, logq, state.draws)

    def _drawn_by(self, proposal: Proposal, root: Tensor, *noise: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """:meth:`_drawn` with the noise of all levels, as ``rng.draws`` would make it."""
        left = iter(noise)
        return self._drawn(proposal, root, lambda probs, count: first_arrivals(probs, next(left), count))

    def _drawn(
        self, proposal: Proposal, root: Tensor, draw: Callable[[Tensor, int], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The shape filled by drawing: tokens and slots [B, T], and what was drawn from [B, T, V] (None: nothing).

        Args:
            draw: a number of tokens from each row of probabilities.
        """
        logq: Tensor | None = None

        def children(above: Tensor, level: Level) -> Tensor:
            nonlocal logq
            rows = proposal.logq(above)
            logq = rows.new_zeros(rows.shape[0], self.max_nodes, rows.shape[-1]) if logq is None else logq
            logq[:, level.parents] = rows
            return draw(rows.flatten(0, 1).exp(), level.width)

        return *self._fill(proposal, root, children), logq

    def _best(self, proposal: Proposal, root: Tensor) -> tuple[Tensor, Tensor]:
        """The shape filled with the best candidates, from tensors alone: tokens and slots [B, T]."""
        return self._fill(proposal, root, lambda above, level: proposal.topk(above, level.width)[0])

    def _fill(
        self, proposal: Proposal, root: Tensor, children: Callable[[Tensor, Level], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Ask level by level and run what has children: tokens and slots [B, T].

        Args:
            children: of the slots [B, n] at which a level is asked, [B, n, K] or [B * n, K].
        """
        plan = self._plan
        above = torch.zeros_like(root)
        tokens, slots = [root], [above]
        for level in plan.levels:
            drawn = children(above, level)
            candidates = drawn.reshape(above.shape[0], -1)
            tokens.append(candidates)
            if level.expanded is not None:
                below = candidates.index_select(1, level.expanded).clamp(min=0)
                above = proposal.expand(above.index_select(1, level.owners), below)
                slots.append(above)
        slots.append(torch.full_like(root, -1))
        return torch.cat(tokens, 1).index_select(1, plan.tokens), torch.cat(slots, 1).index_select(1, plan.slots)

    def _look_up(self, proposal: HostProposal, row: int, root: int) -> Drafted:
        """Fill the shape node by node; a node without a candidate stays away, and what hangs below it."""
        drafted = Drafted(root, 0.0)
        place = {0: 0}
        for node, children in enumerate(self._children):
            at = place.get(node)
            if at is None or not children:
                continue
            if at:
                above = drafted.slots[drafted.parents[at]]
                drafted.slots[at] = proposal.enter(row, above, drafted.tokens[at])
            candidates = proposal.candidates(row, drafted.slots[at], len(children))
            for child, (token, _) in zip(children, candidates, strict=False):
                place[child] = len(drafted)
                drafted.add(at, token, 0.0)
        return drafted

    def _finish(self, tokens: Tensor, slots: Tensor, logq: Tensor | None, draws: str, whole: bool = False) -> Tree:
        """What was drafted as a tree; ``whole``: it is known that no candidate is missing."""
        rows = tokens.shape[0]
        missing = tokens < 0
        if whole or not bool(missing.any()):
            topology = topology_of((self.shape.parents,) * rows, tokens.device)
            return Tree(tokens, topology.parents, None, slots, logq, draws, topology)
        order, parents, counts = zip(*(drop(self.shape.parents, row) for row in missing.tolist()), strict=True)
        topology = topology_of(parents, tokens.device)
        index = sent(order, tokens.device)
        if logq is not None:
            logq = logq.gather(1, index[..., None].expand_as(logq))
        num_nodes = sent(counts, tokens.device)
        real = torch.arange(self.max_nodes, device=tokens.device) < num_nodes[:, None]
        tokens = tokens.gather(1, index).masked_fill(~real, 0)
        slots = slots.gather(1, index).masked_fill(~real, -1)
        return Tree(tokens, topology.parents, num_nodes, slots, logq, draws, topology)


class Chain(Static):
    """A chain of ``depth`` drafted tokens: vanilla speculative decoding."""

    draws = ("none", "iid", "without_replacement")

    def __init__(self, context: Context | None = None, *, depth: int = 4) -> None:
        self._use(TreeShape.chain(depth), context)


class Root:
    """No drafted token: plain decoding as a tree of one node."""

    draws = ("none",)
    needs_marginals = False
    capturable = True
    chain = True
    max_nodes = 1
    max_slots = 1
    max_depth = 0

    def __init__(self, context: Context | None = None) -> None:
        pass

    @hookimpl
    def build_tree(self, state: DecodeState, proposal: Proposal) -> Tree:
        """The root alone; a drafter that runs it (slot 0) commits it."""
        topology = topology_of(((-1,),) * state.root.shape[0], state.root.device)
        return Tree(state.root, topology.parents, None, torch.zeros_like(state.root), None, "none", topology)


@dataclass(frozen=True)
class Level:
    """How one level of a static shape is asked for; n nodes of the level above have children.

    Attributes:
        width: candidates asked for at each of them (the most children that any has).
        parents: their node ids [n].
        expanded: which of the n * width candidates are run, because they have children themselves; None: none.
        owners: for each of those, its parent's place among the n.
    """

    width: int
    parents: Tensor
    expanded: Tensor | None
    owners: Tensor


@dataclass(frozen=True)
class Plan:
    """Index tensors of a static shape, made once.

    Attributes:
        tokens: where each of the T nodes stands in root and candidates of all levels, one after the other.
        slots: where its slot stands in slot 0, the slots of all levels, and a last -1.
    """

    levels: list[Level]
    tokens: Tensor
    slots: Tensor


def plan_of(shape: TreeShape, device: torch.device) -> Plan:
    """Number candidates and slots of ``shape`` level by level, breadth first."""

    def index(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    levels: list[Level] = []
    tokens, slots = [0], [0]
    num_candidates, num_slots = 1, 1
    above = [0]
    for depth, counts in enumerate(shape.levels):
        deeper = shape.levels[depth + 1] if depth + 1 < shape.depth else ()
        asked = [(node, count) for node, count in zip(above, counts, strict=False) if count]
        width = max(count for _, count in asked)
        # (place of the parent among those asked, place among the candidates) of every node of this level
        nodes = [(place, place * width + k) for place, (_, count) in enumerate(asked) for k in range(count)]
        run = [node for node, count in zip(nodes, deeper, strict=False) if count]
        above = list(range(len(tokens), len(tokens) + len(nodes)))
        tokens += [num_candidates + candidate for _, candidate in nodes]
        slots += [num_slots + run.index(node) if node in run else -1 for node in nodes]
        num_candidates += len(asked) * width
        num_slots += len(run)
        expanded = index([candidate for _, candidate in run]) if run else None
        levels.append(Level(width, index([node for node, _ in asked]), expanded, index([place for place, _ in run])))
    return Plan(levels, index(tokens), index([slot if slot >= 0 else num_slots for slot in slots]))


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
