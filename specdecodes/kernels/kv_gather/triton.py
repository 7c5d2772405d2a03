"""Accepted rows of an attention cache, moved behind the committed ones, as a Triton kernel.

Letters: B rows, H heads, S positions allocated, K key dim, V value dim, D rows moved.
Names: ``i_`` program ids, ``o_`` offsets, ``p_`` pointers, ``b_`` tiles.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096
"""Numbers of keys, and as many of values, that a program holds; fewer where rows are short."""


def gather_config(length: int, key_dim: int, value_dim: int) -> dict[str, int]:
    """Tiles of :func:`move_rows_kernel`: all rows, and as many of their numbers as fit."""
    block_d = triton.next_power_of_2(length)
    return {"BD": block_d, "BE": min(triton.next_power_of_2(max(key_dim, value_dim)), max(8, TILE // block_d))}


@triton.jit
def move_rows_kernel(
    p_keys: tl.tensor,
    p_values: tl.tensor,
    p_source: tl.tensor,
    p_target: tl.tensor,
    D: int,
    positions: int,
    K: tl.constexpr,
    V: tl.constexpr,
    BD: tl.constexpr,
    BE: tl.constexpr,
) -> None:
    """Of one batch row and head, BE numbers of every key and value moved: all are read before one is written."""
    i_e, i_bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_d, o_e = tl.arange(0, BD), i_e * BE + tl.arange(0, BE)
    in_keys, in_values = (o_d < D)[:, None] & (o_e < K)[None, :], (o_d < D)[:, None] & (o_e < V)[None, :]
    p_keys += i_bh * positions * K
    p_values += i_bh * positions * V
    b_source = tl.load(p_source + o_d, mask=o_d < D, other=0)[:, None]
    b_keys = tl.load(p_keys + b_source * K + o_e[None, :], mask=in_keys, other=0.0)
    b_values = tl.load(p_values + b_source * V + o_e[None, :], mask=in_values, other=0.0)
    tl.debug_barrier()  # another thread may still have to read what this one overwrites
    o_to = tl.load(p_target + o_d, mask=o_d < D, other=0)[:, None]
    tl.store(p_keys + o_to * K + o_e[None, :], b_keys, mask=in_keys)
    tl.store(p_values + o_to * V + o_e[None, :], b_values, mask=in_values)


def move_rows_(keys: Tensor, values: Tensor, source: Tensor, target: Tensor) -> None:
    """See :func:`naive.move_rows_`; ``keys`` and ``values`` are contiguous."""
    rows, heads, positions, key_dim = keys.shape
    value_dim, length = values.shape[3], source.shape[0]
    config = gather_config(length, key_dim, value_dim)
    with torch.cuda.device_of(keys):  # Triton launches on the current device
        move_rows_kernel[triton.cdiv(max(key_dim, value_dim), config["BE"]), rows * heads](
            keys, values, source.contiguous(), target.contiguous(), length, positions, key_dim, value_dim, **config
        )
