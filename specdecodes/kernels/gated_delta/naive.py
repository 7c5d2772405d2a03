"""The gated delta rule in plain torch: over a sequence, over a tree, one step, one jump.

Computes in float32 (float64 models stay in float64). README.md derives the formulas. ``g`` is the log decay, one per
head, [..., H, 1], or one per key channel, [..., H, K] (Kimi delta attention, ``kernels/kimi_delta``).

Letters: B rows, T tokens or nodes, H heads, K key dim, V value dim, E = 1 or K, R independent rows, D path length.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from specdecodes.kernels.mamba2_scan.naive import compute_dtype

CHUNK = 64
"""Tokens of a sequence that are solved at once."""
EPSILON = 1e-6
"""What :func:`normalize` adds to a squared length."""

TreeScan = Callable[..., tuple[Tensor, Tensor]]


def normalize(x: Tensor) -> Tensor:
    """``x`` [..., K] over its length, in the compute dtype, as the op's ``use_qk_l2norm_in_kernel`` does."""
    x = x.to(compute_dtype(x.dtype))
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + EPSILON)


def tree_scan(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, ancestors: Tensor
) -> tuple[Tensor, Tensor]:
    """Scan all nodes of a tree in one parallel step, from the state above the root.

    Args:
        q, k: [B, T, H, K], normalised, q not scaled yet; v: [B, T, H, V]; g: [B, T, H, 1]; beta: [B, T, H].
        state: [B, H, K, V], read only.
        ancestors: bool [B, T, T], true at [b, i, j] iff j is i or above it; parents come first.

    Returns:
        y and the corrections u that the nodes add to the state, [B, T, H, V] each, in the compute dtype.
    """
    q, k, v, g, beta = by_head(q, k, v, g, beta)
    total = ancestors.to(g.dtype)[:, None] @ g
    decay = pairwise_decay(total, ancestors)[..., 0]
    keys = k.mT
    grown = total.exp()
    return solve((k @ keys) * decay, (q @ keys) * decay, k * grown, q * grown, v, beta, state)


def by_head(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Cast, scale q, move heads in front of nodes: [B, H, T, ...] each.

    A node that is not finite must not reach nodes that do not descend from it, and 0 * nan is nan. Its own row stays
    visible through the model's residual; the target poisons its descendants.
    """
    kind = compute_dtype(v.dtype)
    q = q.to(kind).transpose(1, 2) * q.shape[-1] ** -0.5
    k, v, g, beta = (torch.nan_to_num(x.to(kind), 0.0, 0.0, 0.0).transpose(1, 2) for x in (k, v, g, beta))
    return q, k, v, g, beta


def pairwise_decay(total: Tensor, ancestors: Tensor) -> Tensor:
    """Decays from node j to node i [B, H, T, T, E] of log decays from the root [B, H, T, E]; 0 off the paths."""
    difference = total[:, :, :, None] - total[:, :, None]
    # Between nodes of different branches the difference may be positive: mask before exp, or inf * 0 gives nan.
    return difference.masked_fill(~ancestors[:, None, :, :, None], float("-inf")).exp()


def solve(
    keys: Tensor, queries: Tensor, k_grown: Tensor, q_grown: Tensor, v: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Outputs y and corrections u, [B, T, H, V] each: a triangular system, since parents come first.

    Args:
        keys, queries: decayed products of node i's key and query with node j's key, 0 off the paths [B, H, T, T].
        k_grown, q_grown: keys and queries times the decay from the root [B, H, T, K].
        v: [B, H, T, V]; beta: [B, H, T]; state: [B, H, K, V].
    """
    state = state.to(v.dtype)
    right = beta[..., None] * (v - k_grown @ state)
    # The diagonal is taken for ones, whatever it holds.
    u = torch.linalg.solve_triangular(beta[..., None] * keys, right, upper=False, unitriangular=True)
    y = q_grown @ state + queries @ u
    return y.transpose(1, 2), u.transpose(1, 2)


def tree_states(k: Tensor, u: Tensor, g: Tensor, state: Tensor, ancestors: Tensor) -> Tensor:
    """The state after every node [B, T, H, K, V]; ``k`` normalised [B, T, H, K], ``u`` [B, T, H, V] of a scan."""
    _, k, u, g, _ = by_head(k, k, u, g, k[..., 0])
    total = ancestors.to(g.dtype)[:, None] @ g
    weights = pairwise_decay(total, ancestors) * k[:, :, None]  # [B, H, T, T, K]
    added = weights.permute(0, 1, 4, 2, 3) @ u[:, :, None]  # [B, H, K, T, V]
    carried = total.exp()[..., None] * state.to(u.dtype)[:, :, None]
    return (added.transpose(2, 3) + carried).transpose(1, 2)


def sequence_scan(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, scan: TreeScan, chunk: int = CHUNK
) -> Tensor:
    """Scan a sequence as a chain of trees and move ``state`` [B, H, K, V] behind it, in place; returns y.

    Args:
        scan: :func:`tree_scan` or its like. chunk: changes the cost, not the result. The others as there.
    """
    size = min(chunk, q.shape[1])
    causal = torch.ones(1, size, size, dtype=torch.bool, device=q.device).tril()
    outputs = []
    for part in zip(*(x.split(size, dim=1) for x in (q, k, v, g, beta)), strict=True):
        count = part[0].shape[1]
        y, u = scan(*part, state, causal[:, :count, :count])
        jump_(state, part[1], u, part[3])
        outputs.append(y)
    return torch.cat(outputs, dim=1)


def step_(state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """Advance ``state`` [R, H, K, V] in place by one token per row; returns y [R, H, V].

    Args:
        q, k: [R, H, K], normalised, q not scaled yet; v: [R, H, V]; g: [R, H, E]; beta: [R, H].
    """
    kind = state.dtype
    q, k, v, g, beta = (x.to(kind) for x in (q, k, v, g, beta))
    state.mul_(g.exp()[..., None])
    seen = (k[..., None, :] @ state).squeeze(-2)
    u = (v - seen) * beta[..., None]
    state.addcmul_(k[..., None], u[..., None, :])
    return (q[..., None, :] @ state).squeeze(-2) * q.shape[-1] ** -0.5


def jump_(state: Tensor, k: Tensor, u: Tensor, g: Tensor) -> None:
    """Advance ``state`` [..., H, K, V] in place along a whole path, in closed form.

    Args:
        k: normalised [..., D, H, K]; u: of a scan [..., D, H, V]; g: [..., D, H, E]. Where the path has ended k and g
            are 0 (the identity). Leading dimensions are free (layers, rows).
    """
    k, u, g = k.to(state.dtype), u.to(state.dtype), g.to(state.dtype)
    total = g.cumsum(-3)
    last = total[..., -1:, :, :]
    weighted = (k * (last - total).exp()).movedim(-3, -1)  # [..., H, K, D]
    state.mul_(last.squeeze(-3).exp()[..., None])
    flat = state.view(-1, *state.shape[-2:])
    flat.baddbmm_(weighted.reshape(-1, *weighted.shape[-2:]), u.transpose(-3, -2).reshape(-1, u.shape[-3], u.shape[-1]))
