"""Draft what followed the longest match: in prompt and output, and in a corpus or earlier answers; no model."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from heapq import merge, nlargest
from operator import itemgetter
from typing import TYPE_CHECKING

from specdecodes.hookspecs import hookimpl
from specdecodes.plugins.drafters.corpus import read_corpus
from specdecodes.plugins.drafters.index import IndexDrafter, back_off, best_of
from specdecodes.plugins.drafters.suffix_automaton import SEPARATOR, SuffixAutomaton

if TYPE_CHECKING:
    from specdecodes.core.decoder import Generation
    from specdecodes.core.state import DecodeState
    from specdecodes.plugin import Context

ANSWERS = "answers"
MAX_ANSWERS = 100_000
"""Tokens of earlier answers that are remembered; beyond, the older half is forgotten."""

MAX_FANOUT = 32
"""Continuations of a context in the corpus that count: the most frequent ones."""

Match = tuple[int, int, int, int]
"""State and length of the match in the row's own text, then in the corpus."""


class Suffix(IndexDrafter):
    """Draft what most often followed the longest match in prompt, output and an optional corpus; no model.

    A suffix automaton per request, extended as tokens are committed: matches of any length. The candidates of a node
    are the continuations of its longest match by frequency, backed off to shorter ones while they are too few
    (:func:`back_off`; scoring by frequency: SuffixDecoding, Oliaro et al. 2024, arXiv 2411.04975).

    ``corpus``: a file, a folder or a data set (see :func:`read_corpus`), read once and kept across requests, at half a
    kilobyte per token (large ones are for ``rest``); "answers" remembers the answers of this decoder instead; "" is
    none. Of two matches, in the request and in the corpus, the longer one comes first. ``prior``: weight of a shorter
    match against a longer one.

    An index on the host: about 4 us per token taken in, 2 us per question of one slot.
    """

    def __init__(self, context: Context, *, corpus: str = "", prior: float = 1.0) -> None:
        super().__init__()
        if not prior > 0:
            raise ValueError(f"prior: expected a number above 0, got {prior}")
        self.prior = float(prior)
        self.corpus = Corpus() if corpus else None
        self._remembers = corpus == ANSWERS
        if self.corpus is not None and not self._remembers:
            for document in read_corpus(corpus, context.tokenizer):
                self.corpus.add(document)

    def index(self) -> SuffixIndex:
        """See the base."""
        return SuffixIndex(self.corpus, self.prior)

    @hookimpl
    def generation_finished(self, state: DecodeState, generation: Generation) -> None:
        """Remember the answers, if asked to."""
        if self._remembers and self.corpus is not None:
            for tokens in generation.tokens:
                self.corpus.remember(tokens, MAX_ANSWERS)


class Corpus:
    """Documents in one automaton, shared by all requests."""

    def __init__(self) -> None:
        self.automaton = SuffixAutomaton()
        self._documents: deque[Sequence[int]] = deque()
        self._frequent: dict[int, dict[int, int]] = {}

    def add(self, document: Sequence[int]) -> None:
        """Take in a document."""
        self.automaton.extend([*document, SEPARATOR])
        self._frequent.clear()

    def remember(self, document: Sequence[int], max_tokens: int) -> None:
        """Take in a document; where that makes more than ``max_tokens``, build anew from the newest half."""
        self._documents.append(document)
        if self.automaton.size + len(document) < max_tokens:
            self.add(document)
            return
        while len(self._documents) > 1 and sum(map(len, self._documents)) > max_tokens // 2:
            self._documents.popleft()
        self.automaton = SuffixAutomaton()
        for kept in self._documents:
            self.add(kept)

    def continuations(self, state: int) -> Mapping[int, int]:
        """As :meth:`SuffixAutomaton.continuations`, the most frequent ones: in a corpus a token may have thousands."""
        found = self._frequent.get(state)
        if found is None:
            counts = self.automaton.continuations(state)
            counts.pop(SEPARATOR, None)
            found = self._frequent[state] = dict(nlargest(MAX_FANOUT, counts.items(), key=itemgetter(1)))
        return found


class SuffixIndex:
    """Candidates of one row; a node is its match in the row's own text and in the corpus."""

    def __init__(self, corpus: Corpus | None, prior: float) -> None:
        self._own = SuffixAutomaton()
        self._corpus = corpus
        self._prior = prior
        self._there = corpus.automaton if corpus is not None else None
        self._match = (0, 0)  # in the corpus

    @property
    def length(self) -> int:
        """See :class:`Index`."""
        return self._own.size

    @property
    def root(self) -> Match:
        """See :class:`Index`."""
        return *self._own.root, *self._match

    def extend(self, tokens: Sequence[int]) -> None:
        """See :class:`Index`; the corpus may have grown or been built anew since the last time."""
        self._own.extend(tokens)
        if self._corpus is None:
            return
        there = self._corpus.automaton
        self._match = there.settle(*self._match) if there is self._there else (0, 0)
        self._there = there
        for token in tokens:
            self._match = there.step(*self._match, token)

    def child(self, node: Match, token: int) -> Match:
        """See :class:`Index`."""
        state, length, there, size = node
        own = self._own.step(state, length, token)
        return *own, *((there, size) if self._corpus is None else self._corpus.automaton.step(there, size, token))

    def best(self, node: Match, k: int) -> list[tuple[int, float]]:
        """The ``k`` most probable tokens: :func:`back_off` over the suffixes of both matches until there are ``k``."""
        scores, _ = back_off(self._contexts(node), self._prior, k)
        return best_of(scores, k)

    def _contexts(self, node: Match) -> Iterator[Mapping[int, int]]:
        state, length, there, size = node
        own, corpus = self._own, self._corpus
        if corpus is None:
            return (own.continuations(found) for _, found in own.suffixes(state, length))
        suffixes: Iterator[tuple[int, SuffixAutomaton | Corpus, int]] = merge(
            ((at, own, found) for at, found in own.suffixes(state, length)),
            ((at, corpus, found) for at, found in corpus.automaton.suffixes(there, size)),
            key=itemgetter(0),
            reverse=True,
        )
        counts = (text.continuations(found) for _, text, found in suffixes)
        return (found for found in counts if found)
