"""The Mamba-2 recurrence of a model: one :class:`Mamba2Layer` per mixer, moved together by a :class:`Mamba2Stack`.

Letters: B rows, T nodes, R independent rows, H heads, P head dim, G groups, N state dim, D path length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from specdecodes.kernels import choice
from specdecodes.kernels.causal_conv import SILU
from specdecodes.kernels.mamba2_scan import (
    chunk_scan,
    compute_dtype,
    discretize,
    jump_,
    path_jump_,
    path_jump_serves,
    replay_scan_,
    split_mixed,
    step_,
    tree_scan,
    tree_states,
)
from specdecodes.models.recurrences.layer import PendingPath, RecurrentLayer, ScoredTree, some
from specdecodes.models.recurrences.stack import RecurrentStack

NO_LIMIT = (0.0, float("inf"))
"""Bounds of a step size in stock one-token steps, and therefore in everything but prefill (see ``SequencePass``)."""
PENDING = 16
"""Nodes of the longest path that waits for the next score; the conv takes as many at once."""


class Mamba2Inputs(NamedTuple):
    """x [B, T, H, P]; dt: raw, and steps: step sizes [B, T, H]; A [H]; B, C [B, T, G, N]; D: the skip, or None."""

    x: Tensor
    dt: Tensor
    steps: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None


@dataclass
class Mamba2Layer(RecurrentLayer):
    """One mixer; the state is [B, H, P, N]."""

    A: Tensor | None = None
    dt_bias: Tensor | None = None
    softplus: bool = True
    groups: int = 1
    shared: int = 1

    @property
    def shape_key(self) -> tuple[Any, ...]:
        """See the base."""
        return (*super().shape_key, self.groups, self.softplus, self.dt_bias is not None)

    def read(
        self,
        clamps: bool,
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
        dt_limit: tuple[float, float] = NO_LIMIT,
        return_final_states: bool = False,
        **_: Any,
    ) -> Mamba2Inputs:
        """The arguments of ``mamba2_chunk_scan``; remembers the parameters that a jump needs."""
        if self.A is None:
            self.A, self.dt_bias, self.softplus = A.detach(), dt_bias, dt_softplus
            self.groups = B.shape[-2]
        steps = discretize(dt, dt_bias, dt_limit if clamps else NO_LIMIT, dt_softplus)
        return Mamba2Inputs(hidden_states, dt, steps, A, B, C, D)

    def answer(self, y: Tensor, inputs: Mamba2Inputs) -> Tensor:
        """See the base; Falcon-H1 takes a view of it."""
        return y.contiguous()

    def sequence(self, inputs: Mamba2Inputs) -> Tensor:
        """See the base."""
        x, _, steps, A, B, C, D = inputs
        if self.state is None:
            shape = (x.shape[0], x.shape[2], x.shape[3], B.shape[3])
            self.state = torch.zeros(shape, dtype=compute_dtype(x.dtype), device=x.device)
        y, state = chunk_scan(x, steps, A, B, C, D, self.state)
        self.state.copy_(state)
        return y

    def advance(self, state: Tensor, inputs: Mamba2Inputs) -> Tensor:
        """See the base."""
        x, _, steps, A, B, C, D = inputs
        y = step_(state, x.flatten(0, 1), steps.flatten(0, 1), A, B.flatten(0, 1), C.flatten(0, 1), D)
        return y.view(x.shape)

    def score(self, inputs: Mamba2Inputs, tree: ScoredTree, keep: str) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See the base; a jump needs raw step sizes besides the conv inputs."""
        x, dt, steps, A, B, C, D = inputs
        state = some(self.state)
        given = (x, steps, A, B, C, D, state, tree.ancestors)
        if (pending := self.pending) is None:
            y = tree_scan(*given)
        else:
            path = (some(pending.mixed), pending.kept, pending.length, self.dt_bias)
            y = replay_scan_(*given, *path, shared=self.shared, softplus=self.softplus)
            pending.mixed = None
        if keep == "inputs":
            return y, (dt,)
        return y, (tree_states(x, steps, A, B, state, tree.ancestors),) if keep == "states" else ()


