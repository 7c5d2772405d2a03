"""The Mamba-2 recurrence of a model: one :class:`Mamba2Layer` per mixer, moved together by a :class:`Mamba2Stack`.

Letters: B rows, T nodes, n expanded nodes, C conv channels, W conv width, H heads, P head dim, G groups, N state dim,
D path length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from specdecodes.kernels import native
from specdecodes.kernels.causal_conv import SILU, path_conv, sequence_conv, step_conv_, tree_conv
from specdecodes.kernels.mamba2_scan import (
    chunk_scan,
    compute_dtype,
    discretize,
    jump_,
    path_jump_,
    step_,
    tree_scan,
    tree_states,
)

NO_LIMIT = (0.0, float("inf"))
"""Bounds of a step size in stock one-token steps, and therefore in everything but prefill (see ``SequencePass``)."""


PATH_BLOCK = 4
"""Paths are padded to multiples of so many nodes before a jump."""


@dataclass
class Mamba2Layer:
    """Committed state and fixed parameters of one mixer; the parameters are learned from its first op calls.

    Attributes:
        window: the last W raw conv inputs, oldest first [B, C, W], model dtype.
        state: the recurrent state [B, H, P, N], float32 (float64 in a float64 model).
    """

    index: int
    window: Tensor | None = None
    state: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    activation: str | None = None
    A: Tensor | None = None
    dt_bias: Tensor | None = None
    softplus: bool = True
    groups: int = 1

    def reset(self) -> None:
        """Back to the empty prefix; buffers are kept, so their addresses stay."""
        for buffer in (self.window, self.state):
            if buffer is not None:
                buffer.zero_()

    @property
    def shape_key(self) -> tuple[Any, ...]:
        """Layers with equal keys can be stacked."""
        assert self.window is not None and self.state is not None and self.weight is not None
        has = (self.bias is not None, self.dt_bias is not None)
        return (*self.window.shape, *self.state.shape, self.groups, self.activation, self.softplus, has)

    # -- a sequence: prefill and re-running an accepted path ------------------------------------------------------

    def sequence_conv(self, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
        """Convolve raw inputs [B, C, T] that continue the committed prefix, and move the window behind them."""
        width = weight.shape[-1]
        if self.window is None:
            self.weight, self.bias, self.activation = weight.detach(), bias, activation
            self.window = x.new_zeros(*x.shape[:-1], width)
        joined = torch.cat([self.window, x], dim=-1)
        self.window.copy_(joined[..., -width:])
        return sequence_conv(joined[..., 1:], weight, bias, activation)[..., width - 1 :]

    def sequence_scan(
        self, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, **kw: Any
    ) -> Tensor:
        """Scan [B, T, H, P] from the committed state, and move the state behind it."""
        dt = self.steps(dt, A, B, **kw)
        if self.state is None:
            shape = (x.shape[0], x.shape[2], x.shape[3], B.shape[3])
            self.state = torch.zeros(shape, dtype=compute_dtype(x.dtype), device=x.device)
        y, state = chunk_scan(x, dt, A, B, C, D, self.state)
        self.state.copy_(state)
        return y

    def steps(
        self, dt: Tensor, A: Tensor, B: Tensor, dt_bias: Tensor | None, softplus: bool, limit: tuple[float, float]
    ) -> Tensor:
        """Step sizes of this call; remembers the parameters that a jump needs."""
        if self.A is None:
            self.A, self.dt_bias, self.softplus = A.detach(), dt_bias, softplus
            self.groups = B.shape[-2]
        return discretize(dt, dt_bias, limit, softplus)


class Mamba2Stack:
    """Layers of one shape, moved together: one set of ops for all layers instead of one per layer.

    Their windows and states move into one buffer each, [layers, B, C, W] and [layers, B, H, P, N]; what the layers
    then hold are views.
    """

    def __init__(self, layers: list[Mamba2Layer], compiled: Callable[..., Any]) -> None:
        self.layers = layers
        self._jump = compiled(self._move_along)
        first = layers[0]
        windows = torch.stack([_some(layer.window) for layer in layers])
        self.hold(windows, torch.stack([_some(layer.state) for layer in layers]))
        self.heads, self.head_dim, self.state_dim = self.states.shape[2:]
        self.channels, self.width = self.windows.shape[2:]
        self.groups, self.activation, self.softplus = first.groups, first.activation, first.softplus
        # A jump needs x and B, the first channels of the conv; C is for outputs only.
        self.needed = self.heads * self.head_dim + self.groups * self.state_dim
        self.weight = torch.stack([_some(layer.weight)[: self.needed].T for layer in layers], dim=1)[:, :, None, None]
        self.bias = (
            None
            if first.bias is None
            else torch.stack([_some(layer.bias)[: self.needed] for layer in layers])[:, None, None]
        )
        self.A = torch.stack([_some(layer.A) for layer in layers])[:, None, None]
        self.dt_bias = (
            None if first.dt_bias is None else torch.stack([_some(layer.dt_bias) for layer in layers])[:, None, None]
        )
        known = (self.windows.dtype, self.weight.dtype, self.A.dtype) == (torch.float32,) * 3
        known = known and self.activation in (None, *SILU)
        self._in_one_call = known and native.serves(windows.device.type, windows.dtype)

    def hold(self, windows: Tensor, states: Tensor) -> None:
        """Take over buffers that hold the layers' windows and states."""
        self.windows, self.states = windows, states
        for layer, window, state in zip(self.layers, windows, states, strict=True):
            layer.window, layer.state = window, state

    def jump(self, inputs: Tensor, dt: Tensor, path: Tensor) -> None:
        """Move every layer along ``path`` [B, D] (padded with -1), in closed form and in place.

        Args:
            inputs: raw conv inputs that scoring kept, [layers, B, T, C]; dt: raw step sizes [layers, B, T, H].
        """
        if self._in_one_call:
            path_jump_(
                *(self.windows, self.states, inputs, dt, path, self.weight, self.bias, self.A, self.dt_bias),
                groups=self.groups,
                softplus=self.softplus,
                silu=self.activation is not None,
            )
            return
        # A compiled jump is one graph per length: trees that change with every step get few of them.
        missing = -path.shape[1] % PATH_BLOCK
        self._jump(inputs, dt, F.pad(path, (0, missing), value=-1) if missing else path)

    def _move_along(self, inputs: Tensor, dt: Tensor, path: Tensor) -> None:
        valid = path >= 0
        nodes = path.clamp(min=0)
        joined = torch.cat([self.windows.mT, _rows(inputs, nodes).to(self.windows.dtype)], dim=2)
        mixed = path_conv(joined[:, :, 1:, : self.needed], self.weight, self.bias, self.activation)
        x, B = mixed.split([self.heads * self.head_dim, self.groups * self.state_dim], dim=-1)
        steps = discretize(_rows(dt, nodes), self.dt_bias, NO_LIMIT, self.softplus) * valid[None, :, :, None]
        x, B = x.unflatten(-1, (self.heads, self.head_dim)), B.unflatten(-1, (self.groups, self.state_dim))
        jump_(self.states, x, steps, self.A, B)
        last = valid.sum(1)[:, None] + torch.arange(self.width, device=path.device)  # the window ends with the path
        self.windows.copy_(_rows(joined, last).mT)

    def select(self, windows: list[Tensor], states: list[Tensor], nodes: Tensor) -> None:
        """Move every layer to the state kept for node ``nodes`` [B]: windows [B, T, C, W], states [B, T, H, P, N]."""
        rows = torch.arange(nodes.shape[0], device=nodes.device)
        for layer, window, state in zip(self.layers, windows, states, strict=True):
            _some(layer.window).copy_(window[rows, nodes])
            _some(layer.state).copy_(state[rows, nodes])


