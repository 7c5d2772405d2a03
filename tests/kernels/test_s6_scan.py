"""The S6 ops against the recurrence itself, one token after the other along each node's path, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from specdecodes.core.tree import Topology
from specdecodes.kernels.s6_scan import naive
from specdecodes.kernels.s6_scan.naive import (
    discretize,
    jump_,
    read_states,
    sequence_scan,
    step_,
    tree_states,
    tree_states_by_doubling,
)

from .paths import F32, F64, ROWS, SHAPES, SIZES, TOLERANCE, along, chain, error, numbers, path_of, random_tree

CHANNELS, STATE_DIM = 6, 5

each_dtype = pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
each_size = pytest.mark.parametrize("count", SIZES)
each_form = pytest.mark.parametrize("form", ["levels", "doubling"])


@dataclass
class Inputs:
    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    state: Tensor

    def to(self, dtype: torch.dtype) -> Inputs:
        return Inputs(**{name: value.to(dtype) for name, value in vars(self).items()})


def inputs(count: int, dtype: torch.dtype, channels: int = CHANNELS, state_dim: int = STATE_DIM) -> Inputs:
    source = numbers("s6", count)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=F64)

    return Inputs(
        x=normal(ROWS, count, channels),
        dt=F.softplus(normal(ROWS, count, channels) - 1),
        A=-torch.exp(normal(channels, state_dim)),
        B=normal(ROWS, count, state_dim),
        C=normal(ROWS, count, state_dim),
        state=normal(ROWS, channels, state_dim),
    ).to(dtype)


def recurrence(given: Inputs, parents: Tensor) -> list[Tensor]:
    """h = exp(dt A) h_parent + dt x B, y = h C."""
    g = given.to(F64)

    def step(row: int, node: int, before: Tensor) -> tuple[Tensor, Tensor]:
        dt = g.dt[row, node][:, None]
        after = torch.exp(dt * g.A) * before + dt * g.x[row, node][:, None] * g.B[row, node]
        return after @ g.C[row, node], after

    return along(parents, g.state, step)


def states_of(form: str, given: Inputs, parents: Tensor) -> Tensor:
    arguments = (given.x, given.dt, given.A, given.B, given.state)
    if form == "levels":
        return tree_states(*arguments, Topology(parents).levels)
    return tree_states_by_doubling(*arguments, parents)


@each_form
@each_dtype
@each_size
@pytest.mark.parametrize("shape", SHAPES)
def test_tree(shape: str, count: int, dtype: torch.dtype, form: str) -> None:
    parents, given = SHAPES[shape](count), inputs(count, dtype)
    y, states = recurrence(given, parents)
    before = given.state.clone()
    found = states_of(form, given, parents)
    assert found.dtype == dtype
    assert error(found, states) < TOLERANCE[dtype]
    assert error(read_states(found, given.C), y) < TOLERANCE[dtype]
    assert torch.equal(given.state, before)


@each_dtype
@each_size
@pytest.mark.parametrize("chunk", [3, 64])
def test_sequence(chunk: int, count: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(naive, "CHUNK", chunk)
    given = inputs(count, dtype)
    y, states = recurrence(given, chain(count))
    found = sequence_scan(given.x, given.dt, given.A, given.B, given.C, given.state)
    assert error(found, y) < TOLERANCE[dtype]
    assert error(given.state, states[:, -1]) < TOLERANCE[dtype]


@each_dtype
def test_steps(dtype: torch.dtype) -> None:
    given = inputs(9, dtype)
    y, states = recurrence(given, chain(9))
    address = given.state.data_ptr()
    for t in range(9):
        found = step_(given.state, given.x[:, t], given.dt[:, t], given.A, given.B[:, t], given.C[:, t])
        assert error(found, y[:, t]) < TOLERANCE[dtype]
    assert error(given.state, states[:, -1]) < TOLERANCE[dtype]
    assert given.state.data_ptr() == address


@each_dtype
def test_jump_along_every_path(dtype: torch.dtype) -> None:
    """Two scans of one layer, of half the channels each; paths of every length, padded."""
    parents = random_tree(13)
    given = inputs(13, dtype)
    _, states = recurrence(given, parents)
    half = CHANNELS // 2
    for node in range(13):
        for row in range(ROWS):
            path = path_of(parents, row, node)
            nodes = torch.tensor(path + [0] * (14 - len(path)))
            steps = given.dt[row, nodes] * (torch.arange(14) < len(path))[:, None]
            state = given.state[row].clone().view(2, half, STATE_DIM)
            B = given.B[row, nodes][:, None].expand(14, 2, STATE_DIM)
            jump_(state, given.x[row, nodes].view(14, 2, half), steps.view(14, 2, half), given.A.view(2, half, -1), B)
            assert error(state.view(CHANNELS, STATE_DIM), states[row, node]) < TOLERANCE[dtype]


@each_form
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_descendants_only(value: float, form: str) -> None:
    parents = random_tree(13)
    given = inputs(13, F32)
    clean = states_of(form, given, parents)
    below = Topology(parents).ancestors[0, :, 2]
    given.x[0, 2] = value
    broken = states_of(form, given, parents)
    assert not broken[0, below].isfinite().any()
    assert torch.equal(broken[0, ~below], clean[0, ~below])
    assert torch.equal(broken[1], clean[1])


def test_step_sizes_round_where_stock_steps_round() -> None:
    dt, bias = torch.randn(50, generator=numbers("dt")).bfloat16(), torch.randn(50, generator=numbers("bias"))
    stock = F.softplus(dt + bias.to(dt.dtype))
    found = discretize(dt, bias, True)
    assert found.dtype == F32
    assert torch.equal(found, stock.float())
    assert torch.equal(discretize(dt, None, False), dt.float())


def test_levels_hold_every_node_below_the_root_once() -> None:
    topology = Topology(random_tree(17))
    nodes = torch.cat([nodes for nodes, _ in topology.levels])
    assert sorted(nodes.tolist()) == [i for i in range(2 * 17) if i % 17]
    for depth, (level, parents) in enumerate(topology.levels, 1):
        assert (topology.depths.flatten()[level] == depth).all()
        assert torch.equal(parents, topology.parents.flatten()[level] + level // 17 * 17)
