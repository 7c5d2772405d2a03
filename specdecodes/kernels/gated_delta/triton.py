"""The gated delta rule over a tree and along a path as Triton kernels, with one decay per head or per key channel.

README.md, and that of ``kernels/kimi_delta``, derive the formulas.

Letters: B rows, T nodes, H heads, K key dim, V value dim, E = 1 or K, D path length, L layers.
Names: ``i_`` program ids, ``o_`` offsets, ``p_`` pointers, ``b_`` tiles. Program ids that stand for rows, heads and
layers are int64, so that no product with a stride overflows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from specdecodes.kernels.causal_conv.triton import jump_windows_
from specdecodes.kernels.gated_delta import naive
from specdecodes.kernels.native import rows as dense_rows
from specdecodes.kernels.tiles import finite, log_decay, path_length, power, reaches, tile

BLOCK_T = 16
"""Nodes that are solved at once: the solution takes them one after the other."""
BLOCK_V = 32
"""Columns of the state per program: a system has as many right-hand sides as it likes, each its own solution."""
STATE_TILE = 4096
"""Elements of the state that a program of a jump holds in registers."""
EPSILON = tl.constexpr(naive.EPSILON)


def scan_config(key_dim: int, value_dim: int, decays: int, dtype: torch.dtype) -> dict[str, int | str]:
    """How :func:`tree_scan_kernel` runs."""
    block_k = 16 if decays > 1 else min(32, power(key_dim))  # decays of pairs are [BT, BT, BK]
    precision = "tf32x3" if dtype == torch.float32 else "tf32"
    tiles = {"BT": BLOCK_T, "BK": block_k, "BV": min(BLOCK_V, power(value_dim))}
    return {**tiles, "PRECISION": precision, "num_warps": 4, "num_stages": 1}


def jump_config(length: int, key_dim: int, value_dim: int) -> dict[str, int]:
    """Tiles of :func:`jump_kernel`."""
    block_k = power(key_dim)  # a key's length takes all of it
    return {"BD": power(length), "BK": block_k, "BV": min(BLOCK_V, power(value_dim), max(1, STATE_TILE // block_k))}


@triton.jit
def _channel_decays(
    p_ancestors: tl.tensor,
    p_g: tl.tensor,
    o_i: tl.tensor,
    o_k: tl.tensor,
    T: int,
    g_node: int,
    channels: int,
    BT: tl.constexpr,
    BK: tl.constexpr,
) -> tl.tensor:
    """Log decays of key channels from the root down to nodes ``o_i``, [BT, BK]."""
    b_sum = tl.zeros([BT, BK], dtype=tl.float32)
    for first in range(0, T, BT):
        o_j = first + tl.arange(0, BT)
        b_above = reaches(p_ancestors, o_i, o_j, T).to(tl.float32)
        b_g = finite(tile(p_g, o_j, o_k, g_node, T, channels))
        b_sum = tl.dot(b_above, b_g, b_sum, input_precision="tf32x3")  # ones, and sums in float32
    return b_sum


@triton.jit
def _products(
    p_q: tl.tensor,
    p_k: tl.tensor,
    p_g: tl.tensor,
    p_ancestors: tl.tensor,
    o_i: tl.tensor,
    o_j: tl.tensor,
    T: int,
    q_node: int,
    k_node: int,
    g_node: int,
    K: tl.constexpr,
    E: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Decayed products of the keys, and of the queries, of nodes ``o_i`` with the keys of nodes ``o_j``."""
    o_k = tl.arange(0, BK)
    b_above = reaches(p_ancestors, o_i, o_j, T)
    b_keys, b_queries = tl.zeros([BT, BT], dtype=tl.float32), tl.zeros([BT, BT], dtype=tl.float32)
    for n in range(0, K, BK):
        b_q_i = tile(p_q + n, o_i, o_k, q_node, T, K - n)
        b_k_i = finite(tile(p_k + n, o_i, o_k, k_node, T, K - n))
        b_k_j = finite(tile(p_k + n, o_j, o_k, k_node, T, K - n))
        if E == 1:
            b_keys = tl.dot(b_k_i, tl.trans(b_k_j), b_keys, input_precision=PRECISION)
            b_queries = tl.dot(b_q_i, tl.trans(b_k_j), b_queries, input_precision=PRECISION)
        else:
            b_l_i = _channel_decays(p_ancestors, p_g + n, o_i, o_k, T, g_node, K - n, BT, BK)
            b_l_j = _channel_decays(p_ancestors, p_g + n, o_j, o_k, T, g_node, K - n, BT, BK)
            b_between = tl.where(b_above[:, :, None], b_l_i[:, None, :] - b_l_j[None, :, :], float("-inf"))
            b_seen = tl.exp(b_between) * b_k_j[None, :, :]
            b_keys += tl.sum(b_seen * b_k_i[:, None, :], axis=2)
            b_queries += tl.sum(b_seen * b_q_i[:, None, :], axis=2)
    if E == 1:
        b_l_i = log_decay(p_ancestors, p_g, 1.0, o_i, T, g_node, BT)
        b_l_j = log_decay(p_ancestors, p_g, 1.0, o_j, T, g_node, BT)
        # Between branches the exponent may be positive: mask before exp, or inf * 0 gives nan.
        b_decay = tl.exp(tl.where(b_above, b_l_i[:, None] - b_l_j[None, :], float("-inf")))
        b_keys, b_queries = b_keys * b_decay, b_queries * b_decay
    return tl.where(b_above, b_keys, 0.0), tl.where(b_above, b_queries, 0.0)


