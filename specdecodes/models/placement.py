"""Where new rows stand behind the committed prefix: their positions, their rows in the caches, what attention sees.

Letters: B rows, T nodes, n new rows, S visible positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specdecodes.core.tree import Topology
from specdecodes.models.cache import TreeCache
from specdecodes.models.families import Signature
from specdecodes.models.masks import Masks, behind_prefix, by_kind, each_mask, positions_behind_prefix

BLOCK = 64
"""Positions that attention sees come in multiples of so many, where their number shapes a graph."""


class Placement:
    """Of one model and its cache.

    Args:
        signature: how the model is called. dtype: of its masks.
        compiled, captured: whether its forwards are; then attention sees few different numbers of positions, and what
            lies beyond is masked.
        splits: whether trees attend to prefix and tree apart, without a mask.
    """

    def __init__(
        self,
        cache: TreeCache,
        signature: Signature,
        dtype: torch.dtype,
        *,
        compiled: bool,
        captured: bool,
        splits: bool,
    ) -> None:
        self.cache = cache
        self.signature = signature
        self.dtype = dtype
        self.compiled = compiled
        self.captured = captured
        self.splits = splits

    def place(self, topology: Topology, split: bool) -> tuple[Tensor, Masks, Tensor]:
        """Positions [B, T] by depth, the additive mask [B, 1, T, S], and where the nodes' keys go [T].

        Args:
            split: whether these nodes attend to prefix and tree apart, where the model does; then the mask is that
                among the nodes alone, [B, 1, T, T], and nobody reads it.
        """
        length, count = self.cache.length, topology.parents.shape[1]
        positions = topology.depths + length
        rows = torch.arange(length, length + count, device=positions.device)
        if not self.signature.attention:
            return positions, positions[:, None, None, :], rows
        among = topology.mask(self.dtype)
        masks = among if self.splits and split else self.mask(among, positions, positions)
        return self.within(positions), masks, rows

    def within(self, positions: Tensor) -> Tensor:
        """``positions`` of nodes, none beyond a turn (see :class:`Signature`) that the root is not beyond.

        No text has room for the nodes there (see :meth:`Target.check_room`); they must not change the others.
        """
        for turn in self.signature.turns:
            if self.cache.length < turn:
                positions = positions.clamp(max=turn - 1)
        return positions

    def mask(self, among: Tensor, queries: Tensor, keys: Tensor) -> Masks:
        """What the queries see of the committed prefix and of new rows.

        Args:
            among: additive mask among the new rows [B, 1, T, n]. queries, keys: positions [B, T] and [B, n].
        """
        length = self.cache.length
        visible = self._visible(length + among.shape[-1])
        mask = behind_prefix(among, length, visible)
        masks: Masks = mask
        if self.signature.slides:
            behind = positions_behind_prefix(keys, length, visible)
            masks = by_kind(mask, self.signature.windows, queries, behind)
        if self.compiled and not self.captured:
            for each in each_mask(masks):
                torch._dynamo.maybe_mark_dynamic(each, 3)  # at full capacity it is a constant
        return masks

    def _visible(self, length: int) -> int:
        """How many positions attention sees; captured, each number is a graph of its own."""
        if self.captured:
            return min(max(BLOCK, 1 << (length - 1).bit_length()), self.cache.capacity or length)
        return min(-(-length // BLOCK) * BLOCK, self.cache.capacity or length) if self.compiled else length
