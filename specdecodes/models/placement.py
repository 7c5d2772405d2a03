"""Where new rows stand behind the committed prefix: their positions, their rows in the caches, what attention sees.

Letters: B rows, T nodes, n new rows, S visible positions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from specdecodes.core.tree import Topology
from specdecodes.models.cache import TreeCache
from specdecodes.models.families import Signature
from specdecodes.models.masks import Masks, behind_prefix, by_kind, each_mask, positions_behind_prefix

BLOCK = 64
"""Positions that attention sees come in multiples of so many, where their number shapes a graph."""


class Behind(NamedTuple):
    """What new rows come behind; an input of the forwards that place them.

    Attributes:
        length: committed tokens; int64 [] on the device where forwards are captured, since a graph keeps numbers.
        visible: how many positions attention sees; 0 where nobody asks.
        limit: positions stay below it (None: no limit): a turn (see :class:`Signature`) that the root is not beyond. No
            text has room for nodes there (see :meth:`Target.check_room`); they must not change the others.
    """

    length: int | Tensor
    visible: int
    limit: int | None


class Placement:
    """Of one model and its cache.

    Args:
        signature: how the model is called. dtype, device: of its masks.
        compiled, captured: whether its forwards are; then attention sees few different numbers of positions, and what
            lies beyond is masked.
        splits: whether trees attend to prefix and tree apart, without a mask.
    """

    def __init__(
        self,
        cache: TreeCache,
        signature: Signature,
        dtype: torch.dtype,
        device: torch.device,
        *,
        compiled: bool,
        captured: bool,
        splits: bool,
    ) -> None:
        self.cache = cache
        self.signature = signature
        self.dtype = dtype
        self.device = device
        self.compiled = compiled
        self.captured = captured
        self.splits = splits

    def behind(self, count: int, split: bool = False) -> Behind:
        """Of ``count`` new rows behind what is committed now.

        Args:
            split: whether they attend to prefix and tree apart, where the model does.
        """
        length = self.cache.length
        where = torch.full((), length, dtype=torch.long, device=self.device) if self.captured else length
        asked = self.signature.attention and not (split and self.splits)
        return Behind(where, self._visible(length + count) if asked else 0, self.limit(length))

    def limit(self, length: int) -> int | None:
        """See :class:`Behind`."""
        return min((turn for turn in self.signature.turns if length < turn), default=None)

    def mask_dtype(self, split: bool) -> torch.dtype | None:
        """Of the mask among nodes, where anybody reads one; ``split``: see :meth:`behind`."""
        return self.dtype if self.signature.attention and not (split and self.splits) else None

    def place(self, nodes: Topology, behind: Behind) -> tuple[Tensor, Masks, Tensor]:
        """Positions [B, T] of nodes by their depths, the additive mask [B, 1, T, S], where their keys go [T].

        Where nodes attend to prefix and tree apart, nobody reads the mask, and it is empty.
        """
        positions = nodes.depths + behind.length
        rows = torch.arange(nodes.depths.shape[1], device=positions.device) + behind.length
        if not self.signature.attention:
            return positions, positions[:, None, None, :], rows
        if behind.visible:
            mask = self.mask(nodes.mask(self.dtype), positions, positions, behind)
        else:  # in the shape of one, which stock models look at
            mask = torch.zeros(nodes.ancestors.shape, dtype=self.dtype, device=positions.device)[:, None]
        return self.within(positions, behind), mask, rows

    def within(self, positions: Tensor, behind: Behind) -> Tensor:
        """``positions`` of nodes, below the limit."""
        return positions if behind.limit is None else positions.clamp(max=behind.limit - 1)

    def mask(self, among: Tensor, queries: Tensor, keys: Tensor, behind: Behind) -> Masks:
        """What the queries see of the committed prefix and of new rows.

        Args:
            among: additive mask among the new rows [B, 1, T, n]. queries, keys: positions [B, T] and [B, n].
        """
        mask = behind_prefix(among, behind.length, behind.visible)
        masks: Masks = mask
        if self.signature.slides:
            positions = positions_behind_prefix(keys, behind.length, behind.visible)
            masks = by_kind(mask, self.signature.windows, queries, positions)
        if self.compiled and not self.captured:
            for each in each_mask(masks):
                torch._dynamo.maybe_mark_dynamic(each, 3)  # at full capacity it is a constant
        return masks

    def _visible(self, length: int) -> int:
        """How many positions attention sees; captured, each number is a graph of its own."""
        if self.captured:
            return min(max(BLOCK, 1 << (length - 1).bit_length()), self.cache.capacity or length)
        return min(-(-length // BLOCK) * BLOCK, self.cache.capacity or length) if self.compiled else length
