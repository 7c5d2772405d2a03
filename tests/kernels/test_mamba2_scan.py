"""The Mamba-2 ops against the recurrence itself, one token after the other along each node's path, in float64."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from specdecodes.core.tree import Topology
from specdecodes.kernels.mamba2_scan.naive import chunk_scan, discretize, jump_, step_, tree_scan, tree_states

HEADS, HEAD_DIM, STATE_DIM = 4, 5, 7
SIZES = [1, 2, 13, 15, 16, 17, 33, 63]
GROUPS = [1, 2, HEADS]
F32, F64 = torch.float32, torch.float64
TOLERANCE = {F32: 2e-6, F64: 1e-13}
"""Relative: largest difference over the largest value. Measured: at most 6e-7 and 2e-15."""

each_dtype = pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
each_size = pytest.mark.parametrize("count", SIZES)
each_groups = pytest.mark.parametrize("groups", GROUPS)


@dataclass
class Inputs:
    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    state: Tensor

    def to(self, dtype: torch.dtype) -> Inputs:
        return Inputs(**{name: value.to(dtype) for name, value in vars(self).items()})


def numbers(*parts: Any) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(repr(parts).encode()))


def inputs(count: int, groups: int = 2, rows: int = 2, dtype: torch.dtype = F32) -> Inputs:
    """Values as a trained model has them, rounded to ``dtype`` so that the reference gets the same."""
    source = numbers(count, groups)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=F64)

    return Inputs(
        x=normal(rows, count, HEADS, HEAD_DIM),
        dt=F.softplus(normal(rows, count, HEADS) - 1),
        A=-torch.exp(normal(HEADS)),
        B=normal(rows, count, groups, STATE_DIM),
        C=normal(rows, count, groups, STATE_DIM),
        D=normal(HEADS),
        state=normal(rows, HEADS, HEAD_DIM, STATE_DIM),
    ).to(dtype)


def chain(count: int, rows: int = 2) -> Tensor:
    return torch.arange(-1, count - 1).repeat(rows, 1)


def random_tree(count: int, rows: int = 2) -> Tensor:
    """Another tree in every row."""
    source = numbers("tree", count)
    parents = [[-1] + [int(torch.randint(i, (1,), generator=source)) for i in range(1, count)] for _ in range(rows)]
    return torch.tensor(parents)


def star(count: int, rows: int = 2) -> Tensor:
    return torch.tensor([[-1] + [0] * (count - 1)] * rows)


SHAPES = {"chain": chain, "random": random_tree, "star": star}


def recurrence(given: Inputs, parents: Tensor, *, skip: bool = True) -> tuple[Tensor, Tensor]:
    """h = exp(dt A) h_parent + dt x B^T, y = h C + D x: y [B, T, H, P] and all states [B, T, H, P, N], float64."""
    given = given.to(F64)
    per_group = HEADS // given.B.shape[2]
    B, C = (t.repeat_interleave(per_group, dim=2) for t in (given.B, given.C))
    y = torch.empty_like(given.x)
    states = torch.full((*given.x.shape, STATE_DIM), torch.nan, dtype=F64)
    for row in range(parents.shape[0]):
        for node, parent in enumerate(parents[row].tolist()):
            above = given.state[row] if parent < 0 else states[row, parent]
            dt = given.dt[row, node, :, None]
            added = (dt * given.x[row, node])[..., None] * B[row, node, :, None, :]
            states[row, node] = (dt * given.A[:, None]).exp()[..., None] * above + added
            y[row, node] = (states[row, node] * C[row, node, :, None, :]).sum(-1)
    return y + given.x * given.D[:, None] if skip else y, states


def error(ours: Tensor, reference: Tensor) -> float:
    assert ours.shape == reference.shape
    found = (ours.double() - reference).abs().max() / reference.abs().max()
    return found.item() if found.isfinite() else float("inf")


def rounding(given: Inputs, ancestors: Tensor) -> float:
    """Decays are differences of sums over the path: a relative error of float32's epsilon times the largest sum."""
    largest = (ancestors.double() @ (given.dt * given.A).double()).abs().max().item()
    return TOLERANCE[F32] + torch.finfo(F32).eps * largest


# -- a sequence -------------------------------------------------------------------------------------------------------


