"""What an op must move and multiply, by its shapes: every input read once, every output written once.

This is the least that any form of the op can do, so that a share of the roofline says how far a form is from it: what
a form pads, copies or reads again is its loss. Parameters of a head (A, D, the bias of a step size) are left out: a few
hundred bytes. A multiply-add is two FLOPs; products between nodes count for all T^2 pairs, as dense code computes them.

Letters: T nodes, D path length, S visible positions, L layers, H heads, P head dim, G groups, N state dim, K key dim,
V value dim, E decays per head, C conv channels, W taps; e bytes of an element of the model, f of one of a state. One
row (B = 1).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from specdecodes.benchmark.shapes import AttentionSizes, DeltaSizes, Mamba2Sizes, Product, S6Sizes
from specdecodes.kernels.mamba2_scan import compute_dtype

INDEX = 8
"""Bytes of a node id."""


@dataclass(frozen=True)
class Cost:
    """Bytes read and written, FLOPs, and the launches that a fused form takes on a GPU."""

    bytes: int
    flops: int
    launches: int = 1


@dataclass(frozen=True)
class Widths:
    """Bytes of an element: e of the model's tensors, f of states, step sizes and what is computed from them."""

    model: int
    state: int

    @classmethod
    def of(cls, dtype: torch.dtype) -> Widths:
        """For a model of that dtype."""
        return cls(dtype.itemsize, compute_dtype(dtype).itemsize)


def mamba2_tree(sizes: Mamba2Sizes, count: int, w: Widths) -> Cost:
    """S once; x, B, C and step sizes of T nodes; the ancestor matrix; y in the state's dtype."""
    s, t = sizes, count
    inner, groups = s.heads * s.head_dim, s.groups * s.state_dim
    moved = inner * s.state_dim * w.state + t * (inner + 2 * groups) * w.model + t * s.heads * w.state
    moved += t * t + t * inner * w.state
    return Cost(moved, 2 * (t * t * (groups + inner) + t * inner * s.state_dim))


def mamba2_step(sizes: Mamba2Sizes, w: Widths) -> Cost:
    """S read and written; x, B, C and y of one token; two multiply-adds for each of S's elements."""
    s = sizes
    inner, groups = s.heads * s.head_dim, s.groups * s.state_dim
    moved = 2 * inner * s.state_dim * w.state + (2 * inner + 2 * groups) * w.model + s.heads * w.state
    return Cost(moved, 4 * inner * s.state_dim)


def mamba2_commit(sizes: Mamba2Sizes, length: int, w: Widths) -> Cost:
    """Of all layers: S and windows read and written, raw inputs and step sizes of D nodes, weights of the conv of x, B.

    Two launches: states, and then the windows that they were computed from.
    """
    s, d = sizes, length
    inner, taken = s.heads * s.head_dim, s.channels - s.groups * s.state_dim
    moved = 2 * (inner * s.state_dim * w.state + s.channels * s.taps * w.model)
    moved += (d * (s.channels + s.heads) + (s.taps + 1) * taken) * w.model
    return Cost(s.layers * moved, s.layers * 2 * d * (inner * s.state_dim + s.taps * taken), launches=2)


def mamba2_replay_tree(sizes: Mamba2Sizes, count: int, length: int, w: Widths) -> Cost:
    """A tree's scan, and S written besides; x and B of the D nodes of a path, and their step sizes, in float32."""
    s, d, tree = sizes, length, mamba2_tree(sizes, count, w)
    inner, taken = s.heads * s.head_dim, s.channels - s.groups * s.state_dim
    moved = inner * s.state_dim * w.state + d * (taken * w.model + 4 * s.heads)
    return Cost(tree.bytes + moved, tree.flops + 2 * d * inner * s.state_dim)


def replay_conv(sizes: Mamba2Sizes, count: int, length: int, w: Widths) -> Cost:
    """A tree's conv, and the window written besides; inputs and outputs of the D nodes of a path."""
    s, tree = sizes, tree_conv(sizes, count, w)
    return Cost(
        tree.bytes + (s.taps + 2 * length) * s.channels * w.model, tree.flops + 2 * length * s.channels * s.taps
    )


