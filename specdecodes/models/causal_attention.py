"""Attention of a sequence behind the committed prefix: flash-attn where it is installed, stock sdpa otherwise."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from specdecodes.kernels import installed

MAX_HEAD_DIM = 256
"""What flash-attn has kernels for."""

MORE_THAN_CAUSAL = ("position_bias", "s_aux", "sliding_window", "softcap")
"""Keyword arguments that change which keys count and how much: biases, sinks, windows and soft caps."""


def causal_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention function for queries that are the last of the keys' positions, in order.

    Args:
        query: [B, H, T, D]. key, value: [B, Hk, S, D], all that is committed and then the queries' own; H is a multiple
            of Hk, as in sdpa.
        attention_mask: additive, [B, 1, T, S]; causal, so that flash-attn does without.
        scaling: of the products (None: D ** -0.5). more: what else the module passes.

    Returns:
        [B, T, H, D] in the dtype of ``query``, and None for the weights.
    """
    kernel = installed.ATTENTION
    if (
        kernel.serves(query.device.type, query.dtype)
        and query.shape[-1] == value.shape[-1] <= MAX_HEAD_DIM
        and not dropout
        and all(more.get(name) is None for name in MORE_THAN_CAUSAL)
    ):
        q, k, v = (each.transpose(1, 2) for each in (query, key, value))
        # Before 2.1 the mask ended at the wrong corner where T < S. Those versions have no windows, and refuse.
        y: Tensor | None = kernel(q, k, v, softmax_scale=scaling, causal=True, window_size=(-1, -1))
        if y is not None:
            return y, None
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **more)
