"""Draft what followed the longest match in a corpus that was indexed beforehand; no model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from specdecodes.models.loading import tokenizer_fingerprint
from specdecodes.plugins.drafters.datastore import Datastore
from specdecodes.plugins.drafters.index import IndexDrafter, back_off, best_of

if TYPE_CHECKING:
    from specdecodes.plugin import Context

MAX_OCCURRENCES = 32
"""Occurrences of a context that are looked at, spread evenly over all of them."""

MAX_SUFFIXES = 4
"""Suffixes of a match that are kept; of more the longest and the shortest."""

Node = list[tuple[int, int]]
"""The match's range in the datastore, then those of its suffixes that occur more often, longest first."""


class Rest(IndexDrafter):
    """Draft what followed the longest match in a datastore, a corpus indexed beforehand; no model.

    Retrieval as in REST (He et al. 2023, arXiv 2311.08252, section 3): the longest suffix of the tokens so far that
    occurs in the corpus, its continuations by frequency, backed off to shorter suffixes while they are too few
    (:func:`back_off`).

    ``datastore``: a file made by ``specdecodes corpus build`` (or a :class:`Datastore`). ``prior``: weight of a shorter
    match against a longer one.

    An index on the host: about 5 us per question of one slot, whatever the size of the corpus; 8 bytes of memory per
    token of the corpus.
    """

    def __init__(self, context: Context, *, datastore: str | Path | Datastore = "", prior: float = 1.0) -> None:
        super().__init__()
        if not prior > 0:
            raise ValueError(f"prior: expected a number above 0, got {prior}")
        if datastore == "":
            raise ValueError("datastore: expected a file, got none; make one with 'specdecodes corpus build'")
        self.prior = float(prior)
        self.store = datastore if isinstance(datastore, Datastore) else Datastore.load(datastore)
        if self.store.vocab_size > context.target.vocab_size:
            raise ValueError(
                f"datastore: expected ids below {context.target.vocab_size} (the target's vocabulary), "
                f"got {self.store.vocab_size}; build it with the target's tokenizer"
            )
        if context.tokenizer is not None and self.store.tokenizer not in ("", tokenizer_fingerprint(context.tokenizer)):
            raise ValueError(
                "datastore: expected one built with the target's tokenizer, got one of another vocabulary; "
                "build it again with --target naming this one"
            )

    def index(self) -> Retrieval:
        """See the base."""
        return Retrieval(self.store, self.prior)


class Retrieval:
    """The matches of one row in the datastore.

    Attributes:
        length: tokens taken in. root: the node behind them.
    """

    def __init__(self, store: Datastore, prior: float) -> None:
        self.length = 0
        self.root: Node = []
        self._store = store
        self._prior = prior
        self._step = store.step
        self._everything = (0, store.size)  # the empty suffix

    def extend(self, tokens: Sequence[int]) -> None:
        """See :class:`Index`."""
        for token in tokens:
            self.root = self.child(self.root, token)
        self.length += len(tokens)

    def child(self, node: Node, token: int) -> Node:
        """See :class:`Index`; the suffixes of the match that go on with ``token``, the empty one included."""
        found = self._step([*node, self._everything], token)
        if len(found) > MAX_SUFFIXES:
            half = MAX_SUFFIXES // 2
            found[half:-half] = []
        return found

    def best(self, node: Node, k: int) -> list[tuple[int, float]]:
        """The ``k`` most probable tokens: :func:`back_off` over the suffixes of the match until there are ``k``."""
        return best_of(back_off(self._contexts(node), self._prior, k)[0], k)

    def _contexts(self, node: Node) -> Iterator[dict[int, int]]:
        store = self._store
        for low, high in node:
            counts: dict[int, int] = {}
            for token in store.following(low, high, MAX_OCCURRENCES):
                counts[token] = counts.get(token, 0) + 1
            counts.pop(store.vocab_size, None)  # the end of a document is no candidate
            if counts:
                yield counts