@each_dtype
@each_groups
@each_size
def test_chunk_scan(count: int, groups: int, dtype: torch.dtype) -> None:
    given = inputs(count, groups, dtype=dtype)
    y, states = recurrence(given, chain(count))
    for chunk in (1, 4, 16, 64):
        ours, last = chunk_scan(given.x, given.dt, given.A, given.B, given.C, given.D, given.state, chunk)
        assert ours.dtype == last.dtype == dtype
        assert error(ours, y) < TOLERANCE[dtype], chunk
        assert error(last, states[:, -1]) < TOLERANCE[dtype], chunk


@each_dtype
def test_chunk_scan_from_nothing_without_skip(dtype: torch.dtype) -> None:
    given = inputs(33, dtype=dtype)
    given.state.zero_()
    y, states = recurrence(given, chain(33), skip=False)
    ours, last = chunk_scan(given.x, given.dt, given.A, given.B, given.C)
    assert error(ours, y) < TOLERANCE[dtype]
    assert error(last, states[:, -1]) < TOLERANCE[dtype]


def test_chunk_scan_continues_itself() -> None:
    given = inputs(63, dtype=F64)
    parts = [slice(0, 1), slice(1, 18), slice(18, 63)]
    whole, last = chunk_scan(given.x, given.dt, given.A, given.B, given.C, given.D, given.state)
    state, found = given.state, []
    for part in parts:
        x, dt, B, C = (t[:, part] for t in (given.x, given.dt, given.B, given.C))
        y, state = chunk_scan(x, dt, given.A, B, C, given.D, state, chunk=16)
        found.append(y)
    assert error(torch.cat(found, dim=1), whole) < TOLERANCE[F64]
    assert error(state, last) < TOLERANCE[F64]


def test_chunk_scan_computes_bfloat16_in_float32() -> None:
    given = inputs(33, dtype=torch.bfloat16)
    y, _ = recurrence(given, chain(33))
    ours, last = chunk_scan(given.x, given.dt, given.A, given.B, given.C, given.D, given.state)
    assert ours.dtype == last.dtype == F32
    assert error(ours, y) < TOLERANCE[F32]


@pytest.mark.parametrize("count", [1, 5, 17])
@each_groups
def test_gradients_of_chunk_scan(groups: int, count: int) -> None:
    """Every input's gradient against that of the plain loop."""
    found = []
    for ours in (True, False):
        given = inputs(count, groups, dtype=F64)
        for value in vars(given).values():
            value.requires_grad_()
        if ours:
            y, last = chunk_scan(given.x, given.dt, given.A, given.B, given.C, given.D, given.state, chunk=4)
        else:
            y, last = _loop(given)
        weights = torch.randn(y.shape, generator=numbers("y"), dtype=F64)
        ((y * weights).sum() + (last * last).sum()).backward()
        found.append({name: value.grad for name, value in vars(given).items()})
    for name, expected in found[1].items():
        assert error(found[0][name], expected) < 1e-12, name


def _loop(given: Inputs) -> tuple[Tensor, Tensor]:
    """As :func:`recurrence` on a chain, without writing in place."""
    per_group = HEADS // given.B.shape[2]
    B, C = (t.repeat_interleave(per_group, dim=2) for t in (given.B, given.C))
    state, found = given.state, []
    for t in range(given.x.shape[1]):
        dt = given.dt[:, t, :, None]
        added = (dt * given.x[:, t])[..., None] * B[:, t, :, None, :]
        state = (dt * given.A[:, None]).exp()[..., None] * state + added
        found.append((state * C[:, t, :, None, :]).sum(-1) + given.x[:, t] * given.D[:, None])
    return torch.stack(found, dim=1), state


@pytest.mark.parametrize("size", [0.0, 1e-8, 30.0, 1e3, 1e6])
def test_chunk_scan_with_extreme_steps(size: float) -> None:
    given = inputs(33)
    given.dt[:, ::3] = size
    reference, states = recurrence(given, chain(33))
    allowed = rounding(given, Topology(chain(33)).ancestors)
    for value in vars(given).values():
        value.requires_grad_()
    y, last = chunk_scan(given.x, given.dt, given.A, given.B, given.C, given.D, given.state, chunk=16)
    (y.sum() + last.sum()).backward()
    assert error(y.detach(), reference) < allowed
    assert error(last.detach(), states[:, -1]) < allowed
    assert all(value.grad.isfinite().all() for value in vars(given).values())


