"""A static back-off table: what usually follows the last one, two or three tokens, counted once over documents.

The file (safetensors, no pickle) holds the contexts as a suffix trie, level by level: a context of order m is one of
order m - 1 with an older token in front, so that it costs that token and two bytes of bookkeeping.

- ``context_tokens`` [N1 + N2 + ...]: the oldest token of every context: order 1, ascending; then, below each context
  of order 1 in turn, those of order 2 that end in it, ascending; and so on.
- ``num_extensions`` [N1 + N2 + ... less the last]: how many contexts of the next order lie below each.
- ``num_successors`` [N1 + N2 + ...]: how many successors each context keeps.
- ``successors`` [S]: their tokens, context by context, most probable first.
- ``probabilities`` [S], uint8: q stands for exp(-q / 16).

Integers have the smallest of uint8, uint16, uint32 that holds a tensor. Metadata: format, version, vocab_size,
orders (N1,N2,...).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specdecodes.plugins.array_file import ArrayFile, Arrays
from specdecodes.plugins.drafters.ngram_counts import count, smallest, trim

KEY_BITS = 21
"""Bits per token in the key of a context: newest token lowest, each stored as id + 1, so that 0 means no token."""

MAX_ORDER = 3
"""Three tokens of 21 bits are what a 64-bit key holds."""

MAX_VOCAB = 2**KEY_BITS - 1

_FILE = ArrayFile("n-gram table", "specdecodes.ngram_table", "1", "make one with 'specdecodes train ngram'")
_ARRAYS = ("context_tokens", "num_extensions", "num_successors", "successors", "probabilities")
_LEVELS = 16.0  # quantisation steps per factor of e
_HEADER = 1024  # bytes; metadata and alignment take no more

Integers = NDArray[Any]


@dataclass(frozen=True)
class Lookup:
    """A table that answers one question in some microseconds.

    Its successors are arrays: as objects, the 290,000 of the shipped table would take 50 MB.

    Attributes:
        rows: per order (entry 0 is empty), key of a context (see ``KEY_BITS``) to its number i.
        first: the successors of context i are those from ``first[i]`` to ``first[i + 1]``, most probable first.
        tokens, levels: per successor, its token, and where its probability stands in ``probabilities``.
        rest: per context, the probability that belongs to its shorter suffix.
    """

    rows: list[dict[int, int]]
    first: array[int]
    tokens: array[int]
    levels: bytes
    probabilities: list[float]
    rest: array[float]

    def successors(self, row: int) -> Iterator[tuple[int, float]]:
        """(token, probability) of context ``row``, most probable first."""
        start, end = self.first[row], self.first[row + 1]
        return zip(self.tokens[start:end], map(self.probabilities.__getitem__, self.levels[start:end]), strict=True)


@dataclass(frozen=True, eq=False)
class NgramTable:
    """Contexts of one to ``len(orders)`` tokens, each with its few most frequent successors.

    p(token | context) = (count - DISCOUNT) / (count of the context); what its successors leave over belongs to the
    context without its oldest token. The arrays are those of the file (see the module).

    Attributes:
        vocab_size: ids are below this. orders: how many contexts of order 1, 2, ... there are.
    """

    vocab_size: int
    orders: tuple[int, ...]
    context_tokens: Integers
    num_extensions: Integers
    num_successors: Integers
    successors: Integers
    probabilities: Integers

    @classmethod
    def build(
        cls,
        documents: Iterable[Sequence[int]],
        vocab_size: int,
        *,
        min_counts: Sequence[int] = (1, 2, 4),
        max_successors: int = 8,
        max_bytes: int = 1_000_000,
    ) -> NgramTable:
        """Count ``documents`` (token ids; no context crosses from one to the next).

        Args:
            vocab_size: ids must be below this.
            min_counts: how often a context of order 1, 2, ... must occur; as many orders as there are numbers.
            max_successors: the most that a context keeps.
            max_bytes: size of the file at most: the rarest n-grams (context and successor) go first, those of equal
                counts the longest first. (Dropping whole contexts instead: tau 2.00, not 2.02, on held-out text.)

        Raises:
            ValueError: a setting or a token id out of range, no pair of tokens in the documents.
        """
        _check_settings(vocab_size, min_counts, max_successors, max_bytes)
        levels = trim(count(documents, vocab_size, min_counts, max_successors), vocab_size, max_bytes - _HEADER)
        surprise = -_LEVELS * np.log(np.concatenate([level.probabilities for level in levels]))
        return cls(
            vocab_size,
            tuple(len(level.contexts) for level in levels),
            smallest([level.contexts % vocab_size for level in levels]),
            smallest([level.extensions for level in levels[:-1]]),
            smallest([np.bincount(level.owner, minlength=len(level.contexts)) for level in levels]),
            smallest([level.successors for level in levels]),
            np.rint(surprise).clip(0, 255).astype(np.uint8),
        )

    @classmethod
    def load(cls, path: str | Path, vocab_size: int | None = None) -> NgramTable:
        """Read a file that :meth:`save` wrote; with ``vocab_size``, insist on it.

        Raises:
            ValueError: no such file, not a table, damaged, or made for a vocabulary of another size.
        """

        def make(metadata: Mapping[str, str], arrays: Arrays) -> NgramTable:
            orders = tuple(int(count) for count in metadata["orders"].split(","))
            table = cls(int(metadata["vocab_size"]), orders, *(arrays[name] for name in _ARRAYS))
            table._check()
            return table

        table = _FILE.read(path, make)
        if vocab_size is not None and table.vocab_size != vocab_size:
            raise ValueError(
                f"n-gram table: {path}: expected a vocabulary of {vocab_size} (the target's), got {table.vocab_size}; "
                "use a table that was counted with the target's tokenizer"
            )
        return table

    def save(self, path: str | Path) -> None:
        """Write the file that :meth:`load` reads, replacing an earlier one in one go."""
        orders = ",".join(str(count) for count in self.orders)
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        _FILE.write(path, arrays, {"vocab_size": str(self.vocab_size), "orders": orders})

    @cached_property
    def lookup(self) -> Lookup:
        """What answers questions; made at the first use (a fraction of a second for a megabyte)."""
        keys = np.zeros(1, dtype=np.int64)  # of the level above: the empty context
        extensions = np.array([self.orders[0]])
        rows: list[dict[int, int]] = [{}]
        start = 0
        for order, size in enumerate(self.orders):
            tokens = self.context_tokens[start : start + size].astype(np.int64)
            keys = np.repeat(keys, extensions) | (tokens + 1 << KEY_BITS * order)
            rows.append(dict(zip(keys.tolist(), range(start, start + size), strict=True)))
            extensions = self.num_extensions[start : start + size]
            start += size
        first = np.concatenate([[0], np.cumsum(self.num_successors, dtype=np.int64)])
        probabilities = np.exp(np.arange(256) / -_LEVELS)
        total = np.concatenate([[0.0], np.cumsum(probabilities[self.probabilities])])
        rest = np.clip(1 - (total[first[1:]] - total[first[:-1]]), 1e-3, 1.0)  # quantised, they may exceed 1
        return Lookup(
            rows,
            array("L", first.astype(np.uintp).tobytes()),
            array("I", self.successors.astype(np.uintc).tobytes()),
            self.probabilities.astype(np.uint8).tobytes(),
            probabilities.tolist(),
            array("d", rest.tobytes()),
        )

    def _check(self) -> None:
        """Raise ValueError where the arrays contradict each other."""
        contexts, inner = sum(self.orders), sum(self.orders[:-1])
        wanted = (contexts, inner, contexts, len(self.successors), len(self.successors))
        for name, length in zip(_ARRAYS, wanted, strict=True):
            array = getattr(self, name)
            if array.dtype.kind != "u" or array.shape != (length,):
                raise ValueError(f"{name}: expected {length} unsigned integers, got {array.dtype} {array.shape}")
        if not 1 <= len(self.orders) <= MAX_ORDER or min(self.orders) < 0 or not 1 <= self.vocab_size <= MAX_VOCAB:
            raise ValueError(f"expected 1 to {MAX_ORDER} orders and {MAX_VOCAB} ids at most, got {self.orders}")
        if int(self.num_successors.sum(dtype=np.int64)) != len(self.successors):
            raise ValueError("num_successors: do not add up to the number of successors")
        start = 0
        for size, below in zip(self.orders, self.orders[1:], strict=False):
            if int(self.num_extensions[start : start + size].sum(dtype=np.int64)) != below:
                raise ValueError(f"num_extensions: do not add up to the {below} contexts of the next order")
            start += size
        for name in ("context_tokens", "successors"):
            if int(getattr(self, name).max(initial=0)) >= self.vocab_size:
                raise ValueError(f"{name}: expected ids below {self.vocab_size}")


def _check_settings(vocab_size: int, min_counts: Sequence[int], max_successors: int, max_bytes: int) -> None:
    if not 1 <= vocab_size <= MAX_VOCAB:
        raise ValueError(f"vocab_size: expected 1 to {MAX_VOCAB}, got {vocab_size}")
    if not 1 <= len(min_counts) <= MAX_ORDER or min(min_counts) < 1 or list(min_counts) != sorted(min_counts):
        # A context needs its shorter suffix, which is at least as frequent.
        raise ValueError(f"min_counts: expected 1 to {MAX_ORDER} counts of at least 1, ascending, got {min_counts}")
    if not 1 <= max_successors <= 255:
        raise ValueError(f"max_successors: expected 1 to 255, got {max_successors}")
    if max_bytes < 2 * _HEADER:
        raise ValueError(f"max_bytes: expected at least {2 * _HEADER}, got {max_bytes}")
