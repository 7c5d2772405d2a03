"""The causal convolution over a tree, and its window along a path, as Triton kernels.

Letters: B rows, T nodes, C channels, W taps, D path length, L layers.
Names: ``i_`` program ids, ``o_`` offsets, ``p_`` pointers, ``b_`` tiles.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from specdecodes.kernels.native import rows as dense_rows
from specdecodes.kernels.tiles import path_length, power

CONFIG = {"BT": 16, "BC": 64}
"""Nodes and channels per program."""


def windows_config(length: int, taps: int) -> dict[str, int]:
    """Tiles of :func:`jump_windows_kernel`."""
    return {"BD": power(length), "BC": 128, "BW": triton.next_power_of_2(taps)}


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


@triton.jit
def jump_windows_kernel(
    p_windows: tl.tensor,
    p_inputs: tl.tensor,
    p_path: tl.tensor,
    rows: int,
    T: int,
    D: int,
    channels: int,
    W: tl.constexpr,
    BD: tl.constexpr,
    BC: tl.constexpr,
    BW: tl.constexpr,
) -> None:
    """Of one layer and batch row, BC channels of the window: its last W inputs, the path's included."""
    i_c, i_lb = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_c, o_w = i_c * BC + tl.arange(0, BC), tl.arange(0, BW)
    p_windows += i_lb * channels * W
    p_inputs += i_lb * T * channels
    p_path += i_lb % rows * D
    length = path_length(p_path, D, BD)
    o_place = length + o_w - W  # negative: above the root
    inside = (o_c < channels)[:, None] & (o_w < W)[None, :]
    above = inside & (o_place < 0)[None, :]
    b_node = tl.load(p_path + o_place, mask=(o_place >= 0) & (o_w < W), other=0)
    b_kept = tl.load(p_windows + o_c[:, None] * W + o_w[None, :] + length, mask=above, other=0.0)
    p_new = p_inputs + b_node[None, :] * channels + o_c[:, None]
    b_new = tl.load(p_new, mask=inside & (o_place >= 0)[None, :], other=0.0)
    tl.debug_barrier()  # another thread may still have to read what this one overwrites
    b_window = tl.where((o_place < 0)[None, :], b_kept, b_new)
    tl.store(p_windows + o_c[:, None] * W + o_w[None, :], b_window, mask=inside)


def jump_windows_(windows: Tensor, inputs: Tensor, path: Tensor) -> None:
    """Move the windows [L, B, C, W] of all layers along ``path`` [B, D], padded with -1, in place and in one launch.

    Args:
        windows: contiguous. inputs: raw conv inputs [L, B, T, C].
    """
    layers, rows, channels, taps = windows.shape
    inputs, path = inputs.contiguous(), path.contiguous()
    config = windows_config(path.shape[1], taps)
    with torch.cuda.device_of(windows):
        jump_windows_kernel[triton.cdiv(channels, config["BC"]), layers * rows](
            windows, inputs, path, rows, inputs.shape[2], path.shape[1], channels, taps, **config
        )
