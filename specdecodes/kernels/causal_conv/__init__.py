"""The causal convolution: chooses between Triton (CUDA), the C++ kernels (CPU, float32) and plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from specdecodes.kernels import choice, native
from specdecodes.kernels.causal_conv import naive
from specdecodes.kernels.causal_conv.naive import activate, path_conv, sequence_conv

__all__ = ["activate", "path_conv", "sequence_conv", "step_conv_", "tree_conv"]

SILU = ("silu", "swish")


def tree_conv(
    x: Tensor, window: Tensor, index: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None
) -> Tensor:
    """See :func:`naive.tree_conv`."""
    if not choice.serves("naive", x.device.type, x.dtype) and activation in (None, *SILU):
        y: Tensor = torch.ops.specdecodes.tree_conv(x, window, index, weight, bias, activation is not None)
        return y.mT
    return naive.tree_conv(x, window, index, weight, bias, activation)


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


for _device in ("CPU", "CUDA"):
    native.LIBRARY.impl("tree_conv", _tree_conv, _device)


@torch.library.register_fake("specdecodes::tree_conv", lib=native.LIBRARY)
def _shape(x: Tensor, window: Tensor, index: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[2], x.shape[1])
