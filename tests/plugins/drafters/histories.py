"""States with a given history, for drafters that look at nothing else; and a naive search of texts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from specdecodes.core.sampling import SamplingParams
from specdecodes.core.state import DecodeState
from specdecodes.core.tree import Tree, Verdict
from specdecodes.plugin import Context


def context(vocab_size: int, tokenizer: Any = None, **attributes: Any) -> Context:
    target: Any = SimpleNamespace(vocab_size=vocab_size, device=torch.device("cpu"), **attributes)
    return Context(target, tokenizer)


def state_of(*rows: Sequence[int], **params: Any) -> DecodeState:
    """A state whose history is ``rows``."""
    target: Any = SimpleNamespace(device=torch.device("cpu"))
    state = DecodeState(target, torch.tensor([row[:1] for row in rows]), SamplingParams(**params))
    for row, tokens in enumerate(rows):
        grow(state, row, tokens[1:])
    return state


def grow(state: DecodeState, row: int, tokens: Sequence[int]) -> None:
    state.history[row].extend(tokens)
    state.root = torch.tensor([history[-1:] for history in state.history])


def slots_of(*slots: int) -> Tensor:
    return torch.tensor([slots])


def found_at(proposal: Any, slot: int, k: int = 9) -> list[int]:
    """The candidates at a slot of row 0, those that are missing left out."""
    return [token for token in proposal.topk(slots_of(slot), k)[0][0, 0].tolist() if token >= 0]


def score(
    drafter: Any,
    state: DecodeState,
    tokens: Sequence[int],
    parents: Sequence[int],
    logits: Tensor,
    path: Sequence[int],
    bonus: int,
    num_nodes: int | None = None,
) -> None:
    """One step of row 0: the tree was scored as ``logits`` [T, V] say, ``path`` accepted, tokens and bonus emitted."""
    count = None if num_nodes is None else torch.tensor([num_nodes])
    tree = Tree(torch.tensor([tokens]), torch.tensor([parents]), count)
    verdict = Verdict(torch.tensor([[*path, -1]]), torch.tensor([len(path) - 1]), torch.tensor([bonus]))
    state.process(logits[None], tree)
    drafter.commit_state(state, tree, verdict)
    grow(state, 0, [*(tokens[node] for node in path[1:]), bonus])


def places(texts, word):
    """(text, end) of every occurrence of ``word``."""
    size = len(word)
    return frozenset(
        (number, end)
        for number, text in enumerate(texts)
        for end in range(size, len(text) + 1)
        if text[end - size : end] == word
    )


def levels(texts, line):
    """(length, continuations) of the suffixes of ``line`` that were followed, one per set of places."""
    seen = set()
    for size in range(len(line), 0, -1):
        found = places(texts, line[-size:])
        counts = Counter(texts[number][end] for number, end in found if end < len(texts[number]))
        if found and found not in seen and counts:
            yield size, counts
        seen.add(found)


def interpolated(contexts, prior, k):
    """The documented formula, from the shortest context up; ``contexts`` come longest first, until there are ``k``."""
    asked = []
    for counts in contexts:
        asked.append(counts)
        if len(set().union(*asked)) >= k:
            break
    p = {}
    for counts in reversed(asked):
        weight = prior * len(counts)
        p = {t: (counts[t] + weight * p.get(t, 0.0)) / (counts.total() + weight) for t in {*p, *counts}}
    return p


def check_best(answer, p, row=0, place=0):
    """``topk`` of a slot gives the most probable tokens of ``p``, best first, exact, no token twice, padded."""
    tokens, logq = (values[row, place].tolist() for values in answer)
    real = [token for token in tokens if token >= 0]
    assert len(set(real)) == len(real) == min(len(tokens), len(p))
    assert tokens == real + [-1] * (len(tokens) - len(real))
    assert logq[len(real) :] == [-math.inf] * (len(tokens) - len(real))
    best = sorted(p.values(), reverse=True)[: len(real)]
    assert [math.exp(q) for q in logq[: len(real)]] == pytest.approx(best, rel=1e-5)
    assert [p[token] for token in real] == pytest.approx(best, rel=1e-5)


def random_paths(proposal, rng, vocab_size, count=4):
    """Expand ``count`` times three random tokens below random slots; the path behind every slot."""
    paths = [[]]
    for _ in range(count):
        above = [rng.randrange(len(paths)) for _ in range(3)]
        below = [rng.randrange(vocab_size) for _ in range(3)]
        proposal.expand(slots_of(*above), slots_of(*below))
        paths += [[*paths[slot], token] for slot, token in zip(above, below, strict=True)]
    return paths
