"""Attention of a tree behind a prefix: chooses between Triton (CUDA) and plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from specdecodes.kernels import choice, native
from specdecodes.kernels.tree_attention import naive

__all__ = ["tree_attention"]


def tree_attention(q: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, ancestors: Tensor, scale: float) -> Tensor:
    """See :func:`naive.tree_attention`."""
    if choice.serves("triton", q.device.type, q.dtype):
        y: Tensor = torch.ops.specdecodes.tree_attention(q, keys, values, lengths, ancestors, scale)
        return y
    return naive.tree_attention(q, keys, values, lengths, ancestors, scale)


native.LIBRARY.define(
    "tree_attention(Tensor q, Tensor keys, Tensor values, Tensor lengths, Tensor ancestors, float scale) -> Tensor"
)


def _tree_attention(
    q: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, ancestors: Tensor, scale: float
) -> Tensor:
    from specdecodes.kernels.tree_attention import triton  # where it is chosen, it imports

    return triton.tree_attention(q, keys, values, lengths, ancestors, scale)


for _device in ("CPU", "CUDA"):
    native.LIBRARY.impl("tree_attention", _tree_attention, _device)


@torch.library.register_fake("specdecodes::tree_attention", lib=native.LIBRARY)
def _shape(q: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, ancestors: Tensor, scale: float) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], values.shape[3])
