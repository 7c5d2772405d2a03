"""A pending path and a tree in one pass, in Triton's interpreter: see ``interpreted.py`` for how this file is run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from specdecodes import Target, Tree
from specdecodes.core.tree import Topology
from specdecodes.kernels import causal_conv, mamba2_scan
from specdecodes.models.recurrences.mamba2 import PENDING
from specdecodes.plugins.states.copy import StateCopy
from specdecodes.plugins.states.reforward import Reforward
from specdecodes.testing import toy_model
from specdecodes.testing.toys import toy_prompt

from ..models.test_captured import graphs, pair
from ..models.test_one_graph import addresses, compiling, random_step
from .interpreted import COUNTS, CUT_TWICE, DIMS, F32, TOLERANCE, TREES, each_dims, each_dtype, rounded
from .paths import error
from .test_native import _poisoned, normal, problem  # noqa: F401 - an autouse fixture: what is not written is nan

LENGTHS = torch.tensor([0, 3, PENDING])
"""Nothing pending, a path shorter than the window, as many nodes as fit: a row each."""
ROWS = len(LENGTHS)
ROOT = Tree(torch.tensor([[5]]), torch.tensor([[-1]]))


def behind(length: Tensor, values: Tensor) -> Tensor:
    """``values`` [B, M, ...] of pending paths, with nan where nothing is pending."""
    there = torch.arange(PENDING) < length[:, None]
    return values.masked_fill(~there.view(*there.shape, *[1] * (values.ndim - 2)), float("nan"))


@pytest.mark.parametrize("count", COUNTS)
@each_dtype
def test_the_conv(dtype: torch.dtype, count: int) -> None:
    """Window, path and tree against one token after the other in float64."""
    for channels, width, with_bias, activation in ((7, 4, True, "silu"), (130, 3, False, None)):
        x, window = normal(ROWS, count, channels).to(dtype), normal(ROWS, channels, width).to(dtype)
        inputs = behind(LENGTHS, normal(ROWS, PENDING, channels, seed="path").to(dtype))
        weight, bias = normal(channels, width, seed="w").to(dtype), normal(channels).to(dtype) if with_bias else None
        index = Topology(TREES["random"](count, ROWS)).windows(width)
        place, wide = window.data_ptr(), [None if each is None else each.double() for each in (weight, bias)]
        after, on_path = window.double(), []
        for row, length in enumerate(LENGTHS.tolist()):
            steps = (inputs[row, d].double()[None] for d in range(length))
            one = slice(row, row + 1)
            on_path.append([causal_conv.naive.step_conv_(after[one], step, *wide, activation)[0] for step in steps])
        expected = causal_conv.naive.tree_conv(x.double().mT, after, index, *wide, activation)
        y, path = causal_conv.replay_conv_(x.mT, window, index, weight, bias, activation, inputs, LENGTHS)
        assert y.dtype == path.dtype == dtype
        assert error(y, expected) < CUT_TWICE[dtype]
        assert window.data_ptr() == place and torch.equal(window.double(), after)
        for found, wanted in zip(path, on_path, strict=True):
            if wanted:
                assert error(found[: len(wanted)], torch.stack(wanted)) < CUT_TWICE[dtype]


def replayed(
    count: int, dims: tuple[int, int, int, int], dtype: torch.dtype, shape: str = "random", **flags: Any
) -> None:
    """Move states along pending paths and scan a tree; compare with one token after the other in float64."""
    heads, head_dim, state_dim, groups = dims
    shared, with_bias, softplus = flags.get("shared", 1), flags.get("bias", True), flags.get("softplus", True)
    values = rounded(problem(count, dims, ROWS), dtype)
    sizes = [heads * head_dim // shared, groups * state_dim // shared, groups * state_dim]
    path = behind(LENGTHS, normal(ROWS, PENDING, sum(sizes), seed="path").to(dtype))
    raw = behind(LENGTHS, flags.get("raw", 3 * normal(ROWS, PENDING, heads, seed="dt")))
    dt_bias = normal(heads, seed="bias").to(dtype) if with_bias else None
    ancestors, exact = Topology(TREES[shape](count, ROWS)).ancestors, values.to(torch.float64)
    for row, length in enumerate(LENGTHS.tolist()):
        for d in range(length):
            x, B, _ = path[row, d].double()[None].split(sizes, dim=-1)
            x, B = x.unflatten(-1, (-1, head_dim)), B.unflatten(-1, (-1, state_dim))
            x, B = x.repeat_interleave(shared, 1), B.repeat_interleave(shared, 1)
            steps = mamba2_scan.discretize(raw[row, d].double()[None], dt_bias, (0.0, float("inf")), softplus)
            mamba2_scan.naive.step_(exact.state[row : row + 1], x, steps, exact.A, B, B, None)
    given = (exact.x, exact.dt, exact.A, exact.B, exact.C, exact.D, exact.state, ancestors)
    expected, place = mamba2_scan.naive.tree_scan(*given), values.state.data_ptr()
    y = mamba2_scan.replay_scan_(
        *(values.x, values.dt, values.A, values.B, values.C, values.D, values.state, ancestors),
        *(path, raw, LENGTHS, dt_bias),
        shared=shared,
        softplus=softplus,
    )
    assert values.state.data_ptr() == place and y.dtype == F32
    assert error(values.state, exact.state) < TOLERANCE[F32]  # float32 inside whatever the model's dtype is
    assert error(y, expected) < TOLERANCE[F32]


@pytest.mark.parametrize("count", COUNTS)
def test_the_scan(count: int) -> None:
    """Every tree with another layout of heads, in both dtypes."""
    for i, shape in enumerate(TREES):
        replayed(count, DIMS[(i + count) % 3], (F32, torch.bfloat16)[i % 2], shape)


@each_dims
@each_dtype
def test_the_scan_of_every_layout_of_heads(dims: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    replayed(13, dims, dtype)


def test_heads_that_share_channels() -> None:
    """As in MambaInLlama: x and B once for two heads, and a group per head."""
    replayed(13, (4, 5, 7, 4), F32, shared=2)


def test_without_bias_and_softplus() -> None:
    replayed(2, DIMS[0], F32, bias=False, softplus=False, raw=normal(ROWS, PENDING, DIMS[0][0]).abs())


def test_step_sizes_far_out() -> None:
    raw = torch.tensor([-80.0, 0.0, 19.9, 60.0]).expand(ROWS, PENDING, -1)
    replayed(13, DIMS[0], F32, raw=raw, bias=False)


def spread(values: Tensor) -> Tensor:
    """The same values, with others between them."""
    wide = torch.stack([values, values + 1], dim=-1)
    return wide[..., 0]


def test_inputs_that_do_not_lie_together() -> None:
    """And a path of at most 3 nodes, which is no power of two."""
    x, window, weight = normal(2, 5, 6), normal(2, 6, 4), normal(6, 4, seed="w")
    inputs, length = normal(2, 3, 6, seed="path"), torch.tensor([2, 3])
    index, other = Topology(TREES["random"](5, 2)).windows(4), window.clone()
    expected = causal_conv.naive.replay_conv_(x.mT, other, index, weight, None, "silu", inputs, length)
    found = causal_conv.replay_conv_(x.mT, window, index, weight, None, "silu", spread(inputs), spread(length))
    assert error(found[0], expected[0]) < 1e-5 and error(found[1][:, :2], expected[1][:, :2]) < 1e-5
    assert torch.equal(window, other)
    v, dims = problem(5, DIMS[0]), DIMS[0]
    heads, head_dim, state_dim, groups = dims
    path, raw, bias = normal(2, 3, heads * head_dim + 2 * groups * state_dim), normal(2, 3, heads), normal(heads)
    ancestors, state = Topology(TREES["random"](5)).ancestors, v.state.clone()
    tree = (v.x, v.dt, v.A, v.B, v.C, v.D)
    flags: dict[str, Any] = dict(shared=1, softplus=True)
    y = mamba2_scan.naive.replay_scan_(*tree, state, ancestors, path, raw, length, bias, **flags)
    apart = (spread(each) for each in (path, raw, length, bias))
    assert error(mamba2_scan.replay_scan_(*tree, v.state, ancestors, *apart, **flags), y) < 1e-5
    assert error(v.state, state) < 1e-5


def compared(ours: Target, other: Target, *trees: Tree) -> None:
    for tree in trees:
        found, expected = (each.score(tree) for each in (ours, other))
        assert float((found - expected).abs().max()) < 1e-4


def deferring(family: str, **settings: Any) -> tuple[Target, Target]:
    """A target whose commits wait for the next score, and one that runs accepted paths again, after a prompt."""
    model = toy_model(family)
    both = Target(model, **settings), Target(model, backend=Reforward())
    for each in both:
        each.prefill(toy_prompt(20))
    assert [stack.pending is not None for stack in both[0].stacks] == [True]
    assert all(stack.pending is None for stack in both[1].stacks)
    return both


def test_a_commit_waits_for_the_next_score() -> None:
    both = deferring("bamba")
    before = both[0].stacks[0].states.clone()
    for seed in range(3):
        tree, path = random_step(9, seed)
        compared(*both, tree, tree)  # scoring twice gives the same
        if seed == 1:
            assert not torch.equal(both[0].stacks[0].states, before), "the second score was to move the state"
        for each in both:
            each.commit(path)
        if seed == 0:
            assert torch.equal(both[0].stacks[0].states, before), "the commit was to leave the state alone"


def test_every_other_reader_brings_the_states_up_to_date() -> None:
    both = deferring("bamba")
    ours, other = both
    tree, path = random_step(9, 1)
    assert path.shape[1] > 1

    def commit() -> None:
        compared(ours, other, tree)
        for each in both:
            each.commit(path)

    commit()
    ours.flush()
    ours.flush()
    for found, expected in zip(ours.stacks, other.stacks, strict=True):
        assert error(found.states, expected.states) < 1e-5 and error(found.windows, expected.windows) < 1e-5
    commit()
    for each in both:
        each.step_in_place = True
    for _ in range(2):  # a step in place
        compared(ours, other, ROOT)
        for each in both:
            each.commit(torch.tensor([[0]]))
    commit()
    for each in both:
        with torch.inference_mode():
            each.run_again(torch.tensor([[3, 4]]))
        each.cache.length += 2
    commit()
    for each in both:
        each.prefill(toy_prompt(12))  # forgets what was pending
    compared(ours, other, tree)


def test_a_path_that_is_too_long_to_wait_is_run_at_once() -> None:
    ours, other = deferring("mamba2")
    count = PENDING + 2
    chain = Tree(torch.randint(3, 40, (1, count)), torch.arange(-1, count - 1)[None])
    for length in (3, count, 2):
        compared(ours, other, chain)
        for each in (ours, other):
            each.commit(torch.arange(length)[None])
    compared(ours, other, chain)


def test_a_score_that_was_broken_off_is_not_repeated() -> None:
    """Some layers have moved along the path and others have not: nothing but a new prompt can help."""
    ours, other = deferring("mamba2")
    tree, path = random_step(9, 1)
    compared(ours, other, tree)
    for each in (ours, other):
        each.commit(path)
    head = ours.model.get_output_embeddings()

    def refuse(*_: Any) -> None:
        raise MemoryError("no room for these logits")

    handle = head.register_forward_pre_hook(refuse)
    with pytest.raises(MemoryError):
        ours.score(tree)
    handle.remove()
    with pytest.raises(RuntimeError, match="no prompt has been prefilled"):
        ours.score(tree)
    for each in (ours, other):
        each.prefill(toy_prompt(12))
    compared(ours, other, tree)


def test_another_back_end_takes_over_what_is_pending() -> None:
    ours, other = deferring("mamba2")
    for seed, backend in enumerate((None, StateCopy(), None)):
        ours.backend = backend or ours.backend
        tree, path = random_step(9, seed)
        compared(ours, other, tree)
        for each in (ours, other):
            each.commit(path)


def test_it_is_captured() -> None:
    """Recording runs a score several times, and the path is pending once."""
    ours, eager = pair("bamba", backend=None)
    for each in (ours, eager):
        each.prefill(toy_prompt(20))
    for seed, nodes in enumerate((7, 5, 7)):  # the second graph is recorded while a path is pending
        tree, path = random_step(nodes, seed)
        compared(ours, eager, tree)
        for each in (ours, eager):
            each.commit(path)
    assert graphs(ours._forward_tree) == 2


def test_it_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiling(monkeypatch, counter)
    ours, other = deferring("mamba2", compile=True, max_length=200)
    places = addresses(ours)
    for seed in range(3):
        tree, path = random_step(7, seed)
        compared(ours, other, tree)
        for each in (ours, other):
            each.commit(path)
    assert counter.frame_count == 1 and addresses(ours) == places
