"""What serves the rebound ops and the cache during one forward: a sequence, a tree, one step, or expanded nodes.

Letters: B rows, T tokens or nodes, C conv channels, H heads, P head dim, G groups, N state dim, S visible positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from specdecodes.core.tree import Topology
from specdecodes.kernels.linear.packed import packed_linear
from specdecodes.models.cache import TreeCache
from specdecodes.models.products import PackedLinear
from specdecodes.models.recurrences import mamba2
from specdecodes.models.recurrences.mamba2 import Mamba2Layer


class CachedPass:
    """Base: attention writes its rows at ``positions`` and sees ``visible`` of them; recurrent layers enter in turn.

    Attributes:
        positions: int64 [T], where this pass writes in the attention caches.
        visible: how many cached positions attention sees; the mask hides what is not the node's own path.
        clamps: whether the op's limits on step sizes apply. Stock one-token steps ignore them, so all but prefill do.
    """

    clamps = False

    def __init__(self, cache: TreeCache) -> None:
        self.cache = cache
        self.positions: Tensor = torch.empty(0)
        self.visible = 0
        self.layer: Mamba2Layer = Mamba2Layer(-1)

    def enter(self, layer_idx: int) -> None:
        """The next ops belong to this layer."""
        self.layer = self.cache.recurrent_layer(layer_idx)

    def attend(self, layer_idx: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store [B, heads, T, head dim] and return what attention reads."""
        return self.cache.attention_rows(layer_idx).write(self.positions, keys, values, self.visible)

    def linear(self, layer: PackedLinear, x: Tensor) -> Tensor:
        """The product of a linear layer, [..., in] to [..., out]."""
        return packed_linear(x, layer.bias, layer.handle, layer.out_features)

    def mamba2_selective_state_update(self, *_: Any, **__: Any) -> Tensor:
        """Unreachable while ``TreeCache.has_previous_state`` is False; a mixer that gets here is not one we know."""
        raise RuntimeError("a stock mixer took its one-token branch under our cache; this model is not supported")

    causal_conv1d_update = mamba2_selective_state_update

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
    ) -> tuple[Tensor, Tensor]:
        """The stock op's signature; y [B, T, H, P] in the input's dtype, and a placeholder for the state."""
        limit = tuple(dt_limit) if self.clamps else mamba2.NO_LIMIT
        y = self.scan(hidden_states, dt, A, B, C, D, dt_bias=dt_bias, softplus=dt_softplus, limit=limit)
        return y.contiguous(), dt

    def scan(self, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, **kw: Any) -> Tensor:
        """Scan with raw ``dt`` [B, T, H]; ``kw``: dt_bias, softplus, limit."""
        raise NotImplementedError

    def causal_conv1d_fn(
        self, hidden_states: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, **_: Any
    ) -> Tensor:
        """The stock op's signature: [B, C, T] to [B, C, T]."""
        raise NotImplementedError


