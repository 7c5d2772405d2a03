"""What drafters share that look candidates up on the host: an index per row, and slots that are nodes of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from specdecodes.hookspecs import hookimpl

if TYPE_CHECKING:
    from specdecodes.core.state import DecodeState

Node = TypeVar("Node")


class Index(Protocol[Node]):
    """What one row's tokens say about the next one.

    A node is what the index knows about a place in the text: any value that :meth:`best` and :meth:`child` accept.
    """

    @property
    def length(self) -> int:
        """Tokens taken in."""

    @property
    def root(self) -> Node:
        """The node behind all tokens taken in."""

    def extend(self, tokens: Sequence[int]) -> None:
        """Take in the next tokens of the row."""

    def child(self, node: Node, token: int) -> Node:
        """The node behind one more token; ``token`` may be one that was no candidate, or -1."""

    def best(self, node: Node, k: int) -> Sequence[tuple[int, float]]:
        """At most ``k`` different candidates (token, probability above 0 and at most 1), best first."""


class IndexDrafter:
    """Base class; a subclass supplies :meth:`index`, and other hooks where it learns from more than the tokens."""

    has_probs = False
    capturable = False

    def __init__(self) -> None:
        # Several generations may be under way at once (streams); each has its own indices, which end with it.
        self._indices: WeakKeyDictionary[DecodeState, list[Any]] = WeakKeyDictionary()

    def index(self) -> Index[Any]:
        """A new index, for one row of one generation."""
        raise NotImplementedError

    @hookimpl
    def generation_started(self, state: DecodeState) -> None:
        """Take in the prompt and the first token."""
        self._indices[state] = [self.index() for _ in state.history]
        self._take_in(state)

    @hookimpl
    def propose(self, state: DecodeState) -> IndexProposal:
        """Take in what was emitted since; the root is slot 0."""
        if state not in self._indices:
            self.generation_started(state)
        return IndexProposal(self._take_in(state), state.root.device)

    def _take_in(self, state: DecodeState) -> list[Any]:
        indices = self._indices[state]
        for index, history in zip(indices, state.history, strict=True):
            index.extend(history[index.length :])
        return indices


class Candidates:
    """Base of proposals that know candidates and no distribution over the vocabulary."""

    marginals: Tensor | None = None

    def logq(self, slots: Tensor) -> Tensor:
        """There is none.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "this drafter has candidates but no distribution over the vocabulary; choose children by score (draws "
            "'none') and verify with 'greedy' or 'token-match'"
        )


class IndexProposal(Candidates):
    """Candidates by slot. A slot stands for a node of the row's index, so that expanding it runs nothing."""

    def __init__(self, indices: Sequence[Index[Any]], device: torch.device) -> None:
        self._indices = indices
        self._device = device
        self._on_host = device.type == "cpu"
        self._nodes = [[index.root] for index in indices]  # per row, by slot

    def topk(self, slots: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The ``k`` best tokens after ``slots`` [B, n]: int64 and float32 [B, n, k], padded with -1 and -inf."""
        tokens: list[int] = []
        logq: list[float] = []
        for index, nodes, row in zip(self._indices, self._nodes, slots.tolist(), strict=True):
            for slot in row:
                best = index.best(nodes[slot], k)
                for token, probability in best:
                    tokens.append(token)
                    logq.append(math.log(probability))
                if len(best) < k:
                    tokens += [-1] * (k - len(best))
                    logq += [-math.inf] * (k - len(best))
        shape = (*slots.shape, k)
        return self._tensor(tokens, np.int64, shape), self._tensor(logq, np.float32, shape)

    def candidates(self, row: int, slot: int, k: int) -> Sequence[tuple[int, float]]:
        """See :meth:`HostProposal.candidates`."""
        return self._indices[row].best(self._nodes[row][slot], k)

    def enter(self, row: int, slot: int, token: int) -> int:
        """See :meth:`HostProposal.enter`."""
        nodes = self._nodes[row]
        nodes.append(self._indices[row].child(nodes[slot], token))
        return len(nodes) - 1

    def expand(self, slots: Tensor, tokens: Tensor) -> Tensor:
        """New slots [B, n] for ``tokens`` [B, n] below ``slots`` [B, n]: bookkeeping on the host."""
        new: list[int] = []
        for index, nodes, above, below in zip(self._indices, self._nodes, slots.tolist(), tokens.tolist(), strict=True):
            new += range(len(nodes), len(nodes) + len(above))
            child = index.child
            nodes += [child(nodes[slot], token) for slot, token in zip(above, below, strict=True)]
        return self._tensor(new, np.int64, tuple(slots.shape))

    def _tensor(self, values: Sequence[float], dtype: type[np.generic], shape: tuple[int, ...]) -> Tensor:
        # Less than half the time of torch.tensor on a nested list.
        tensor = torch.from_numpy(np.array(values, dtype).reshape(shape))
        return tensor if self._on_host else tensor.to(self._device)


NEGLIGIBLE = 1e-6
"""A share of the probability that decides nothing any more."""

_by_score = itemgetter(1)


def best_of(scores: Mapping[int, float], k: int) -> list[tuple[int, float]]:
    """The ``k`` best (token, score), of equals the one that came first."""
    if k == 1 and scores:
        return [max(scores.items(), key=_by_score)]
    return sorted(scores.items(), key=_by_score, reverse=True)[:k]


def back_off(
    contexts: Iterable[Mapping[int, int]], prior: float, enough: float = math.inf
) -> tuple[dict[int, float], float]:
    """Interpolated back-off from the longest context to the shortest: scores by token, and what is left over.

        p_m(t) = (c_m(t) + prior * u_m * p_{m-1}(t)) / (c_m + prior * u_m)

    where c_m(t) counts t after the context m, c_m counts any token there, and u_m the different ones (Witten and Bell
    1991, with a prior of its own: occurrences count again in every shorter context). A context with one continuation
    thus outweighs the shorter ones, one with many does not.

    Args:
        contexts: counts by next token, longest context first, none of them empty.
        prior: weight of the shorter contexts against a longer one.
        enough: stop at the context that brings the number of tokens to this (or ``NEGLIGIBLE`` is all that is left).

    Returns:
        {token: probability}, and the probability that the last context leaves to whatever comes after it.
    """
    scores: dict[int, float] = {}
    share = 1.0  # what the longer contexts leave to the shorter ones
    for counts in contexts:
        weight = prior * len(counts)
        scale = share / (sum(counts.values()) + weight)
        for token, count in counts.items():
            scores[token] = scores.get(token, 0.0) + scale * count
        share = scale * weight
        if len(scores) >= enough or share < NEGLIGIBLE:
            break
    return scores, share


def by_rank(tokens: Iterable[int]) -> list[tuple[int, float]]:
    """Different candidates best first, for an index that knows an order and no frequencies: 1/2, 1/4, 1/8, ..."""
    return [(token, 0.5**place) for place, token in enumerate(dict.fromkeys(tokens), 1)]
