"""Look the last tokens up in what came before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from specdecodes import hookimpl

if TYPE_CHECKING:
    from specdecodes.core.state import DecodeState
    from specdecodes.plugin import Context


class PromptLookup:
    """Draft what followed the last tokens where they first occurred in prompt and output.

    Runs of ``max_ngram`` down to ``min_ngram`` tokens are looked up, longer ones first; at most ``lookahead`` tokens
    are read after a match. Saxena 2023, "Prompt Lookup Decoding".
    """

    has_probs = False
    capturable = False

    def __init__(
        self, context: Context | None = None, *, max_ngram: int = 3, min_ngram: int = 1, lookahead: int = 32
    ) -> None:
        if not 1 <= min_ngram <= max_ngram:
            raise ValueError(f"min_ngram: expected 1 to max_ngram ({max_ngram}), got {min_ngram}")
        if lookahead < 1:
            raise ValueError(f"lookahead: expected at least 1 token, got {lookahead}")
        self.sizes = range(max_ngram, min_ngram - 1, -1)
        self.lookahead = lookahead
        # Several generations may be under way at once (streams); an index ends with its generation.
        self._indices: WeakKeyDictionary[DecodeState, list[FirstOccurrences]] = WeakKeyDictionary()

    @hookimpl
    def propose(self, state: DecodeState) -> Continuations:
        """Take in what was emitted since the last step, and look the last tokens up, the root included."""
        if state not in self._indices:
            self._indices[state] = [FirstOccurrences(self.sizes) for _ in state.history]
        rows = []
        for index, history in zip(self._indices[state], state.history, strict=True):
            start = index.find(history)
            rows.append(history[start : start + self.lookahead])
        return Continuations(rows, state.root.device)


class FirstOccurrences:
    """Where each run of tokens of one growing sequence first ended, and so where its continuation starts."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = sizes
        self._ends: dict[tuple[int, ...], int] = {}
        self._known = 0

    def find(self, history: Sequence[int]) -> int:
        """Where the continuation of the last tokens of ``history`` starts; its end if they occurred nowhere before.

        ``history`` must continue what was given before.
        """
        for end in range(self._known + 1, len(history)):  # a run at the very end has no continuation
            for size in self.sizes:
                if size <= end:
                    self._ends.setdefault(tuple(history[end - size : end]), end)
        self._known = max(len(history) - 1, 0)
        for size in self.sizes:
            if size < len(history) and (end := self._ends.get(tuple(history[-size:]))) is not None:
                return end
        return len(history)


class Continuations:
    """One chain per row: slot i knows the i-th token of the continuation, the last slot knows nothing."""

    marginals: Tensor | None = None

    def __init__(self, rows: Sequence[Sequence[int]], device: torch.device) -> None:
        width = max(map(len, rows)) + 1
        padded = [[*row, *([-1] * (width - len(row)))] for row in rows]
        self._tokens = torch.tensor(padded, dtype=torch.long, device=device)

    def topk(self, slots: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """One candidate at ``slots`` [B, n] at most; the rest is -1 and -inf: [B, n, k]."""
        tokens = torch.full((*slots.shape, k), -1, device=slots.device)
        tokens[..., 0] = self._tokens.gather(1, slots)
        logq = torch.zeros(tokens.shape, device=slots.device).masked_fill_(tokens < 0, -torch.inf)
        return tokens, logq

    def logq(self, slots: Tensor) -> Tensor:
        """There is no distribution.

        Raises:
            ValueError: always.
        """
        raise ValueError("the drafter 'prompt-lookup' has no draft distribution; verify with 'greedy' or 'token-match'")

    def expand(self, slots: Tensor, tokens: Tensor) -> Tensor:
        """The next slot below the token that continues the chain; below any other the slot that knows nothing."""
        nothing = self._tokens.shape[1] - 1
        return torch.where(tokens == self._tokens.gather(1, slots), slots + 1, nothing)
