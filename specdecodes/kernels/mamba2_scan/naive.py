"""The Mamba-2 recurrence (state space duality) in plain torch: over a sequence, over a tree, one step, one jump.

Everything here is differentiable, loops over no token or node, and computes in the promotion of
float32 with the state's dtype (float64 models stay in float64). README.md derives the formulas.

Letters: B rows, T tokens or nodes, H heads, P head dim, G groups (G divides H), N state dim.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 64
"""Tokens of a sequence that are scanned at once; changes the cost, not the result."""


def discretize(dt: Tensor, dt_bias: Tensor | None, limit: tuple[float, float], softplus: bool = True) -> Tensor:
    """Return the step sizes ``clamp(softplus(dt + dt_bias))`` with shape and meaning of ``dt`` [..., H]."""
    dt = dt.to(compute_dtype(dt.dtype))
    if dt_bias is not None:
        dt = dt + dt_bias.to(dt.dtype)
    if softplus:
        dt = F.softplus(dt)
    if tuple(limit) != (0.0, float("inf")):  # a config may hold a list
        dt = dt.clamp(*limit)
    return dt


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype states and decays are computed in: float64 stays, everything else is float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


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
    """Scan a sequence in chunks (Dao & Gu 2024, "Transformers are SSMs", section 6).

    Args:
        x: [B, T, H, P]; dt: step sizes after :func:`discretize` [B, T, H]; A: negative rates [H].
        B, C: [B, T, G, N]; D: skip [H] or None; initial_state: [B, H, P, N] or None for zeros.
        chunk: tokens per chunk.

    Returns:
        ``y`` [B, T, H, P] and the state after the last token [B, H, P, N], both in the compute dtype.
    """
    rows, length, heads, head_dim = x.shape
    groups, state_dim = B.shape[2:]
    per_group = heads // groups
    chunk = min(chunk, length)
    pad = -length % chunk
    chunks = (length + pad) // chunk
    kind = compute_dtype(x.dtype)
    x, B, C, dt, A = x.to(kind), B.to(kind), C.to(kind), dt.to(kind), A.to(kind)
    skip = x * D.to(kind)[:, None] if D is not None else None
    if pad:  # dt = 0 makes a padding token the identity: no decay, no input
        x, B, C = (F.pad(t, (0, 0, 0, 0, 0, pad)) for t in (x, B, C))
        dt = F.pad(dt, (0, 0, 0, pad))
    u = (x * dt[..., None]).view(rows, chunks, chunk, groups, per_group, head_dim)
    B = B.view(rows, chunks, chunk, groups, state_dim)
    C = C.view(rows, chunks, chunk, groups, state_dim)
    # cumulative log decay inside each chunk [rows, chunks, G, H/G, Q]
    log_decay = (dt * A).view(rows, chunks, chunk, groups, per_group).permute(0, 1, 3, 4, 2).cumsum(-1)
    causal = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).tril()
    difference = (log_decay[..., :, None] - log_decay[..., None, :]).masked_fill(~causal, float("-inf"))
    scores = torch.einsum("bcqgn,bckgn->bcgqk", C, B)[:, :, :, None] * difference.exp()
    u = u.permute(0, 1, 3, 4, 2, 5)  # [rows, chunks, G, H/G, Q, P]
    y = scores.to(u.dtype) @ u

    last = log_decay[..., -1:]
    weighted = u * (last - log_decay).exp()[..., None]
    added = torch.einsum("bcghqp,bcqgn->bcghpn", weighted, B)
    state = (
        x.new_zeros(rows, groups, per_group, head_dim, state_dim)
        if initial_state is None
        else initial_state.to(kind).view(rows, groups, per_group, head_dim, state_dim)
    )
    decay = last.exp()[..., None]  # [rows, chunks, G, H/G, 1, 1]
    before = []
    for i in range(chunks):
        before.append(state)
        state = state * decay[:, i] + added[:, i]
    entering = torch.stack(before, dim=1)  # the state before each chunk
    y = y + torch.einsum("bcghpn,bcqgn->bcghqp", entering, C) * log_decay.exp()[..., None]
    y = y.permute(0, 1, 4, 2, 3, 5).reshape(rows, chunks * chunk, heads, head_dim)[:, :length]
    if skip is not None:
        y = y + skip
    return y, state.reshape(rows, heads, head_dim, state_dim)


def tree_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor,
    ancestors: Tensor,
) -> Tensor:
    """Scan all nodes of a tree in one parallel step, from the state above the root (STree 2025, section 4).

    Args:
        x: [B, T, H, P]; dt: step sizes [B, T, H]; A: [H]; B, C: [B, T, G, N]; D: [H] or None.
        state: [B, H, P, N], read only.
        ancestors: bool [B, T, T], true at [b, i, j] iff j is i or above it.

    Returns:
        y [B, T, H, P] in the compute dtype; no state is written and none is built per node.
    """
    rows, count, heads, head_dim = x.shape
    groups, state_dim = B.shape[2:]
    per_group = heads // groups
    x, u, weights, log_decay, B, C = _tree_terms(x, dt, A, B, C, ancestors)
    C = C.transpose(1, 2)
    scores = C @ B.permute(0, 2, 3, 1)  # [B, G, T, T]
    if groups != 1:
        scores = scores.repeat_interleave(per_group, dim=1)
    y = ((weights * scores) @ u.transpose(1, 2)).transpose(1, 2)
    grouped = state.to(x.dtype).view(rows, groups, per_group * head_dim, state_dim)
    carried = (C @ grouped.mT).view(rows, groups, count, per_group, head_dim).transpose(1, 2)
    y = torch.addcmul(y, carried.reshape(rows, count, heads, head_dim), log_decay.exp()[..., None])
    return y if D is None else torch.addcmul(y, x, D.to(x.dtype)[:, None])


def tree_states(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, state: Tensor, ancestors: Tensor) -> Tensor:
    """The state after every node, [B, T, H, P, N]; arguments as in :func:`tree_scan`."""
    rows, count, heads, head_dim = x.shape
    groups, state_dim = B.shape[2:]
    x, u, weights, log_decay, B, _ = _tree_terms(x, dt, A, B, B, ancestors)
    inputs = u.view(rows, count, groups, heads // groups, head_dim, 1) * B[:, :, :, None, None, :]
    inputs = inputs.view(rows, count, heads, head_dim * state_dim).transpose(1, 2)
    states = (weights @ inputs).view(rows, heads, count, head_dim, state_dim)
    carried = state.to(x.dtype)[:, :, None] * log_decay.exp().transpose(1, 2)[..., None, None]
    return (states + carried).transpose(1, 2)


def _tree_terms(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, ancestors: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Cast, and give (x, dt * x, decay between nodes [B, H, T, T], log decay from the root [B, T, H], B, C)."""
    kind = compute_dtype(x.dtype)
    x, C, A = x.to(kind), C.to(kind), A.to(kind)
    # A node that is not finite must not reach nodes that do not descend from it, and 0 * nan is nan.
    # Its own row stays visible through the skip path and the model's residual; the target poisons its descendants.
    dt, B = torch.nan_to_num(dt.to(kind), 0.0, 0.0, 0.0), torch.nan_to_num(B.to(kind), 0.0, 0.0, 0.0)
    u = torch.nan_to_num(x * dt[..., None], 0.0, 0.0, 0.0)
    log_decay = ancestors.to(kind) @ (dt * A)
    by_head = log_decay.transpose(1, 2)
    # Between nodes of different branches the difference may be positive: mask before exp, or inf * 0 gives nan.
    difference = (by_head[..., :, None] - by_head[..., None, :]).masked_fill(~ancestors[:, None], float("-inf"))
    return x, u, difference.exp(), log_decay, B, C


