"""What every recurrent mixer has: a conv window and, as a rule, a state behind it.

An adapter is a subclass of :class:`RecurrentLayer` (one mixer) and one of ``stack.RecurrentStack`` (mixers of one
shape, moved together). The passes call an adapter for every op of a stock mixer and know nothing else about it.

Letters: B rows, T nodes, R independent rows (B * T of them), C conv channels, W conv width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from specdecodes.kernels.causal_conv import replay_conv_, sequence_conv, step_conv_, tree_conv


class ScoredTree(Protocol):
    """What a scan along the paths of a tree reads.

    Attributes:
        ancestors: bool [B, T, T]; parents: int64 [B, T]; levels: per depth, see ``Topology.levels``, or None where
            the number of levels must not shape the computation (a compiled graph).
    """

    ancestors: Tensor
    parents: Tensor
    levels: list[tuple[Tensor, Tensor]] | None


@dataclass
class PendingPath:
    """An accepted path that window and state have still to move along; the next score of a tree does it on the way.

    Attributes:
        inputs: raw conv inputs of its nodes [B, M, C]; kept: what else a jump needs, [B, M, ...].
        length: int64 [B], how many of the M nodes there are; 0 if nothing is pending.
        mixed: its nodes after the conv [B, M, C], between the conv and the scan of a layer.
    """

    inputs: Tensor
    kept: Tensor
    length: Tensor
    mixed: Tensor | None = None

    @classmethod
    def room(cls, layers: int, like: Tensor, most: int, heads: int) -> PendingPath:
        """For ``most`` nodes in every one of ``layers`` ([layers, B, M, ...]), nothing pending.

        Args:
            like: conv inputs [..., B, T, C]. heads: step sizes of a node, which are kept in float32.
        """
        rows, _, channels = like.shape[-3:]
        inputs = like.new_zeros(layers, rows, most, channels)
        kept = like.new_zeros(layers, rows, most, heads, dtype=torch.float32)
        return cls(inputs, kept, torch.zeros(rows, dtype=torch.long, device=like.device))

    def take(self, path: Tensor, inputs: Tensor, kept: Tensor) -> None:
        """Gather the nodes of ``path`` [B, D] (padded with -1) of what all layers kept, [layers, B, T, ...] each."""
        nodes, length = path.clamp(min=0), path.shape[1]
        self.inputs[:, :, :length].copy_(gather_rows(inputs, nodes))
        self.kept[:, :, :length].copy_(gather_rows(kept, nodes))
        torch.sum(path >= 0, dim=1, out=self.length)

    def of_layer(self, index: int) -> PendingPath:
        """One layer's, on the same buffers."""
        return PendingPath(self.inputs[index], self.kept[index], self.length)


