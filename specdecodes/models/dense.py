"""The pass that serves a plain forward over whole sequences: prefill and training."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from specdecodes.kernels.causal_conv.naive import sequence_conv
from specdecodes.kernels.mamba2_scan.naive import chunk_scan, discretize


class DensePass:
    """Fast, differentiable forms of the stock sequence ops, with the stock signatures and results."""

    def causal_conv1d_fn(
        self,
        hidden_states: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        activation: str | None = None,
        **_: Any,
    ) -> Tensor:
        """[B, C, T] to [B, C, T]."""
        return sequence_conv(hidden_states, weight, bias, activation)

    def mamba2_chunk_scan(
        self,
        hidden_states: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        chunk_size: int,
        D: Tensor | None = None,
        dt_bias: Tensor | None = None,
        initial_states: Tensor | None = None,
        dt_softplus: bool = False,
        dt_limit: tuple[float, float] = (0.0, float("inf")),
        return_final_states: bool = False,
        **_: Any,
    ) -> Any:  # noqa: ANN401 - a tensor or a pair, as in stock
        """[B, T, H, P] to [B, T, H, P], with the final state [B, H, P, N] when asked for."""
        steps = discretize(dt, dt_bias, dt_limit, dt_softplus)
        y, state = chunk_scan(hidden_states, steps, A, B, C, D, initial_states)
        return (y, state) if return_final_states else y
