"""The Mamba-2 layer of MambaInLlama, which takes the place of grouped-query attention.

Heads are groups: C plays the queries and is per head, x and B play values and keys and are shared by
``d_inner / d_xb`` heads. Letters: B rows, T tokens, C conv channels, H heads, P head dim (equal to the state dim).

The module-level ops are stock transformers' own, so that ``specdecodes.models.interpose`` finds them here as it finds
them in a stock modeling file; cache calls and padding are those of the stock Mamba-2 mixers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.models.mamba2.modeling_mamba2 import (
    causal_conv1d_fn,
    causal_conv1d_update,
    mamba2_chunk_scan,
    mamba2_selective_state_update,
)

from specdecodes.models.mamba_in_llama.configuration import MILConfig

NORM_EPS = 1e-5
"""Of the gated norm; the configuration's is that of Llama's norms."""


class GatedGroupRMSNorm(nn.Module):
    """``norm(y * silu(gate))`` over groups of channels, the gate first."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.groups = groups

    def forward(self, y: Tensor, gate: Tensor) -> Tensor:
        """[B, T, d_inner] to [B, T, d_inner], in the input's dtype."""
        kind = torch.promote_types(y.dtype, torch.float32)
        gated = (y.to(kind) * nn.functional.silu(gate.to(kind))).unflatten(-1, (self.groups, -1))
        scaled = gated * torch.rsqrt(gated.pow(2).mean(-1, keepdim=True) + NORM_EPS)
        return self.weight * scaled.flatten(-2).to(y.dtype)


