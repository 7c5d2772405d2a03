"""The Triton kernels in Triton's interpreter against plain torch in float64.

Not collected by name: ``test_triton.py`` runs this file in a process of its own, since ``TRITON_INTERPRET`` must be
set before triton is imported. By hand:

    TRITON_INTERPRET=1 SPECDECODES_KERNELS=triton pytest tests/kernels/interpreted.py

``tests/cuda`` runs the same files where the kernels are compiled.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdecodes.core.load import load
from specdecodes.core.tree import Topology
from specdecodes.kernels import causal_conv, choice, mamba2_scan
from specdecodes.testing import toy_model

from .on_device import DEVICE
from .paths import error
from .test_mamba2_scan import SHAPES, Inputs
from .test_native import _poisoned, check_skips, normal, problem  # noqa: F401 - an autouse fixture: what is not written is nan

F32, BF16, F64 = torch.float32, torch.bfloat16, torch.float64
TOLERANCE = {F32: 1e-5, BF16: 1e-2}
"""Relative: largest difference over the largest value."""
CUT_TWICE = {**TOLERANCE, BF16: 2 * 2**-7}
"""The conv rounds before and after its activation; the interpreter cuts bfloat16 off (2**-7) instead of rounding."""
QUICK = [1, 13, 16, 17]
SLOW = [2, 15, 31, 32, 33, 63, 128]
NARROW = (4, 5, 7, 2)
"""Heads, head dim, state dim, groups: P and N differ, and neither fills a tile."""
DIMS = [NARROW, (2, 33, 20, 2), (3, 16, 33, 1)]
COUNTS = [*QUICK, *(pytest.param(count, marks=pytest.mark.slow) for count in SLOW)]


def comb(count: int, rows: int = 2) -> Tensor:
    """A chain with a leaf at every node."""
    return torch.tensor([[-1] + [max(i - 2 + i % 2, 0) for i in range(count - 1)]] * rows)


TREES = {**SHAPES, "comb": comb}
each_dtype = pytest.mark.parametrize("dtype", [F32, BF16], ids=["float32", "bfloat16"])
slow_in_bfloat16 = pytest.mark.parametrize(
    "dtype", [F32, pytest.param(BF16, marks=pytest.mark.slow)], ids=["float32", "bfloat16"]
)
each_dims = pytest.mark.parametrize(
    "dims", [NARROW, *(pytest.param(d, marks=pytest.mark.slow) for d in DIMS[1:])], ids=str
)


def rounded(values: Inputs, dtype: torch.dtype) -> Inputs:
    """x, B and C in a model's dtype; steps, rates, skip and state stay in float32."""
    return Inputs(**{k: v.to(dtype) if k in ("x", "B", "C") else v for k, v in vars(values).items()})


def scan(v: Inputs, ancestors: Tensor, skip: bool = True) -> Tensor:
    return mamba2_scan.tree_scan(v.x, v.dt, v.A, v.B, v.C, v.D if skip else None, v.state, ancestors)


def exact(values: Inputs, ancestors: Tensor, skip: bool = True) -> Tensor:
    v = values.to(F64)
    return mamba2_scan.naive.tree_scan(v.x, v.dt, v.A, v.B, v.C, v.D if skip else None, v.state, ancestors)


def test_triton_serves() -> None:
    for dtype in (F32, BF16):
        assert choice.decide(DEVICE.type, dtype).form == "triton"
    assert choice.decide(DEVICE.type, F64).form == "naive"


@pytest.mark.parametrize("count", COUNTS)
def test_tree_scan(count: int) -> None:
    """Every tree with another layout of heads, with and without skip, in both dtypes; rows have different trees."""
    for i, shape in enumerate(TREES):
        values = rounded(problem(count, DIMS[(i + count) % 3]), (F32, BF16)[i % 2])
        ancestors, before = Topology(TREES[shape](count)).ancestors, values.state.clone()
        ours = scan(values, ancestors, skip=i != 1)
        assert ours.dtype == F32
        assert error(ours, exact(values, ancestors, skip=i != 1)) < TOLERANCE[F32], shape  # float32 inside in any case
        assert torch.equal(values.state, before)


