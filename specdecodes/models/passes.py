"""What serves the rebound ops and the cache during one forward: a sequence, a tree, one step, or expanded nodes.

The conv op is served here; the scan op, whichever the model has, by the layer's adapter (``recurrences``).

Letters: B rows, T tokens or nodes, n expanded nodes, C conv channels, W conv width, S visible positions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from specdecodes.core.tree import Topology
from specdecodes.kernels.linear.packed import packed_linear
from specdecodes.kernels.tree_attention import tree_attention
from specdecodes.models.cache import TreeCache
from specdecodes.models.causal_attention import causal_attention
from specdecodes.models.products import PackedLinear
from specdecodes.models.recurrences import SCANS, STEPS
from specdecodes.models.recurrences.layer import RecurrentLayer, advance_conv, node_windows, score_conv
from specdecodes.models.recurrences.stack import RecurrentStack


class CachedPass:
    """Base: attention writes its rows at ``positions`` and sees ``visible`` of them; recurrent layers enter in turn.

    Attributes:
        positions: int64 [T], where this pass writes in the attention caches.
        visible: how many cached positions attention sees (None: all there are); the mask hides what is not the
            node's own path.
        clamps: whether the op's limits on step sizes apply. Stock one-token steps ignore them, so all but prefill do.
    """

    clamps = False

    def __init__(self, cache: TreeCache) -> None:
        self.cache = cache
        self.positions: Tensor = torch.empty(0)
        self.visible: int | None = 0
        self.layer = RecurrentLayer(-1)

    def enter(self, layer_idx: int) -> None:
        """The next ops belong to this layer."""
        self.layer = self.cache.recurrent_layer(layer_idx)

    def attend(self, layer_idx: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store [B, heads, T, head dim] and return what attention reads."""
        return self.cache.attention_rows(layer_idx).write(self.positions, keys, values, self.visible)

    def linear(self, layer: PackedLinear, x: Tensor) -> Tensor:
        """The product of a linear layer, [..., in] to [..., out]."""
        return packed_linear(x, layer.bias, layer.handle, layer.out_features)

    def refuse(self, *_: Any, **__: Any) -> Tensor:
        """Unreachable while ``TreeCache.has_previous_state`` is False; a mixer that gets here is not one we know."""
        raise RuntimeError("a stock mixer took its one-token branch under our cache; this model is not supported")

    def serve_scan(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Every scan op, with its stock arguments; its output, and a placeholder for the state."""
        inputs = self.layer.read(self.clamps, *args, **kwargs)
        return self.layer.answer(self.scan(inputs), inputs), inputs[0]

    def scan(self, inputs: Any) -> Tensor:  # noqa: ANN401 - the adapter's own
        """Scan what the layer has read."""
        raise NotImplementedError

    def causal_conv1d_fn(
        self, hidden_states: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, **_: Any
    ) -> Tensor:
        """The stock op's signature: [B, C, T] to [B, C, T]."""
        raise NotImplementedError


for _name in SCANS:
    setattr(CachedPass, _name, CachedPass.serve_scan)
for _name in STEPS:
    setattr(CachedPass, _name, CachedPass.refuse)


class SequencePass(CachedPass):
    """Tokens that continue the committed prefix and are committed: prefill, or an accepted path run again.

    Prefill clamps step sizes as stock prefill does (Zamba2 and Nemotron-H always have a lower limit); a path that is
    run again stands for one-token steps, which do not.

    Args:
        plain: attention is causal and nothing else (see ``causal_attention``).
    """

    def __init__(self, cache: TreeCache, plain: bool = False) -> None:
        super().__init__(cache)
        if plain:
            self.sdpa_attention = causal_attention

    def attend(self, layer_idx: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Make room first: this is the only pass that may be the first of its cache."""
        assert self.visible is not None
        self.cache.attention_rows(layer_idx).reserve(self.visible, keys, values)
        return super().attend(layer_idx, keys, values)

    def causal_conv1d_fn(
        self, hidden_states: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, **_: Any
    ) -> Tensor:
        """See the base."""
        return self.layer.sequence_conv(hidden_states, weight, bias, activation)

    def scan(self, inputs: Any) -> Tensor:  # noqa: ANN401
        """See the base."""
        return self.layer.sequence(inputs)


class StepPass(CachedPass):
    """One token per row, committed in place: plain decoding. No scan, no jump, nothing kept."""

    def causal_conv1d_fn(
        self, hidden_states: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, **_: Any
    ) -> Tensor:
        """See the base."""
        assert self.layer.window is not None
        return advance_conv(self.layer.window, hidden_states[..., 0], weight, bias, activation)[..., None]

    def scan(self, inputs: Any) -> Tensor:  # noqa: ANN401
        """See the base."""
        assert self.layer.state is not None
        return self.layer.advance(self.layer.part(self.layer.state), inputs)


class TreePass(CachedPass):
    """All nodes of a tree, nothing committed.

    Args:
        keep: ``inputs`` (what a jump needs), ``states`` (one window and state per node) or ``nothing``.
        by_level: whether adapters may walk down the levels of a tree, where they prefer that.
        splits: attention is split into prefix and tree (see ``kernels/tree_attention``) and needs no mask.

    Attributes:
        ancestors, parents, levels: of the tree (see ``recurrences.layer.ScoredTree``).
        convs, scans: what was kept, by layer index: raw conv inputs [B, T, C] or windows [B, T, C, W]; what the scan
            kept, [B, T, ...] each.
    """

    def __init__(self, cache: TreeCache, keep: str, by_level: bool = True, splits: bool = False) -> None:
        super().__init__(cache)
        self.keep = keep
        self.splits = splits
        if splits:
            self.sdpa_attention = self._attend_tree
        self.by_level = by_level and cache.recurrence.by_level
        self.ancestors: Tensor = torch.empty(0)
        self.parents: Tensor = torch.empty(0)
        self.levels: list[tuple[Tensor, Tensor]] | None = None
        self.window_index: dict[int, Tensor] = {}
        self.clear()

    def aim(self, topology: Topology, widths: Iterable[int]) -> None:
        """Set the tree that the next forward scores; ``widths``: of the model's convs."""
        self.ancestors, self.parents = topology.ancestors, topology.parents
        self.levels = topology.levels if self.by_level else None
        self.window_index = {width: topology.windows(width) for width in widths}

    def clear(self) -> None:
        """Forget what was kept."""
        self.convs: dict[int, Tensor] = {}
        self.scans: dict[int, tuple[Tensor, ...]] = {}

    def collect(self, stack: RecurrentStack) -> tuple[Any, ...]:
        """What was kept of a stack's layers, together: what its ``jump`` or its ``select`` takes."""
        if self.keep == "nothing":
            return ()
        indices = [layer.index for layer in stack.layers]
        convs = [self.convs[i] for i in indices]
        scans = [list(each) for each in zip(*(self.scans.get(i, ()) for i in indices), strict=True)]
        if self.keep == "inputs":
            return torch.stack(convs), *(torch.stack(each) for each in scans)
        return convs, scans[0] if scans else []

    def attend(self, layer_idx: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """A row that is not finite would reach every node through 0 * nan in the weighted sum of values."""
        return super().attend(layer_idx, torch.nan_to_num(keys, 0.0, 0.0, 0.0), torch.nan_to_num(values, 0.0, 0.0, 0.0))

    def _attend_tree(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """Transformers' attention function; the nodes' own positions begin where the committed ones end."""
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return tree_attention(query, key, value, self.positions[:1], self.ancestors, scale), None

    def causal_conv1d_fn(
        self, hidden_states: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, **_: Any
    ) -> Tensor:
        """See the base."""
        index = self.window_index[weight.shape[-1]]
        if self.keep == "inputs":
            self.convs[self.layer.index] = hidden_states.transpose(1, 2)
        elif self.keep == "states":
            self.convs[self.layer.index] = node_windows(self.layer, hidden_states, index)
        return score_conv(self.layer, hidden_states, index, weight, bias, activation)

    def scan(self, inputs: Any) -> Tensor:  # noqa: ANN401
        """See the base."""
        y, kept = self.layer.score(inputs, self, self.keep)
        before = self.scans.get(self.layer.index)
        if before is not None:  # a stock file that loops over heads
            kept = tuple(torch.cat(both, dim=2) for both in zip(before, kept, strict=True))
        self.scans[self.layer.index] = kept
        return y


class ExpandPass(CachedPass):
    """Nodes whose parents have been run: every node starts from its parent's kept window and state.

    Attributes:
        parents, slots: int64 [n]: where the parents' states lie and where the nodes' states go.
        windows, states: per recurrent layer (by layer index), [slots, C, W] and [slots, ...].
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
        y = advance_conv(window, hidden_states[0].T, weight, bias, activation)
        kept.index_copy_(0, self.slots, window)
        return y.T[None]

    def scan(self, inputs: Any) -> Tensor:  # noqa: ANN401
        """See the base."""
        kept = self.layer.part(self.states[self.layer.index])
        state = kept.index_select(0, self.parents)
        y = self.layer.advance(state, inputs)
        kept.index_copy_(0, self.slots, state)
        return y