# -- a tree -----------------------------------------------------------------------------------------------------------


@each_dtype
@each_groups
@each_size
@pytest.mark.parametrize("shape", SHAPES)
def test_tree_scan_and_states(shape: str, count: int, groups: int, dtype: torch.dtype) -> None:
    given, parents = inputs(count, groups, dtype=dtype), SHAPES[shape](count)
    ancestors, before = Topology(parents).ancestors, given.state.clone()
    y, states = recurrence(given, parents)
    ours = tree_scan(given.x, given.dt, given.A, given.B, given.C, given.D, given.state, ancestors)
    assert ours.dtype == dtype
    assert error(ours, y) < TOLERANCE[dtype]
    assert error(tree_states(given.x, given.dt, given.A, given.B, given.state, ancestors), states) < TOLERANCE[dtype]
    assert torch.equal(given.state, before)


def test_tree_scan_without_skip() -> None:
    given, parents = inputs(13), random_tree(13)
    y, _ = recurrence(given, parents, skip=False)
    ours = tree_scan(given.x, given.dt, given.A, given.B, given.C, None, given.state, Topology(parents).ancestors)
    assert error(ours, y) < TOLERANCE[F32]


def test_tree_scan_computes_bfloat16_in_float32() -> None:
    given, parents = inputs(13, dtype=torch.bfloat16), random_tree(13)
    y, _ = recurrence(given, parents)
    ours = tree_scan(given.x, given.dt, given.A, given.B, given.C, given.D, given.state, Topology(parents).ancestors)
    assert ours.dtype == F32
    assert error(ours, y) < TOLERANCE[F32]


def test_any_topological_order_gives_the_same() -> None:
    """Breadth first and depth first are one tree."""
    breadth, depth = [-1, 0, 0, 1, 1, 2, 3], [-1, 0, 1, 2, 1, 0, 5]
    order = [0, 1, 3, 6, 4, 2, 5]  # where each depth-first node stands in the breadth-first order
    given = inputs(7, rows=1, dtype=F64)
    x, dt, B, C = (value[:, order] for value in (given.x, given.dt, given.B, given.C))
    moved = Inputs(x, dt, given.A, B, C, given.D, given.state)
    found = []
    for values, parents in ((given, breadth), (moved, depth)):
        ancestors = Topology(torch.tensor([parents])).ancestors
        found.append(tree_scan(values.x, values.dt, values.A, values.B, values.C, values.D, values.state, ancestors))
    assert error(found[1], found[0][:, order]) < TOLERANCE[F64]


@pytest.mark.parametrize("size", [0.0, 1e-8, 30.0, 1e3, 1e6])
@pytest.mark.parametrize("shape", SHAPES)
def test_tree_scan_with_extreme_steps(shape: str, size: float) -> None:
    """Between branches the exponent is positive and as large as the steps: it must be masked, not multiplied by 0."""
    given, parents = inputs(17), SHAPES[shape](17)
    given.dt[:, 1::3] = size
    ancestors = Topology(parents).ancestors
    y, states = recurrence(given, parents)
    ours = tree_scan(given.x, given.dt, given.A, given.B, given.C, given.D, given.state, ancestors)
    every = tree_states(given.x, given.dt, given.A, given.B, given.state, ancestors)
    assert error(ours, y) < rounding(given, ancestors)
    assert error(every, states) < rounding(given, ancestors)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["x", "dt", "B", "C"])
def test_what_is_not_finite_stays_on_its_path(where: str, value: float) -> None:
    given, parents = inputs(13), random_tree(13)
    ancestors, node = Topology(parents).ancestors, 3
    clean = tree_scan(given.x, given.dt, given.A, given.B, given.C, given.D, given.state, ancestors)
    clean_states = tree_states(given.x, given.dt, given.A, given.B, given.state, ancestors)
    getattr(given, where)[:, node] = value
    broken = tree_scan(given.x, given.dt, given.A, given.B, given.C, given.D, given.state, ancestors)
    states = tree_states(given.x, given.dt, given.A, given.B, given.state, ancestors)
    for row in range(2):
        elsewhere = ~ancestors[row, :, node]
        assert torch.equal(broken[row, elsewhere], clean[row, elsewhere])
        assert torch.equal(states[row, elsewhere], clean_states[row, elsewhere])


