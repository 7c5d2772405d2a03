"""At every place of recorded answers, which of the drafter's candidates the target's tokens are.

From these ranks follows what any tree of that drafter would have accepted, without decoding again: a step that
starts at a place accepts its tokens as long as the tree has a node for the ranks so far.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from specdecodes.benchmark.probe import offered
from specdecodes.core.decoder import Decoder
from specdecodes.core.parents import children_of
from specdecodes.core.tree import Proposal, Tree
from specdecodes.hookspecs import hookimpl
from specdecodes.plugins.trees.shape import TreeShape
from specdecodes.plugins.trees.static import Root

if TYPE_CHECKING:
    from specdecodes.core.state import DecodeState

PRIOR = 4.0
"""Steps that :func:`acceptance` counts in advance for every depth, shared out as at all depths together."""

Trace = list[tuple[int, ...]]
"""Per place of an answer: the ranks (0 is the best) of the next tokens, up to the first that was no candidate."""


class RankTracer(Root):
    """A tree builder of one node that, on its way through a known answer, asks how the drafter ranks its tokens.

    Args:
        depth: tokens ahead. width: candidates per token.
    """

    def __init__(self, *, depth: int, width: int) -> None:
        super().__init__()
        self.depth = self.max_slots = depth
        self.width = width
        self.answer: Sequence[int] = ()
        self.trace: Trace = []

    @hookimpl
    def build_tree(self, state: DecodeState, proposal: Proposal) -> Tree:
        """Follow the answer from the root on; the tree is the root alone, so that every place gets its turn."""
        start = len(state.tokens[0])
        coming = self.answer[start : start + self.depth]
        ranks: list[int] = []
        for token, (_, candidates) in zip(coming, offered(state, proposal, coming, self.width), strict=True):
            if token not in candidates:
                break
            ranks.append(candidates.index(token))
        self.trace.append(tuple(ranks))
        return super().build_tree(state, proposal)


def trace_ranks(
    decoder: Decoder,
    tracer: RankTracer,
    prompts: Sequence[Tensor],
    answers: Sequence[Sequence[int]],
    sampling: Mapping[str, Any],
) -> list[Trace]:
    """One trace per answer.

    Args:
        decoder: with ``tracer`` as its tree builder. prompts: int64 [1, L] each.
        answers: what plain decoding answers to them with ``sampling`` and the prompt's place as the seed; tokens as
            in ``Generation.tokens[0]``.
    """
    traces = []
    for seed, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        tracer.answer, tracer.trace = answer, []
        decoder.generate(prompt, max_new_tokens=len(answer), ignore_eos=True, seed=seed, **sampling)
        traces.append(tracer.trace)
    return traces


def steps_over(shape: TreeShape, traces: Sequence[Trace]) -> Iterator[tuple[Trace, list[tuple[int, int]]]]:
    """Per trace, the steps that a tree of ``shape`` would take: (place, tokens emitted, bonus included)."""
    children = children_of(shape.parents)
    for trace in traces:
        place, steps = 0, []
        while place < len(trace):
            node, accepted = 0, 0
            for rank in trace[place]:
                if rank >= len(children[node]):
                    break
                node, accepted = children[node][rank], accepted + 1
            emitted = min(accepted + 1, len(trace) - place)
            steps.append((place, emitted))
            place += emitted
        yield trace, steps


def accepted_lengths(shape: TreeShape, traces: Sequence[Trace]) -> list[list[int]]:
    """Tokens per step, bonus included, that a tree of ``shape`` would have got on the traced answers."""
    return [[emitted for _, emitted in steps] for _, steps in steps_over(shape, traces)]


def acceptance(
    traces: Sequence[Trace], depth: int, width: int, *, detours: int = 2, shape: TreeShape | None = None
) -> list[list[list[float]]]:
    """How often the target's token is each of a node's candidates, given that it is none of the earlier ones.

    Args:
        depth, width, detours: D, K and C - 1 of the result [C, D, K], as :class:`Measurements` takes it.
        shape: counted where steps over such a tree start, since easy stretches take few steps; None: everywhere.

    Rare combinations are drawn towards what all depths with as many detours have in common.
    """
    hits = torch.zeros(detours + 1, depth, width, dtype=torch.float64)
    asked = torch.zeros(detours + 1, depth, 1, dtype=torch.float64)
    places = (
        [(trace, range(len(trace))) for trace in traces]
        if shape is None
        else [(trace, [place for place, _ in steps]) for trace, steps in steps_over(shape, traces)]
    )
    for trace, starts in places:
        for place in starts:
            ranks, turns = trace[place], 0
            # Below the last rank one more token was asked for, unless the trace or the answer ended there.
            for level in range(min(depth, len(ranks) + 1, len(trace) - place)):
                asked[turns, level] += 1
                if level < len(ranks):
                    hits[turns, level, ranks[level]] += 1
                    turns = min(turns + (ranks[level] > 0), detours)
    common = hits.sum(1, keepdim=True) / asked.sum(1, keepdim=True).clamp(min=1)
    chances = (hits + PRIOR * common) / (asked + PRIOR).clamp(min=1e-9)
    left = 1 - chances.cumsum(-1) + chances
    found: list[list[list[float]]] = (chances / left.clamp(min=1e-9)).clamp(0, 1).tolist()
    return found
