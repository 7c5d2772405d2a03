"""The S6 recurrence (Mamba-1) of a model; stock scans start from zero whatever was decoded before, these do not.

Zamba scans its heads one after the other; each call then moves the part of the state that follows the last one's.

Letters: B rows, T nodes, C channels of the layer, Q channels of one call (all, or those of a head), N state dim,
P calls, R independent rows, D path length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from specdecodes.kernels.mamba2_scan import compute_dtype
from specdecodes.kernels.s6_scan import (
    discretize,
    jump_,
    node_states,
    read_states,
    sequence_scan,
    skip,
    step_,
    tree_scan,
)
from specdecodes.models.recurrences.layer import RecurrentLayer, ScoredTree, some
from specdecodes.models.recurrences.stack import RecurrentStack


class S6Inputs(NamedTuple):
    """x; dt: raw, and steps: step sizes [B, T, Q]; A [Q, N]; B, C [B, T, N]; D [Q] or None; z [B, T, Q] or None.

    ``start``: the first of the layer's channels that the call moves.
    """

    x: Tensor
    dt: Tensor
    steps: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    start: int


@dataclass
class S6Layer(RecurrentLayer):
    """One mixer; the state is [B, C, N], heads one after the other."""

    by_level: ClassVar[bool] = True
    continues: ClassVar[bool] = False

    A: Tensor | None = None
    dt_bias: Tensor | None = None
    softplus: bool = False
    start: int = 0
    width: int = 0

    @property
    def shape_key(self) -> tuple[Any, ...]:
        """See the base."""
        return (*super().shape_key, self.width, self.softplus, self.dt_bias is not None)

    def reset(self) -> None:
        """See the base; a forward that broke off may have left some heads out."""
        super().reset()
        self.start = 0

    def read(
        self,
        clamps: bool,
        hidden_states: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None = None,
        z: Tensor | None = None,
        delta_bias: Tensor | None = None,
        delta_softplus: bool = False,
        return_last_state: bool = False,
        **_: Any,
    ) -> S6Inputs:
        """The arguments of ``mamba_selective_scan``, channels first there; remembers what a jump needs."""
        start, channels = self.start, some(self.window).shape[1]
        self.width = hidden_states.shape[1]
        self.start = (start + self.width) % channels
        if self.A is None or self.A.shape[0] < channels:
            self.softplus = delta_softplus
            self.A = A if self.A is None else torch.cat([self.A, A])
            if delta_bias is not None:
                self.dt_bias = delta_bias if self.dt_bias is None else torch.cat([self.dt_bias, delta_bias])
        x, raw = hidden_states.mT, dt.mT
        steps = discretize(raw, delta_bias, delta_softplus)
        return S6Inputs(x, raw, steps, A, B.mT, C.mT, D, None if z is None else z.mT, start)

    def answer(self, y: Tensor, inputs: S6Inputs) -> Tensor:
        """See the base: with the gate, channels first, rounded where stock steps round."""
        if inputs.z is not None:
            y = y * F.silu(inputs.z)
        return y.mT

    def part(self, states: Tensor) -> Tensor:
        """See the base; the call under way has moved ``start`` on."""
        channels = states.shape[-2]
        return states if self.width == channels else states.narrow(-2, (self.start - self.width) % channels, self.width)

    def sequence(self, inputs: S6Inputs) -> Tensor:
        """See the base."""
        x, _, steps, A, B, C, D, *_ = inputs
        if self.state is None:
            window = some(self.window)
            self.state = window.new_zeros(*window.shape[:2], A.shape[1], dtype=compute_dtype(x.dtype))
        return skip(sequence_scan(x, steps, A, B, C, self.part(self.state)), x, D)

    def advance(self, state: Tensor, inputs: S6Inputs) -> Tensor:
        """See the base."""
        x, _, steps, A, B, C, D, *_ = inputs
        y = step_(state, x.flatten(0, 1), steps.flatten(0, 1), A, B.flatten(0, 1), C.flatten(0, 1))
        return skip(y.view(x.shape), x, D)

    def score(self, inputs: S6Inputs, tree: ScoredTree, keep: str) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See the base; a jump needs raw step sizes and B besides the conv inputs."""
        x, dt, steps, A, B, C, D, *_ = inputs
        before = self.part(some(self.state))
        if keep == "states":
            states = node_states(x, steps, A, B, before, tree.parents, tree.levels)
            return skip(read_states(states, C), x, D), (states,)
        y = tree_scan(x, steps, A, B, C, D, before, tree.parents, tree.levels)
        return y, (dt[:, :, None], B[:, :, None]) if keep == "inputs" else ()


class S6Stack(RecurrentStack):
    """S6 mixers of one shape; their states are [layers, B, C, N]."""

    layers: Sequence[S6Layer]

    def __init__(self, layers: Sequence[S6Layer], compiled: Callable[..., Any]) -> None:
        super().__init__(layers, compiled)
        first = layers[0]
        self.softplus, self.state_dim = first.softplus, some(self.states).shape[-1]
        self.parts = (self.channels // first.width, first.width)
        self.weight, self.bias = self.path_weights(self.channels)
        self.A = torch.stack([some(layer.A) for layer in layers]).unflatten(1, self.parts)[:, None]
        self.dt_bias = (
            None
            if first.dt_bias is None
            else torch.stack([some(layer.dt_bias) for layer in layers]).unflatten(1, self.parts)[:, None, None]
        )

    def move_states(self, joined: Tensor, kept: tuple[Tensor, ...], valid: Tensor) -> None:
        """See the base; ``kept``: raw step sizes [layers, B, D, P, Q] and B [layers, B, D, P, N]."""
        x = self.path_conv(joined, self.weight, self.bias).unflatten(-1, self.parts)
        steps = discretize(kept[0], self.dt_bias, self.softplus) * valid[None, :, :, None, None]
        jump_(some(self.states).unflatten(2, self.parts), x, steps, self.A, kept[1])

    def kept_bytes(self, itemsize: int) -> int:
        """See the base: C step sizes, and P times N input directions."""
        return (self.channels + self.parts[0] * self.state_dim) * itemsize