class Mamba2Stack(RecurrentStack):
    """Mamba-2 mixers of one shape; their states are [layers, B, H, P, N]."""

    layers: Sequence[Mamba2Layer]

    def __init__(self, layers: Sequence[Mamba2Layer], compiled: Callable[..., Any]) -> None:
        super().__init__(layers, compiled)
        first = layers[0]
        self.heads, self.head_dim, self.state_dim = some(self.states).shape[2:]
        self.groups, self.softplus = first.groups, first.softplus
        # A jump needs x and B, the first channels of the conv; C is for outputs only.
        sizes = (self.heads * self.head_dim, self.groups * self.state_dim)
        needed = self.channels - sizes[1]
        # MambaInLlama has x and B once for several heads, as grouped queries share keys, and repeats them for the scan.
        self.shared = sum(sizes) // needed
        self.weight, self.bias = self.path_weights(needed)
        self.A = torch.stack([some(layer.A) for layer in layers])[:, None, None]
        self.dt_bias = (
            None if first.dt_bias is None else torch.stack([some(layer.dt_bias) for layer in layers])[:, None, None]
        )

        served = path_jump_serves(self.windows, some(self.states), self.weight, self.A, shared=self.shared)
        self._in_one_call = served and self.activation in (None, *SILU)

    def defer(self) -> None:
        """See the base; done where the Triton kernels serve, which read a state once for both."""
        if not (self._in_one_call and choice.serves("triton", self.windows.device.type, self.windows.dtype)):
            return
        self.pending = PendingPath.room(len(self.layers), self.windows.mT, PENDING, self.heads)
        for i, layer in enumerate(self.layers):
            layer.pending, layer.shared = self.pending.of_layer(i), self.shared

    def jump(self, path: Tensor, inputs: Tensor, *kept: Tensor) -> None:
        """See the base; ``kept``: raw step sizes [layers, B, T, H]."""
        if self.pending is not None and path.shape[1] <= PENDING:
            self.pending.take(path, inputs, kept[0])
        elif self._in_one_call:
            self._jump_in_one_call(path, inputs, kept[0])
        else:
            super().jump(path, inputs, *kept)

    def flush(self) -> None:
        """See the base."""
        if self.pending is not None:
            place = torch.arange(PENDING, device=self.windows.device)
            path = torch.where(place < self.pending.length[:, None], place, -1)
            self._jump_in_one_call(path, self.pending.inputs, self.pending.kept)
            self.settle()

    def _jump_in_one_call(self, path: Tensor, inputs: Tensor, raw: Tensor) -> None:
        path_jump_(
            *(self.windows, some(self.states), inputs, raw, path, self.weight, self.bias, self.A, self.dt_bias),
            groups=self.groups,
            shared=self.shared,
            softplus=self.softplus,
            silu=self.activation is not None,
        )

    def move_states(self, joined: Tensor, kept: tuple[Tensor, ...], valid: Tensor) -> None:
        """See the base; ``kept``: raw step sizes [layers, B, D, H]."""
        x, B = self.scanned(joined)
        steps = discretize(kept[0], self.dt_bias, NO_LIMIT, self.softplus) * valid[None, :, :, None]
        jump_(some(self.states), x, steps, self.A, B)

    def scanned(self, joined: Tensor) -> tuple[Tensor, Tensor]:
        """What the scan of a path gets: x [layers, B, D, H, P] and B [layers, B, D, G, N]; ``joined``: see the base."""
        mixed = self.path_conv(joined, self.weight, self.bias)
        return split_mixed(mixed, self.heads, self.head_dim, self.groups, self.state_dim, self.shared)

    def kept_bytes(self, itemsize: int) -> int:
        """See the base: H step sizes."""
        return self.heads * itemsize
