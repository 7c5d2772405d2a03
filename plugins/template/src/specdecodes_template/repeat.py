"""A drafter, as small as it gets."""

from __future__ import annotations

import torch
from torch import Tensor

from specdecodes import hookimpl
from specdecodes.core.state import DecodeState
from specdecodes.plugin import Context


class Repeat:
    """Draft the last token again and again."""

    has_probs = False
    capturable = False

    def __init__(self, context: Context) -> None:
        pass

    @hookimpl
    def propose(self, state: DecodeState) -> Repetition:
        """The proposal of this step; ``state.root`` [B, 1] is the last token."""
        return Repetition(state.root)


class Repetition:
    """What may come next: the same token at every slot."""

    marginals = None

    def __init__(self, token: Tensor) -> None:
        self.token = token

    def topk(self, slots: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The token at ``slots`` [B, n], then nothing (-1 and -inf): tokens and log-probabilities [B, n, k]."""
        tokens = torch.full((*slots.shape, k), -1, device=slots.device)
        tokens[..., 0] = self.token
        return tokens, torch.zeros(tokens.shape, device=slots.device).masked_fill(tokens < 0, -torch.inf)

    def logq(self, slots: Tensor) -> Tensor:
        """There is no distribution (``has_probs`` is False)."""
        raise ValueError("the drafter 'repeat' has no draft distribution; verify with 'greedy' or 'token-match'")

    def expand(self, slots: Tensor, tokens: Tensor) -> Tensor:
        """Below a token comes the same again, so one slot will do."""
        return slots
