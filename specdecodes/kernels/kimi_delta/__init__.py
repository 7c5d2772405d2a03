"""Kimi delta attention: chooses between Triton (CUDA; the kernel of the gated delta rule) and plain torch."""

from __future__ import annotations

from torch import Tensor

from specdecodes.kernels.gated_delta import chosen
from specdecodes.kernels.kimi_delta import naive
from specdecodes.kernels.kimi_delta.naive import CHUNK

__all__ = ["CHUNK", "tree_scan"]


def tree_scan(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, ancestors: Tensor
) -> tuple[Tensor, Tensor]:
    """See :func:`naive.tree_scan`."""
    return chosen(naive.tree_scan, q, k, v, g, beta, state, ancestors)
