"""Draft from suffix matches in prompt and output, backed off to a static table; no model."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from specdecodes import assets
from specdecodes.plugins.drafters.index import IndexDrafter, back_off, best_of
from specdecodes.plugins.drafters.ngram_table import KEY_BITS, MAX_ORDER, MAX_VOCAB, Lookup, NgramTable

if TYPE_CHECKING:
    from specdecodes.plugin import Context

_MASKS = [(1 << KEY_BITS * order) - 1 for order in range(65)]


class Ngram(IndexDrafter):
    """Draft what followed the same last tokens before: in prompt and output, then in a static table.

    ``max_order``: longest suffix that is matched. ``table``: path of a table, "embedded", "" for none; by default the
    embedded one for the embedded target, none for others. ``prior``: weight of shorter matches against a longer one
    (see :func:`back_off`).

    An index on the host: about 6 us per question of one slot, half a millisecond for a prompt of 500 tokens.
    """

    def __init__(
        self,
        context: Context,
        *,
        max_order: int = 5,
        table: str | Path | NgramTable | None = None,
        prior: float = 3.0,
    ) -> None:
        super().__init__()
        if not 1 <= max_order < len(_MASKS):
            raise ValueError(f"max_order: expected 1 to {len(_MASKS) - 1} tokens, got {max_order}")
        if not prior > 0:
            raise ValueError(f"prior: expected a number above 0, got {prior}")
        if context.target.vocab_size > MAX_VOCAB:
            raise ValueError(f"ngram: expected a vocabulary of at most {MAX_VOCAB}, got {context.target.vocab_size}")
        self.max_order = max_order
        self.prior = float(prior)
        self.table = _table(table, context)
        self._lookup = self.table.lookup if self.table is not None else _EMPTY

    def index(self) -> NgramIndex:
        """See the base."""
        context = ContextIndex(max(self.max_order, MAX_ORDER))
        return NgramIndex(context, self._lookup, self.max_order, self.prior)


class ContextIndex:
    """What followed every run of 1 to ``max_order`` tokens of one sequence, with counts; grows token by token.

    Attributes:
        successors: per order (from 1; entry 0 is empty), key of a run (see ``KEY_BITS``) to {next token: count}.
        key: key of the last ``max_order`` tokens. length: tokens taken in.
    """

    def __init__(self, max_order: int) -> None:
        self.successors: list[dict[int, dict[int, int]]] = [{} for _ in range(max_order + 1)]
        self.key = 0
        self.length = 0

    def extend(self, tokens: Sequence[int]) -> None:
        """Take in the next tokens of the sequence."""
        key, masks = self.key, _MASKS[: len(self.successors)]
        for token in tokens:
            for order in range(1, min(self.length, len(masks) - 1) + 1):
                counts = self.successors[order].setdefault(key & masks[order], {})
                counts[token] = counts.get(token, 0) + 1
            key = (key << KEY_BITS | token + 1) & masks[-1]
            self.length += 1
        self.key = key


class NgramIndex:
    """Candidates of one row. A node is the key of the last tokens on its path, so that a child costs a shift."""

    def __init__(self, context: ContextIndex, table: Lookup, max_order: int, prior: float) -> None:
        self._context = context
        self._table = table
        self._max_order = max_order
        self._prior = prior
        self._mask = _MASKS[len(context.successors) - 1]

    @property
    def length(self) -> int:
        """See :class:`Index`."""
        return self._context.length

    @property
    def root(self) -> int:
        """See :class:`Index`."""
        return self._context.key

    def extend(self, tokens: Sequence[int]) -> None:
        """See :class:`Index`."""
        self._context.extend(tokens)

    def child(self, node: int, token: int) -> int:
        """See :class:`Index`; a token -1 has no successors."""
        return (node << KEY_BITS | token + 1) & self._mask

    def best(self, node: int, k: int) -> list[tuple[int, float]]:
        """The ``k`` most probable tokens: :func:`back_off` from the longest match in the context, then the table.

        The probability below the shortest context is the table's; tokens that occur nowhere have none.
        """
        matches = []
        for order in range(1, self._max_order + 1):
            counts = self._context.successors[order].get(node & _MASKS[order])
            if counts is None:
                break  # and no longer run occurred either
            matches.append(counts)
        scores, share = back_off(reversed(matches), self._prior)
        table = self._table
        for order in range(len(table.rows) - 1, 0, -1):
            row = table.rows[order].get(node & _MASKS[order])
            if row is not None:
                for token, probability in table.successors(row):
                    scores[token] = scores.get(token, 0.0) + share * probability
                share *= table.rest[row]
        return best_of(scores, k)


_EMPTY = Lookup([], array("L"), array("I"), b"", [], array("d"))


def _table(table: str | Path | NgramTable | None, context: Context) -> NgramTable | None:
    """The table that the setting names, checked against the target's vocabulary."""
    vocab_size = context.target.vocab_size
    if table is None:
        table = "embedded" if getattr(context.target, "is_embedded", False) else ""
    if table == "":
        return None
    if isinstance(table, NgramTable):
        if table.vocab_size != vocab_size:
            raise ValueError(f"table: expected a vocabulary of {vocab_size} (the target's), got {table.vocab_size}")
        return table
    return NgramTable.load(assets.ngram_table() if table == "embedded" else table, vocab_size)
