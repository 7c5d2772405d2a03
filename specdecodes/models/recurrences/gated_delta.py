"""The gated delta rule of a model (Qwen3-Next, Qwen3.5, OLMo-Hybrid), and what Kimi delta attention shares with it.

Letters: B rows, T nodes, H heads, K key dim, V value dim, E decays per head (1, or K in Kimi delta attention),
D path length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from specdecodes.kernels.gated_delta import (
    CHUNK,
    TreeScan,
    jump_,
    normalize,
    path_jump_,
    path_jump_serves,
    sequence_scan,
    step_,
    tree_scan,
    tree_states,
)
from specdecodes.kernels.installed import GATED_DELTA, Kernel
from specdecodes.kernels.mamba2_scan import compute_dtype
from specdecodes.models.recurrences.layer import RecurrentLayer, ScoredTree, some
from specdecodes.models.recurrences.stack import RecurrentStack


class DeltaInputs(NamedTuple):
    """q, k: [B, T, H, K], normalised if the op does that; v [B, T, H, V]; g [B, T, H, E]; beta [B, T, H].

    ``raw``: k as it came, model dtype.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    beta: Tensor
    raw: Tensor


@dataclass
class GatedDeltaLayer(RecurrentLayer):
    """One mixer; the state is [B, H, K, V]."""

    scan: ClassVar[TreeScan] = staticmethod(tree_scan)
    chunk: ClassVar[int] = CHUNK
    installed: ClassVar[Kernel] = GATED_DELTA

    normalizes: bool = False
    gate_bytes: int = 0

    @property
    def shape_key(self) -> tuple[Any, ...]:
        """See the base."""
        return (*super().shape_key, self.normalizes)

    def read(
        self,
        clamps: bool,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        g: Tensor,
        beta: Tensor,
        chunk_size: int = 64,
        initial_state: Tensor | None = None,
        output_final_state: bool = False,
        use_qk_l2norm_in_kernel: bool = False,
        **_: Any,
    ) -> DeltaInputs:
        """The arguments of the chunked op, with one decay per head or one per key channel."""
        if key.shape[2] != value.shape[2]:  # some versions leave the grouping of heads to the op
            times = value.shape[2] // key.shape[2]
            query, key = query.repeat_interleave(times, dim=2), key.repeat_interleave(times, dim=2)
        if g.ndim == 3:
            g = g[..., None]
        if self.state is None:
            self.normalizes, self.gate_bytes = use_qk_l2norm_in_kernel, g[0, 0].numel() * g.element_size()
        if use_qk_l2norm_in_kernel:
            return DeltaInputs(normalize(query), normalize(key), value, g, beta, key)
        return DeltaInputs(query, key, value, g, beta, key)

    def answer(self, y: Tensor, inputs: DeltaInputs) -> Tensor:
        """See the base: in the model's dtype."""
        return y.to(inputs.v.dtype, memory_format=torch.contiguous_format)

    def sequence(self, inputs: DeltaInputs) -> Tensor:
        """See the base."""
        q, k, v, g, beta, _ = inputs
        if self.state is None:
            shape = (v.shape[0], v.shape[2], k.shape[3], v.shape[3])
            self.state = torch.zeros(shape, dtype=compute_dtype(v.dtype), device=v.device)
        return sequence_scan(q, k, v, g, beta, self.state, self.scan, self.chunk, self.installed)

    def advance(self, state: Tensor, inputs: DeltaInputs) -> Tensor:
        """See the base."""
        return step_(state, *(each.flatten(0, 1) for each in inputs[:5])).view(inputs.v.shape)

    def score(self, inputs: DeltaInputs, tree: ScoredTree, keep: str) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See the base; a jump needs keys, corrections and log decays."""
        q, k, v, g, beta, raw = inputs
        state = some(self.state)
        y, u = self.scan(q, k, v, g, beta, state, tree.ancestors)
        if keep == "inputs":
            return y, (raw, u, g)
        return y, (tree_states(k, u, g, state, tree.ancestors),) if keep == "states" else ()


class GatedDeltaStack(RecurrentStack):
    """Mixers of one shape; their states are [layers, B, H, K, V]."""

    layers: Sequence[GatedDeltaLayer]

    def __init__(self, layers: Sequence[GatedDeltaLayer], compiled: Callable[..., Any]) -> None:
        super().__init__(layers, compiled)
        self.normalizes, self.gate_bytes = layers[0].normalizes, layers[0].gate_bytes

    def jump(self, path: Tensor, inputs: Tensor, *kept: Tensor) -> None:
        """See the base; ``kept``: keys [layers, B, T, H, K], corrections [layers, B, T, H, V], log decays."""
        k, u, g = kept
        states = some(self.states)
        if path_jump_serves(self.windows, states):
            path_jump_(self.windows, states, inputs, k, u, g, path, normalizes=self.normalizes)
        else:
            super().jump(path, inputs, k, u, g)

    def move_states(self, joined: Tensor, kept: tuple[Tensor, ...], valid: Tensor) -> None:
        """See the base; ``kept``: keys [layers, B, D, H, K], corrections [layers, B, D, H, V], log decays."""
        k, u, g = kept
        ended = ~valid[None, :, :, None, None]
        k = normalize(k) if self.normalizes else k
        jump_(some(self.states), k.masked_fill(ended, 0.0), u, g.masked_fill(ended, 0.0))

    def kept_bytes(self, itemsize: int) -> int:
        """See the base: H K keys in the model's dtype, H V corrections in the state's, H E log decays."""
        states = some(self.states)
        heads, key_dim, value_dim = states.shape[2:]
        return heads * (key_dim * itemsize + value_dim * states.dtype.itemsize) + self.gate_bytes
