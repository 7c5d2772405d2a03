"""The C++ kernels against plain torch in float64, at awkward sizes; and what happens where they cannot be had."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from specdecodes.core.tree import Topology
from specdecodes.kernels import causal_conv, mamba2_scan, native

from .test_mamba2_scan import SHAPES, Inputs, numbers

needs_library = pytest.mark.skipif(native.library() is None, reason="no C++ compiler: nothing to test")
F64 = torch.float64
TOLERANCE = 5e-6
"""Relative: largest difference over the largest value. Measured: at most 6e-7."""
COUNTS = [1, 2, 12, 13, 15, 16, 17, 31, 33, 63, 128]
DIMS = [(4, 5, 7, 2), (2, 16, 64, 1), (6, 33, 20, 6), (4, 24, 16, 2)]
"""Heads, head dim, state dim, groups: multiples of a vector's lanes and not."""

pytestmark = needs_library
each_count = pytest.mark.parametrize("count", COUNTS)
each_dims = pytest.mark.parametrize("dims", DIMS, ids=str)


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    """What an op allocates and forgets to write is nan."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = before
    torch.use_deterministic_algorithms(False)


def error(ours: Tensor, exact: Tensor) -> float:
    assert ours.shape == exact.shape and ours.dtype == torch.float32
    return float((ours.double() - exact).abs().max() / exact.abs().max().clamp(min=1e-30))


def normal(*shape: int, seed: Any = 0) -> Tensor:
    return torch.randn(*shape, generator=numbers(shape, seed))


def problem(count: int, dims: tuple[int, int, int, int], rows: int = 2) -> Inputs:
    heads, head_dim, state_dim, groups = dims
    return Inputs(
        x=normal(rows, count, heads, head_dim),
        dt=torch.nn.functional.softplus(normal(rows, count, heads) - 1),
        A=-normal(heads).exp(),
        B=normal(rows, count, groups, state_dim, seed="B"),
        C=normal(rows, count, groups, state_dim, seed="C"),
        D=normal(heads, seed="D"),
        state=normal(rows, heads, head_dim, state_dim),
    )


def scan(values: Inputs, ancestors: Tensor, skip: bool = True) -> Tensor:
    v = values
    return mamba2_scan.tree_scan(v.x, v.dt, v.A, v.B, v.C, v.D if skip else None, v.state, ancestors)


def exact_scan(values: Inputs, ancestors: Tensor, skip: bool = True) -> Tensor:
    v = values.to(F64)
    return mamba2_scan.naive.tree_scan(v.x, v.dt, v.A, v.B, v.C, v.D if skip else None, v.state, ancestors)


@each_count
@each_dims
@pytest.mark.parametrize("shape", SHAPES)
def test_tree_scan(shape: str, dims: tuple[int, int, int, int], count: int) -> None:
    values = problem(count, dims)
    ancestors = Topology(SHAPES[shape](count)).ancestors
    for skip in (True, False):
        assert error(scan(values, ancestors, skip), exact_scan(values, ancestors, skip)) < TOLERANCE


def test_tree_scan_reads_views_of_one_projection() -> None:
    """A mixer hands over slices of the conv's output: nodes do not lie next to each other."""
    heads, head_dim, state_dim, count = 4, 8, 16, 13
    mixed = normal(1, count, heads * head_dim + 2 * state_dim)
    x, B, C = mixed.split([heads * head_dim, state_dim, state_dim], dim=-1)
    values = problem(count, (heads, head_dim, state_dim, 1), rows=1)
    values.x, values.B, values.C = x.unflatten(-1, (heads, head_dim)), B[:, :, None], C[:, :, None]
    ancestors = Topology(SHAPES["random"](count, 1)).ancestors
    assert not values.x.is_contiguous()
    assert error(scan(values, ancestors), exact_scan(values, ancestors)) < TOLERANCE


def test_extreme_step_sizes_stay_finite() -> None:
    values = problem(13, DIMS[1])
    values.dt = torch.tensor([1e-8, 1e4]).repeat(13)[:13, None].expand(2, 13, 2).contiguous()
    ancestors = Topology(SHAPES["chain"](13)).ancestors
    ours = scan(values, ancestors)
    assert bool(ours.isfinite().all())
    assert error(ours, exact_scan(values, ancestors)) < TOLERANCE


