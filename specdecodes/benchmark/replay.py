"""Replay recorded greedy answers: how many tokens per step a drafter and a tree would have got, without a target.

The target is played by the answer itself: after a path that agrees with the answer it scores the answer's next token
highest. Everything else is the real thing (the loop, the hooks, the greedy verifier), so the accepted lengths are
exactly those of a greedy decode that gives these answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from specdecodes.core.loop import steps
from specdecodes.core.sampling import SamplingParams
from specdecodes.core.state import DecodeState
from specdecodes.core.tree import Tree, Verdict
from specdecodes.hookspecs import hookimpl
from specdecodes.plugin import Hooks
from specdecodes.plugins.trees.static import Static
from specdecodes.plugins.verifiers.greedy import Greedy


@dataclass(frozen=True)
class Replay:
    """Tokens emitted by each step of each answer, bonus included, as in ``Generation.accept_lengths``."""

    accept_lengths: list[list[int]]

    @property
    def tau(self) -> float:
        """Mean tokens per step over all answers, bonus included (0 without any step)."""
        steps_taken = sum(len(lengths) for lengths in self.accept_lengths)
        return sum(sum(lengths) for lengths in self.accept_lengths) / steps_taken if steps_taken else 0.0


class Recording:
    """A recorded answer in the place of the target and of the state back-end; one row.

    Args:
        answer: the tokens that are emitted. vocab_size: V.
        device: where the drafter expects the target.

    Attributes:
        answer: its tokens. place: how many of them are emitted, the root last. vocab_size, device: as a target's.
    """

    def __init__(self, answer: Sequence[int], vocab_size: int, device: torch.device | str = "cpu") -> None:
        self.vocab_size = vocab_size
        self.device = torch.device(device)
        self.place = 1
        self.answer = answer

    def score(self, tree: Tree) -> Tensor:
        """Logits [1, T, V]: 1 for the next token of the answer at every node that agrees with it, else 0."""
        parents, tokens = tree.parents[0].tolist(), tree.tokens[0].tolist()
        logits = torch.zeros(1, len(tokens), self.vocab_size, device=self.device)
        places = [self.place]  # per node, how many tokens of the answer its path makes; -1: it disagrees
        for node, (parent, token) in enumerate(zip(parents, tokens, strict=True)):
            if node:
                place = places[parent]
                agrees = 0 <= place < len(self.answer) and self.answer[place] == token
                places.append(place + 1 if agrees else -1)
            if 0 <= places[node] < len(self.answer):
                logits[0, node, self.answer[places[node]]] = 1.0
        return logits

    @hookimpl
    def commit_state(self, state: DecodeState, tree: Tree, verdict: Verdict) -> None:
        """Move on: the accepted drafts and the bonus."""
        self.place += int((verdict.path[0] >= 0).sum())


def replay(
    drafter: Any,  # noqa: ANN401 - components have no base class
    tree: Any,  # noqa: ANN401
    pairs: Iterable[tuple[Sequence[int], Sequence[int]]],
    vocab_size: int,
) -> Replay:
    """Replay greedy answers.

    Args:
        drafter: one that needs no target (an index such as ``ngram``) and does not learn from its scores, which are
            made up here.
        tree: a tree builder, or the spec of a static shape such as "3,2.1,2.1,3".
        pairs: token ids of prompts and of their greedy answers; the first token of an answer belongs to no step.

    Raises:
        ValueError: a malformed spec, an empty prompt or answer, components that do not make a decoder.
    """
    builder = Static(tree=tree) if isinstance(tree, str) else tree
    lengths = []
    for prompt, answer in pairs:
        if not prompt or not answer:
            raise ValueError("replay: expected prompts and answers of at least one token, got an empty one")
        params = SamplingParams(max_new_tokens=len(answer))
        lengths.append(replay_one(drafter, builder, prompt, Recording(answer, vocab_size), params))
    return Replay(lengths)


def replay_one(
    drafter: object, builder: object, prompt: Sequence[int], recording: Recording, params: SamplingParams
) -> list[int]:
    """Replay one answer and return the tokens that each step emitted.

    Args:
        drafter, builder: components. prompt: token ids. recording: the answer.
        params: what the drafter is told about the decode; the answer is the recording's whatever the temperature.
    """
    answer = recording.answer
    hooks = Hooks({"drafter": drafter, "tree": builder, "verifier": Greedy(), "state": recording})
    state = DecodeState(cast("Any", recording), torch.tensor([list(prompt)], device=recording.device), params)
    first = torch.full((1, recording.vocab_size), float("-inf"), device=recording.device)
    first[0, answer[0]] = 0.0  # even a draw can take no other token
    with torch.inference_mode():
        state.first(first)
        hooks.generation_started(state)
        for _ in steps(hooks, state):
            pass
    assert state.tokens[0] == list(answer)
    return state.accept_lengths
