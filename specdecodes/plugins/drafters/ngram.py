"""Draft from suffix matches in prompt and output, backed off to a static table; no model."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from specdecodes import assets
from specdecodes.hookspecs import hookimpl
from specdecodes.plugins.drafters.ngram_table import KEY_BITS, MAX_ORDER, MAX_VOCAB, Lookup, NgramTable

if TYPE_CHECKING:
    from specdecodes.core.state import DecodeState
    from specdecodes.plugin import Context

_MASKS = [(1 << KEY_BITS * order) - 1 for order in range(65)]
_by_score = itemgetter(1)


class Ngram:
    """Draft what followed the same last tokens before: in prompt and output, then in a static table.

    ``max_order``: longest suffix that is matched. ``table``: path of a table, "embedded", "" for none; by default the
    embedded one for the embedded target, none for others. ``prior``: weight of shorter matches against a longer one
    (see :meth:`NgramProposal.topk`).

    An index on the host: about 6 us per question of one slot, half a millisecond for a prompt of 500 tokens.
    """

    has_probs = False
    capturable = False

    def __init__(
        self,
        context: Context,
        *,
        max_order: int = 5,
        table: str | Path | NgramTable | None = None,
        prior: float = 3.0,
    ) -> None:
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
        # Several generations may be under way at once (streams); each has its own context, which ends with it.
        self._contexts: WeakKeyDictionary[DecodeState, list[ContextIndex]] = WeakKeyDictionary()

    @hookimpl
    def generation_started(self, state: DecodeState) -> None:
        """Take in the prompt and the first token."""
        self._contexts[state] = [ContextIndex(max(self.max_order, MAX_ORDER)) for _ in state.history]
        self._take_in(state)

    @hookimpl
    def propose(self, state: DecodeState) -> NgramProposal:
        """Take in what was emitted since; the root is slot 0."""
        if state not in self._contexts:
            self.generation_started(state)
        return NgramProposal(self._take_in(state), self._lookup, self.max_order, self.prior, state.root.device)

    def _take_in(self, state: DecodeState) -> list[ContextIndex]:
        contexts = self._contexts[state]
        for context, history in zip(contexts, state.history, strict=True):
            context.extend(history[context.length :])
        return contexts


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


class NgramProposal:
    """Candidates by slot. A slot is the key of the last tokens on its path, so that expanding it costs a shift."""

    marginals: Tensor | None = None

    def __init__(
        self, contexts: Sequence[ContextIndex], table: Lookup, max_order: int, prior: float, device: torch.device
    ) -> None:
        self._contexts = contexts
        self._table = table
        self._max_order = max_order
        self._prior = prior
        self._device = device
        self._keys = [[context.key] for context in contexts]  # per row, by slot

    def topk(self, slots: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The ``k`` most probable tokens after ``slots`` [B, n]: int64 and float32 [B, n, k], padded with -1 and -inf.

        Interpolated back-off, from the longest match in the context down, then through the table:

            p_m(t) = (c_m(t) + prior * u_m * p_{m-1}(t)) / (c_m + prior * u_m)

        where c_m(t) counts t after the last m tokens, c_m counts any token there, and u_m the different ones
        (Witten and Bell 1991, with a heavier prior: occurrences count again at every shorter order). p_0 is the
        table's probability; tokens that occur nowhere have none. A context with one continuation thus outweighs the
        table, one with many does not.
        """
        tokens, logq = array("q"), array("f")
        for context, keys, row in zip(self._contexts, self._keys, slots.tolist(), strict=True):
            for slot in row:
                best = self._best(context.successors, keys[slot], k)
                for token, score in best:
                    tokens.append(token)
                    logq.append(math.log(score))
                for _ in range(k - len(best)):
                    tokens.append(-1)
                    logq.append(-math.inf)
        shape = (*slots.shape, k)
        return self._tensor(tokens, torch.int64).view(shape), self._tensor(logq, torch.float32).view(shape)

    def logq(self, slots: Tensor) -> Tensor:
        """There is no distribution over the vocabulary.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "the drafter 'ngram' has no distribution over the vocabulary; draw its children by score (draws 'none') "
            "and verify with 'greedy' or 'token-match'"
        )

    def expand(self, slots: Tensor, tokens: Tensor) -> Tensor:
        """New slots [B, n] for ``tokens`` [B, n] below ``slots`` [B, n]: bookkeeping; a token -1 has no successors."""
        mask = _MASKS[len(self._contexts[0].successors) - 1]
        new = array("q")
        for keys, above, below in zip(self._keys, slots.tolist(), tokens.tolist(), strict=True):
            new.extend(range(len(keys), len(keys) + len(above)))
            keys += [(keys[slot] << KEY_BITS | token + 1) & mask for slot, token in zip(above, below, strict=True)]
        return self._tensor(new, torch.int64).view(slots.shape)

    def _best(self, successors: Sequence[dict[int, dict[int, int]]], key: int, k: int) -> list[tuple[int, float]]:
        """The ``k`` best (token, probability) after the tokens of ``key``."""
        matches = []
        for order in range(1, self._max_order + 1):
            counts = successors[order].get(key & _MASKS[order])
            if counts is None:
                break  # and no longer run occurred either
            matches.append(counts)
        scores: dict[int, float] = {}
        share = 1.0  # what the longer contexts leave to the shorter ones
        for counts in reversed(matches):
            weight = self._prior * len(counts)
            scale = share / (sum(counts.values()) + weight)
            for token, count in counts.items():
                scores[token] = scores.get(token, 0.0) + scale * count
            share = scale * weight
        table = self._table
        for order in range(len(table.rows) - 1, 0, -1):
            row = table.rows[order].get(key & _MASKS[order])
            if row is not None:
                for token, probability in table.entries[table.first[row] : table.first[row + 1]]:
                    scores[token] = scores.get(token, 0.0) + share * probability
                share *= table.rest[row]
        return sorted(scores.items(), key=_by_score, reverse=True)[:k]

    def _tensor(self, values: array[int] | array[float], dtype: torch.dtype) -> Tensor:
        if not values:  # frombuffer refuses an empty one
            return torch.empty(0, dtype=dtype, device=self._device)
        # Half the time of torch.tensor on a list; the tensor keeps the array alive.
        return torch.frombuffer(values, dtype=dtype).to(self._device)


_EMPTY = Lookup([], [0], [], [])


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
