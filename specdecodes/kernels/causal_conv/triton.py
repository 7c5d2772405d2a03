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


def conv_config(most: int, taps: int) -> dict[str, int]:
    """Tiles of :func:`tree_conv_kernel`, with a pending path of at most ``most`` nodes.

    With one, a program takes all nodes of its channels; half the channels make up for that.
    """
    tiles = {"BM": triton.next_power_of_2(max(1, most)), "BT": 16, "BC": 32 if most else 64}
    return {"M": most, **tiles, "BW": triton.next_power_of_2(taps)}


@triton.jit
def _behind(
    p_window: tl.tensor,
    p_inputs: tl.tensor,
    o_place: tl.tensor,
    o_c: tl.tensor,
    inside: tl.tensor,
    C: int,
    W: tl.constexpr,
) -> tl.tensor:
    """Inputs at ``o_place`` of the window with a path's inputs behind it, [places, channels]."""
    o_place, o_c = o_place[:, None], o_c[None, :]
    b_window = tl.load(p_window + o_c * W + o_place, mask=inside & (o_place < W), other=0.0)
    b_path = tl.load(p_inputs + (o_place - W) * C + o_c, mask=inside & (o_place >= W), other=0.0)
    return b_window.to(tl.float32) + b_path.to(tl.float32)


@triton.jit
def _finish(
    b_sum: tl.tensor,
    p_bias: tl.tensor,
    o_c: tl.tensor,
    in_c: tl.tensor,
    kind: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr,
) -> tl.tensor:
    """Bias and activation; rounded before the activation, as conv1d rounds."""
    if HAS_BIAS:
        b_sum += tl.load(p_bias + o_c, mask=in_c, other=0.0).to(tl.float32)[None, :]
    if SILU:
        b_sum = b_sum.to(kind).to(tl.float32)
        b_sum = b_sum * tl.sigmoid(b_sum)
    return b_sum


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
    p_inputs: tl.tensor,
    p_length: tl.tensor,
    p_path: tl.tensor,
    T: int,
    C: int,
    x_row: int,
    x_node: int,
    W: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr,
    M: tl.constexpr,
    BM: tl.constexpr,
    BT: tl.constexpr,
    BC: tl.constexpr,
    BW: tl.constexpr,
) -> None:
    """BC channels of BT nodes: each gathers the inputs of its own path.

    With M > 0 a path of at most M nodes is pending: one program takes all nodes of its channels, convolves the path,
    and moves the window behind it.
    """
    i_c, i_t, i_b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    o_c = i_c * BC + tl.arange(0, BC)
    in_c = o_c < C
    kind: tl.constexpr = p_y.dtype.element_ty
    p_x += i_b * x_row
    p_y += i_b * T * C
    p_window += i_b * C * W
    p_index += i_b * T * W
    length = 0
    if M > 0:
        p_inputs += i_b * M * C
        length = tl.load(p_length + i_b).to(tl.int32)
        o_m = tl.arange(0, BM)
        on_path = (o_m < length)[:, None] & in_c[None, :]
        b_sum = tl.zeros([BM, BC], dtype=tl.float32)
        for tap in tl.static_range(W):
            b_weight = tl.load(p_weight + o_c * W + tap, mask=in_c, other=0.0).to(tl.float32)
            b_sum += _behind(p_window, p_inputs, o_m + 1 + tap, o_c, on_path, C, W) * b_weight[None, :]
        b_sum = _finish(b_sum, p_bias, o_c, in_c, kind, HAS_BIAS, SILU)
        tl.store(p_path + (i_b * M + o_m)[:, None] * C + o_c[None, :], b_sum, mask=on_path)
    for first in range(i_t * BT, T, tl.num_programs(1) * BT):
        o_t = first + tl.arange(0, BT)
        in_t = o_t < T
        inside = in_t[:, None] & in_c[None, :]
        b_sum = tl.zeros([BT, BC], dtype=tl.float32)
        for tap in tl.static_range(W):
            o_place = tl.load(p_index + o_t * W + tap, mask=in_t, other=0)
            above = inside & (o_place < W)[:, None]
            # What lies above the root ends with the pending path.
            b_above = _behind(p_window, p_inputs, o_place + length, o_c, above, C, W)
            p_node = p_x + (o_place - W)[:, None] * x_node + o_c[None, :]
            b_node = tl.load(p_node, mask=inside & (o_place >= W)[:, None], other=0.0).to(tl.float32)
            b_weight = tl.load(p_weight + o_c * W + tap, mask=in_c, other=0.0).to(tl.float32)
            b_sum += (b_above + b_node) * b_weight[None, :]
        b_sum = _finish(b_sum, p_bias, o_c, in_c, kind, HAS_BIAS, SILU)
        tl.store(p_y + o_t[:, None] * C + o_c[None, :], b_sum, mask=inside)
    if M > 0:
        o_w = tl.arange(0, BW)
        in_window = (o_w < W)[:, None] & in_c[None, :]
        b_window = _behind(p_window, p_inputs, o_w + length, o_c, in_window, C, W)
        tl.debug_barrier()  # another thread may still have to read what this one overwrites
        tl.store(p_window + o_c[None, :] * W + o_w[:, None], b_window, mask=in_window)


def tree_conv(x: Tensor, window: Tensor, index: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """As :func:`naive.tree_conv`, channels innermost: ``x`` [B, T, C] to [B, T, C]."""
    return _launch(x, window.contiguous(), index, weight, bias, silu, None)[0]


def replay_conv_(
    x: Tensor,
    window: Tensor,
    index: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    inputs: Tensor,
    length: Tensor,
) -> tuple[Tensor, Tensor]:
    """As :func:`naive.replay_conv_`, channels innermost: ``x`` [B, T, C] to [B, T, C]; ``window`` is contiguous."""
    y, path = _launch(x, window, index, weight, bias, silu, (inputs, length))
    return y, path


def _launch(
    x: Tensor,
    window: Tensor,
    index: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    pending: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    x = dense_rows(x, 2)
    rows, count, channels = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    weight, index, taps = weight.contiguous(), index.contiguous(), weight.shape[-1]
    inputs, length = (x, x) if pending is None else (each.contiguous() for each in pending)
    most = 0 if pending is None else inputs.shape[1]
    path, tiles = y.new_empty(rows, most, channels), conv_config(most, taps)
    grid = (triton.cdiv(channels, tiles["BC"]), 1 if most else triton.cdiv(count, tiles["BT"]), rows)
    with torch.cuda.device_of(x):  # Triton launches on the current device
        tree_conv_kernel[grid](
            *(x, window, index, weight, weight if bias is None else bias, y, inputs, length, path),
            *(count, channels, x.stride(0), x.stride(1), taps, bias is not None, silu),
            **tiles,
        )
    return y, path


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
