"""A corpus as an index that finds every context and what followed it: ``specdecodes corpus build``.

Contexts. Let x_0 x_1 ... x_n-1 be the documents one after the other, a separator (id = vocab_size) before the first
and behind each. The context of position i is everything up to x_i, and x_i+1 follows it. Sort the contexts by their
last token, then the last but one, and so on (the suffix array of the text read backwards): those that end in a given
string w stand side by side, a range of ranks.

One token more. Within the contexts that end in t, the order is that of the contexts one token shorter. So if w has
the range [low, high), the r-th context before some t, in rank order, becomes the r-th context that ends in t, and w t
has

    low' = starts[t] + how many of the first low contexts are followed by t, and high' likewise.

``ranks`` lists the contexts followed by t, ascending, at starts[t] to starts[t + 1]: a binary search for low there
gives low' itself, one for high gives high' (the backward search of the FM-index, Ferragina and Manzini 2000, on the
reversed text). An empty range: w t does not occur.

The file (safetensors, no pickle): ranks uint32 [n], starts int64 [vocab_size + 2]; metadata: format, version,
vocab_size, tokenizer (a fingerprint of its vocabulary, or nothing).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specdecodes.plugins.array_file import ArrayFile, Arrays

Integers = NDArray[Any]

_FILE = ArrayFile("datastore", "specdecodes.datastore", "1", "make one with 'specdecodes corpus build'")
_MAX_TOKENS = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Datastore:
    """Every context of a corpus, sorted from its end; see the module.

    Attributes:
        vocab_size: ids are below this, and it stands for the separator. tokenizer: fingerprint, or "".
        ranks, starts: see the module.
    """

    vocab_size: int
    tokenizer: str
    ranks: Integers
    starts: Integers

    @classmethod
    def build(cls, documents: Iterable[Sequence[int] | Integers], vocab_size: int, tokenizer: str = "") -> Datastore:
        """Index ``documents`` (token ids). Needs about 60 bytes per token while it works.

        Raises:
            ValueError: no token, too many, or an id outside the vocabulary.
        """
        parts = [np.asarray(document, dtype=np.int64) for document in documents]
        count = sum(map(len, parts))
        if not 0 < count < _MAX_TOKENS - len(parts):
            raise ValueError(f"corpus: expected 1 to {_MAX_TOKENS} tokens, got {count}; give it some text, or less")
        end = np.array([vocab_size])
        text = np.concatenate([end, *(part for document in parts for part in (document, end))])
        if text.min() < 0 or text.max() > vocab_size or (text == vocab_size).sum() != len(parts) + 1:
            raise ValueError(f"corpus: expected token ids 0 to {vocab_size - 1}, got {text.min()} to {text.max()}")
        backwards = text[::-1].astype(np.uint16 if vocab_size < 2**16 else np.uint32)
        order = suffix_array(backwards)
        following = np.append(text, vocab_size)[len(text) - order]
        ranks = np.argsort(following, kind="stable").astype(np.uint32)
        starts = np.concatenate([[0], np.cumsum(np.bincount(text, minlength=vocab_size + 1))])
        return cls(vocab_size, tokenizer, ranks, starts)

    @classmethod
    def load(cls, path: str | Path) -> Datastore:
        """Read a file that :meth:`save` wrote.

        Raises:
            ValueError: no such file, not a datastore, or damaged.
        """

        def make(metadata: Mapping[str, str], arrays: Arrays) -> Datastore:
            store = cls(int(metadata["vocab_size"]), metadata["tokenizer"], arrays["ranks"], arrays["starts"])
            store._check()
            return store

        return _FILE.read(path, make)

    def save(self, path: str | Path) -> None:
        """Write the file that :meth:`load` reads, atomically."""
        metadata = {"vocab_size": str(self.vocab_size), "tokenizer": self.tokenizer}
        _FILE.write(path, {"ranks": self.ranks, "starts": self.starts}, metadata)

    @property
    def size(self) -> int:
        """Contexts: tokens and separators."""
        return len(self.ranks)

    def step(self, ranges: Iterable[tuple[int, int]], token: int) -> list[tuple[int, int]]:
        """The ranges of w t, given those of some w; where w t does not occur there is none.

        Given the suffixes of one string, longest first, so are the answers: those of the string and t. A suffix that
        occurs nowhere but at the end of a longer one says nothing of its own and is left out.
        """
        if not 0 <= token < self.vocab_size:
            return []
        ranks, start, end = self._ranks, self._starts[token], self._starts[token + 1]
        found: list[tuple[int, int]] = []
        count = 0
        for low, high in ranges:
            first = bisect_left(ranks, low, start, end)
            if first < end and ranks[first] < high:
                last = first + 1
                if high - low > 1:
                    last = bisect_left(ranks, high, last, min(end, first + high - low))
                if last - first > count:
                    found.append((first, last))
                    count = last - first
        return found

    def following(self, low: int, high: int, most: int) -> array[int]:
        """What follows the contexts of a range that is not empty, or ``most`` of them, evenly spread.

        The end of a document is ``vocab_size``.
        """
        return self._following[low : high : -(-(high - low) // most)]

    # Element by element a memoryview answers three times as fast as an array.

    @cached_property
    def _ranks(self) -> memoryview:
        return np.ascontiguousarray(self.ranks).data

    @cached_property
    def _starts(self) -> list[int]:
        starts: list[int] = self.starts.tolist()
        return starts

    @cached_property
    def _following(self) -> array[int]:
        following = np.empty(self.size, dtype=np.int32)
        following[self.ranks] = np.repeat(np.arange(self.vocab_size + 1, dtype=np.int32), np.diff(self.starts))
        return array("i", following.tobytes())  # a small piece of it comes out twice as fast as of numpy's

    def _check(self) -> None:
        """Raise ValueError where the arrays contradict each other."""
        count = len(self.ranks)
        for name, dtype, length in (
            ("ranks", np.uint32, count),
            ("starts", np.int64, self.vocab_size + 2),
        ):
            array = getattr(self, name)
            if array.dtype != dtype or array.shape != (length,):
                raise ValueError(f"{name}: expected {length} of {np.dtype(dtype)}, got {array.dtype} {array.shape}")
        if self.starts[0] != 0 or self.starts[-1] != count or (np.diff(self.starts) < 0).any():
            raise ValueError(f"starts: expected an ascending list from 0 to {count}")
        if (np.bincount(self.ranks, minlength=count) != 1).any():
            raise ValueError("ranks: expected every rank once")


def suffix_array(values: Integers) -> Integers:
    """The places of the suffixes of ``values`` [n] (unsigned integers) in lexicographic order: int64 [n].

    With pydivsufsort (the extra ``corpus``) where it is installed; otherwise by prefix doubling (Manber and Myers
    1990), several times slower.
    """
    try:
        from pydivsufsort import divsufsort
    except ImportError:
        return _prefix_doubling(values)
    return np.asarray(divsufsort(values), dtype=np.int64)


def _prefix_doubling(values: Integers) -> Integers:
    """Sort by the first token, then by 2, 4, 8, ... tokens, each time by pairs of places in the order before."""
    count, width = len(values), 1
    place = np.unique(values, return_inverse=True)[1].astype(np.int64)
    while True:
        beyond = np.zeros(count, dtype=np.int64)  # behind the end stands nothing, which is smallest
        beyond[: count - width] = place[width:] + 1
        pairs = place * (count + 1) + beyond
        order = np.argsort(pairs, kind="stable")
        ordered = pairs[order]
        place[order] = np.concatenate([[0], np.cumsum(ordered[1:] != ordered[:-1])])
        if place[order[-1]] == count - 1:
            return order
        width *= 2
