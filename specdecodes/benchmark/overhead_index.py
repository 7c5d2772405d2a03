"""What the answers of an index drafter cost, a step: part of ``python -m specdecodes.benchmark.overhead``."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch

from specdecodes.benchmark.replay import Recording
from specdecodes.core.sampling import SamplingParams
from specdecodes.core.state import DecodeState
from specdecodes.core.tree import Tree, Verdict
from specdecodes.plugin import Context, Hooks, registry
from specdecodes.plugins.drafters.datastore import Datastore
from specdecodes.plugins.drafters.index import IndexDrafter

LIMIT_US = 50.0
"""An index's answers of one step, in a tree of 8 nodes on 4 levels."""
LEVELS = (3, 2, 1, 1)
"""Of that tree: children of the first node above."""
INDICES = ("ngram", "suffix", "token-recycling", "jacobi", "rest")
"""The drafters to which that limit applies."""

VOCAB = 4096
PROMPT, END, EMITTED = 400, 600, 3
"""Tokens of the text before the first step and behind the last, and those of a step."""


def drafter_overhead(name: str, repeats: int = 20) -> dict[str, float]:
    """Microseconds per step that an index drafter takes: the mean over the steps of a text, each the least of all.

    ``answers_us``: for taking in three tokens, then the candidates and slots of ``LEVELS``, asked as the tree builders
    ask on the host. ``tensors_us``: the same as tensors, as whoever knows :class:`Proposal` alone asks.
    ``learns_us``: for its ``commit_state``, which may learn from the scores. The text is made of phrases that come
    again, so that there are matches of all lengths: 400 tokens of prompt, 200 of answer.
    """
    source = random.Random(0)
    words, places = range(3, VOCAB), range(80)
    phrases = [source.choices(words, [1 / rank for rank in words], k=source.randint(2, 9)) for _ in places]
    text = [token for _ in range(2000) for token in source.choices(phrases, [1 / (i + 1) for i in places])[0]]
    settings = {"datastore": Datastore.build([text[1000:]], VOCAB)} if name == "rest" else {}
    target: Any = Recording([], VOCAB)
    drafter = cast("Callable[..., Any]", registry().get("drafter", name).factory)(Context(target), **settings)
    found: dict[str, float] = {}
    for what, ask in (("tensors_us", _ask_in_tensors), ("answers_us", _ask)):
        best: list[tuple[float, float]] = []
        for _ in range(repeats):
            state = DecodeState(target, torch.tensor([text[:PROMPT]]), SamplingParams())
            drafter.propose(state)
            blocks = [text[place : place + EMITTED] for place in range(PROMPT, END, EMITTED)]
            seconds = [_clocked(drafter, state, block, ask) for block in blocks]
            best = [(min(a, c), min(b, d)) for (a, b), (c, d) in zip(best or seconds, seconds, strict=True)]
        found[what], found["learns_us"] = (sum(column) / len(best) * 1e6 for column in zip(*best, strict=True))
    return found


Asked = tuple[list[int], float]
"""The tokens of ``LEVELS``, breadth first, and the seconds that it took to hear of them."""


def _clocked(
    drafter: IndexDrafter, state: DecodeState, emitted: Sequence[int], ask: Callable[[IndexDrafter, DecodeState], Asked]
) -> tuple[float, float]:
    """Seconds of one step's answers, and of learning from the scores of the tree that they make."""
    state.history[0].extend(emitted)
    state.root = torch.tensor([emitted[-1:]])
    tokens, answers = ask(drafter, state)
    parents, above = [-1], 0
    for width in LEVELS:
        parents += [above] * width
        above = len(parents) - width
    tree = Tree(torch.tensor([[*emitted[-1:], *tokens]]).clamp(min=0), torch.tensor([parents]))
    state.scores = torch.randn(1, len(parents), VOCAB, generator=torch.Generator().manual_seed(len(state.history[0])))
    verdict = Verdict(torch.tensor([[0]]), torch.tensor([0]), state.root[0])
    hooks = Hooks({"drafter": drafter}, phases=("propose",))
    began = time.perf_counter()
    hooks.commit_state(state, tree, verdict)
    return answers, time.perf_counter() - began


def _ask(drafter: IndexDrafter, state: DecodeState) -> Asked:
    """On the host; where there is no candidate the step asks on all the same, below token -1."""
    tokens: list[int] = []
    slot = 0
    began = time.perf_counter()
    proposal = drafter.propose(state)
    answers = time.perf_counter() - began
    for level, width in enumerate(LEVELS):
        above = tokens[-LEVELS[level - 1]] if level else -1
        began = time.perf_counter()
        if level:
            slot = proposal.enter(0, slot, above)
        candidates = proposal.candidates(0, slot, width)
        answers += time.perf_counter() - began
        tokens += [token for token, _ in candidates] + [-1] * (width - len(candidates))
    return tokens, answers


def _ask_in_tensors(drafter: IndexDrafter, state: DecodeState) -> Asked:
    found: list[int] = []
    first = slots = torch.zeros_like(state.root)
    began = time.perf_counter()
    proposal = drafter.propose(state)
    answers = time.perf_counter() - began
    for level, width in enumerate(LEVELS):
        began = time.perf_counter()
        if level:
            slots = proposal.expand(slots, first)
        tokens, _ = proposal.topk(slots, width)
        answers += time.perf_counter() - began
        first = tokens[0][:, :1]
        found += tokens.flatten().tolist()
    return found, answers