@triton.jit
def tree_scan_kernel(
    p_q: tl.tensor,
    p_k: tl.tensor,
    p_v: tl.tensor,
    p_g: tl.tensor,
    p_beta: tl.tensor,
    p_state: tl.tensor,
    p_ancestors: tl.tensor,
    p_y: tl.tensor,
    p_u: tl.tensor,
    T: int,
    q_row: int,
    q_node: int,
    k_row: int,
    k_node: int,
    v_row: int,
    v_node: int,
    g_row: int,
    g_node: int,
    beta_row: int,
    beta_node: int,
    ancestors_row: int,
    H: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    E: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Of one batch row and head, BV columns of y and u for all nodes, BT at a time."""
    i_v, i_h, i_b = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    o_v, o_k, o_t = i_v * BV + tl.arange(0, BV), tl.arange(0, BK), tl.arange(0, BT)
    p_q += i_b * q_row + i_h * K
    p_k += i_b * k_row + i_h * K
    p_v += i_b * v_row + i_h * V
    p_g += i_b * g_row + i_h * E
    p_beta += i_b * beta_row + i_h
    p_ancestors += i_b * ancestors_row
    p_state += (i_b * H + i_h) * K * V
    p_y += (i_b * T * H + i_h) * V
    p_u += (i_b * T * H + i_h) * V
    for first in range(0, T, BT):
        o_i = first + o_t
        inside = (o_i < T)[:, None] & (o_v < V)[None, :]
        b_known, b_y = tl.zeros([BT, BV], dtype=tl.float32), tl.zeros([BT, BV], dtype=tl.float32)
        if E == 1:
            b_grown = tl.exp(log_decay(p_ancestors, p_g, 1.0, o_i, T, g_node, BT))[:, None]
        for n in range(0, K, BK):
            if E > 1:
                b_grown = tl.exp(_channel_decays(p_ancestors, p_g + n, o_i, o_k, T, g_node, K - n, BT, BK))
            b_state = tile(p_state + n * V, o_k, o_v, V, K - n, V)
            b_k = finite(tile(p_k + n, o_i, o_k, k_node, T, K - n)) * b_grown
            b_q = tile(p_q + n, o_i, o_k, q_node, T, K - n) * b_grown
            b_known = tl.dot(b_k, b_state, b_known, input_precision=PRECISION)
            b_y = tl.dot(b_q, b_state, b_y, input_precision=PRECISION)
        for other in range(0, first, BT):  # solved already; what lies behind this tile is above none of it
            b_keys, b_queries = _products(
                p_q, p_k, p_g, p_ancestors, o_i, other + o_t, T, q_node, k_node, g_node, K, E, BT, BK, PRECISION
            )
            b_u = tile(p_u, other + o_t, o_v, H * V, T, V)
            b_known = tl.dot(b_keys, b_u, b_known, input_precision=PRECISION)
            b_y = tl.dot(b_queries, b_u, b_y, input_precision=PRECISION)
        b_keys, b_queries = _products(
            p_q, p_k, p_g, p_ancestors, o_i, o_i, T, q_node, k_node, g_node, K, E, BT, BK, PRECISION
        )
        b_beta = finite(tl.load(p_beta + o_i * beta_node, mask=o_i < T, other=0.0).to(tl.float32))
        b_u = b_beta[:, None] * (finite(tile(p_v, o_i, o_v, v_node, T, V)) - b_known)
        b_lower = tl.where(o_t[:, None] > o_t[None, :], b_beta[:, None] * b_keys, 0.0)
        for t in range(1, tl.minimum(T - first, BT)):
            b_row = tl.sum(tl.where((o_t == t)[:, None], b_lower, 0.0), axis=0)
            b_above = tl.sum(b_row[:, None] * b_u, axis=0)
            b_u = tl.where((o_t == t)[:, None], b_u - b_above[None, :], b_u)
        b_y = tl.dot(b_queries, b_u, b_y, input_precision=PRECISION)
        tl.store(p_u + o_i[:, None] * (H * V) + o_v[None, :], b_u, mask=inside)
        tl.store(p_y + o_i[:, None] * (H * V) + o_v[None, :], b_y * K**-0.5, mask=inside)
        tl.debug_barrier()  # the next tile reads u, a thread what others have written


def tree_scan(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, ancestors: Tensor
) -> tuple[Tensor, Tensor]:
    """See :func:`naive.tree_scan`, and that of ``kimi_delta`` with ``g`` [B, T, H, K]: float32 y and u."""
    rows, count, heads, value_dim = v.shape
    key_dim, decays = k.shape[-1], g.shape[-1]
    q, k, v, g, beta = (dense_rows(each, 2) for each in (q, k, v, g, beta))
    y, u = (v.new_empty(v.shape, dtype=torch.float32) for _ in range(2))
    config = scan_config(key_dim, value_dim, decays, v.dtype)
    strides = [each.stride(dim) for each in (q, k, v, g, beta) for dim in (0, 1)]
    above = ancestors.contiguous().view(torch.uint8)  # [1, T, T] where all rows have one tree
    with torch.cuda.device_of(v):  # Triton launches on the current device
        tree_scan_kernel[triton.cdiv(value_dim, config["BV"]), heads, rows](
            *(q, k, v, g, beta, state.contiguous(), above, y, u, count, *strides),
            *(count * count if above.shape[0] > 1 else 0, heads, key_dim, value_dim, decays),
            **config,
        )
    return y, u


@triton.jit
def jump_kernel(
    p_states: tl.tensor,
    p_k: tl.tensor,
    p_u: tl.tensor,
    p_g: tl.tensor,
    p_path: tl.tensor,
    rows: int,
    T: int,
    D: int,
    H: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    E: tl.constexpr,
    NORMALIZES: tl.constexpr,
    BD: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
) -> None:
    """Of one layer, batch row and head, BV columns of the state: read once, moved along the path, written once."""
    i_v, i_h, i_lb = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    o_k, o_v = tl.arange(0, BK), i_v * BV + tl.arange(0, BV)
    in_k, in_v = o_k < K, o_v < V
    p_states += (i_lb * H + i_h) * K * V
    p_k += (i_lb * T * H + i_h) * K
    p_u += (i_lb * T * H + i_h) * V
    p_g += (i_lb * T * H + i_h) * E
    p_path += i_lb % rows * D
    b_state = tile(p_states, o_k, o_v, V, K, V)
    for d in range(0, path_length(p_path, D, BD)):
        node = tl.load(p_path + d)
        b_k = tl.load(p_k + node * H * K + o_k, mask=in_k, other=0.0).to(tl.float32)
        if NORMALIZES:
            b_k *= tl.rsqrt(tl.sum(b_k * b_k, axis=0) + EPSILON)
        b_u = tl.load(p_u + node * H * V + o_v, mask=in_v, other=0.0).to(tl.float32)
        b_g = tl.load(p_g + node * H * E + o_k % E, mask=in_k, other=0.0).to(tl.float32)  # E = 1: one for all channels
        b_state = tl.exp(b_g)[:, None] * b_state + b_k[:, None] * b_u[None, :]
    tl.store(p_states + o_k[:, None] * V + o_v[None, :], b_state, mask=in_k[:, None] & in_v[None, :])


def path_jump_(
    windows: Tensor, states: Tensor, inputs: Tensor, k: Tensor, u: Tensor, g: Tensor, path: Tensor, *, normalizes: bool
) -> None:
    """See :func:`gated_delta.path_jump_`: all layers, the states in one launch and the windows in another."""
    layers, rows, heads, key_dim, value_dim = states.shape
    path = path.contiguous()
    count, length = k.shape[2], path.shape[1]
    config = jump_config(length, key_dim, value_dim)
    with torch.cuda.device_of(states):
        jump_kernel[triton.cdiv(value_dim, config["BV"]), heads, layers * rows](
            *(states, k.contiguous(), u.contiguous(), g.contiguous(), path, rows, count, length),
            *(heads, key_dim, value_dim, g.shape[-1], normalizes),
            **config,
        )
    jump_windows_(windows, inputs, path)
