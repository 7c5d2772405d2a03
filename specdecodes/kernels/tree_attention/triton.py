"""Attention of a tree behind a prefix as two Triton kernels: pieces of what a node sees, and their merge.

Letters: B rows, T nodes, H query heads, G heads of keys and values, R = H / G, M = T R query rows of a head of keys,
S positions allocated, K key dim, V value dim. Names: ``i_`` program ids, ``o_`` offsets, ``p_`` pointers, ``b_`` tiles.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from specdecodes.kernels.native import rows as dense_rows
from specdecodes.kernels.tiles import power, tile

PIECE = 256
"""Positions of the prefix that a program takes at least."""
PIECES = 32
"""Pieces of the prefix at most."""


def piece_config(query_rows: int, key_dim: int, value_dim: int, dtype: torch.dtype) -> dict[str, int | str]:
    """Tiles of :func:`piece_kernel`: query rows and positions per turn, and dims padded to powers of two.

    A product in TF32 takes every bit of a bfloat16; float32 takes three.
    """
    widest, three = max(power(key_dim), power(value_dim)), dtype == torch.float32
    # As many query rows as fit into registers without spilling; three products take the room of two.
    most = (32 if widest <= 64 else 16) if three else (64 if widest <= 128 else 32)
    block_m = min(power(query_rows), most)
    large = block_m == 64 or (widest > 128 and (three or block_m == 32))
    return {
        "BM": block_m,
        "BN": 16 if three and widest > 128 else 32,
        "BK": power(key_dim),
        "BV": power(value_dim),
        "PRECISION": "tf32x3" if three else "tf32",
        "num_warps": 8 if large else 4,
        "num_stages": 1,
    }


@triton.jit
def piece_kernel(
    p_q: tl.tensor,
    p_keys: tl.tensor,
    p_values: tl.tensor,
    p_lengths: tl.tensor,
    p_ancestors: tl.tensor,
    p_sums: tl.tensor,
    p_tops: tl.tensor,
    p_weights: tl.tensor,
    T: int,
    pieces: int,
    q_row: int,
    q_head: int,
    q_node: int,
    k_row: int,
    k_head: int,
    v_row: int,
    v_head: int,
    scale: tl.float32,
    G: tl.constexpr,
    R: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """BM query rows of one head of keys over one piece: a share of the prefix, or, the last one, the tree.

    Leaves the weighted values [BM, V], the largest score and the sum of the weights below it, for the merge.
    """
    i_m, i_piece, i_bg = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    i_b, i_g = i_bg // G, i_bg % G
    rows = T * R
    o_m = i_m * BM + tl.arange(0, BM)
    o_node, o_head = o_m // R, i_g * R + o_m % R
    o_k, o_v = tl.arange(0, BK), tl.arange(0, BV)
    length = tl.load(p_lengths + i_b).to(tl.int32)
    share = tl.cdiv(tl.cdiv(length, pieces), BN) * BN
    is_tree = i_piece == pieces
    start = tl.where(is_tree, length, i_piece * share)
    end = tl.where(is_tree, length + T, tl.minimum(length, (i_piece + 1) * share))

    o_q = o_head[:, None] * q_head + o_node[:, None] * q_node + o_k[None, :]
    in_q = (o_m < rows)[:, None] & (o_k < K)[None, :]
    b_q = tl.load(p_q + i_b * q_row + o_q, mask=in_q, other=0.0).to(tl.float32)
    p_keys += i_b * k_row + i_g * k_head
    p_values += i_b * v_row + i_g * v_head
    p_ancestors += i_b * T * T
    b_top = tl.full([BM], float("-inf"), dtype=tl.float32)
    b_sum = tl.zeros([BM], dtype=tl.float32)
    b_y = tl.zeros([BM, BV], dtype=tl.float32)
    for first in range(start, end, BN):
        o_n = first + tl.arange(0, BN)
        in_n = o_n < end
        b_k = tile(p_keys, o_n, o_k, K, end, K)
        b_v = tile(p_values, o_n, o_v, V, end, V)
        b_score = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * scale
        o_path = o_node[:, None] * T + (o_n - length)[None, :]
        asked = is_tree & (o_m < rows)[:, None] & in_n[None, :]
        b_seen = (tl.load(p_ancestors + o_path, mask=asked, other=0) != 0) | (i_piece < pieces)
        b_score = tl.where(b_seen & in_n[None, :], b_score, float("-inf"))
        b_next = tl.maximum(b_top, tl.max(b_score, axis=1))
        b_base = tl.where(b_next == float("-inf"), 0.0, b_next)  # nothing seen yet: -inf - -inf is nan
        b_weight = tl.exp2(b_score - b_base[:, None])
        b_shrink = tl.exp2(b_top - b_base)
        b_sum = b_sum * b_shrink + tl.sum(b_weight, axis=1)
        b_y = tl.dot(b_weight, b_v, b_y * b_shrink[:, None], input_precision=PRECISION)
        b_top = b_next
    o_out = (i_bg * (pieces + 1) + i_piece) * rows + o_m
    in_m = o_m < rows
    tl.store(p_tops + o_out, b_top, mask=in_m)
    tl.store(p_weights + o_out, b_sum, mask=in_m)
    tl.store(p_sums + o_out[:, None] * V + o_v[None, :], b_y, mask=in_m[:, None] & (o_v < V)[None, :])


@triton.jit
def merge_kernel(
    p_sums: tl.tensor,
    p_tops: tl.tensor,
    p_weights: tl.tensor,
    p_y: tl.tensor,
    T: int,
    pieces: int,
    G: tl.constexpr,
    R: tl.constexpr,
    V: tl.constexpr,
    BM: tl.constexpr,
    BV: tl.constexpr,
) -> None:
    """BM query rows of one head of keys: all pieces and the tree, each by its share of the weights."""
    i_m, i_bg = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i_b, i_g = i_bg // G, i_bg % G
    rows = T * R
    o_m = i_m * BM + tl.arange(0, BM)
    o_v = tl.arange(0, BV)
    in_m = o_m < rows
    p_sums += i_bg * (pieces + 1) * rows * V
    p_tops += i_bg * (pieces + 1) * rows
    p_weights += i_bg * (pieces + 1) * rows
    b_top = tl.full([BM], float("-inf"), dtype=tl.float32)
    for piece in range(0, pieces + 1):
        b_top = tl.maximum(b_top, tl.load(p_tops + piece * rows + o_m, mask=in_m, other=0.0))
    b_weight = tl.zeros([BM], dtype=tl.float32)
    b_y = tl.zeros([BM, BV], dtype=tl.float32)
    for piece in range(0, pieces + 1):
        b_share = tl.exp2(tl.load(p_tops + piece * rows + o_m, mask=in_m, other=0.0) - b_top)
        b_weight += b_share * tl.load(p_weights + piece * rows + o_m, mask=in_m, other=1.0)
        b_y += b_share[:, None] * tile(p_sums + piece * rows * V, o_m, o_v, V, rows, V)
    o_node, o_head = o_m // R, i_g * R + o_m % R
    o_y = ((i_b * T + o_node) * (G * R) + o_head)[:, None] * V + o_v[None, :]
    tl.store(p_y + o_y, b_y / b_weight[:, None], mask=in_m[:, None] & (o_v < V)[None, :])


def tree_attention(q: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, ancestors: Tensor, scale: float) -> Tensor:
    """See :func:`naive.tree_attention`; the positions of a head of ``keys`` and ``values`` lie one behind the other."""
    q, keys, values = dense_rows(q, 3), dense_rows(keys, 2), dense_rows(values, 2)
    rows, heads, count, key_dim = q.shape
    groups, value_dim = keys.shape[1], values.shape[3]
    times = heads // groups
    pieces = min(PIECES, triton.cdiv(keys.shape[2], PIECE))
    shape = (rows * groups, pieces + 1, count * times)
    sums = torch.empty(*shape, value_dim, dtype=torch.float32, device=q.device)
    tops, weights = (torch.empty(shape, dtype=torch.float32, device=q.device) for _ in range(2))
    y = torch.empty(rows, count, heads, value_dim, dtype=q.dtype, device=q.device)
    config = piece_config(count * times, key_dim, value_dim, q.dtype)
    tiles = triton.cdiv(count * times, config["BM"])
    strides = (*q.stride()[:3], *keys.stride()[:2], *values.stride()[:2])
    with torch.cuda.device_of(q):  # Triton launches on the current device
        piece_kernel[tiles, pieces + 1, rows * groups](
            *(q, keys, values, lengths.contiguous(), ancestors.contiguous().view(torch.uint8), sums, tops, weights),
            *(count, pieces, *strides, scale * math.log2(math.e), groups, times, key_dim, value_dim),
            **config,
        )
        merge_kernel[tiles, rows * groups](
            *(sums, tops, weights, y, count, pieces, groups, times, value_dim),
            **{name: config[name] for name in ("BM", "BV")},
        )
    return y