# -- one step, one jump -----------------------------------------------------------------------------------------------


@each_dtype
@each_groups
def test_step(groups: int, dtype: torch.dtype) -> None:
    given = inputs(13, groups, dtype=dtype)
    y, states = recurrence(given, chain(13))
    state = given.state.clone()
    address = state.data_ptr()
    for t in range(13):
        ours = step_(state, given.x[:, t], given.dt[:, t], given.A, given.B[:, t], given.C[:, t], given.D)
        assert error(ours, y[:, t]) < TOLERANCE[dtype]
        assert error(state, states[:, t]) < TOLERANCE[dtype]
    assert state.data_ptr() == address


def test_step_without_skip() -> None:
    given = inputs(1)
    y, _ = recurrence(given, chain(1), skip=False)
    ours = step_(given.state, given.x[:, 0], given.dt[:, 0], given.A, given.B[:, 0], given.C[:, 0], None)
    assert error(ours, y[:, 0]) < TOLERANCE[F32]


@each_dtype
@each_groups
@each_size
def test_jump(count: int, groups: int, dtype: torch.dtype) -> None:
    given = inputs(count, groups, dtype=dtype)
    _, states = recurrence(given, chain(count))
    for length in {1, (count + 1) // 2, count}:  # what follows the path's end has step size 0
        dt = given.dt * (torch.arange(count) < length)[:, None]
        state = given.state.clone()
        jump_(state, given.x, dt, given.A[None], given.B)
        assert error(state, states[:, length - 1]) < TOLERANCE[dtype], length


def test_jump_of_several_layers_and_rows() -> None:
    """Leading dimensions are free: [layers, rows, D, ...] with other rates per layer and other lengths per row."""
    layers = [inputs(5, groups=g, dtype=F64) for g in (2, 2, 2)]
    for i, given in enumerate(layers):
        given.A.mul_(i + 1)
    lengths = torch.tensor([2, 5])
    ended = (torch.arange(5) < lengths[:, None])[..., None]
    x, dt, B = (torch.stack([getattr(given, name) for given in layers]) for name in ("x", "dt", "B"))
    A = torch.stack([given.A for given in layers])[:, None, None]
    state = torch.stack([given.state for given in layers])
    address = state.data_ptr()
    jump_(state, x, dt * ended, A, B)
    assert state.data_ptr() == address
    for i, given in enumerate(layers):
        _, states = recurrence(given, chain(5))
        for row, length in enumerate(lengths.tolist()):
            assert error(state[i, row], states[row, length - 1]) < TOLERANCE[F64]


def test_jump_with_step_size_zero_is_the_identity() -> None:
    given = inputs(13)
    state = given.state.clone()
    jump_(state, given.x, torch.zeros_like(given.dt), given.A[None], given.B)
    assert torch.equal(state, given.state)


@pytest.mark.parametrize("size", [0.0, 1e-8, 30.0, 1e3, 1e6])
def test_jump_with_extreme_steps(size: float) -> None:
    given = inputs(13)
    given.dt[:, 1::3] = size
    _, states = recurrence(given, chain(13))
    jump_(given.state, given.x, given.dt, given.A[None], given.B)
    assert error(given.state, states[:, -1]) < rounding(given, Topology(chain(13)).ancestors)


def test_discretize() -> None:
    dt, bias = torch.tensor([[-3.0, 0.5, 40.0]]), torch.tensor([1.0, -2.0, 0.0])
    steps = discretize(dt, bias, (0.0, float("inf")))
    assert torch.allclose(steps, torch.log1p(torch.exp(torch.tensor([[-2.0, -1.5, 40.0]]))))
    assert torch.equal(discretize(dt, bias, (0.15, 1.0)), steps.clamp(0.15, 1.0))
    assert torch.equal(discretize(dt, None, (0.0, float("inf")), softplus=False), dt)
    assert discretize(dt.bfloat16(), bias, (0.0, float("inf"))).dtype == F32
    assert discretize(dt.double(), bias, (0.0, float("inf"))).dtype == F64
