"""Attention of a tree's nodes behind a committed prefix, in plain torch; README.md derives it.

Letters: B rows, T nodes, H query heads, G heads of keys and values, S positions allocated, K key dim, V value dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specdecodes.kernels.mamba2_scan.naive import compute_dtype


def tree_attention(q: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, ancestors: Tensor, scale: float) -> Tensor:
    """Attend to the committed positions and to a node's own path, and merge the two by log-sum-exp.

    Args:
        q: [B, H, T, K]. keys: [B, G, S, K]; values: [B, G, S, V]; H is a multiple of G.
        lengths: int64 [B], committed positions of each row, at least 1; the nodes' own follow them, and what lies
            beyond is never read.
        ancestors: bool [B, T, T], true at [b, i, j] iff j is i or above it. scale: factor of the scores.

    Returns:
        [B, T, H, V] in the dtype of ``q``, computed in at least float32.
    """
    rows, heads, count, _ = q.shape
    kind = compute_dtype(q.dtype)
    times = heads // keys.shape[1]
    k, v = (each.to(kind).repeat_interleave(times, dim=1) for each in (keys, values))
    scores = q.to(kind) @ k.mT * scale
    positions = torch.arange(keys.shape[2], device=q.device)
    prefix = (positions < lengths[:, None])[:, None, None]
    own = lengths[:, None] + torch.arange(count, device=q.device)
    at = own[:, None, None].expand(rows, heads, count, count)
    path = scores.gather(3, at).masked_fill(~ancestors[:, None], float("-inf"))
    top, y = _part(scores.masked_fill(~prefix, float("-inf")), v)
    beside, more = _part(path, v.gather(2, own[:, None, :, None].expand(rows, heads, count, v.shape[3])))
    both = torch.logaddexp(top, beside)
    merged = y * (top - both).exp()[..., None] + more * (beside - both).exp()[..., None]
    return merged.transpose(1, 2).to(q.dtype)


def _part(scores: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Log-sum-exp [B, H, T] and weighted values [B, H, T, V] of one part; -inf hides a score."""
    top = scores.logsumexp(-1)
    # Hidden positions may hold anything: weight 0 alone would let a nan through.
    hidden = scores.isneginf().all(-2)[..., None]
    return top, (scores - top[..., None]).exp() @ values.masked_fill(hidden, 0.0)
