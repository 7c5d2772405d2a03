"""Dynamic trees from tensors alone, for captured steps: the trees of ``drafted``, and nothing is read on the host.

Shapes are fixed: every level is drafted, to the last one, and every candidate of every level is kept until the end. A
graph replays that for less than one look at the candidates of a level would cost.

Letters: B rows, N candidates of all levels with the root, n of one level, K children per node, T nodes of the tree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from specdecodes.core.tree import Proposal, Topology, Tree

if TYPE_CHECKING:
    from specdecodes.core.state import DecodeState
    from specdecodes.plugin import Context

Prepare = Callable[[Topology], None]
"""What works out of a topology all that scoring reads: :meth:`Target.prepare`."""


class Candidates(NamedTuple):
    """The root and all candidates of all levels, [B, N] each, in the order in which ``drafted`` adds them.

    Attributes:
        tokens: int64. parents: int64, place among the candidates, -1 at the root. scores: float64, the
        log-probability of the path, never above the parent's. slots: int64, the drafter's, -1 where it was not run.
    """

    tokens: Tensor
    parents: Tensor
    scores: Tensor
    slots: Tensor


def prepare_of(context: Context | None) -> Prepare:
    """That of the target, where there is one that has it."""
    prepare: Prepare = getattr(getattr(context, "target", None), "prepare", _nothing)
    return prepare


def _nothing(topology: Topology) -> None:
    pass


def run_of(proposal: Proposal, topk: int) -> Callable[..., Any] | None:
    """:meth:`Proposal.in_one`, where ``proposal`` has it and ``topk`` candidates at every slot."""
    run: Callable[..., Any] | None = getattr(proposal, "in_one", None)
    return run if getattr(proposal, "at_least", 0) >= topk else None


def grow(proposal: Proposal, root: Tensor, *, depth: int, topk: int, width: int) -> tuple[Candidates, Tensor]:
    """Draft level by level, as :func:`~specdecodes.plugins.trees.drafted.levels` does.

    Args:
        root: int64 [B, 1].

    Returns:
        The candidates, and the root with the ``width`` best of every level, int64 [B, M] in rising order.
    """
    nothing = torch.full_like(root, -1)
    levels = [Candidates(root, nothing, torch.zeros_like(root, dtype=torch.float64), torch.zeros_like(root))]
    beams, places, start = [torch.zeros_like(root)], torch.zeros_like(root), 1
    above = levels[0]  # what the level is asked at, [B, n] each; ``places``: where it stands among the candidates
    for level in range(depth):
        tokens, logq = proposal.topk(above.slots, topk)
        # Rounding may put a certain token above 0. What is not a number would be sorted before its parents.
        scores = (above.scores[..., None] + logq.double().clamp(max=0.0)).flatten(1)
        scores = scores.masked_fill(scores.isnan(), float("-inf"))
        tokens, parents = tokens.flatten(1), places.repeat_interleave(topk, dim=1)
        slots = torch.full_like(tokens, -1)
        chosen = _best(scores, min(width, scores.shape[1]))
        places = chosen + start
        start += tokens.shape[1]
        beams.append(places)
        if level + 1 < depth:
            owners = above.slots.gather(1, chosen // topk)
            run = proposal.expand(owners, tokens.gather(1, chosen))
            slots = slots.scatter(1, chosen, run)
        levels.append(Candidates(tokens, parents, scores, slots))
        above = Candidates(*(each.gather(1, chosen) for each in levels[-1]))
    return Candidates(*(torch.cat(each, 1) for each in zip(*levels, strict=True))), torch.cat(beams, 1)


def best(candidates: Candidates, count: int) -> Tensor:
    """The root and the ``count`` best candidates, int64 [B, count + 1] in rising order: each with its parent."""
    return torch.nn.functional.pad(_best(candidates.scores[:, 1:], count) + 1, (1, 0))


def _best(scores: Tensor, count: int) -> Tensor:
    """The ``count`` best of ``scores`` [B, N] in rising order; of equals the earlier."""
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return order.sort(dim=1).values


def parts_of(candidates: Candidates, kept: Tensor, depth: int, prepare: Prepare) -> tuple[Any, ...]:
    """Tokens and slots [B, T] of the ``kept`` candidates [B, T], and the parts of their topology.

    Args:
        kept: in rising order, each with its parent. depth: of the deepest candidate.
    """
    count = kept.shape[1]
    nodes = torch.arange(count, device=kept.device).expand_as(kept)
    place = torch.zeros_like(candidates.tokens).scatter(1, kept, nodes)
    above = candidates.parents.gather(1, kept)
    parents = torch.where(above < 0, -1, place.gather(1, above.clamp(min=0)))
    topology = Topology(parents, depth)
    prepare(topology)
    return candidates.tokens.gather(1, kept), candidates.slots.gather(1, kept), topology.parts()


def assemble(state: DecodeState, tokens: Tensor, slots: Tensor, parts: tuple[Any, ...]) -> Tree:
    """The tree of what :func:`parts_of` gave; it has no padding."""
    topology = Topology.of(*parts)
    return Tree(tokens, topology.parents, None, slots, None, state.draws, topology)