@dataclass
class RecurrentLayer:
    """Committed state and fixed parameters of one mixer; the parameters are learned from its first op calls.

    A mixer calls its conv op and then its scan op, once or, where a stock file loops over heads, several times; what
    several calls keep is joined along dimension 2.

    Attributes:
        window: the last W raw conv inputs, oldest first [B, C, W], model dtype.
        state: the recurrent state [B, ...], float32 (float64 in a float64 model); None where there is none.
        pending: the path that both have still to move along; None where a commit moves them itself.
    """

    by_level: ClassVar[bool] = False
    """Whether :meth:`score` walks down the levels of a tree, which then must be prepared."""
    continues: ClassVar[bool] = True
    """Whether the stock scan op can start from a state, so that stock models can continue a prefix by many tokens."""

    index: int
    window: Tensor | None = None
    state: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    activation: str | None = None
    pending: PendingPath | None = None

    def reset(self) -> None:
        """Back to the empty prefix; buffers are kept, so their addresses stay."""
        for buffer in (self.window, self.state):
            if buffer is not None:
                buffer.zero_()

    @property
    def shape_key(self) -> tuple[Any, ...]:
        """Layers with equal keys can be stacked."""
        window = some(self.window)
        state = () if self.state is None else self.state.shape
        return (*window.shape, *state, self.activation, self.bias is not None)

    # -- the convolution ------------------------------------------------------------------------------------------

    def sequence_conv(self, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
        """Convolve raw inputs [B, C, T] that continue the committed prefix, and move the window behind them."""
        width = weight.shape[-1]
        if self.window is None:
            self.weight, self.bias, self.activation = weight.detach(), bias, activation
            self.window = x.new_zeros(*x.shape[:-1], width)
        joined = torch.cat([self.window, x], dim=-1)
        self.window.copy_(joined[..., -width:])
        return sequence_conv(joined[..., 1:], weight, bias, activation)[..., width - 1 :]

    # -- the scan -------------------------------------------------------------------------------------------------

    def read(self, clamps: bool, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the adapter's own
        """The stock scan op's arguments as the other methods take them, a tuple of tensors.

        Args:
            clamps: whether the op's limits on step sizes apply (in prefill).
        """
        raise NotImplementedError

    def answer(self, y: Tensor, inputs: Any) -> Tensor:  # noqa: ANN401
        """What the stock op returns, of ``y`` as the other methods return it."""
        return y

    def sequence(self, inputs: Any) -> Tensor:  # noqa: ANN401
        """Scan from the committed state (zero at first), and move the state behind the sequence."""
        raise NotImplementedError

    def advance(self, state: Tensor, inputs: Any) -> Tensor:  # noqa: ANN401
        """One token for each of R independent rows: move ``state`` [R, ...] in place."""
        raise NotImplementedError

    def score(self, inputs: Any, tree: ScoredTree, keep: str) -> tuple[Tensor, tuple[Tensor, ...]]:  # noqa: ANN401
        """Scan the nodes of a tree; the state moves along what is pending, if at all.

        Args:
            keep: ``inputs`` (what the stack's jump needs, [B, T, ...] each), ``states`` (the state after every node,
                [B, T, ...]) or ``nothing``.

        Returns:
            y and what was kept.
        """
        raise NotImplementedError

    def part(self, states: Tensor) -> Tensor:
        """Of ``states`` [..., as the state], the part that the scan call under way moves."""
        return states


def score_conv(
    layer: RecurrentLayer, x: Tensor, index: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None
) -> Tensor:
    """Convolve the nodes of a tree [B, C, T] along their paths; the window moves along what is pending, if at all."""
    window, pending = some(layer.window), layer.pending
    if pending is None:
        return tree_conv(x, window, index, weight, bias, activation)
    y, pending.mixed = replay_conv_(x, window, index, weight, bias, activation, pending.inputs, pending.length)
    return y


def node_windows(layer: RecurrentLayer, x: Tensor, index: Tensor) -> Tensor:
    """The conv window after every node, [B, T, C, W]; ``x`` raw inputs [B, C, T]."""
    joined = torch.cat([some(layer.window), x], dim=-1).transpose(1, 2)
    rows = torch.arange(x.shape[0], device=x.device)[:, None, None]
    return joined[rows, index].transpose(2, 3)


def advance_conv(window: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    """One token per row: shift ``x`` [R, C] into ``window`` [R, C, W] in place and convolve it; returns [R, C]."""
    return step_conv_(window, x, weight, bias, activation)


def gather_rows(values: Tensor, nodes: Tensor) -> Tensor:
    """Gather nodes [B, D] of values [layers, B, T, ...] -> [layers, B, D, ...]."""
    if nodes.shape[0] == 1:
        return values.index_select(2, nodes[0])
    rows = torch.arange(nodes.shape[0], device=nodes.device)[:, None]
    return values[:, rows, nodes]


def some(tensor: Tensor | None) -> Tensor:
    """What a layer has after its first prefill."""
    assert tensor is not None, "the layer has not been prefilled"
    return tensor
