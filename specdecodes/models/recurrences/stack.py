"""Recurrent layers of one shape, moved together: one set of ops for all layers instead of one per layer.

Letters: B rows, T nodes, D path length, C conv channels, W conv width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from specdecodes.kernels.causal_conv import path_conv
from specdecodes.models.recurrences.layer import PendingPath, RecurrentLayer, gather_rows, some

PATH_BLOCK = 4
"""Paths are padded to multiples of so many nodes before a jump."""


class RecurrentStack:
    """Layers of one shape.

    Their windows and states move into one buffer each, [layers, B, C, W] and [layers, B, ...]; what the layers then
    hold are views. ``states`` is None where the layers have none.
    """

    def __init__(self, layers: Sequence[RecurrentLayer], compiled: Callable[..., Any]) -> None:
        self.layers = layers
        self._jump = compiled(self._move_along)
        windows = torch.stack([some(layer.window) for layer in layers])
        states = None if layers[0].state is None else torch.stack([some(layer.state) for layer in layers])
        self.hold(windows, states)
        self.channels, self.width = self.windows.shape[2:]
        self.activation = layers[0].activation
        self.pending: PendingPath | None = None

    def hold(self, windows: Tensor, states: Tensor | None) -> None:
        """Take over buffers that hold the layers' windows and states."""
        self.windows, self.states = windows, states
        for i, layer in enumerate(self.layers):
            layer.window = windows[i]
            layer.state = None if states is None else states[i]

    def defer(self) -> None:
        """Let :meth:`jump` leave paths to the next score of a tree from now on, where that saves something.

        Who reads windows or states in another way calls :meth:`flush` first.
        """

    def flush(self) -> None:
        """Move along the path that is pending, if there is one."""

    def settle(self) -> None:
        """Nothing is pending any more."""
        if self.pending is not None:
            self.pending.length.zero_()

    def jump(self, path: Tensor, inputs: Tensor, *kept: Tensor) -> None:
        """Move every layer along ``path`` [B, D] (padded with -1), in closed form and in place.

        Args:
            inputs: raw conv inputs that scoring kept, [layers, B, T, C]. kept: what the scans kept for this,
                [layers, B, T, ...] each.
        """
        # A compiled jump is one graph per length: trees that change with every step get few of them.
        missing = -path.shape[1] % PATH_BLOCK
        self._jump(inputs, kept, F.pad(path, (0, missing), value=-1) if missing else path)

    def _move_along(self, inputs: Tensor, kept: tuple[Tensor, ...], path: Tensor) -> None:
        valid = path >= 0
        nodes = path.clamp(min=0)
        joined = torch.cat([self.windows.mT, gather_rows(inputs, nodes).to(self.windows.dtype)], dim=2)
        self.move_states(joined, tuple(gather_rows(each, nodes) for each in kept), valid)
        last = valid.sum(1)[:, None] + torch.arange(self.width, device=path.device)  # the window ends with the path
        self.windows.copy_(gather_rows(joined, last).mT)

    def move_states(self, joined: Tensor, kept: tuple[Tensor, ...], valid: Tensor) -> None:
        """Move the states along a path, in place.

        Args:
            joined: window and raw conv inputs of the path [layers, B, W + D, C]. kept: what scoring kept of the
                path's nodes, [layers, B, D, ...] each. valid: bool [B, D], false where the path has ended.
        """

    def path_weights(self, channels: int) -> tuple[Tensor, Tensor | None]:
        """Weight [W, layers, 1, 1, C'] and bias [layers, 1, 1, C'] of the first ``channels`` conv channels."""
        weight = torch.stack([some(layer.weight)[:channels].T for layer in self.layers], dim=1)[:, :, None, None]
        if self.layers[0].bias is None:
            return weight, None
        return weight, torch.stack([some(layer.bias)[:channels] for layer in self.layers])[:, None, None]

    def path_conv(self, joined: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The conv's outputs along a path, [layers, B, D, C'], from what :meth:`move_states` gets."""
        return path_conv(joined[:, :, 1:, : weight.shape[-1]], weight, bias, self.activation)

    def select(self, nodes: Tensor, windows: list[Tensor], states: list[Tensor]) -> None:
        """Move every layer to the state kept for node ``nodes`` [B]: windows [B, T, C, W], states [B, T, ...]."""
        rows = torch.arange(nodes.shape[0], device=nodes.device)
        for layer, window in zip(self.layers, windows, strict=True):
            some(layer.window).copy_(window[rows, nodes])
        for layer, state in zip(self.layers, states, strict=False):
            some(layer.state).copy_(state[rows, nodes])

    def bytes_per_node(self, keep: str, itemsize: int) -> int:
        """Bytes that scoring keeps per tree node for all layers; ``itemsize``: of an element of the model's dtype."""
        if keep == "inputs":
            return len(self.layers) * (self.channels * itemsize + self.kept_bytes(itemsize))
        state = 0 if self.states is None else self.states[0, 0].nbytes
        return len(self.layers) * (self.width * self.channels * itemsize + state) if keep == "states" else 0

    def kept_bytes(self, itemsize: int) -> int:
        """Bytes per node and layer that the scan keeps for a jump, conv inputs left out."""
        return 0


def make_stacks(
    layers: Sequence[RecurrentLayer], kind: type[RecurrentStack], compiled: Callable[..., Any]
) -> list[RecurrentStack]:
    """Group layers by shape, in order of first appearance; ``compiled`` compiles a method, or leaves it as it is."""
    groups: dict[tuple[Any, ...], list[RecurrentLayer]] = {}
    for layer in layers:
        groups.setdefault(layer.shape_key, []).append(layer)
    return [kind(group, compiled) for group in groups.values()]
