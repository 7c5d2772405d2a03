"""The delta rules' kernels in Triton's interpreter against plain torch in float64; run like ``interpreted.py``."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from specdecodes.core.tree import Topology
from specdecodes.kernels import gated_delta, kimi_delta
from specdecodes.kernels.gated_delta import naive, normalize
from specdecodes.models.recurrences.gated_delta import GatedDeltaLayer, GatedDeltaStack

from ..models.families import make
from .interpreted import BF16, F32, F64, QUICK, SLOW, TOLERANCE, TREES, check_decoding, each_dtype
from .paths import chain, error
from .test_delta_rules import SCANS, Inputs, each_rule, inputs
from .test_native import _poisoned, normal  # noqa: F401 - an autouse fixture: what is not written is nan

SERVED = {"gated": gated_delta.tree_scan, "kimi": kimi_delta.tree_scan}
DIMS = [(2, 5, 4), (1, 33, 20), (1, 16, 40)]
"""Heads, key dim, value dim: K and V differ, and fill no tile, or one, or more."""
OUTPUTS = ("y", "u")
PATHS = [
    [[3], [0]],
    [[0, 2, -1, -1, -1], [0, 1, 3, 4, 6]],
    [[0, 5], [-1, -1]],
]
"""Of two rows: one node each; two and five, shorter and longer than the window; two and none."""
LAYERS, NODES, CHANNELS, TAPS = 2, 8, 7, 4
GUARD = 64
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


def guarded(x: Tensor) -> tuple[Tensor, Tensor]:
    """A copy between nans, and the buffer that holds all of it."""
    buffer = x.new_full((x.numel() + 2 * GUARD,), torch.nan)
    inside = buffer[GUARD:-GUARD].view(x.shape)
    inside.copy_(x)
    return inside, buffer


def jumped(
    rule: str,
    dims: tuple[int, int, int],
    path: list[list[int]],
    dtype: torch.dtype = F32,
    normalizes: bool = True,
    size: float | None = None,
    empty: bool = False,
) -> None:
    """Jump two layers and rows; compare with plain torch in float64, row by row along the nodes that are there.

    Args:
        size: of every third log decay. empty: states are zero.
    """
    heads, key_dim, value_dim = dims
    shape = (LAYERS, len(path), NODES, heads)
    states = normal(LAYERS, len(path), heads, key_dim, value_dim) * (not empty)
    windows = normal(LAYERS, len(path), CHANNELS, TAPS).to(dtype)
    inputs, k = normal(*shape[:3], CHANNELS).to(dtype), normal(*shape, key_dim, seed="k").to(dtype)
    k[..., 0, :] *= 1e-3  # where what is added to a squared length counts
    u, g = normal(*shape, value_dim, seed="u"), -normal(*shape, key_dim if rule == "kimi" else 1, seed="g").abs()
    if size is not None:
        g[:, :, ::3] = size
    for row, nodes in enumerate(path):
        off = [node for node in range(NODES) if node not in nodes]
        for each in (inputs, k, u, g):
            each[:, row, off] = torch.nan  # must not be read
    expected, shifted = [], []
    for row, padded in enumerate(path):
        nodes, moved = [node for node in padded if node >= 0], states[:, row].double()
        if nodes:
            keys = normalize(k[:, row, nodes].double()) if normalizes else k[:, row, nodes]
            naive.jump_(moved, keys, u[:, row, nodes], g[:, row, nodes])
        expected.append(moved)
        shifted.append(torch.cat([windows[:, row], inputs[:, row, nodes].mT], dim=-1)[..., -TAPS:])
    (states, around), (windows, beside) = guarded(states), guarded(windows)
    kept = [guarded(each)[0] for each in (inputs, k, u, g)]
    assert gated_delta.path_jump_serves(windows, states)
    gated_delta.path_jump_(windows, states, *kept, torch.tensor(path), normalizes=normalizes)
    assert error(states, torch.stack(expected, dim=1)) < TOLERANCE[F32]  # float32 inside in any case
    assert torch.equal(windows, torch.stack(shifted, dim=1))
    assert all(int(each.isnan().sum()) == 2 * GUARD for each in (around, beside))


@each_rule
@each_dtype
@pytest.mark.parametrize("path", PATHS, ids=["1 and 1", "2 and 5", "2 and 0"])
@pytest.mark.parametrize("dims", [*DIMS, (3, 20, 33)], ids=str)
def test_a_jump_is_the_recurrence_along_the_path(
    dims: tuple[int, int, int], path: list[list[int]], dtype: torch.dtype, rule: str
) -> None:
    jumped(rule, dims, path, dtype)


@each_rule
def test_a_jump_from_nothing(rule: str) -> None:
    jumped(rule, DIMS[0], PATHS[1], empty=True)


@each_rule
def test_a_jump_of_an_op_that_takes_keys_as_they_come(rule: str) -> None:
    jumped(rule, DIMS[0], PATHS[1], normalizes=False)


@each_rule
@pytest.mark.parametrize("size", [0.0, -1e-8, -80.0, -1e4])
def test_a_jump_with_extreme_decays(size: float, rule: str) -> None:
    jumped(rule, DIMS[0], PATHS[1], size=size)


def test_what_a_jump_serves() -> None:
    """Models in float64 have states in float64; buffers cut from larger ones are not moved by the kernels."""
    states, windows = torch.zeros(2, 3, 1, 4, 4), torch.zeros(2, 3, 5, 4)
    assert gated_delta.path_jump_serves(windows, states)
    assert gated_delta.path_jump_serves(windows.bfloat16(), states)
    assert not gated_delta.path_jump_serves(windows.double(), states.double())
    assert not gated_delta.path_jump_serves(windows, states.double())
    assert not gated_delta.path_jump_serves(windows[:, 1:], states)
    assert not gated_delta.path_jump_serves(windows, states[:, 1:])


@each_rule
@pytest.mark.parametrize("normalizes", [True, False])
def test_a_stack_jumps_as_in_float64(normalizes: bool, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stack of a float64 model takes the plain form; one of a float32 model does not."""
    heads, key_dim, value_dim = DIMS[0]
    shape, path = (LAYERS, 2, NODES, heads), torch.tensor(PATHS[1])
    k, u = normal(*shape, key_dim), normal(*shape, value_dim)
    kept = (normal(*shape[:3], CHANNELS), k, u, -normal(*shape, key_dim if rule == "kimi" else 1, seed="g").abs())

    def moved(dtype: torch.dtype) -> GatedDeltaStack:
        layers = [
            GatedDeltaLayer(
                i,
                window=normal(2, CHANNELS, TAPS, seed=i).to(dtype),
                state=normal(2, heads, key_dim, value_dim, seed=i).to(dtype),
                normalizes=normalizes,
            )
            for i in range(LAYERS)
        ]
        stack = GatedDeltaStack(layers, lambda function: function)
        stack.jump(path, *(each.to(dtype) for each in kept))
        return stack

    exact = moved(F64)
    monkeypatch.delattr(GatedDeltaStack, "move_states")
    ours = moved(F32)
    assert ours.states is not None and exact.states is not None
    assert error(ours.states, exact.states) < TOLERANCE[F32]
    assert torch.equal(ours.windows.double(), exact.windows)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_next", "kimi_linear"])
def test_a_model_decodes_the_same(family: str) -> None:
    check_decoding(make(family))
