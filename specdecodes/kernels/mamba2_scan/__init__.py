"""The Mamba-2 recurrence: chooses between Triton (CUDA), the C++ kernels (CPU, float32) and plain torch.

Of a sequence on CUDA, mamba-ssm serves where it is installed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from specdecodes.kernels import choice, installed, native
from specdecodes.kernels.mamba2_scan import naive
from specdecodes.kernels.mamba2_scan.naive import CHUNK, compute_dtype, discretize, jump_, split_mixed, tree_states

__all__ = [
    "chunk_scan",
    "compute_dtype",
    "discretize",
    "jump_",
    "path_jump_",
    "path_jump_serves",
    "replay_scan_",
    "split_mixed",
    "step_",
    "tree_scan",
    "tree_states",
]


def chunk_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    initial_state: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """See :func:`naive.chunk_scan`; the skip ``D`` as :func:`skip_of` takes it."""
    D, wide = skip_of(D, x)
    if installed.MAMBA2.serves(x.device.type, x.dtype):
        given = (x.contiguous(), dt, A, B.contiguous(), C.contiguous(), chunk, D)
        found: tuple[Tensor, Tensor] | None = installed.MAMBA2(
            *given, initial_states=initial_state, return_final_states=True
        )
        if found is not None:
            kind = compute_dtype(x.dtype)
            return skipped(found[0].to(kind), x, wide), found[1].to(kind)
    y, state = naive.chunk_scan(x, dt, A, B, C, D, initial_state, chunk)
    return skipped(y, x, wide), state


def tree_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor, ancestors: Tensor
) -> Tensor:
    """See :func:`naive.tree_scan`; the skip ``D`` as :func:`skip_of` takes it."""
    D, wide = skip_of(D, x)
    if choice.serves("naive", x.device.type, x.dtype):
        y = naive.tree_scan(x, dt, A, B, C, D, state, ancestors)
    else:
        y = torch.ops.specdecodes.mamba2_tree_scan(x, dt, A, B, C, D, state, ancestors)
    return skipped(y, x, wide)


def replay_scan_(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor,
    ancestors: Tensor,
    path: Tensor,
    raw: Tensor,
    length: Tensor,
    dt_bias: Tensor | None,
    *,
    shared: int,
    softplus: bool,
) -> Tensor:
    """See :func:`naive.replay_scan_`; the skip ``D`` as :func:`skip_of` takes it."""
    D, wide = skip_of(D, x)
    tensors = (x, dt, A, B, C, D, state, ancestors, path, raw, length, dt_bias)
    if choice.serves("triton", x.device.type, x.dtype) and state.is_contiguous():
        y = torch.ops.specdecodes.mamba2_replay_scan_(*tensors, shared, softplus)
    else:
        y = naive.replay_scan_(*tensors, shared=shared, softplus=softplus)
    return skipped(y, x, wide)


def step_(state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> Tensor:
    """See :func:`naive.step_`; the skip ``D`` as :func:`skip_of` takes it.

    Compiled graphs fuse the plain form, and would copy around an op in place.
    """
    D, wide = skip_of(D, x)
    served = choice.serves("native", x.device.type, x.dtype) and state.is_contiguous()
    if torch.compiler.is_compiling() or not served:
        return skipped(naive.step_(state, x, dt, A, B, C, D), x, wide)
    x, B, C, dt = native.rows(x, 1), native.rows(B, 1), native.rows(C, 1), dt.contiguous()
    y = x.new_empty(x.shape)
    size = (*x.shape, *B.shape[1:])
    native.call("mamba2_step", (state, x, dt, A, B, C, D, y), x.stride(0), B.stride(0), C.stride(0), *size)
    return skipped(y, x, wide)


def skip_of(D: Tensor | None, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """What the scans take of a skip: one number per head [H]; and what :func:`skipped` adds behind them.

    Args:
        D: a number for all heads [], one per head [H], or one per head and dim [H, P], as stock ops allow; None: none.
        x: [..., H, P].
    """
    if D is None or D.ndim == 1:
        return D, None
    return (None, D) if D.ndim else (D.expand(x.shape[-2]).contiguous(), None)


def skipped(y: Tensor, x: Tensor, D: Tensor | None) -> Tensor:
    """``y`` [..., H, P] with a skip per head and dim [H, P] added."""
    return y if D is None else y + x.to(y.dtype) * D.to(y.dtype)


def path_jump_serves(windows: Tensor, *others: Tensor, shared: int = 1) -> bool:
    """Whether :func:`path_jump_` takes buffers like these: ``others`` are states, weight and A."""
    kind = choice.decide(windows.device.type, windows.dtype).form
    if kind == "native":  # everything in float32
        return shared == 1 and all(each.dtype == torch.float32 for each in others)
    return kind == "triton" and others[0].dtype == torch.float32 and windows.is_contiguous()


def path_jump_(
    windows: Tensor,
    states: Tensor,
    inputs: Tensor,
    dt: Tensor,
    path: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    dt_bias: Tensor | None,
    *,
    groups: int,
    shared: int = 1,
    softplus: bool,
    silu: bool,
) -> None:
    """Move windows and states of all layers along a path, in place, in one call; only where :func:`path_jump_serves`.

    Args:
        windows: [layers, B, C, W]; states: [layers, B, H, P, N].
        inputs: raw conv inputs [layers, B, T, C]; dt: raw step sizes [layers, B, T, H].
        path: node ids [B, D] padded with -1.
        weight: [W, layers, ..., (H P + G N) / shared]; bias: [layers, ..., the same]; A, dt_bias: [layers, ..., H].
        shared: heads, and groups, that read the same channels of x, and of B.
    """
    if choice.serves("triton", windows.device.type, windows.dtype):
        from specdecodes.kernels.mamba2_scan import triton  # where it is chosen, it imports

        tensors = (windows, states, inputs, dt, path, weight, bias, A, dt_bias)
        triton.path_jump_(*tensors, groups=groups, shared=shared, softplus=softplus, silu=silu)
        return
    layers, rows, heads, head_dim, state_dim = states.shape
    size = (layers, rows, inputs.shape[2], path.shape[1], heads, head_dim, groups, state_dim, *windows.shape[2:])
    given = (inputs.contiguous(), dt.contiguous(), path.contiguous())
    native.call("mamba2_jump", (windows, states, *given, weight, bias, A, dt_bias), int(softplus), int(silu), *size)


native.LIBRARY.define(
    "mamba2_tree_scan(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor state, Tensor ancestors)"
    " -> Tensor"
)


def _tree_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor, ancestors: Tensor
) -> Tensor:
    if choice.serves("triton", x.device.type, x.dtype):
        from specdecodes.kernels.mamba2_scan import triton  # where it is chosen, it imports

        return triton.tree_scan(x, dt, A, B, C, D, state, ancestors)
    x, B, C = native.rows(x, 2), native.rows(B, 2), native.rows(C, 2)
    strides = [each.stride(dim) for each in (x, B, C) for dim in (1, 0)]
    y = x.new_empty(x.shape)
    size = (*x.shape, *B.shape[2:])
    dt, state, ancestors = dt.contiguous(), state.contiguous(), ancestors.contiguous()
    native.call("mamba2_tree_scan", (x, dt, A, B, C, D, state, ancestors, y), *strides, *size)
    return y


native.LIBRARY.define(
    "mamba2_replay_scan_(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor(a!) state,"
    " Tensor ancestors, Tensor path, Tensor raw, Tensor length, Tensor? dt_bias, int shared, bool softplus) -> Tensor"
)


def _replay_scan(*arguments: Any) -> Tensor:
    """There is no other form."""
    from specdecodes.kernels.mamba2_scan import triton  # where it is chosen, it imports

    return triton.replay_scan_(*arguments)


for _device in ("CPU", "CUDA"):
    native.LIBRARY.impl("mamba2_tree_scan", _tree_scan, _device)
    native.LIBRARY.impl("mamba2_replay_scan_", _replay_scan, _device)


@torch.library.register_fake("specdecodes::mamba2_replay_scan_", lib=native.LIBRARY)
@torch.library.register_fake("specdecodes::mamba2_tree_scan", lib=native.LIBRARY)
def _shape(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape, dtype=compute_dtype(x.dtype))
