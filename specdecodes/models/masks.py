"""Additive attention masks of stock models: causal, along the paths of a tree, and inside sliding windows.

Additive and in the model's dtype: a boolean mask is silently wrong under eager attention, which adds it.

Letters: B rows, T queries, S visible positions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

Masks = Tensor | dict[str, Tensor]
"""One mask [B, 1, T, S], or one per kind of attention layer, where a model mixes them."""


def causal_mask(start: int, end: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[1, 1, end - start, end]: the tokens from ``start`` on see everything up to themselves."""
    mask = torch.full((end - start, end), torch.finfo(dtype).min, dtype=dtype, device=device)
    return mask.triu_(start + 1)[None, None]


def behind_prefix(mask: Tensor, length: int | Tensor, visible: int) -> Tensor:
    """``mask`` [..., T, n] among new rows, after ``length`` positions that all see and before others that none does.

    Args:
        length: a number, or int64 [] on the mask's device where it may not be one (see ``captured``).
    """
    lowest = torch.finfo(mask.dtype).min
    if isinstance(length, Tensor):
        # The column before the new rows stands for all that come earlier, the one after them for all that come later.
        column = _among_new(length, visible).clamp(-1, mask.shape[-1]) + 1
        return pad(pad(mask, (1, 0)), (0, 1), value=lowest).index_select(-1, column)
    mask = pad(mask, (length, 0))  # on a CPU several times as fast as looking every column up
    beyond = visible - mask.shape[-1]
    return pad(mask, (0, beyond), value=lowest) if beyond else mask


def positions_behind_prefix(positions: Tensor, length: int | Tensor, visible: int) -> Tensor:
    """Positions [B, S] of cached rows: ``length`` in order, then ``positions`` [B, n], then rows that no mask shows."""
    place = _among_new(length, visible, positions.device)
    new = positions.index_select(1, place.clamp(0, positions.shape[1] - 1))
    return torch.where(place < 0, place + length, new)


def _among_new(length: int | Tensor, visible: int, device: torch.device | None = None) -> Tensor:
    """Int64 [visible]: the place of every cached row among the new ones, below 0 in the prefix."""
    device = length.device if isinstance(length, Tensor) else device
    return torch.arange(visible, device=device) - length


def by_kind(mask: Tensor, windows: Mapping[str, int | None], queries: Tensor, keys: Tensor) -> Masks:
    """Narrow ``mask`` [B, 1, T, S] to the window of each kind of layer.

    A window of W shows a query the W positions that end with its own.

    Args:
        windows: from kinds of attention layers to windows, None for a layer without one.
        queries, keys: positions [B, T] and [B, S].
    """
    masks = {kind: mask if width is None else _inside(mask, width, queries, keys) for kind, width in windows.items()}
    return masks if len(masks) > 1 else masks.popitem()[1]


def _inside(mask: Tensor, width: int, queries: Tensor, keys: Tensor) -> Tensor:
    hidden = keys[:, None, :] <= queries[:, :, None] - width
    return mask.masked_fill(hidden[:, None], torch.finfo(mask.dtype).min)


def each_mask(masks: Masks) -> list[Tensor]:
    """All masks there are."""
    return list(masks.values()) if isinstance(masks, dict) else [masks]
