"""The gated delta rule and Kimi delta attention against the recurrence itself along each node's path, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from specdecodes.core.tree import Topology
from specdecodes.kernels.gated_delta import naive as gated
from specdecodes.kernels.gated_delta.naive import jump_, normalize, sequence_scan, step_, tree_states
from specdecodes.kernels.kimi_delta import naive as kimi

from .paths import F32, F64, ROWS, SHAPES, SIZES, TOLERANCE, along, chain, error, numbers, path_of, random_tree

HEADS, KEY, VALUE = 3, 5, 4
SCANS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {"gated": gated.tree_scan, "kimi": kimi.tree_scan}

each_dtype = pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
each_size = pytest.mark.parametrize("count", SIZES)
each_rule = pytest.mark.parametrize("rule", SCANS)


@dataclass
class Inputs:
    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    beta: Tensor
    state: Tensor

    def to(self, dtype: torch.dtype) -> Inputs:
        return Inputs(**{name: value.to(dtype) for name, value in vars(self).items()})

    @property
    def tokens(self) -> tuple[Tensor, ...]:
        return self.q, self.k, self.v, self.g, self.beta


def inputs(rule: str, count: int, dtype: torch.dtype, dims: tuple[int, int, int] = (HEADS, KEY, VALUE)) -> Inputs:
    """Keys of length 1 and beta up to 2, as OLMo-Hybrid allows."""
    source = numbers(rule, count)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=F64)

    heads, key_dim, value_dim = dims
    return Inputs(
        q=normalize(normal(ROWS, count, heads, key_dim)),
        k=normalize(normal(ROWS, count, heads, key_dim)),
        v=normal(ROWS, count, heads, value_dim),
        g=-F.softplus(normal(ROWS, count, heads, key_dim if rule == "kimi" else 1)),
        beta=2 * torch.sigmoid(normal(ROWS, count, heads)),
        state=normal(ROWS, heads, key_dim, value_dim),
    ).to(dtype)


def recurrence(given: Inputs, parents: Tensor) -> list[Tensor]:
    """S = e^g S_parent, then S + k (beta (v - k S))^T, y = q S / sqrt(K); per head."""
    n = given.to(F64)

    def step(row: int, node: int, before: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v, g, beta = (each[row, node] for each in n.tokens)
        decayed = g.exp()[:, :, None] * before
        u = beta[:, None] * (v - torch.einsum("hk,hkv->hv", k, decayed))
        after = decayed + k[:, :, None] * u[:, None]
        return torch.einsum("hk,hkv->hv", q, after) / KEY**0.5, after

    return along(parents, n.state, step)


@each_rule
@each_dtype
@each_size
@pytest.mark.parametrize("shape", SHAPES)
def test_tree(shape: str, count: int, dtype: torch.dtype, rule: str) -> None:
    parents, given = SHAPES[shape](count), inputs(rule, count, dtype)
    y, states = recurrence(given, parents)
    before, ancestors = given.state.clone(), Topology(parents).ancestors
    found, u = SCANS[rule](*given.tokens, given.state, ancestors)
    assert found.dtype == u.dtype == dtype
    assert error(found, y) < TOLERANCE[dtype]
    assert error(tree_states(given.k, u, given.g, given.state, ancestors), states) < TOLERANCE[dtype]
    assert torch.equal(given.state, before)


@each_rule
@each_dtype
@each_size
@pytest.mark.parametrize("chunk", [3, 64])
def test_sequence(chunk: int, count: int, dtype: torch.dtype, rule: str) -> None:
    given = inputs(rule, count, dtype)
    y, states = recurrence(given, chain(count))
    assert error(sequence_scan(*given.tokens, given.state, SCANS[rule], chunk), y) < TOLERANCE[dtype]
    assert error(given.state, states[:, -1]) < TOLERANCE[dtype]


@each_rule
@each_dtype
def test_steps(dtype: torch.dtype, rule: str) -> None:
    given = inputs(rule, 9, dtype)
    y, states = recurrence(given, chain(9))
    address = given.state.data_ptr()
    for t in range(9):
        assert error(step_(given.state, *(each[:, t] for each in given.tokens)), y[:, t]) < TOLERANCE[dtype]
    assert error(given.state, states[:, -1]) < TOLERANCE[dtype]
    assert given.state.data_ptr() == address


@each_rule
@each_dtype
def test_jump_along_every_path(dtype: torch.dtype, rule: str) -> None:
    """What a tree's scan gave is enough: u depends on ancestors only. Paths of every length, padded."""
    parents, given = random_tree(13), inputs(rule, 13, dtype)
    _, states = recurrence(given, parents)
    _, u = SCANS[rule](*given.tokens, given.state, Topology(parents).ancestors)
    for node in range(13):
        for row in range(ROWS):
            path = path_of(parents, row, node)
            nodes = torch.tensor(path + [0] * (14 - len(path)))
            ended = (torch.arange(14) >= len(path))[:, None, None]
            state = given.state[row].clone()
            k, g = (each[row, nodes].masked_fill(ended, 0.0) for each in (given.k, given.g))
            jump_(state, k, u[row, nodes], g)
            assert error(state, states[row, node]) < TOLERANCE[dtype]


@each_rule
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["k", "v", "beta"])
def test_what_is_not_finite_stays_away_from_other_branches(field: str, value: float, rule: str) -> None:
    parents, given = random_tree(13), inputs(rule, 13, F32)
    ancestors = Topology(parents).ancestors
    y, u = SCANS[rule](*given.tokens, given.state, ancestors)
    clean = tree_states(given.k, u, given.g, given.state, ancestors)
    aside = ~ancestors[0, :, 2]
    getattr(given, field)[0, 2] = value
    broken, u = SCANS[rule](*given.tokens, given.state, ancestors)
    assert error(broken[0, aside], y[0, aside]) < TOLERANCE[F32]
    states = tree_states(given.k, u, given.g, given.state, ancestors)
    assert error(states[0, aside], clean[0, aside]) < TOLERANCE[F32]


def test_one_decay_for_all_key_channels_is_the_gated_rule() -> None:
    given = inputs("gated", 16, F64)
    ancestors = Topology(random_tree(16)).ancestors
    expected = gated.tree_scan(*given.tokens, given.state, ancestors)
    given.g = given.g.expand(-1, -1, -1, KEY)
    for found, wanted in zip(kimi.tree_scan(*given.tokens, given.state, ancestors), expected, strict=True):
        assert error(found, wanted) < TOLERANCE[F64]