def mamba2_defer(sizes: Mamba2Sizes, length: int, w: Widths) -> Cost:
    """Of all layers: raw inputs and step sizes of D nodes read and written, the latter in float32.

    Seven launches of plain torch.
    """
    s = sizes
    return Cost(s.layers * length * (2 * s.channels * w.model + s.heads * (w.model + 4)), 0, launches=7)


def tree_conv(sizes: Mamba2Sizes | DeltaSizes | S6Sizes, count: int, w: Widths) -> Cost:
    """Inputs and outputs of T nodes, the window above the root, W weights and a bias per channel, W places per node."""
    c, t, taps = sizes.channels, count, sizes.taps
    return Cost((2 * t + taps + taps + 1) * c * w.model + t * taps * INDEX, 2 * t * c * taps)


def delta_tree(sizes: DeltaSizes, count: int, w: Widths) -> Cost:
    """S once; q, k and log decays as computed, v and beta of the model; ancestors; y and the corrections u.

    Products: keys with keys and with queries, both with S, the solve (half a product) and the outputs. With a decay per
    key channel every pair of nodes takes K exponentials and K products more.
    """
    s, t = sizes, count
    state = s.key_dim * s.value_dim
    moved = s.heads * (state + t * (2 * s.key_dim + s.decays + 2 * s.value_dim)) * w.state
    moved += s.heads * t * (s.value_dim + 1) * w.model + t * t
    between = t * t * s.key_dim * (3 if s.per_channel else 2)
    return Cost(moved, 2 * s.heads * (between + 2 * t * state + 3 * t * t * s.value_dim // 2))


def delta_commit(sizes: DeltaSizes, length: int, w: Widths) -> Cost:
    """Of all layers: S and windows read and written; raw inputs, keys, corrections and log decays of D nodes.

    Two launches: states, windows.
    """
    s, d = sizes, length
    state = s.heads * s.key_dim * s.value_dim
    moved = 2 * (state * w.state + s.channels * s.taps * w.model) + d * (s.channels + s.heads * s.key_dim) * w.model
    moved += d * s.heads * (s.value_dim + s.decays) * w.state
    return Cost(s.layers * moved, s.layers * 2 * d * state, launches=2)


def s6_tree(sizes: S6Sizes, count: int, w: Widths) -> Cost:
    """S and A once; x, B, C, y of the model, step sizes and parents of T nodes.

    Per element of a node's state: decay (product and exponential), input, sum (two), output (two): seven.
    """
    s, t = sizes, count
    moved = 2 * s.channels * s.state_dim * w.state + t * s.channels * (2 * w.model + w.state)
    return Cost(moved + t * (2 * s.state_dim * w.model + INDEX), 7 * t * s.channels * s.state_dim)


def linear(products: Iterable[Product], count: int, w: Widths) -> Cost:
    """Every weight once, inputs and outputs of T rows; a launch per weight."""
    sizes = list(products)
    moved = sum(out * features + count * (out + features) for out, features in sizes)
    return Cost(moved * w.model, sum(2 * count * out * features for out, features in sizes), launches=len(sizes))


def kv_gather(sizes: AttentionSizes, length: int, w: Widths) -> Cost:
    """Of all layers: D rows of keys and of values, read and written; a launch per layer."""
    s = sizes
    moved = s.layers * 2 * 2 * length * s.kv_heads * s.head_dim * w.model + length * INDEX
    return Cost(moved, 0, launches=s.layers)


def tree_attention(sizes: AttentionSizes, count: int, context: int, w: Widths) -> Cost:
    """Keys and values of S = context + T positions, queries and outputs of T nodes, the mask among the nodes (T^2).

    A mask over the whole context is what a form may need, not what the op does; two launches are what ours takes.
    """
    s, t, visible = sizes, count, context + count
    moved = 2 * visible * s.kv_heads * s.head_dim + 2 * t * s.heads * s.head_dim
    return Cost(moved * w.model + t * t, 4 * t * s.heads * s.head_dim * visible, launches=2)
