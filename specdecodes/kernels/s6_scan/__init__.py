"""The S6 recurrence: chooses between Triton (CUDA; tree and jump) and plain torch."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from specdecodes.kernels import choice, native
from specdecodes.kernels.s6_scan import naive
from specdecodes.kernels.s6_scan.naive import (
    Levels,
    discretize,
    node_states,
    read_states,
    sequence_scan,
    skip,
    step_,
    tree_states,
    tree_states_by_doubling,
)

__all__ = [
    "LARGEST_STATES",
    "LARGEST_TREE",
    "discretize",
    "jump_",
    "node_states",
    "read_states",
    "sequence_scan",
    "skip",
    "step_",
    "tree_scan",
    "tree_states",
    "tree_states_by_doubling",
]

LARGEST_TREE = 128
"""Nodes that the Triton form takes; larger trees take the plain one."""
LARGEST_STATES = 4096
"""Numbers per channel that the Triton form takes: nodes times state dim, each rounded up to a power of two."""


def tree_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor,
    parents: Tensor,
    levels: Levels | None = None,
) -> Tensor:
    """See :func:`naive.tree_scan`."""
    if _fits(x.shape[1], B.shape[-1]) and choice.serves("triton", x.device.type, x.dtype):
        return cast(Tensor, torch.ops.specdecodes.s6_tree_scan(x, dt, A, B, C, D, state, parents))
    return naive.tree_scan(x, dt, A, B, C, D, state, parents, levels)


def _fits(count: int, state_dim: int) -> bool:
    """Whether the states of all nodes fit the registers that the Triton form keeps them in."""
    numbers = 1 << (count - 1).bit_length() + (state_dim - 1).bit_length()
    return count <= LARGEST_TREE and numbers <= LARGEST_STATES


def jump_(state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor) -> None:
    """See :func:`naive.jump_`. Compiled graphs fuse the plain form, and would copy around an op in place."""
    served = choice.serves("triton", x.device.type, x.dtype) and state.is_contiguous()
    if torch.compiler.is_compiling() or not served:
        naive.jump_(state, x, dt, A, B)
        return
    from specdecodes.kernels.s6_scan import triton  # where it is chosen, it imports

    triton.jump_(state, x, dt, A, B)


native.LIBRARY.define(
    "s6_tree_scan(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor state, Tensor parents) -> Tensor"
)


def _tree_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor, parents: Tensor
) -> Tensor:
    from specdecodes.kernels.s6_scan import triton  # where it is chosen, it imports

    return triton.tree_scan(x, dt, A, B, C, D, state, parents)


for _device in ("CPU", "CUDA"):
    native.LIBRARY.impl("s6_tree_scan", _tree_scan, _device)


@torch.library.register_fake("specdecodes::s6_tree_scan", lib=native.LIBRARY)
def _shape(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *_: Tensor | None) -> Tensor:
    return x.new_empty(x.shape, dtype=C.dtype)