def test_a_broken_node_reaches_its_descendants_alone() -> None:
    parents = torch.tensor([[-1, 0, 0, 1, 2, 3]])
    ancestors = Topology(parents).ancestors
    values = problem(6, DIMS[0], rows=1)
    values.x[:, 1] = values.B[:, 1] = values.C[:, 1] = values.dt[:, 1] = float("nan")
    finite = scan(values, ancestors).isfinite().flatten(2).all(-1)
    assert finite.tolist() == [[True, False, True, False, True, False]]


@each_dims
@pytest.mark.parametrize("rows", [1, 3])
def test_one_step(dims: tuple[int, int, int, int], rows: int) -> None:
    v = problem(1, dims, rows=rows)
    state, exact = v.state.clone(), v.state.to(F64)
    y = mamba2_scan.step_(state, v.x[:, 0], v.dt[:, 0], v.A, v.B[:, 0], v.C[:, 0], v.D)
    w = v.to(F64)
    reference = mamba2_scan.naive.step_(exact, w.x[:, 0], w.dt[:, 0], w.A, w.B[:, 0], w.C[:, 0], w.D)
    assert error(y, reference) < TOLERANCE
    assert error(state, exact) < TOLERANCE


@each_count
@pytest.mark.parametrize("channels", [1, 7, 16, 50])
@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("activation", ["silu", None])
def test_tree_conv(activation: str | None, width: int, channels: int, count: int) -> None:
    x, window = normal(2, count, channels).mT, normal(2, channels, width)
    weight, bias = normal(channels, width, seed="w"), normal(channels)
    index = Topology(SHAPES["random"](count)).windows(width)
    for added in (bias, None):
        ours = causal_conv.tree_conv(x, window, index, weight, added, activation)
        wide = (x.double(), window.double(), index, weight.double(), None if added is None else added.double())
        assert error(ours, causal_conv.naive.tree_conv(*wide, activation)) < TOLERANCE


@pytest.mark.parametrize("channels", [1, 16, 50])
@pytest.mark.parametrize("activation", ["silu", None])
def test_step_conv(activation: str | None, channels: int) -> None:
    window, x, weight, bias = (
        normal(3, channels, 4),
        normal(3, channels),
        normal(channels, 4, seed="w"),
        normal(channels),
    )
    exact = window.double()
    y = causal_conv.step_conv_(window, x, weight, bias, activation)
    reference = causal_conv.naive.step_conv_(exact, x.double(), weight.double(), bias.double(), activation)
    assert error(y, reference) < TOLERANCE
    assert torch.equal(window.double(), exact)


def test_sigmoid_linear_units_far_out() -> None:
    """The exponential is our own: compare it over all of its range, and let what is not finite through."""
    values = torch.cat([torch.linspace(-200, 200, 4001), torch.tensor([float("inf"), float("nan"), 0.0])])
    window, weight = torch.zeros(1, len(values), 2), torch.tensor([[0.0, 1.0]]).repeat(len(values), 1)
    ours = causal_conv.step_conv_(window, values[None], weight, None, "silu")[0]
    exact = torch.nn.functional.silu(values.double())
    torch.testing.assert_close(ours.double(), exact, rtol=1e-6, atol=1e-30, equal_nan=True)


