"""The S6 recurrence over a tree and along a path as Triton kernels; README.md derives the formulas.

Letters: B rows, T nodes, C channels, N state dim, D path length, P scans of one layer.
Names: ``i_`` program ids, ``o_`` offsets, ``p_`` pointers, ``b_`` tiles. Program ids that stand for rows and layers
are int64, so that no product with a stride overflows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from specdecodes.kernels.native import rows as dense_rows
from specdecodes.kernels.tiles import tile

TREE_TILE = 4096
"""Numbers of all node states that a program holds, where 8 channels allow it."""
PER_THREAD = 128
"""Numbers of all node states that a thread may hold."""
STATE_TILE = 512
"""Numbers of the state that a program of a jump holds."""


def scan_config(count: int, channels: int, state_dim: int) -> dict[str, int]:
    """How :func:`tree_scan_kernel` runs: a thread holds the same few numbers of all nodes."""
    block_t, block_n = triton.next_power_of_2(count), triton.next_power_of_2(state_dim)
    block_c = min(triton.next_power_of_2(channels), max(8, TREE_TILE // (block_t * block_n)), 32)
    needed = block_t * block_c * block_n // (32 * PER_THREAD)
    return {"BT": block_t, "BC": block_c, "BN": block_n, "num_warps": _warps(block_c * block_n, max(4, needed))}


def jump_config(channels: int, state_dim: int) -> dict[str, int]:
    """How :func:`jump_kernel` runs."""
    block_n = triton.next_power_of_2(state_dim)
    block_c = min(triton.next_power_of_2(channels), max(1, STATE_TILE // block_n))
    return {"BC": block_c, "BN": block_n, "num_warps": _warps(block_c * block_n, 4)}


def _warps(elements: int, most: int) -> int:
    """No more threads than a state's part has ``elements``: else warps would share nodes, and sums cross them."""
    return max(1, min(most, elements // 32))


@triton.jit
def tree_scan_kernel(
    p_x: tl.tensor,
    p_dt: tl.tensor,
    p_A: tl.tensor,
    p_B: tl.tensor,
    p_C: tl.tensor,
    p_D: tl.tensor,
    p_state: tl.tensor,
    p_parents: tl.tensor,
    p_y: tl.tensor,
    T: int,
    channels: int,
    x_row: int,
    x_node: int,
    dt_row: int,
    dt_node: int,
    B_row: int,
    B_node: int,
    C_row: int,
    C_node: int,
    state_row: int,
    N: tl.constexpr,
    SKIP: tl.constexpr,
    BT: tl.constexpr,
    BC: tl.constexpr,
    BN: tl.constexpr,
) -> None:
    """Of one batch row, BC channels of y for all nodes, whose states stay in registers."""
    i_c, i_b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_c, o_n, o_t = i_c * BC + tl.arange(0, BC), tl.arange(0, BN), tl.arange(0, BT)
    in_c, in_n = o_c < channels, o_n < N
    p_x += i_b * x_row
    p_dt += i_b * dt_row
    p_B += i_b * B_row
    p_parents += i_b * T
    b_A = tile(p_A, o_c, o_n, N, channels, N)
    b_root = tile(p_state + i_b * state_row, o_c, o_n, N, channels, N)
    b_states = tl.zeros([BT, BC, BN], dtype=tl.float32)
    for t in range(0, T):
        parent = tl.load(p_parents + t)
        b_step = tl.load(p_dt + t * dt_node + o_c, mask=in_c, other=0.0).to(tl.float32)
        b_x = tl.load(p_x + t * x_node + o_c, mask=in_c, other=0.0).to(tl.float32)
        b_B = tl.load(p_B + t * B_node + o_n, mask=in_n, other=0.0).to(tl.float32)
        # Nodes lie in registers, which no number found at run time can index: all but one are left out of a sum.
        b_above = tl.sum(tl.where((o_t == parent)[:, None, None], b_states, 0.0), axis=0)
        b_above = tl.where(parent < 0, b_root, b_above)
        b_after = tl.exp(b_step[:, None] * b_A) * b_above + (b_step * b_x)[:, None] * b_B[None, :]
        b_states = tl.where((o_t == t)[:, None, None], b_after[None, :, :], b_states)
    # Rounded before the product, after it and with the skip, as plain torch rounds.
    b_C = tile(p_C + i_b * C_row, o_t, o_n, C_node, T, N)
    b_y = tl.sum(b_states.to(p_C.dtype.element_ty).to(tl.float32) * b_C[:, None, :], axis=2)
    if SKIP:
        b_y = b_y.to(p_y.dtype.element_ty).to(tl.float32)
        b_D = tl.load(p_D + o_c, mask=in_c, other=0.0).to(p_y.dtype.element_ty).to(tl.float32)
        b_skipped = tile(p_x, o_t, o_c, x_node, T, channels) * b_D[None, :]
        b_y += b_skipped.to(p_y.dtype.element_ty).to(tl.float32)
    inside = (o_t < T)[:, None] & in_c[None, :]
    tl.store(p_y + (i_b * T + o_t[:, None]) * channels + o_c[None, :], b_y, mask=inside)


def tree_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor, parents: Tensor
) -> Tensor:
    """See :func:`naive.tree_scan`; parents come before their children, as in every tree."""
    rows, count, channels = x.shape
    state_dim = B.shape[-1]
    x, dt, B, C = (dense_rows(each, 2) for each in (x, dt, B, C))
    state = dense_rows(state, 1)
    y = x.new_empty(x.shape, dtype=C.dtype)
    config = scan_config(count, channels, state_dim)
    strides = [each.stride(dim) for each in (x, dt, B, C) for dim in (0, 1)]
    with torch.cuda.device_of(x):  # Triton launches on the current device
        tree_scan_kernel[triton.cdiv(channels, config["BC"]), rows](
            *(x, dt, A.contiguous(), B, C, None if D is None else D.contiguous(), state, parents.contiguous(), y),
            *(count, channels, *strides, state.stride(0), state_dim, D is not None),
            **config,
        )
    return y


@triton.jit
def jump_kernel(
    p_state: tl.tensor,
    p_x: tl.tensor,
    p_dt: tl.tensor,
    p_A: tl.tensor,
    p_B: tl.tensor,
    D: int,
    P: int,
    channels: int,
    repeats: int,
    N: tl.constexpr,
    BC: tl.constexpr,
    BN: tl.constexpr,
) -> None:
    """Of one scan of one layer and row, BC channels of the state: read once, moved along the path, written once."""
    i_c, i_p, i_r = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    o_c, o_n = i_c * BC + tl.arange(0, BC), tl.arange(0, BN)
    in_c, in_n = o_c < channels, o_n < N
    p_state += (i_r * P + i_p) * channels * N
    p_A += (i_r // repeats * P + i_p) * channels * N
    p_x += (i_r * D * P + i_p) * channels
    p_dt += (i_r * D * P + i_p) * channels
    p_B += (i_r * D * P + i_p) * N
    b_A = tile(p_A, o_c, o_n, N, channels, N)
    b_state = tile(p_state, o_c, o_n, N, channels, N)
    for d in range(0, D):
        b_step = tl.load(p_dt + d * P * channels + o_c, mask=in_c, other=0.0).to(tl.float32)
        b_x = tl.load(p_x + d * P * channels + o_c, mask=in_c, other=0.0).to(tl.float32)
        b_B = tl.load(p_B + d * P * N + o_n, mask=in_n, other=0.0).to(tl.float32)
        b_state = tl.exp(b_step[:, None] * b_A) * b_state + (b_step * b_x)[:, None] * b_B[None, :]
    tl.store(p_state + o_c[:, None] * N + o_n[None, :], b_state, mask=in_c[:, None] & in_n[None, :])


def jump_(state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor) -> None:
    """See :func:`naive.jump_`: all layers in one launch. Leading dimensions of ``A``: those of ``state``, then ones."""
    parts, channels, state_dim = state.shape[-3:]
    leading = state.shape[:-3].numel()
    config = jump_config(channels, state_dim)
    with torch.cuda.device_of(state):
        jump_kernel[triton.cdiv(channels, config["BC"]), parts, leading](
            *(state, x.contiguous(), dt.contiguous(), A.contiguous(), B.contiguous()),
            *(x.shape[-3], parts, channels, leading // A.shape[:-3].numel(), state_dim),
            **config,
        )
