"""The kernel of the delta rules in Triton's interpreter against plain torch in float64; run like ``interpreted.py``."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from specdecodes.core.tree import Topology
from specdecodes.kernels import gated_delta, kimi_delta

from .interpreted import BF16, F32, F64, QUICK, SLOW, TOLERANCE, TREES
from .paths import chain, error
from .test_delta_rules import SCANS, Inputs, each_rule, inputs
from .test_native import _poisoned  # noqa: F401 - an autouse fixture: what is not written is nan

SERVED = {"gated": gated_delta.tree_scan, "kimi": kimi_delta.tree_scan}
DIMS = [(2, 5, 4), (1, 33, 20), (1, 16, 40)]
"""Heads, key dim, value dim: K and V differ, and fill no tile, or one, or more."""
OUTPUTS = ("y", "u")
COUNTS = [13, *(pytest.param(count, marks=pytest.mark.slow) for count in (*QUICK, *SLOW) if count != 13)]


def problem(rule: str, count: int, dims: tuple[int, int, int] = DIMS[0], dtype: torch.dtype = F32) -> Inputs:
    """v and beta in a model's dtype; keys and queries are normalised, in float32 as g and the state are."""
    given = inputs(rule, count, F32, dims)
    return Inputs(**{k: v.to(dtype) if k in ("v", "beta") else v for k, v in vars(given).items()})


def scan(rule: str, v: Inputs, ancestors: Tensor) -> tuple[Tensor, Tensor]:
    return SERVED[rule](*v.tokens, v.state, ancestors)


def compare(rule: str, values: Inputs, ancestors: Tensor, bound: float = TOLERANCE[F32]) -> None:
    wide, before = values.to(F64), values.state.clone()
    ours, exact = scan(rule, values, ancestors), SCANS[rule](*wide.tokens, wide.state, ancestors)
    for name, found, expected in zip(OUTPUTS, ours, exact, strict=True):
        assert found.dtype == F32
        assert error(found, expected) < bound, name
    assert torch.equal(values.state, before)


@each_rule
@pytest.mark.parametrize("count", COUNTS)
def test_tree_scan(count: int, rule: str) -> None:
    """Two trees for each rule, with other sizes, in both dtypes, float32 inside; rows have different trees."""
    for i, shape in list(enumerate(TREES))[(count + (rule == "kimi")) % 2 :: 2]:
        values = problem(rule, count, DIMS[(i + count) % 3], (F32, BF16)[i // 2])
        compare(rule, values, Topology(TREES[shape](count)).ancestors)


@each_rule
def test_tree_scan_of_queries_and_keys_as_they_come(rule: str) -> None:
    """An op that does not normalise hands over the model's dtype."""
    values = problem(rule, 13, DIMS[0], BF16)
    values.q, values.k, values.g = values.q.to(BF16), values.k.to(BF16), values.g.to(BF16)
    compare(rule, values, Topology(TREES["random"](13)).ancestors)


@each_rule
def test_tree_scan_from_nothing(rule: str) -> None:
    values = problem(rule, 13)
    values.state.zero_()
    compare(rule, values, Topology(TREES["random"](13)).ancestors)


@each_rule
def test_one_tree_for_all_rows_and_a_sequence(rule: str) -> None:
    """A sequence goes in chains of chunks: ancestors [1, n, n] cut from a larger matrix, and the state moves."""
    values = problem(rule, 13)
    wide = values.to(F64)
    y = gated_delta.sequence_scan(*values.tokens, values.state, SERVED[rule], 8)
    exact = gated_delta.sequence_scan(*wide.tokens, wide.state, SCANS[rule], 8)
    assert error(y, exact) < TOLERANCE[F32]
    assert error(values.state, wide.state) < TOLERANCE[F32]


@each_rule
def test_tree_scan_reads_views_of_one_projection(rule: str) -> None:
    values, ancestors = problem(rule, 13), Topology(TREES["random"](13)).ancestors
    sizes = [each.shape[-1] for each in (values.q, values.k, values.v)]
    whole = torch.cat([values.q.flatten(2), values.k.flatten(2), values.v.flatten(2)], dim=-1)
    parts = whole.split([2 * size for size in sizes], dim=-1)
    q, k, v = (part.unflatten(-1, (2, size)) for part, size in zip(parts, sizes, strict=True))
    assert not q.is_contiguous()
    views = Inputs(**{**vars(values), "q": q, "k": k, "v": v})
    for found, expected in zip(scan(rule, views, ancestors), scan(rule, values, ancestors), strict=True):
        assert torch.equal(found, expected)


@each_rule
@pytest.mark.parametrize("size", [-1e4, *(pytest.param(size, marks=pytest.mark.slow) for size in (0.0, -1e-8, -30.0))])
def test_extreme_decays(size: float, rule: str) -> None:
    """Between branches the exponent is positive and as large as the decays: it must be masked, not multiplied by 0."""
    values = problem(rule, 17)
    values.g[:, 1::3] = size
    ancestors = Topology(TREES["random"](17)).ancestors
    largest = (ancestors.double() @ values.g.double().flatten(2)).abs().max().item()
    compare(rule, values, ancestors, TOLERANCE[F32] + torch.finfo(F32).eps * largest)


@each_rule
def test_keys_that_repeat(rule: str) -> None:
    """beta 2 and no decay reflect the state at every node: the largest factors that there are, across two tiles."""
    values = problem(rule, 17)
    values.k[:] = values.k[:, :1]
    values.beta[:], values.g[:] = 2.0, 0.0
    compare(rule, values, Topology(chain(17)).ancestors)


@each_rule
@pytest.mark.parametrize(
    ("value", "count"),
    [(torch.nan, 13), *(pytest.param(v, 17, marks=pytest.mark.slow) for v in (torch.nan, torch.inf))],
)
def test_what_is_not_finite_stays_on_its_path(value: float, count: int, rule: str) -> None:
    ancestors = Topology(TREES["random"](count)).ancestors
    clean = scan(rule, problem(rule, count), ancestors)
    aside = ~ancestors[:, :, 3]
    for where in ("q", "k", "v", "g", "beta"):
        values = problem(rule, count)
        getattr(values, where)[:, 3] = value
        for found, expected in zip(scan(rule, values, ancestors), clean, strict=True):
            assert torch.equal(found[aside], expected[aside]), where


@each_rule
def test_padding_nodes_are_inert(rule: str) -> None:
    """Rows of different size: padding has parent 0 and is never a parent; nodes before it get the same bits."""
    values, parents = problem(rule, 16), TREES["random"](16)
    parents[0, 13:] = parents[1, 9:] = 0
    whole = scan(rule, values, Topology(parents).ancestors)
    for row, size in enumerate((13, 9)):
        fewer = Inputs(**{k: v if k == "state" else v[:, :size] for k, v in vars(values).items()})
        alone = scan(rule, fewer, Topology(parents[:, :size]).ancestors)
        for found, expected in zip(alone, whole, strict=True):
            assert torch.equal(found[row], expected[row, :size])
