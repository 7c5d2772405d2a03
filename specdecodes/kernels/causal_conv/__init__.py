"""The causal convolution: chooses between Triton (CUDA), the C++ kernels (CPU, float32) and plain torch.

Of a sequence on CUDA, causal-conv1d serves where it is installed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from specdecodes.kernels import choice, installed, native
from specdecodes.kernels.causal_conv import naive
from specdecodes.kernels.causal_conv.naive import activate, path_conv

__all__ = ["activate", "path_conv", "replay_conv_", "sequence_conv", "step_conv_", "tree_conv"]

SILU = ("silu", "swish")
INSTALLED_WIDTHS = (2, 3, 4)
"""Taps that causal-conv1d has kernels for."""


def sequence_conv(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    """See :func:`naive.sequence_conv`."""
    if (
        installed.CONV.serves(x.device.type, x.dtype)
        and weight.shape[1] in INSTALLED_WIDTHS
        and activation in (None, *SILU)
    ):
        # A copy, since its loads of 16 bytes start where ``x`` starts.
        y: Tensor | None = installed.CONV(x.contiguous(), weight, bias, activation=activation)
        if y is not None:
            return y
    return naive.sequence_conv(x, weight, bias, activation)


def tree_conv(
    x: Tensor, window: Tensor, index: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None
) -> Tensor:
    """See :func:`naive.tree_conv`."""
    if not choice.serves("naive", x.device.type, x.dtype) and activation in (None, *SILU):
        y: Tensor = torch.ops.specdecodes.tree_conv(x, window, index, weight, bias, activation is not None)
        return y.mT
    return naive.tree_conv(x, window, index, weight, bias, activation)


def replay_conv_(
    x: Tensor,
    window: Tensor,
    index: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    inputs: Tensor,
    length: Tensor,
) -> tuple[Tensor, Tensor]:
    """See :func:`naive.replay_conv_`."""
    if choice.serves("triton", x.device.type, x.dtype) and activation in (None, *SILU) and window.is_contiguous():
        silu = activation is not None
        y, path = torch.ops.specdecodes.replay_conv_(x, window, index, weight, bias, silu, inputs, length)
        return y.mT, path
    return naive.replay_conv_(x, window, index, weight, bias, activation, inputs, length)


def step_conv_(window: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    """See :func:`naive.step_conv_`. Compiled graphs fuse the plain form, and would copy around an op in place."""
    served = choice.serves("native", x.device.type, x.dtype) and window.is_contiguous()
    served = served and activation in (None, *SILU)
    if torch.compiler.is_compiling() or not served:
        return naive.step_conv_(window, x, weight, bias, activation)
    x, weight = native.rows(x, 1), weight.contiguous()
    rows, channels, taps = window.shape
    y = x.new_empty(rows, channels)
    silu = int(activation is not None)
    native.call("step_conv", (window, x, weight, bias, y), x.stride(0), silu, rows, channels, taps)
    return y


native.LIBRARY.define(
    "tree_conv(Tensor x, Tensor window, Tensor index, Tensor weight, Tensor? bias, bool silu) -> Tensor"
)


def _tree_conv(x: Tensor, window: Tensor, index: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """[B, C, T] to [B, T, C]."""
    if choice.serves("triton", x.device.type, x.dtype):
        from specdecodes.kernels.causal_conv import triton  # where it is chosen, it imports

        return triton.tree_conv(x.mT, window, index, weight, bias, silu)
    x = native.rows(x.mT, 2)
    rows, count, channels = x.shape
    y = x.new_empty(rows, count, channels)
    window, index, weight = window.contiguous(), index.contiguous(), weight.contiguous()
    size = (rows, count, channels, weight.shape[-1])
    native.call("tree_conv", (x, window, index, weight, bias, y), x.stride(1), x.stride(0), int(silu), *size)
    return y


native.LIBRARY.define(
    "replay_conv_(Tensor x, Tensor(a!) window, Tensor index, Tensor weight, Tensor? bias, bool silu, Tensor inputs,"
    " Tensor length) -> (Tensor, Tensor)"
)


def _replay_conv(x: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    """[B, C, T] to [B, T, C]; there is no other form."""
    from specdecodes.kernels.causal_conv import triton  # where it is chosen, it imports

    return triton.replay_conv_(x.mT, *others)


for _device in ("CPU", "CUDA"):
    native.LIBRARY.impl("tree_conv", _tree_conv, _device)
    native.LIBRARY.impl("replay_conv_", _replay_conv, _device)


@torch.library.register_fake("specdecodes::tree_conv", lib=native.LIBRARY)
def _shape(x: Tensor, window: Tensor, index: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[2], x.shape[1])


@torch.library.register_fake("specdecodes::replay_conv_", lib=native.LIBRARY)
def _shapes(x: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    inputs = others[5]
    return x.new_empty(x.shape[0], x.shape[2], x.shape[1]), x.new_empty(inputs.shape)
