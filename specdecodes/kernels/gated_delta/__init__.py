"""The gated delta rule: chooses between Triton (CUDA; tree and jump) and plain torch.

Of a sequence on CUDA, flash-linear-attention serves where it is installed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specdecodes.kernels import choice, native
from specdecodes.kernels.gated_delta import naive
from specdecodes.kernels.gated_delta.naive import (
    CHUNK,
    TreeScan,
    jump_,
    normalize,
    step_,
    tree_states,
)
from specdecodes.kernels.installed import Kernel
from specdecodes.kernels.mamba2_scan.naive import compute_dtype

__all__ = [
    "CHUNK",
    "TreeScan",
    "chosen",
    "jump_",
    "normalize",
    "path_jump_",
    "path_jump_serves",
    "sequence_scan",
    "step_",
    "tree_scan",
    "tree_states",
]


def sequence_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor,
    scan: TreeScan,
    chunk: int = CHUNK,
    installed: Kernel | None = None,
) -> Tensor:
    """See :func:`naive.sequence_scan`; ``installed`` is another project's kernel that may serve instead."""
    if installed is not None and installed.serves(v.device.type, v.dtype):
        decays = g[..., 0] if g.shape[-1] == 1 else g
        halves = [each.to(v.dtype).contiguous() for each in (q, k, v)]
        given = (*halves, decays.contiguous(), beta.to(v.dtype).contiguous())
        found: tuple[Tensor, Tensor] | None = installed(*given, initial_state=state, output_final_state=True)
        if found is not None:
            state.copy_(found[1])
            return found[0].to(state.dtype)
    return naive.sequence_scan(q, k, v, g, beta, state, scan, chunk)


def tree_scan(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, ancestors: Tensor
) -> tuple[Tensor, Tensor]:
    """See :func:`naive.tree_scan`."""
    return chosen(naive.tree_scan, q, k, v, g, beta, state, ancestors)


def chosen(
    plain: TreeScan, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, ancestors: Tensor
) -> tuple[Tensor, Tensor]:
    """The Triton form, which takes one decay per head and one per key channel, or ``plain``."""
    if choice.serves("triton", v.device.type, v.dtype):
        y, u = torch.ops.specdecodes.delta_tree_scan(q, k, v, g, beta, state, ancestors)
        return y, u
    return plain(q, k, v, g, beta, state, ancestors)


def path_jump_serves(windows: Tensor, states: Tensor) -> bool:
    """Whether :func:`path_jump_` takes buffers like these."""
    served = choice.serves("triton", windows.device.type, windows.dtype) and states.dtype == torch.float32
    return served and windows.is_contiguous() and states.is_contiguous()


def path_jump_(
    windows: Tensor, states: Tensor, inputs: Tensor, k: Tensor, u: Tensor, g: Tensor, path: Tensor, *, normalizes: bool
) -> None:
    """Move windows and states of all layers along a path, in place, in one call; only where :func:`path_jump_serves`.

    Args:
        windows: [layers, B, C, W]; states: [layers, B, H, K, V], float32.
        inputs: raw conv inputs [layers, B, T, C].
        k: as it came [layers, B, T, H, K]; u: of a scan [layers, B, T, H, V]; g: [layers, B, T, H, E], E = 1 or K.
        path: node ids [B, D] padded with -1.
        normalizes: whether the op divides keys by their length.
    """
    from specdecodes.kernels.gated_delta import triton  # where it is chosen, it imports

    triton.path_jump_(windows, states, inputs, k, u, g, path, normalizes=normalizes)


native.LIBRARY.define(
    "delta_tree_scan(Tensor q, Tensor k, Tensor v, Tensor g, Tensor beta, Tensor state, Tensor ancestors)"
    " -> (Tensor, Tensor)"
)


def _tree_scan(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, ancestors: Tensor
) -> tuple[Tensor, Tensor]:
    from specdecodes.kernels.gated_delta import triton  # where it is chosen, it imports

    return triton.tree_scan(q, k, v, g, beta, state, ancestors)


for _device in ("CPU", "CUDA"):
    native.LIBRARY.impl("delta_tree_scan", _tree_scan, _device)


@torch.library.register_fake("specdecodes::delta_tree_scan", lib=native.LIBRARY)
def _shapes(q: Tensor, k: Tensor, v: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    shape, kind = v.shape, compute_dtype(v.dtype)
    return v.new_empty(shape, dtype=kind), v.new_empty(shape, dtype=kind)
