"""The drafter of plain decoding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specdecodes.hookspecs import hookimpl

if TYPE_CHECKING:
    from specdecodes.core.state import DecodeState


class Nothing:
    """Propose nothing: plain decoding."""

    has_probs = False
    capturable = True
    marginals: Tensor | None = None

    def __init__(self, context: object = None) -> None:
        pass

    @hookimpl
    def propose(self, state: DecodeState) -> Nothing:
        """An empty proposal."""
        return self

    def topk(self, slots: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """No candidates: tokens -1, log-probabilities -inf, [B, n, k]."""
        tokens = torch.full((*slots.shape, k), -1, device=slots.device)
        return tokens, torch.full((*slots.shape, k), float("-inf"), device=slots.device)

    def logq(self, slots: Tensor) -> Tensor:
        """There is no distribution."""
        raise ValueError("the drafter 'none' has no draft distribution; use it with the tree 'root'")

    def expand(self, slots: Tensor, tokens: Tensor) -> Tensor:
        """There is nothing to run."""
        return slots