def step_(state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> Tensor:
    """Advance ``state`` [R, H, P, N] in place by one token per row and return y [R, H, P].

    Args:
        x: [R, H, P]; dt: step sizes [R, H]; A: [H]; B, C: [R, G, N]; D: [H] or None. R counts independent rows.
    """
    rows, heads, head_dim = x.shape
    groups = B.shape[1]
    kind = state.dtype
    x, B, C, dt = x.to(kind), B.to(kind), C.to(kind), dt.to(kind)
    decay = (dt * A.to(kind)).exp()
    u = (x * dt[..., None]).view(rows, groups, heads // groups, head_dim)
    grouped = state.view(rows, groups, heads // groups, head_dim, state.shape[-1])
    grouped.mul_(decay.view(rows, groups, heads // groups, 1, 1))
    grouped.addcmul_(u[..., None], B[:, :, None, None, :])
    # One matrix-vector product per group: [R, G, (H/G) P, N] @ [R, G, N, 1]
    flat = grouped.view(rows, groups, (heads // groups) * head_dim, -1)
    y = (flat @ C[..., None]).view(rows, heads, head_dim)
    return y if D is None else y + x * D.to(kind)[:, None]


def jump_(state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor) -> None:
    """Advance ``state`` [..., H, P, N] in place along a whole path, in closed form.

    Args:
        x: [..., D, H, P]; dt: step sizes [..., D, H], 0 where the path has ended (the identity); A: [..., 1, H];
        B: [..., D, G, N]. Leading dimensions are free (layers, rows).
    """
    *lead, count, heads, head_dim = x.shape
    groups, state_dim = B.shape[-2:]
    kind = state.dtype
    x, dt, A, B = x.to(kind), dt.to(kind), A.to(kind), B.to(kind)
    log_decay = (dt * A).cumsum(-2)
    last = log_decay[..., -1:, :]
    u = x * (dt * (last - log_decay).exp())[..., None]
    u = u.view(*lead, count, groups, (heads // groups) * head_dim).movedim(-3, -1)  # [..., G, (H/G) P, D]
    state.mul_(last.squeeze(-2).exp()[..., None, None])
    grouped = state.view(-1, (heads // groups) * head_dim, state_dim)
    grouped.baddbmm_(u.reshape(-1, *u.shape[-2:]), B.movedim(-3, -2).reshape(-1, count, state_dim))


def split_mixed(
    mixed: Tensor, heads: int, head_dim: int, groups: int, state_dim: int, shared: int
) -> tuple[Tensor, Tensor]:
    """Return x [..., H, P] and B [..., G, N] of what a conv puts out, [..., C]; ``shared`` heads read the same."""
    x = mixed[..., : heads * head_dim // shared].unflatten(-1, (-1, head_dim))
    B = mixed[..., heads * head_dim // shared :][..., : groups * state_dim // shared].unflatten(-1, (-1, state_dim))
    return (x, B) if shared == 1 else (x.repeat_interleave(shared, -2), B.repeat_interleave(shared, -2))


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
    """Move ``state`` [B, H, P, N] along a pending path, in place, and scan a tree from there.

    Args:
        path: the path's nodes after the conv [B, M, channels], x and B first; raw: their step sizes, before
            :func:`discretize` [B, M, H]; length: int64 [B], how many of the M there are, 0 to M.
        dt_bias: [H] or None; softplus: as :func:`discretize` takes it.
        shared: heads, and groups, that read the same channels of ``path``.
        x, dt, A, B, C, D, ancestors: of the tree, as in :func:`tree_scan`.

    Returns:
        y of the tree's nodes [B, T, H, P] in the compute dtype.
    """
    heads, head_dim, state_dim = state.shape[1:]
    there = torch.arange(path.shape[1], device=path.device) < length[:, None]
    x_path, B_path = split_mixed(
        path.masked_fill(~there[..., None], 0.0), heads, head_dim, B.shape[2], state_dim, shared
    )
    steps = discretize(raw, dt_bias, (0.0, float("inf")), softplus).masked_fill(~there[..., None], 0.0)
    jump_(state, x_path, steps, A, B_path)
    return tree_scan(x, dt, A, B, C, D, state, ancestors)
