"""Bigram tables: which tokens most often follow a token, counted once over a corpus.

The file (safetensors, no pickle) holds ``followers`` [V, K], int32: row t has the K tokens that most often follow t,
most frequent first, padded with -1. Metadata: format, version, vocab_size, tokenizer (its fingerprint),
tokens (how many were counted).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from specdecodes import assets
from specdecodes.models.loading import tokenizer_fingerprint
from specdecodes.plugins.array_file import ArrayFile, Arrays
from specdecodes.plugins.drafters.ngram_counts import count
from specdecodes.plugins.drafters.ngram_table import NgramTable

if TYPE_CHECKING:
    from specdecodes.plugin import Context

_MAKE = "make one with 'specdecodes bigrams build'"
_FILE = ArrayFile("bigrams", "specdecodes.bigrams", "1", _MAKE)

Integers = NDArray[Any]


@dataclass(frozen=True, eq=False)
class BigramTable:
    """The most frequent followers of every token.

    Attributes:
        followers: int32 [V, K], most frequent first, padded with -1.
        tokenizer: the fingerprint of the tokenizer that made the ids; "" if nobody said.
        tokens: how many tokens were counted.
    """

    followers: Integers
    tokenizer: str = ""
    tokens: int = 0

    @classmethod
    def build(
        cls, documents: Iterable[Sequence[int] | Integers], vocab_size: int, tokenizer: str = "", *, top: int = 12
    ) -> BigramTable:
        """Count ``documents`` (token ids below ``vocab_size``); no pair crosses from one to the next.

        Args:
            tokenizer: fingerprint of what made the ids. top: followers that a token keeps, K.

        Raises:
            ValueError: ``top`` below 1, an id out of range, no pair of tokens in the documents.
        """
        if top < 1:
            raise ValueError(f"top: expected at least 1 follower per token, got {top}")
        documents = list(documents)
        level = count(documents, vocab_size, (1,), top)[0]
        followers = _ranked(level.contexts[level.owner], level.successors, vocab_size, top)
        return cls(followers, tokenizer, sum(map(len, documents)))

    @classmethod
    def from_ngrams(cls, table: NgramTable, tokenizer: str = "") -> BigramTable:
        """The contexts of one token of an n-gram table; how many tokens it was counted over is not known (0)."""
        size = table.orders[0]
        counts = table.num_successors[:size].astype(np.int64)
        owner = np.repeat(table.context_tokens[:size].astype(np.int64), counts)
        successors = table.successors[: counts.sum()].astype(np.int64)
        return cls(_ranked(owner, successors, table.vocab_size, int(counts.max(initial=1))), tokenizer)

    @classmethod
    def load(cls, path: str | Path) -> BigramTable:
        """Read a file that :meth:`save` wrote.

        Raises:
            ValueError: no such file, a pickle or something else that is no table, a damaged one.
        """

        def make(metadata: Mapping[str, str], arrays: Arrays) -> BigramTable:
            table = cls(arrays["followers"], metadata["tokenizer"], int(metadata["tokens"]))
            table._check(int(metadata["vocab_size"]))
            return table

        return _FILE.read(path, make)

    def save(self, path: Path) -> None:
        """Write the file that :meth:`load` reads, replacing an earlier one in one go."""
        metadata = {"tokenizer": self.tokenizer, "vocab_size": str(self.vocab_size), "tokens": str(self.tokens)}
        _FILE.write(path, {"followers": self.followers}, metadata)

    @property
    def vocab_size(self) -> int:
        """Ids are below this."""
        return int(self.followers.shape[0])

    def after(self, token: int) -> list[int]:
        """The followers of ``token``, most frequent first; a token that the table does not know has none."""
        if not 0 <= token < self.vocab_size:
            return []
        return [follower for follower in self.followers[token].tolist() if follower >= 0]

    def check_fits(self, tokenizer: Any, vocab_size: int) -> None:  # noqa: ANN401 - tokenizers have no common base
        """Refuse a table for other token ids.

        Args:
            tokenizer: the target's; None: there is none, and the sizes of the vocabularies must be equal.
            vocab_size: the target's, which may be padded above the tokenizer's.

        Raises:
            ValueError: another tokenizer, or another vocabulary.
        """
        if tokenizer is not None and self.tokenizer:
            if tokenizer_fingerprint(tokenizer) != self.tokenizer:
                raise ValueError(
                    "bigrams: expected a table that was counted with the target's tokenizer, got one of another "
                    f"vocabulary; {_MAKE} --target naming this one"
                )
        elif self.vocab_size != vocab_size:
            raise ValueError(
                f"bigrams: expected a vocabulary of {vocab_size} (the target's), got {self.vocab_size}; {_MAKE}, or "
                "name the target's tokenizer, so that the two can be compared"
            )

    def _check(self, vocab_size: int) -> None:
        """Raise ValueError where the table contradicts itself."""
        table = self.followers
        if table.dtype != np.int32 or table.ndim != 2 or 0 in table.shape or len(table) != vocab_size:
            raise ValueError(f"followers: expected int32 [{vocab_size}, K], got {table.dtype} {list(table.shape)}")
        if not -1 <= table.min() <= table.max() < vocab_size:
            raise ValueError(f"followers: expected ids below {vocab_size} or -1, got {table.min()} to {table.max()}")


def bigrams_of(context: Context, named: str | Path | BigramTable | None) -> BigramTable:
    """The table that a component's setting ``bigrams`` names, checked against the target.

    None is the embedded table, for the embedded target alone: the one-token contexts of its n-gram table.

    Raises:
        ValueError: none named for another target, a file that is no table, a table for another tokenizer.
    """
    target, tokenizer = context.target, context.tokenizer
    if named is None or named == "":
        if not target.is_embedded:
            raise ValueError(
                f"bigrams: expected a table for this target (--set bigrams=FILE), got none; {_MAKE} --target ... "
                "(only the embedded target comes with one)"
            )
        return BigramTable.from_ngrams(NgramTable.load(assets.ngram_table(), target.vocab_size))
    table = named if isinstance(named, BigramTable) else BigramTable.load(named)
    table.check_fits(tokenizer, target.vocab_size)
    return table


def _ranked(owner: Integers, successors: Integers, vocab_size: int, top: int) -> Integers:
    """Followers int32 [V, top] of successors that stand owner by owner (ascending), best first."""
    rank = np.arange(len(owner)) - np.searchsorted(owner, owner)
    kept = rank < top
    followers = np.full((vocab_size, top), -1, dtype=np.int32)
    followers[owner[kept], rank[kept]] = successors[kept]
    return followers
