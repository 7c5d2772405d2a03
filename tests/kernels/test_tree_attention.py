"""Attention of a tree behind a prefix, in plain torch, against one softmax over everything a node sees in float64."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from specdecodes.core.tree import Topology
from specdecodes.kernels.tree_attention import tree_attention

from .paths import numbers
from .test_mamba2_scan import SHAPES

F32, F64 = torch.float32, torch.float64
LENGTHS = [1, 7, 300]
"""Committed positions of the first row; the second row has one more."""


@dataclass
class Inputs:
    """Two rows; what lies behind the nodes' positions is nan."""

    q: Tensor
    keys: Tensor
    values: Tensor
    lengths: Tensor
    ancestors: Tensor
    scale: float


def inputs(
    shape: str, count: int, length: int, heads: tuple[int, int] = (4, 2), dims: tuple[int, int] = (6, 5)
) -> Inputs:
    """``heads``: of queries and of keys; ``dims``: of keys and of values; queries lie as a model's projection does."""
    source = numbers(shape, count, length, heads, dims)
    topology = Topology(SHAPES[shape](count))
    q = torch.randn(2, count, heads[0], dims[0], generator=source, dtype=F64).transpose(1, 2)
    keys, values = (torch.randn(2, heads[1], length + count + 9, dim, generator=source, dtype=F64) for dim in dims)
    lengths = torch.tensor([length, length + 1])
    for row, used in enumerate((lengths + count).tolist()):
        keys[row, :, used:], values[row, :, used:] = float("nan"), float("nan")
    return Inputs(q, keys, values, lengths, topology.ancestors, dims[0] ** -0.5)


def exact(v: Inputs) -> Tensor:
    """One dense softmax per node: [B, T, H, V] in float64."""
    rows, heads, count, _ = v.q.shape
    y = torch.empty(rows, count, heads, v.values.shape[3], dtype=F64)
    times = heads // v.keys.shape[1]
    for row in range(rows):
        length = int(v.lengths[row])
        for node in range(count):
            path = [length + int(j) for j in v.ancestors[row, node].nonzero()]
            seen = [*range(length), *path]
            for head in range(heads):
                scores = v.keys[row, head // times, seen] @ v.q[row, head, node] * v.scale
                y[row, node, head] = scores.softmax(0) @ v.values[row, head // times, seen]
    return y


def attend(v: Inputs, dtype: torch.dtype) -> Tensor:
    q, keys, values = (each.to(dtype) for each in (v.q, v.keys, v.values))
    return tree_attention(q, keys, values, v.lengths, v.ancestors, v.scale)


@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-12), (F32, 1e-5)])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("count", [1, 2, 13, 17])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_softmax_over_all_that_a_node_sees(
    shape: str, count: int, length: int, dtype: torch.dtype, tolerance: float
) -> None:
    values = inputs(shape, count, length)
    found = attend(values, dtype)
    assert found.dtype == dtype and found.shape == (2, count, 4, 5)
    assert float((found.double() - exact(values)).abs().max()) < tolerance


def test_large_scores_do_not_overflow() -> None:
    values = inputs("random", 13, 20)
    values.q *= 1e4
    assert float((attend(values, F64) - exact(values)).abs().max()) < 1e-9
