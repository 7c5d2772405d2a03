"""The causal convolution over sequences and trees against a plain sum over each node's own path, in float64."""

from __future__ import annotations

import zlib
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from specdecodes.core.tree import Topology
from specdecodes.kernels.causal_conv.naive import activate, path_conv, sequence_conv, tree_conv, window_conv
from specdecodes.models.recurrences.layer import RecurrentLayer, advance_conv, node_windows

CHANNELS = 6
SIZES = [1, 2, 13, 15, 16, 17, 33, 63]
F32, F64 = torch.float32, torch.float64
TOLERANCE = {F32: 2e-6, F64: 1e-14}
"""Relative: largest difference over the largest value."""

each_dtype = pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
each_width = pytest.mark.parametrize("width", [2, 3, 4])
each_bias = pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no-bias"])
each_activation = pytest.mark.parametrize("activation", ["silu", None])


def normal(*shape: int, dtype: torch.dtype = F32) -> Tensor:
    source = torch.Generator().manual_seed(zlib.crc32(repr(shape).encode()))
    return torch.randn(*shape, generator=source, dtype=F64).to(dtype)


def parameters(width: int, with_bias: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    return normal(CHANNELS, width, dtype=dtype), normal(CHANNELS, dtype=dtype) if with_bias else None


def finish(y: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    y = y if bias is None else y + bias.double()[:, None]
    return y if activation is None else y * torch.sigmoid(y)


def along_paths(x: Tensor, window: Tensor, parents: Tensor, weight: Tensor) -> Tensor:
    """Sum over the last W inputs of [window, path to the node], float64."""
    rows, _, count = x.shape
    y = torch.empty(x.shape, dtype=F64)
    for row in range(rows):
        for node in range(count):
            path, above = [x[row, :, node]], int(parents[row, node])
            while above >= 0:
                path.insert(0, x[row, :, above])
                above = int(parents[row, above])
            history = torch.cat([window[row], torch.stack(path, dim=-1)], dim=-1).double()
            y[row, :, node] = (history[:, -weight.shape[-1] :] * weight.double()).sum(-1)
    return y


def trees(count: int) -> Tensor:
    """A chain and a random tree [2, T]; the first nodes are less deep than any conv is wide."""
    source = torch.Generator().manual_seed(count)
    random = [-1] + [int(torch.randint(i, (1,), generator=source)) for i in range(1, count)]
    return torch.tensor([list(range(-1, count - 1)), random])


def error(ours: Tensor, reference: Tensor) -> float:
    assert ours.shape == reference.shape
    return ((ours.double() - reference).abs().max() / reference.abs().max()).item()


@each_dtype
@each_activation
@each_bias
@each_width
def test_sequence_conv(width: int, with_bias: bool, activation: str | None, dtype: torch.dtype) -> None:
    weight, bias = parameters(width, with_bias, dtype)
    for length in SIZES:
        x = normal(2, CHANNELS, length, dtype=dtype)
        padded = F.conv1d(F.pad(x.double(), (width - 1, 0)), weight.double()[:, None], groups=CHANNELS)
        assert error(sequence_conv(x, weight, bias, activation), finish(padded, bias, activation)) < TOLERANCE[dtype]


def test_gradients_of_sequence_conv() -> None:
    found = []
    for ours in (True, False):
        shapes = ((2, CHANNELS, 9), (CHANNELS, 4), (CHANNELS,))
        x, weight, bias = (normal(*shape, dtype=F64).requires_grad_() for shape in shapes)
        if ours:
            y = sequence_conv(x, weight, bias, "silu")
        else:
            y = F.silu(F.conv1d(F.pad(x, (3, 0)), weight[:, None], bias, groups=CHANNELS))
        (y * y).sum().backward()
        found.append([value.grad for value in (x, weight, bias)])
    for mine, stock in zip(*found, strict=True):
        assert mine is not None and stock is not None
        assert error(mine, stock) < 1e-13


@each_dtype
@each_activation
@each_bias
@each_width
def test_tree_conv(width: int, with_bias: bool, activation: str | None, dtype: torch.dtype) -> None:
    weight, bias = parameters(width, with_bias, dtype)
    for count in SIZES:
        parents, x = trees(count), normal(2, CHANNELS, count, dtype=dtype)
        window = normal(2, CHANNELS, width, dtype=dtype)
        expected = finish(along_paths(x, window, parents, weight), bias, activation)
        ours = tree_conv(x, window, Topology(parents).windows(width), weight, bias, activation)
        assert ours.dtype == dtype
        assert error(ours, expected) < TOLERANCE[dtype], count
        for row in (0, 1):  # one row takes another way through memory
            index = Topology(parents[row : row + 1]).windows(width)
            single = tree_conv(x[row : row + 1], window[row : row + 1], index, weight, bias, activation)
            assert error(single, expected[row : row + 1]) < TOLERANCE[dtype], count


@pytest.mark.parametrize("prompt", [0, 1, 2, 3])
def test_tree_conv_after_a_prompt_shorter_than_the_width(prompt: int) -> None:
    """What lies before the prompt is zero."""
    weight, bias = parameters(4, True, F64)
    ids = normal(1, CHANNELS, 3, dtype=F64)[..., :prompt]
    window = F.pad(ids, (4 - prompt, 0))
    parents, x = trees(13)[1:], normal(1, CHANNELS, 13, dtype=F64)
    ours = tree_conv(x, window, Topology(parents).windows(4), weight, bias, "silu")
    for node in range(13):
        path = [node]
        while (above := int(parents[0, path[0]])) >= 0:
            path.insert(0, above)
        alone = sequence_conv(torch.cat([ids, x[..., path]], dim=-1), weight, bias, "silu")[..., -1]
        assert error(ours[..., node], alone) < TOLERANCE[F64]


def test_windows_of_nodes() -> None:
    """A width of 4 over [w0 w1 w2 w3 | n0 n1 ...]: node i stands at 4 + i, newest last."""
    windows = Topology(torch.tensor([[-1, 0, 0, 1, 2, 4]])).windows(4)
    assert windows[0].tolist() == [
        [1, 2, 3, 4],
        [2, 3, 4, 5],
        [2, 3, 4, 6],
        [3, 4, 5, 7],
        [3, 4, 6, 8],
        [4, 6, 8, 9],
    ]
    assert Topology(torch.tensor([[-1, 0]])).windows(1).tolist() == [[[1], [2]]]


def test_node_windows_end_with_the_node() -> None:
    parents, x = trees(13), normal(2, CHANNELS, 13)
    layer = RecurrentLayer(0, window=normal(2, CHANNELS, 4))
    topology = Topology(parents)
    found = node_windows(layer, x, topology.windows(4))
    weight = normal(CHANNELS, 4)
    assert layer.window is not None
    expected = tree_conv(x, layer.window, topology.windows(4), weight, None, None)
    assert torch.equal(found[..., -1], x.transpose(1, 2))
    assert error(window_conv(found, weight, None, None).transpose(1, 2), expected.double()) < TOLERANCE[F32]


@pytest.mark.parametrize("dtype", [F32, F64, torch.bfloat16])
@each_activation
@each_bias
def test_advance_conv(with_bias: bool, activation: str | None, dtype: torch.dtype) -> None:
    weight, bias = parameters(4, with_bias, dtype)
    x, window = normal(2, CHANNELS, 9, dtype=dtype), normal(2, CHANNELS, 4, dtype=dtype)
    history = torch.cat([window, x], dim=-1)
    expected = sequence_conv(history.double(), weight.double(), None if bias is None else bias.double(), activation)
    address = window.data_ptr()
    for t in range(9):
        y = advance_conv(window, x[..., t], weight, bias, activation)
        assert y.dtype == dtype
        assert error(y, expected[..., 4 + t]) < (TOLERANCE[dtype] if dtype in TOLERANCE else 2**-7)
        assert torch.equal(window, history[..., t + 1 : t + 5])
    assert window.data_ptr() == address


def test_bfloat16_is_summed_in_float32() -> None:
    """Only the result is rounded: neither the products nor partial sums are."""
    a, c = 1 + 2**-7, 1 + 2**-6  # a * a = c + 2**-14, which bfloat16 rounds to c
    weight = torch.tensor([[a, 1, 1, 1]], dtype=torch.bfloat16)
    inputs = torch.tensor([[[a, -c, 256.0, -256.0]]], dtype=torch.bfloat16)
    index = torch.tensor([[[4, 5, 6, 7]]]).repeat(1, 4, 1)
    window = torch.zeros(1, 1, 4, dtype=torch.bfloat16)
    assert tree_conv(inputs, window, index, weight, None, None).tolist() == [[[2**-14] * 4]]
    assert window_conv(inputs[0], weight, None, None).item() == 2**-14
    assert advance_conv(F.pad(inputs[0, :, :3], (1, 0)), inputs[0, :, 3], weight, None, None).item() == 2**-14


@pytest.mark.parametrize("width", [3, 4])
@each_activation
@each_bias
def test_bfloat16_is_bit_for_bit_what_conv1d_gives(with_bias: bool, activation: str | None, width: int) -> None:
    """Rounded before the activation: what a stock step does, so that what follows in the model rounds alike."""
    weight, bias = parameters(width, with_bias, torch.bfloat16)
    x = normal(1, CHANNELS, 40, dtype=torch.bfloat16)
    stock = activate(F.conv1d(F.pad(x, (width - 1, 0)), weight[:, None], bias, groups=CHANNELS), activation)
    assert torch.equal(sequence_conv(x, weight, bias, activation), stock)
    parents, window = torch.arange(-1, 39)[None], torch.zeros(1, CHANNELS, width, dtype=torch.bfloat16)
    tree = tree_conv(x, window, Topology(parents).windows(width), weight, bias, activation)
    assert torch.equal(tree, stock)
    steps = [advance_conv(window, x[..., t], weight, bias, activation) for t in range(40)]
    assert torch.equal(torch.stack(steps, dim=-1), stock)


def test_unknown_activation() -> None:
    with pytest.raises(ValueError, match="expected 'silu', 'swish' or None, got 'relu'"):
        activate(torch.zeros(1), "relu")


def test_silu_is_swish() -> None:
    x: Any = normal(5)
    assert torch.equal(activate(x, "silu"), activate(x, "swish"))
    assert activate(x, None) is x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_a_path_is_a_chain_of_a_tree(dtype: torch.dtype, width: int) -> None:
    """Taps outermost and any leading dimensions: two layers with weights of their own."""
    generator = torch.Generator().manual_seed(0)
    x, window = (torch.randn(2, 1, n, 6, generator=generator).to(dtype) for n in (5, width))
    weight, bias = torch.randn(2, 6, width, generator=generator), torch.randn(2, 6, generator=generator)
    joined = torch.cat([window[:, :, 1:], x], dim=2)
    found = path_conv(joined, weight.permute(2, 0, 1)[:, :, None, None], bias[:, None, None], "silu")
    index = Topology(torch.arange(-1, 4)[None]).windows(width)
    for layer in range(2):
        expected = tree_conv(x[layer].mT, window[layer].mT, index, weight[layer], bias[layer], "silu").mT
        assert found.dtype == dtype
        assert torch.allclose(found[layer], expected, atol=1e-6, rtol=2**-7 if dtype == torch.bfloat16 else 1e-6)
