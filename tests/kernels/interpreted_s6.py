"""The S6 kernels in Triton's interpreter against plain torch in float64; run like ``interpreted.py``."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from specdecodes.core.tree import Topology
from specdecodes.kernels import s6_scan
from specdecodes.kernels.s6_scan import naive

from .interpreted import BF16, COUNTS, F32, F64, TOLERANCE, TREES
from .paths import error
from .test_native import _poisoned, normal  # noqa: F401 - an autouse fixture: what is not written is nan
from .test_s6_scan import Inputs, inputs

DIMS = [(6, 5), (33, 16), (20, 33)]
"""Channels and state dim: none fills its tile, or one program."""
ROUNDED = {F32: TOLERANCE[F32], BF16: 3 * 2**-7}
"""bfloat16 is cut off (see ``interpreted.py``) three times: states, their product with C, the skip."""


def problem(count: int, dims: tuple[int, int] = DIMS[0], dtype: torch.dtype = F32) -> Inputs:
    """x, B and C in a model's dtype; steps, rates and state stay in float32."""
    given = inputs(count, F32, *dims)
    return Inputs(**{k: v.to(dtype) if k in ("x", "B", "C") else v for k, v in vars(given).items()})


def scan(v: Inputs, parents: Tensor, D: Tensor | None = None) -> Tensor:
    return s6_scan.tree_scan(v.x, v.dt, v.A, v.B, v.C, D, v.state, parents)


def exact(values: Inputs, parents: Tensor, D: Tensor | None = None) -> Tensor:
    v = values.to(F64)
    return naive.tree_scan(v.x, v.dt, v.A, v.B, v.C, D if D is None else D.double(), v.state, parents)


@pytest.mark.parametrize("count", COUNTS)
def test_tree_scan(count: int) -> None:
    """Every tree with other sizes, with and without skip, in both dtypes; rows have different trees."""
    for i, shape in enumerate(TREES):
        dims, dtype = DIMS[(i + count) % 3], (F32, BF16)[(i + count) % 2]
        values, parents = problem(count, dims, dtype), TREES[shape](count)
        D, before = normal(dims[0], seed="D").to(dtype) if i % 3 else None, values.state.clone()
        ours = scan(values, parents, D)
        assert ours.dtype == dtype
        assert error(ours, exact(values, parents, D)) < ROUNDED[dtype], shape
        assert torch.equal(values.state, before)


def test_tree_scan_from_nothing() -> None:
    values, parents = problem(13), TREES["random"](13)
    values.state.zero_()
    assert error(scan(values, parents), exact(values, parents)) < TOLERANCE[F32]


def test_parts_of_a_state_and_views_of_one_projection() -> None:
    """Zamba's heads have a part of the state each; B and C are slices of what one layer projects."""
    values, parents = problem(13), TREES["random"](13)
    wider = torch.cat([values.state, values.state], dim=1)
    mixed = torch.cat([values.x, values.B, values.C], dim=-1)
    x, B, C = mixed.split([6, 5, 5], dim=-1)
    views = Inputs(**{**vars(values), "x": x, "B": B, "C": C, "state": wider.narrow(1, 6, 6)})
    assert not (views.x.is_contiguous() or views.state.is_contiguous())
    assert torch.equal(scan(views, parents), scan(values, parents))


def test_any_order_with_parents_first() -> None:
    """Row 0 breadth first, row 1 depth first: the same bits for the same node."""
    breadth = torch.tensor([-1, 0, 0, 0, 1, 1, 2, 4, 5])
    order = torch.tensor([0, 1, 4, 7, 5, 8, 2, 6, 3])
    place = order.argsort()
    depth = torch.where(breadth[order] < 0, -1, place[breadth[order].clamp(min=0)])
    values = problem(9)
    for each in (values.x, values.dt, values.B, values.C):
        each[1] = each[0, order]
    values.state[1] = values.state[0]
    y = scan(values, torch.stack([breadth, depth]))
    assert torch.equal(y[1], y[0, order])
    assert error(y, exact(values, torch.stack([breadth, depth]))) < TOLERANCE[F32]


@pytest.mark.parametrize("size", [1e6, *(pytest.param(size, marks=pytest.mark.slow) for size in (0.0, 1e-8, 30.0))])
def test_extreme_step_sizes(size: float) -> None:
    values, parents = problem(17), TREES["random"](17)
    values.dt[:, 1::3] = size
    assert error(scan(values, parents), exact(values, parents)) < TOLERANCE[F32]


@pytest.mark.parametrize("value", [torch.nan, pytest.param(torch.inf, marks=pytest.mark.slow)])
def test_what_is_not_finite_reaches_descendants_only(value: float) -> None:
    parents = TREES["random"](17)
    below, clean = Topology(parents).ancestors[:, :, 3], scan(problem(17), parents)
    for where in ("x", "dt", "B"):
        values = problem(17)
        getattr(values, where)[:, 3] = value
        broken = scan(values, parents)
        assert torch.equal(broken[~below], clean[~below]), where
        if where != "dt" or value != torch.inf:  # forgets all that came before, and adds inf
            assert not broken[below].isfinite().any(), where


def test_padding_nodes_are_inert() -> None:
    """Rows of different size: padding has parent 0 and is never a parent; nodes before it get the same bits."""
    values, parents = problem(16), TREES["random"](16)
    parents[0, 13:] = parents[1, 9:] = 0
    whole = scan(values, parents)
    for row, size in enumerate((13, 9)):
        fewer = Inputs(**{k: v if k in ("A", "state") else v[:, :size] for k, v in vars(values).items()})
        assert torch.equal(whole[row, :size], scan(fewer, parents[:, :size])[row])


def test_trees_above_the_largest_are_served() -> None:
    """By the plain form."""
    count = s6_scan.LARGEST_TREE + 1
    values, parents = problem(count), TREES["random"](count)
    assert error(scan(values, parents), exact(values, parents)) < TOLERANCE[F32]


@pytest.mark.parametrize("dtype", [F32, BF16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("dims", DIMS, ids=str)
def test_a_jump_of_layers_rows_and_parts(dims: tuple[int, int], dtype: torch.dtype) -> None:
    """[layers 2, rows 3, parts 2]; the first row's path has ended at once, the second's after two of five nodes."""
    channels, state_dim = dims
    state, A = normal(2, 3, 2, channels, state_dim), -normal(2, 1, 2, channels, state_dim, seed="A").exp()
    x, B = normal(2, 3, 5, 2, channels).to(dtype), normal(2, 3, 5, 2, state_dim, seed="B").to(dtype)
    dt = normal(2, 3, 5, 2, channels, seed="dt").abs()
    dt[:, 0] = dt[:, 1, 2:] = 0.0
    expected, before, address = state.double(), state.clone(), state.data_ptr()
    naive.jump_(expected, x.double(), dt.double(), A.double(), B.double())
    s6_scan.jump_(state, x, dt, A, B)
    assert error(state, expected) < TOLERANCE[F32]
    assert torch.equal(state[:, 0], before[:, 0])
    assert state.data_ptr() == address


def test_a_jump_of_one_row_without_leading_dimensions() -> None:
    state, A, x, B = normal(1, 6, 5), -normal(1, 6, 5, seed="A").exp(), normal(3, 1, 6), normal(3, 1, 5)
    dt, expected = normal(3, 1, 6, seed="dt").abs(), state.double()
    naive.jump_(expected, x.double(), dt.double(), A.double(), B.double())
    s6_scan.jump_(state, x, dt, A, B)
    assert error(state, expected) < TOLERANCE[F32]