def make_stacks(layers: list[Mamba2Layer], compiled: Callable[..., Any]) -> list[Mamba2Stack]:
    """Group layers by shape, in order of first appearance; ``compiled`` compiles a method, or leaves it as it is."""
    groups: dict[tuple[Any, ...], list[Mamba2Layer]] = {}
    for layer in layers:
        groups.setdefault(layer.shape_key, []).append(layer)
    return [Mamba2Stack(group, compiled) for group in groups.values()]


def score_conv(
    layer: Mamba2Layer, x: Tensor, index: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None
) -> Tensor:
    """Convolve the nodes of a tree [B, C, T] along their paths; the committed window is only read."""
    return tree_conv(x, _some(layer.window), index, weight, bias, activation)


def score_scan(
    layer: Mamba2Layer, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, ancestors: Tensor
) -> Tensor:
    """Scan the nodes of a tree; ``dt`` are step sizes; the committed state is only read."""
    return tree_scan(x, dt, A, B, C, D, _some(layer.state), ancestors)


def node_states(layer: Mamba2Layer, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, ancestors: Tensor) -> Tensor:
    """The state after every node, [B, T, H, P, N]."""
    return tree_states(x, dt, A, B, _some(layer.state), ancestors)


def node_windows(layer: Mamba2Layer, x: Tensor, index: Tensor) -> Tensor:
    """The conv window after every node, [B, T, C, W]; ``x`` raw inputs [B, C, T]."""
    joined = torch.cat([_some(layer.window), x], dim=-1).transpose(1, 2)
    rows = torch.arange(x.shape[0], device=x.device)[:, None, None]
    return joined[rows, index].transpose(2, 3)


def advance_conv(window: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    """One token per row: shift ``x`` [R, C] into ``window`` [R, C, W] in place and convolve it; returns [R, C]."""
    return step_conv_(window, x, weight, bias, activation)


def advance_scan(state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> Tensor:
    """One token per row: advance ``state`` [R, H, P, N] in place; returns y [R, H, P]."""
    return step_(state, x, dt, A, B, C, D)


def _rows(values: Tensor, nodes: Tensor) -> Tensor:
    """Gather nodes [B, D] of values [layers, B, T, F] -> [layers, B, D, F]."""
    if nodes.shape[0] == 1:
        return values.index_select(2, nodes[0])
    rows = torch.arange(nodes.shape[0], device=nodes.device)[:, None]
    return values[:, rows, nodes]


def _some(tensor: Tensor | None) -> Tensor:
    assert tensor is not None, "the layer has not been prefilled"
    return tensor