@each_dims
@each_dtype
def test_tree_scan_of_every_layout_of_heads(dims: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    values, ancestors = rounded(problem(13, dims), dtype), Topology(TREES["random"](13)).ancestors
    assert error(scan(values, ancestors), exact(values, ancestors)) < TOLERANCE[F32]


def test_every_form_of_the_skip() -> None:
    check_skips(NARROW)


def test_tree_scan_from_nothing() -> None:
    values, ancestors = problem(13, NARROW), Topology(TREES["random"](13)).ancestors
    values.state.zero_()
    assert error(scan(values, ancestors), exact(values, ancestors)) < TOLERANCE[F32]


def test_tree_scan_reads_views_of_one_projection() -> None:
    """A mixer hands over slices of the conv's output: nodes do not lie next to each other."""
    values, ancestors = problem(13, (4, 8, 16, 1)), Topology(TREES["random"](13)).ancestors
    mixed = torch.cat([values.x.flatten(2), values.B.flatten(2), values.C.flatten(2)], dim=-1)
    x, B, C = mixed.split([32, 16, 16], dim=-1)
    views = Inputs(
        **{**vars(values), "x": x.unflatten(-1, (4, 8)), "B": B[:, :, None], "C": C[:, :, None]},
    )
    assert not views.x.is_contiguous()
    assert torch.equal(scan(views, ancestors), scan(values, ancestors))


@pytest.mark.parametrize("size", [0.0, 1e-8, 30.0, 1e6])
def test_extreme_step_sizes(size: float) -> None:
    """Between branches the exponent is positive and as large as the steps: it must be masked, not multiplied by 0."""
    values = problem(17, NARROW)
    values.dt[:, 1::3] = size
    ancestors = Topology(TREES["random"](17)).ancestors
    largest = (ancestors.double() @ (values.dt * values.A).double()).abs().max().item()
    assert error(scan(values, ancestors), exact(values, ancestors)) < TOLERANCE[F32] + torch.finfo(F32).eps * largest


@pytest.mark.parametrize(
    "value", [torch.nan, *(pytest.param(v, marks=pytest.mark.slow) for v in (torch.inf, -torch.inf))]
)
def test_what_is_not_finite_stays_on_its_path(value: float) -> None:
    ancestors = Topology(TREES["random"](17)).ancestors
    clean = scan(problem(17, NARROW), ancestors)
    for where in ("x", "dt", "B", "C"):
        values = problem(17, NARROW)
        getattr(values, where)[:, 3] = value
        broken = scan(values, ancestors)
        for row in range(2):
            elsewhere = ~ancestors[row, :, 3]
            assert torch.equal(broken[row, elsewhere], clean[row, elsewhere]), where


def test_padding_nodes_are_inert() -> None:
    """Padding has parent 0 and is never a parent: the nodes before it get the same bits without it."""
    values, parents = problem(16, NARROW), TREES["random"](16)
    parents[:, 13:] = 0
    whole = scan(values, Topology(parents).ancestors)
    fewer = Inputs(**{k: v[:, :13] if k in ("x", "dt", "B", "C") else v for k, v in vars(values).items()})
    assert torch.equal(whole[:, :13], scan(fewer, Topology(parents[:, :13]).ancestors))


@pytest.mark.parametrize("count", COUNTS)
@each_dtype
def test_tree_conv(dtype: torch.dtype, count: int) -> None:
    for channels, width, with_bias, activation in ((7, 4, True, "silu"), (130, 3, False, None)):
        x, window = normal(2, count, channels).to(dtype).mT, normal(2, channels, width).to(dtype)
        weight, bias = normal(channels, width, seed="w").to(dtype), normal(channels).to(dtype) if with_bias else None
        index = Topology(TREES["random"](count)).windows(width)
        ours = causal_conv.tree_conv(x, window, index, weight, bias, activation)
        assert ours.dtype == dtype
        wide = [each if each is None else each.double() for each in (x, window, weight, bias)]
        reference = causal_conv.naive.tree_conv(wide[0], wide[1], index, wide[2], wide[3], activation)
        assert error(ours, reference) < CUT_TWICE[dtype]


def test_the_conv_rounds_where_plain_torch_rounds() -> None:
    """Before the activation. In float16, since the interpreter cuts bfloat16 off where GPUs round to the nearest.

    What may differ is the order of a sum, which seldom changes what is rounded.
    """
    x, window, weight = (normal(*shape).half() for shape in ((2, 16, 64), (2, 64, 4), (64, 4)))
    index = Topology(TREES["random"](16)).windows(4)
    ours = causal_conv.tree_conv(x.mT, window, index, weight, None, "silu")
    plain = causal_conv.naive.tree_conv(x.mT, window, index, weight, None, "silu")
    assert (ours != plain).float().mean() < 0.02


def test_a_broken_input_reaches_its_descendants_alone() -> None:
    parents = torch.tensor([[-1, 0, 0, 1, 2, 3]])
    x = normal(1, 6, 5)
    x[:, 1] = torch.nan
    index = Topology(parents).windows(4)
    y = causal_conv.tree_conv(x.mT, normal(1, 5, 4), index, normal(5, 4, seed="w"), None, "silu")
    assert y.mT.isfinite().all(-1)[0].tolist() == [True, False, True, False, True, False]


def jumped(dtype: torch.dtype, dims: tuple[int, int, int, int], path: list[list[int]], **flags: Any) -> None:
    """Jump two layers and rows, and compare with plain torch in float64, node after node."""
    heads, head_dim, state_dim, groups = dims
    layers, rows, count, width, shared = 2, len(path), 8, 4, flags.get("shared", 1)
    sizes = [heads * head_dim // shared, groups * state_dim // shared, groups * state_dim]
    needed, channels = sum(sizes[:2]), sum(sizes)
    windows, raw = normal(layers, rows, channels, width).to(dtype), normal(layers, rows, count, channels).to(dtype)
    states, dt = normal(layers, rows, heads, head_dim, state_dim), 3 * normal(layers, rows, count, heads).to(dtype)
    weight, bias = normal(layers, channels, width, seed="w").to(dtype), normal(layers, channels, seed="b").to(dtype)
    A, dt_bias = -normal(layers, heads).exp(), normal(layers, heads, seed="dt").to(dtype)
    with_bias, softplus, silu = flags["bias"], flags["softplus"], flags["silu"]
    expected = (windows.double(), states.double())
    places = (windows.data_ptr(), states.data_ptr())
    assert mamba2_scan.path_jump_serves(windows, states, weight, A, shared=shared)
    mamba2_scan.path_jump_(
        *(windows, states, raw, dt, torch.tensor(path)),
        weight[:, :needed].permute(2, 0, 1).contiguous()[:, :, None, None],
        bias[:, None, None, :needed].contiguous() if with_bias else None,
        *(A[:, None, None], dt_bias[:, None, None] if with_bias else None),
        groups=groups,
        shared=shared,
        softplus=softplus,
        silu=silu,
    )
    assert places == (windows.data_ptr(), states.data_ptr())
    for i in range(layers):
        for row, nodes in enumerate(path):
            for node in [node for node in nodes if node >= 0]:
                one = slice(row, row + 1)
                mixed = causal_conv.naive.step_conv_(
                    expected[0][i, one],
                    raw[i, one, node].double(),
                    weight[i].double(),
                    bias[i].double() if with_bias else None,
                    "silu" if silu else None,
                )
                x, B, _ = mixed.split(sizes, dim=-1)
                steps = mamba2_scan.discretize(
                    dt[i, one, node].double(), dt_bias[i] if with_bias else None, (0.0, float("inf")), softplus
                )
                B = B.unflatten(-1, (-1, state_dim)).repeat_interleave(shared, dim=1)
                x = x.unflatten(-1, (-1, head_dim)).repeat_interleave(shared, dim=1)
                mamba2_scan.naive.step_(expected[1][i, one], x, steps, A[i].double(), B, B, None)
    assert torch.equal(windows.double(), expected[0])
    # A state adds products of two such values.
    assert error(states, expected[1]) < (TOLERANCE[dtype] if dtype == F32 else 2 * CUT_TWICE[dtype])


@each_dims
@slow_in_bfloat16
def test_a_jump_is_steps_along_the_path(dims: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    """Rows of different length, shorter and longer than the window."""
    jumped(dtype, dims, [[0, 2, -1, -1, -1], [0, 1, 3, 4, 6]], bias=True, softplus=True, silu=True)


def test_heads_that_share_channels() -> None:
    """As in MambaInLlama: x and B once for two heads, and a group per head."""
    jumped(F32, (4, 5, 7, 4), [[0, 1, -1]], bias=True, softplus=True, silu=True, shared=2)


def test_a_jump_without_bias_activation_and_softplus() -> None:
    jumped(F32, NARROW, [[0]], bias=False, softplus=False, silu=False)


def test_a_jump_along_nothing_moves_nothing() -> None:
    jumped(F32, NARROW, [[-1, -1], [0, -1]], bias=True, softplus=True, silu=True)


def test_step_sizes_of_a_jump_far_out() -> None:
    """exp(dt A) with A = -1 and x = 0 shows the step size itself: softplus over all of its range, small ones too."""
    raw = torch.tensor([-80.0, -20.0, -10.0, -1.0, 0.0, 5.0, 19.9, 20.1, 60.0])
    heads = len(raw)
    states, windows = torch.zeros(1, 1, heads, 1, 1), torch.ones(1, 1, heads + 2, 2)
    inputs, path = torch.ones(1, 1, 1, heads + 2), torch.tensor([[0]])
    weight = torch.ones(2, 1, heads + 1) / 2
    mamba2_scan.path_jump_(
        *(windows, states, inputs, raw.view(1, 1, 1, heads), path, weight, None, -torch.ones(1, heads), None),
        **dict(groups=1, softplus=True, silu=False),
    )
    torch.testing.assert_close(
        states.view(-1).double(), torch.nn.functional.softplus(raw.double()), rtol=1e-6, atol=1e-38
    )


def check_decoding(model: PreTrainedModel) -> None:
    """Scan, conv and jump together; loading compares a tree and a commit with the stock model's own steps."""
    prompt = torch.arange(5, 17)[None]
    answers = [
        load(model, "ngram", mode, **settings).generate(prompt, max_new_tokens=6, ignore_eos=True).tokens
        for mode, settings in (("naive", {}), ("stree", {"tree": "2,1"}))
    ]
    assert answers[0] == answers[1]


@pytest.mark.slow
def test_a_model_decodes_the_same() -> None:
    check_decoding(toy_model("mamba2"))
