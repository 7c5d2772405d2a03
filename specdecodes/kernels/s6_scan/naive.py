"""The S6 recurrence (Mamba-1) in plain torch: over a sequence, over a tree, one step, one jump.

Computes in float32 (float64 models stay in float64). README.md derives the formulas.

Letters: B rows, T tokens or nodes, C channels, N state dim, R independent rows, D path length, P scans of one layer
(heads, where a stock file loops over them).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from specdecodes.kernels.mamba2_scan.naive import compute_dtype

CHUNK = 64
"""Tokens of a sequence whose decays and states exist at once."""

Levels = list[tuple[Tensor, Tensor]]
"""Nodes and their parents by depth from 1 on, counted over all rows (``Topology.levels``)."""


def discretize(dt: Tensor, dt_bias: Tensor | None, softplus: bool) -> Tensor:
    """Step sizes ``softplus(dt + dt_bias)`` [..., C] in the compute dtype; rounds where stock steps round."""
    if dt_bias is not None:
        dt = dt + dt_bias.to(dt.dtype)
    if softplus:
        dt = F.softplus(dt)
    return dt.to(compute_dtype(dt.dtype))


def sequence_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor) -> Tensor:
    """Scan a sequence and move ``state`` [B, C, N] behind it, in place; one op per token.

    Args:
        x: [B, T, C]; dt: step sizes [B, T, C]; A: negative rates [C, N]; B, C: [B, T, N].

    Returns:
        y [B, T, C], without skip and gate.
    """
    outputs = []
    for start in range(0, x.shape[1], CHUNK):
        part = slice(start, start + CHUNK)
        decay, states = _terms(x[:, part], dt[:, part], A, B[:, part])
        before = state
        for token in range(states.shape[1]):
            before = states[:, token].addcmul_(decay[:, token], before)
        state.copy_(before)
        outputs.append(read_states(states, C[:, part]))
    return torch.cat(outputs, dim=1)


def tree_states(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, state: Tensor, levels: Levels) -> Tensor:
    """The state after every node [B, T, C, N], level by level; ``state`` [B, C, N] above the root is only read.

    Args:
        x, dt: [B, T, C]; A: [C, N]; B: [B, T, N].
    """
    decay, states = _terms(x, dt, A, B)
    states[:, 0].addcmul_(decay[:, 0], state)
    decays, flat = decay.flatten(0, 1), states.flatten(0, 1)
    for nodes, parents in levels:
        carried = decays.index_select(0, nodes).mul_(flat.index_select(0, parents))
        flat.index_add_(0, nodes, carried)
    return states


def tree_states_by_doubling(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, state: Tensor, parents: Tensor) -> Tensor:
    """As :func:`tree_states`, in log2(T) rounds whatever the tree: for compiled graphs and devices far from the host.

    Args:
        parents: int64 [B, T], -1 at the root.
    """
    decay, added = _terms(x, dt, A, B)
    added[:, 0].addcmul_(decay[:, 0], state)
    rows, count = parents.shape
    # Above the root stands the identity, its own parent.
    decay = F.pad(decay, (0, 0, 0, 0, 0, 1), value=1.0)
    added = F.pad(added, (0, 0, 0, 0, 0, 1))
    above = F.pad(torch.where(parents < 0, count, parents), (0, 1), value=count)
    row = torch.arange(rows, device=parents.device)[:, None]
    for _ in range((count - 1).bit_length()):
        added = torch.addcmul(added, decay, added[row, above])
        decay = decay * decay[row, above]
        above = above.gather(1, above)
    return added[:, :count]


def node_states(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, state: Tensor, parents: Tensor, levels: Levels | None
) -> Tensor:
    """The state after every node, by :func:`tree_states` where there are levels, else by doubling."""
    if levels is None:
        return tree_states_by_doubling(x, dt, A, B, state, parents)
    return tree_states(x, dt, A, B, state, levels)


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
    """Scan all nodes of a tree from the state above the root; y [B, T, C] in the dtype of ``C``.

    Args:
        x: [B, T, C]; dt: step sizes [B, T, C]; A: negative rates [C, N]; B, C: [B, T, N]; D: skip [C] or None.
        state: [B, C, N], read only. parents: int64 [B, T], -1 at the root. levels: see :data:`Levels`.
    """
    return skip(read_states(node_states(x, dt, A, B, state, parents, levels), C), x, D)


def skip(y: Tensor, x: Tensor, D: Tensor | None) -> Tensor:
    """``y + x D``, rounded where stock steps round: everything in the dtype of ``y``."""
    return y if D is None else y + x * D.to(y.dtype)


def read_states(states: Tensor, C: Tensor) -> Tensor:
    """Outputs [..., C] of ``states`` [..., C, N] and output directions [..., N], in their dtype, as in stock steps."""
    return (states.to(C.dtype) @ C[..., None]).squeeze(-1)


def step_(state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Advance ``state`` [R, C, N] in place by one token per row; x, dt [R, C]; B, C [R, N]; returns y [R, C]."""
    decay, added = _terms(x, dt, A, B)
    state.mul_(decay).add_(added)
    return read_states(state, C)


def jump_(state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor) -> None:
    """Advance ``state`` [..., P, C, N] in place along a whole path: decays and inputs once, then a sum.

    Args:
        x: [..., D, P, C]; dt: step sizes [..., D, P, C], 0 where the path has ended (the identity); A: [..., P, C, N];
        B: [..., D, P, N]. Leading dimensions are free (layers, rows).
    """
    x, dt, A, B = x.to(state.dtype), dt.to(state.dtype), A.to(state.dtype), B.to(state.dtype)
    after = dt.flip(-3).cumsum(-3).flip(-3)  # from a token to the end of the path, itself included
    state.mul_((after.select(-3, 0)[..., None] * A).exp())
    u, after = x * dt, after - dt
    for token in range(x.shape[-3]):  # one [..., P, C, N] at a time
        decay = (after.select(-3, token)[..., None] * A).exp_()
        added = decay.mul_(u.select(-3, token)[..., None])
        state.addcmul_(added, B.select(-3, token)[..., None, :])


def _terms(x: Tensor, dt: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Decay and input of every token, [..., C, N] each."""
    kind = compute_dtype(dt.dtype)
    dt = dt.to(kind)
    decay = (dt[..., None] * A.to(kind)).exp_()
    return decay, (dt * x.to(kind))[..., None] * B.to(kind)[..., None, :]
