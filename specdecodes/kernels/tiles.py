"""What the Triton kernels of several ops share. Names as in each: ``o_`` offsets, ``p_`` pointers, ``b_`` tiles."""

from __future__ import annotations

import triton
import triton.language as tl


def power(size: int) -> int:
    """A tile that holds ``size``: a power of two, at least the 16 of a matrix unit."""
    return max(16, triton.next_power_of_2(size))


@triton.jit
def finite(b_x: tl.tensor) -> tl.tensor:
    """What is not finite becomes 0."""
    return tl.where(tl.abs(b_x) < float("inf"), b_x, 0.0)


@triton.jit
def tile(p_from: tl.tensor, o_row: tl.tensor, o_column: tl.tensor, stride: int, rows: int, columns: int) -> tl.tensor:
    """[rows, columns] in float32, zeros outside."""
    inside = (o_row < rows)[:, None] & (o_column < columns)[None, :]
    return tl.load(p_from + o_row[:, None] * stride + o_column[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def reaches(p_ancestors: tl.tensor, o_i: tl.tensor, o_j: tl.tensor, T: int) -> tl.tensor:
    """Of the ancestors [T, T], whether node ``o_j`` is ``o_i`` or above it."""
    inside = (o_i < T)[:, None] & (o_j < T)[None, :]
    return tl.load(p_ancestors + o_i[:, None] * T + o_j[None, :], mask=inside, other=0) != 0


@triton.jit
def log_decay(
    p_ancestors: tl.tensor, p_dt: tl.tensor, rate: tl.tensor, o_i: tl.tensor, T: int, dt_node: int, BT: tl.constexpr
) -> tl.tensor:
    """The sum of dt A over the path of each node ``o_i``."""
    b_sum = tl.zeros([BT], dtype=tl.float32)
    for first in range(0, T, BT):
        o_k = first + tl.arange(0, BT)
        b_above = reaches(p_ancestors, o_i, o_k, T)
        b_step = finite(tl.load(p_dt + o_k * dt_node, mask=o_k < T, other=0.0).to(tl.float32)) * rate
        b_sum += tl.sum(tl.where(b_above, b_step[None, :], 0.0), axis=1)
    return b_sum


@triton.jit
def path_length(p_path: tl.tensor, D: int, BD: tl.constexpr) -> tl.tensor:
    """Nodes of a path [D] that is padded with -1."""
    o_d = tl.arange(0, BD)
    return tl.sum((tl.load(p_path + o_d, mask=o_d < D, other=-1) >= 0).to(tl.int32), axis=0)
