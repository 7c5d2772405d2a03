"""Accepted rows of an attention cache, moved behind the committed ones, in plain torch.

Letters: B rows, H heads, S positions allocated, K key dim, V value dim, D rows moved.
"""

from __future__ import annotations

from torch import Tensor


def move_rows_(keys: Tensor, values: Tensor, source: Tensor, target: Tensor) -> None:
    """Copy the rows at ``source`` to the positions ``target``, in place.

    Args:
        keys: [B, H, S, K]; values: [B, H, S, V]. source: int64 [D], positions in any order, which may be among those
            written: what is read is what was there before. target: int64 [D], all different.
    """
    keys.index_copy_(2, target, keys.index_select(2, source))
    values.index_copy_(2, target, values.index_select(2, source))
