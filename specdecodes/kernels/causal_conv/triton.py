"""The causal convolution over a tree as a Triton kernel.

Letters: B rows, T nodes, C channels, W taps. Names: ``i_`` program ids, ``o_`` offsets, ``p_`` pointers, ``b_`` tiles.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from specdecodes.kernels.native import rows as dense_rows

CONFIG = {"BT": 16, "BC": 64}
"""Nodes and channels per program."""


@triton.jit
def tree_conv_kernel(
    p_x: tl.tensor,
    p_window: tl.tensor,
    p_index: tl.tensor,
    p_weight: tl.tensor,
    p_bias: tl.tensor,
    p_y: tl.tensor,
    T: int,
    C: int,
    x_row: int,
    x_node: int,
    W: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr,
    BT: tl.constexpr,
    BC: tl.constexpr,
) -> None:
    """BC channels of BT nodes: each gathers the inputs of its own path."""
    i_c, i_t, i_b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    o_c, o_t = i_c * BC + tl.arange(0, BC), i_t * BT + tl.arange(0, BT)
    in_c, in_t = o_c < C, o_t < T
    inside = in_t[:, None] & in_c[None, :]
    p_x += i_b * x_row
    p_y += i_b * T * C
    p_window += i_b * C * W
    p_index += i_b * T * W
    b_sum = tl.zeros([BT, BC], dtype=tl.float32)
    for tap in tl.static_range(W):
        o_place = tl.load(p_index + o_t * W + tap, mask=in_t, other=0)[:, None]
        above = o_place < W
        b_window = tl.load(p_window + o_c[None, :] * W + o_place, mask=inside & above, other=0.0).to(tl.float32)
        b_node = tl.load(p_x + (o_place - W) * x_node + o_c[None, :], mask=inside & ~above, other=0.0).to(tl.float32)
        b_weight = tl.load(p_weight + o_c * W + tap, mask=in_c, other=0.0).to(tl.float32)
        b_sum += (b_window + b_node) * b_weight[None, :]
    if HAS_BIAS:
        b_sum += tl.load(p_bias + o_c, mask=in_c, other=0.0).to(tl.float32)[None, :]
    if SILU:  # rounded before the activation, as conv1d rounds
        b_sum = b_sum.to(p_y.dtype.element_ty).to(tl.float32)
        b_sum = b_sum * tl.sigmoid(b_sum)
    tl.store(p_y + o_t[:, None] * C + o_c[None, :], b_sum, mask=inside)


def tree_conv(x: Tensor, window: Tensor, index: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """As :func:`naive.tree_conv`, channels innermost: ``x`` [B, T, C] to [B, T, C]."""
    x = dense_rows(x, 2)
    rows, count, channels = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grid = (triton.cdiv(channels, CONFIG["BC"]), triton.cdiv(count, CONFIG["BT"]), rows)
    weight, window, index = weight.contiguous(), window.contiguous(), index.contiguous()
    with torch.cuda.device_of(x):  # Triton launches on the current device
        tree_conv_kernel[grid](
            *(x, window, index, weight, weight if bias is None else bias, y),
            *(count, channels, x.stride(0), x.stride(1), weight.shape[-1], bias is not None, silu),
            **CONFIG,
        )
    return y