@pytest.mark.parametrize("path", [[[0]], [[0, 1, 3]], [[0, 2, -1, -1]], [[0, 1, 3, 4, 5]]], ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_jump_is_steps_along_the_path(path: list[list[int]], with_bias: bool) -> None:
    """Three layers, each advanced one token after the other in float64."""
    layers, count, heads, head_dim, state_dim, groups, width = 3, 6, 4, 5, 7, 2, 4
    channels = heads * head_dim + 2 * groups * state_dim
    needed = channels - groups * state_dim
    windows, states = normal(layers, 1, channels, width), normal(layers, 1, heads, head_dim, state_dim)
    raw, dt = normal(layers, 1, count, channels), normal(layers, 1, count, heads)
    weight, bias = normal(layers, channels, width, seed="w"), normal(layers, channels, seed="b")
    A, dt_bias = -normal(layers, heads).exp(), normal(layers, heads, seed="dt")
    exact = (windows.double(), states.double())
    mamba2_scan.path_jump_(
        *(windows, states, raw, dt, torch.tensor(path)),
        weight[:, :needed].permute(2, 0, 1).contiguous()[:, :, None, None],
        bias[:, None, None, :needed].contiguous() if with_bias else None,
        *(A[:, None, None], dt_bias[:, None, None] if with_bias else None),
        groups=groups,
        softplus=True,
        silu=True,
    )
    for i in range(layers):
        for node in [node for node in path[0] if node >= 0]:
            added = bias[i].double() if with_bias else None
            mixed = causal_conv.naive.step_conv_(
                exact[0][i], raw[i, :, node].double(), weight[i].double(), added, "silu"
            )
            x, B, _ = mixed.split([heads * head_dim, groups * state_dim, groups * state_dim], dim=-1)
            x, B = x.unflatten(-1, (heads, head_dim)), B.unflatten(-1, (groups, state_dim))
            step = mamba2_scan.discretize(
                dt[i, :, node].double(), dt_bias[i] if with_bias else None, (0.0, float("inf"))
            )
            mamba2_scan.naive.step_(exact[1][i], x, step, A[i].double(), B, B, None)
    assert error(windows, exact[0]) < TOLERANCE
    assert error(states, exact[1]) < TOLERANCE


def _fresh(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process of its own with an empty cache, which multiplies, convolves and says what served it."""
    program = """
import torch
from specdecodes.kernels import native
from specdecodes.kernels.linear import packed
weight, x = torch.randn(5, 3), torch.randn(2, 3)
found = packed.packed_linear(x, None, packed.pack(weight), 5)
print(native.library() is not None, torch.allclose(found, x @ weight.T, atol=1e-5))
"""
    own = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), **environment}
    return subprocess.run([sys.executable, "-c", program], env=own, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_without_a_compiler_other_kernels_serve(tmp_path: Path) -> None:
    done = _fresh(tmp_path, CXX="no-such-compiler")
    assert done.stdout.split() == ["False", "True"], done.stderr
    assert "no native kernels" in done.stderr and "no-such-compiler" in done.stderr


@pytest.mark.slow
def test_the_switch(tmp_path: Path) -> None:
    assert _fresh(tmp_path, SPECDECODES_KERNELS="naive").stdout.split() == ["False", "True"]
    forced = _fresh(tmp_path, SPECDECODES_KERNELS="native", CXX="no-such-compiler")
    assert forced.returncode and "SPECDECODES_KERNELS: expected kernels that compile" in forced.stderr
    wrong = _fresh(tmp_path, SPECDECODES_KERNELS="fast")
    assert wrong.returncode and "expected one of auto, triton, native, naive, got 'fast'" in wrong.stderr


@pytest.mark.slow
def test_compiled_once(tmp_path: Path) -> None:
    assert _fresh(tmp_path).stdout.split() == ["True", "True"]
    assert len(list(tmp_path.rglob("*.so"))) == 1
    again = _fresh(tmp_path, PATH=os.environ["PATH"])
    assert again.stdout.split() == ["True", "True"]
    assert len(list(tmp_path.rglob("*"))) == 2  # the folder and the library, nothing left over


def check_skips(dims: tuple[int, int, int, int]) -> None:
    """None, a number for all heads, one per head, one per head and dim: a tree, a sequence, a step."""
    values, nodes = problem(13, dims), Topology(SHAPES["random"](13)).ancestors
    chain = Topology(SHAPES["chain"](13)).ancestors
    heads, head_dim = dims[:2]
    for D in (None, torch.tensor(1.5), normal(heads, seed="D"), normal(heads, head_dim, seed="D")):
        each = torch.zeros(1) if D is None else D[:, None] if D.ndim == 1 else D
        added = values.x.double() * each.double()
        on_tree, on_chain = (exact_scan(values, ancestors, skip=False) + added for ancestors in (nodes, chain))
        given = (values.x, values.dt, values.A, values.B, values.C, D)
        assert error(mamba2_scan.tree_scan(*given, values.state, nodes), on_tree) < TOLERANCE
        assert error(mamba2_scan.chunk_scan(*given, values.state)[0], on_chain) < TOLERANCE
        first = (values.x[:, 0], values.dt[:, 0], values.A, values.B[:, 0], values.C[:, 0], D)
        assert error(mamba2_scan.step_(values.state.clone(), *first), on_chain[:, 0]) < TOLERANCE


@each_dims
def test_every_form_of_the_skip(dims: tuple[int, int, int, int]) -> None:
    check_skips(dims)