class SequencePass(CachedPass):
    """Tokens that continue the committed prefix and are committed: prefill, or an accepted path run again.

    Prefill clamps step sizes as stock prefill does (Zamba2 and Nemotron-H always have a lower limit); a path that is
    run again stands for one-token steps, which do not.
    """

    def attend(self, layer_idx: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Make room first: this is the only pass that may be the first of its cache."""
        self.cache.attention_rows(layer_idx).reserve(self.visible, keys, values)
        return super().attend(layer_idx, keys, values)

    def causal_conv1d_fn(
        self, hidden_states: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, **_: Any
    ) -> Tensor:
        """See the base."""
        return self.layer.sequence_conv(hidden_states, weight, bias, activation)

    def scan(self, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, **kw: Any) -> Tensor:
        """See the base."""
        return self.layer.sequence_scan(x, dt, A, B, C, D, **kw)


class StepPass(CachedPass):
    """One token per row, committed in place: plain decoding. No scan, no jump, nothing kept."""

    def causal_conv1d_fn(
        self, hidden_states: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, **_: Any
    ) -> Tensor:
        """See the base."""
        assert self.layer.window is not None
        return mamba2.advance_conv(self.layer.window, hidden_states[..., 0], weight, bias, activation)[..., None]

    def scan(self, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, **kw: Any) -> Tensor:
        """See the base."""
        assert self.layer.state is not None
        steps = self.layer.steps(dt, A, B, **kw)
        return mamba2.advance_scan(self.layer.state, x[:, 0], steps[:, 0], A, B[:, 0], C[:, 0], D)[:, None]


class TreePass(CachedPass):
    """All nodes of a tree, nothing committed.

    Attributes:
        keep: ``inputs`` (raw conv inputs and dt), ``states`` (one window and state per node) or ``nothing``.
        inputs, dts, windows, states: what was kept, one entry per recurrent layer in order: inputs [B, T, C],
            dts [B, T, H]; windows [B, T, C, W], states [B, T, H, P, N].
    """

    def __init__(self, cache: TreeCache, keep: str) -> None:
        super().__init__(cache)
        self.keep = keep
        self.ancestors: Tensor = torch.empty(0)
        self.window_index: dict[int, Tensor] = {}
        self.order: list[int] = []
        self.clear()

    def aim(self, topology: Topology) -> None:
        """Set the tree that the next forward scores."""
        self.ancestors = topology.ancestors
        for width in {layer.window.shape[-1] for layer in self.cache.recurrent.values() if layer.window is not None}:
            self.window_index[width] = topology.windows(width)

    def clear(self) -> None:
        """Forget what was kept."""
        self.inputs: list[Tensor] = []
        self.dts: list[Tensor] = []
        self.windows: list[Tensor] = []
        self.states: list[Tensor] = []

    def attend(self, layer_idx: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """A row that is not finite would reach every node through 0 * nan in the weighted sum of values."""
        return super().attend(layer_idx, torch.nan_to_num(keys, 0.0, 0.0, 0.0), torch.nan_to_num(values, 0.0, 0.0, 0.0))

    def causal_conv1d_fn(
        self, hidden_states: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, **_: Any
    ) -> Tensor:
        """See the base."""
        index = self.window_index[weight.shape[-1]]
        if self.keep == "inputs":
            self.inputs.append(hidden_states.transpose(1, 2))
        elif self.keep == "states":
            self.windows.append(mamba2.node_windows(self.layer, hidden_states, index))
        return mamba2.score_conv(self.layer, hidden_states, index, weight, bias, activation)

    def scan(self, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, **kw: Any) -> Tensor:
        """See the base."""
        steps = self.layer.steps(dt, A, B, **kw)
        if self.keep == "inputs":
            self.dts.append(dt)
        elif self.keep == "states":
            self.states.append(mamba2.node_states(self.layer, x, steps, A, B, self.ancestors))
        return mamba2.score_scan(self.layer, x, steps, A, B, C, D, self.ancestors)


class ExpandPass(CachedPass):
    """Nodes whose parents have been run: every node starts from its parent's kept window and state.

    Attributes:
        parents, slots: int64 [n]: where the parents' states lie and where the nodes' states go.
        windows, states: per recurrent layer (by layer index), [slots, C, W] and [slots, H, P, N].
    """

    def __init__(self, cache: TreeCache) -> None:
        super().__init__(cache)
        self.parents: Tensor = torch.empty(0)
        self.slots: Tensor = torch.empty(0)
        self.windows: dict[int, Tensor] = {}
        self.states: dict[int, Tensor] = {}

    def causal_conv1d_fn(
        self, hidden_states: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, **_: Any
    ) -> Tensor:
        """See the base."""
        kept = self.windows[self.layer.index]
        window = kept.index_select(0, self.parents)
        y = mamba2.advance_conv(window, hidden_states[0].T, weight, bias, activation)
        kept.index_copy_(0, self.slots, window)
        return y.T[None]

    def scan(self, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, **kw: Any) -> Tensor:
        """See the base."""
        kept = self.states[self.layer.index]
        state = kept.index_select(0, self.parents)
        steps = self.layer.steps(dt, A, B, **kw)
        y = mamba2.advance_scan(state, x[0], steps[0], A, B[0], C[0], D)
        kept.index_copy_(0, self.slots, state)
        return y[None]
