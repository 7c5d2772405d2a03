"""Kimi delta attention over a tree, in plain torch: the gated delta rule with a decay per key channel.

Sequences, steps, jumps and node states are those of ``kernels/gated_delta`` with ``g`` [..., H, K]; only the products
between nodes differ, since the decays no longer factor out. README.md derives them.

Letters: as in ``kernels/gated_delta``.
"""

from __future__ import annotations

from torch import Tensor

from specdecodes.kernels.gated_delta.naive import by_head, pairwise_decay, solve

CHUNK = 16
"""Tokens of a sequence that are solved at once: between them there are CHUNK^2 * K decays per head."""


def tree_scan(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, ancestors: Tensor
) -> tuple[Tensor, Tensor]:
    """As ``gated_delta.tree_scan``, with ``g`` [B, T, H, K]."""
    q, k, v, g, beta = by_head(q, k, v, g, beta)
    total = ancestors.to(g.dtype)[:, None] @ g
    decayed = pairwise_decay(total, ancestors) * k[:, :, None]  # node j's key as node i sees it [B, H, T, T, K]
    keys = (decayed @ k[..., None]).squeeze(-1)
    queries = (decayed @ q[..., None]).squeeze(-1)
    grown = total.exp()
    return solve(keys, queries, k * grown, q * grown, v, beta, state)