class MILMixer(nn.Module):
    """The layer: projection, convolution, sharing of x and B among heads, scan, gated norm, projection."""

    def __init__(self, config: MILConfig, layer_idx: int) -> None:
        super().__init__()
        assert config.ngroups and config.d_state and config.d_inner and config.d_xb  # what MILConfig has filled in
        self.layer_idx = layer_idx
        self.num_heads, self.head_dim, self.ssm_state_size = config.ngroups, config.d_state, config.d_state
        self.d_inner, self.d_xb = config.d_inner, config.d_xb
        self.shared_before_conv, self.has_hdim = config.repeat_kv_before_conv, config.D_has_hdim
        self.conv_kernel_size, self.chunk_size = config.d_conv, config.chunk_size
        self.time_step_limit = (0.0, float("inf"))
        self.activation = "silu"
        self.conv_dim = self.d_inner + 2 * (self.d_inner if self.shared_before_conv else self.d_xb)
        projected = 2 * self.d_inner + 2 * self.d_xb + self.num_heads
        self.in_proj = nn.Linear(config.hidden_size, projected, bias=config.bias)
        self.conv1d = nn.Conv1d(
            self.conv_dim, self.conv_dim, self.conv_kernel_size, groups=self.conv_dim, bias=config.conv_bias
        )
        self.dt_bias = nn.Parameter(torch.ones(self.num_heads))
        self.A_log = nn.Parameter(torch.zeros(self.num_heads))
        self.D = nn.Parameter(torch.ones(self.d_inner if self.has_hdim else self.num_heads))
        self.norm = GatedGroupRMSNorm(self.d_inner, self.num_heads)
        self.out_proj = nn.Linear(self.d_inner, config.hidden_size, bias=config.bias)

    def forward(
        self,
        hidden_states: Tensor,
        cache: Cache | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """[B, T, hidden] to [B, T, hidden]; ``attention_mask`` [B, T] is 0 where a row is padded."""
        step = hidden_states.shape[1] == 1
        # Before the convolution, which makes every later call one that continues.
        continues = cache is not None and cache.has_previous_state(self.layer_idx)
        gate, mixed, dt = self.in_proj(_unpadded(hidden_states, attention_mask)).split(
            [self.d_inner, 2 * self.d_xb + self.d_inner, self.num_heads], dim=-1
        )
        if self.shared_before_conv:
            mixed = self._share(mixed)
        mixed = self._convolve(mixed.transpose(1, 2), cache, continues and step).transpose(1, 2)
        mixed = _unpadded(mixed, attention_mask)
        if not self.shared_before_conv:
            mixed = self._share(mixed)
        x, B, C = (part.unflatten(-1, (self.num_heads, -1)) for part in mixed.split(self.d_inner, dim=-1))
        if cache is not None and continues and step:
            y = self._scan_step(x, dt, B, C, cache)
        else:
            y = self._scan(x, dt, B, C, cache, continues)
        if self.has_hdim:
            y = y + (x * self.D.unflatten(0, (self.num_heads, -1))).to(y.dtype)
        projected: Tensor = self.out_proj(self.norm(y.flatten(-2), gate).to(hidden_states.dtype))
        return projected

    def _share(self, mixed: Tensor) -> Tensor:
        """X and B [.., d_xb] of ``mixed`` [B, T, x | B | C] once per head: [B, T, 3 * d_inner]."""
        x, B, C = mixed.split([self.d_xb, self.d_xb, self.d_inner], dim=-1)
        heads = self.d_inner // self.d_xb
        x, B = (part.unflatten(-1, (-1, self.head_dim)).repeat_interleave(heads, dim=-2).flatten(-2) for part in (x, B))
        return torch.cat([x, B, C], dim=-1)

    def _convolve(self, mixed: Tensor, cache: Cache | None, in_place: bool) -> Tensor:
        """[B, C, T] to [B, C, T]; the cache's window moves behind it."""
        weight, bias, count = self.conv1d.weight.squeeze(1), self.conv1d.bias, mixed.shape[-1]
        if cache is None:
            return causal_conv1d_fn(mixed, weight, bias, activation=self.activation)
        layer: Any = cache.layers[self.layer_idx] if in_place else None
        if in_place and not layer.record_past:
            return causal_conv1d_update(mixed, layer.conv_states[0], weight, bias, activation=self.activation)
        mixed = cache.update_conv_state(mixed, self.layer_idx, conv_kernel_size=self.conv_kernel_size)
        return causal_conv1d_fn(mixed, weight, bias, activation=self.activation)[..., -count:]

    def _scan(self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, cache: Cache | None, continues: bool) -> Tensor:
        """x, B, C [B, T, H, P], dt [B, T, H] to y [B, T, H, P]; the cache's state moves behind it."""
        layer: Any = cache.layers[self.layer_idx] if cache is not None and continues else None
        found = mamba2_chunk_scan(
            x,
            dt,
            -torch.exp(self.A_log.float()),
            B,
            C,
            chunk_size=self.chunk_size,
            D=None if self.has_hdim else self.D,
            dt_bias=self.dt_bias,
            dt_softplus=True,
            dt_limit=self.time_step_limit,
            initial_states=None if layer is None else layer.recurrent_states[0],
            return_final_states=cache is not None,
        )
        if cache is None:
            return found
        y, state = found
        cache.update_recurrent_state(state, layer_idx=self.layer_idx)
        return y

    def _scan_step(self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, cache: Cache) -> Tensor:
        """As :meth:`_scan` for one token, [B, 1, H, P]; the cache's state moves in place."""
        layer: Any = cache.layers[self.layer_idx]
        size = (self.num_heads, self.head_dim)
        y: Tensor = mamba2_selective_state_update(
            layer.recurrent_states[0],
            x[:, 0],
            dt[:, 0, :, None].expand(-1, *size),
            -torch.exp(self.A_log.float())[:, None, None].expand(*size, self.head_dim),
            B[:, 0],
            C[:, 0],
            None if self.has_hdim else self.D[:, None].expand(size),
            dt_bias=self.dt_bias[:, None].expand(size),
            dt_softplus=True,
        )
        return y[:, None]


def _unpadded(values: Tensor, attention_mask: Tensor | None) -> Tensor:
    """``values`` [B, T, F] with zeros where a row is padded."""
    return values if attention_mask is None else (values * attention_mask[:, :, None]).to(values.dtype)
