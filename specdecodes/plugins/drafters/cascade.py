"""Draft with an index where it finds something, with a model where it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specdecodes.plugins.drafters.parts import CompositeDrafter, CompositeProposal, PartProposal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from specdecodes.plugin import Context


class Cascade(CompositeDrafter):
    """Draft with ``first`` at every node where it has a candidate, else with ``second``.

    Both are drafters by name. With an index first and a model second the model runs only where the index finds nothing
    (``ngram`` with a table always finds something); after steps without it, it catches up on all that was accepted
    meanwhile in one forward.
    """

    def __init__(self, context: Context, *, first: str = "suffix", second: str = "model") -> None:
        super().__init__(context, (first, second))

    def combine(self, parts: Sequence[PartProposal]) -> CascadeProposal:
        """See the base."""
        return CascadeProposal(parts)


class CascadeProposal(CompositeProposal):
    """The first part's candidates, or the second's."""

    def topk(self, slots: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """See :meth:`Proposal.topk`; each slot's candidates are those of one part."""
        first, second = self.parts
        asked = slots[0].tolist()
        tokens, logq = first.topk(asked, k)
        nothing = [place for place, row in enumerate(tokens[0, :, 0].tolist()) if row < 0]
        if nothing:
            where = torch.tensor(nothing, device=slots.device)
            other_tokens, other_logq = second.topk([asked[place] for place in nothing], k)
            tokens = tokens.index_copy(1, where, other_tokens)
            logq = logq.index_copy(1, where, other_logq.to(logq.dtype))
        return tokens, logq
