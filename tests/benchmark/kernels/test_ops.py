"""Every op in every form that runs here, on tiny models: it is called, it is right, and it is timed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from specdecodes.benchmark.kernels import measure, problems, recurrent, timing
from specdecodes.benchmark.kernels.costs import Cost
from specdecodes.benchmark.kernels.measure import Case, cases, forms_of, measured, predicted
from specdecodes.benchmark.kernels.ops import FORMS, OPS, forced, path_lengths
from specdecodes.benchmark.kernels.problems import Problem, Where, topology
from specdecodes.benchmark.kernels.timing import PUBLISHED, Roofline, measure_roofline, published, timed
from specdecodes.benchmark.shapes import SHAPES
from specdecodes.kernels import choice, native
from specdecodes.kernels.switch import SWITCH

from .conftest import TINY

CPU = torch.device("cpu")
F32, BF16 = (Where(CPU, dtype, context=20) for dtype in (torch.float32, torch.bfloat16))
FLAT = Roofline(bandwidth=1e9, peak=1e10, launch=1e-6, source="made up")
SHAPES_OF = {
    "mamba2_tree": {"bamba", "mamba_in_llama"},
    "mamba2_commit": {"bamba", "mamba_in_llama"},
    "mamba2_replay_tree": {"bamba", "mamba_in_llama"},
    "mamba2_defer": {"bamba", "mamba_in_llama"},
    "mamba2_step": {"bamba", "mamba_in_llama"},
    "replay_conv": {"bamba", "mamba_in_llama"},
    "tree_conv": {"bamba", "mamba_in_llama", "mamba", "qwen3_next", "kimi_linear"},
    "gated_delta_tree": {"qwen3_next"},
    "gated_delta_commit": {"qwen3_next"},
    "kimi_delta_tree": {"kimi_linear"},
    "kimi_delta_commit": {"kimi_linear"},
    "s6_tree": {"mamba"},
    "linear": set(TINY),
    "lm_head": set(TINY),
    "kv_gather": {"bamba", "mamba_in_llama", "qwen3_next", "llama"},
    "tree_attention": {"bamba", "mamba_in_llama", "qwen3_next", "llama"},
}


def plan(*ops: str, counts: tuple[int, ...] = (13,)) -> list[Case]:
    return cases([f"tiny-{family}" for family in TINY], ops or list(OPS), counts)


def test_every_op_finds_its_shapes() -> None:
    found = {op: {case.shape.removeprefix("tiny-") for case in plan(op)} for op in OPS}
    assert found == SHAPES_OF


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("where", [F32, BF16], ids=["float32", "bfloat16"])
def test_every_form_is_called_and_right(op: str, where: Where, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MOST_COPIES", 2)
    limit = 2e-5 if where is F32 else 3e-2
    for case in plan(op, counts=(1, 13)):
        forms = forms_of(case, where, FORMS[:2])
        assert forms[0] == "naive"
        for form in forms:
            row = measured(case, where, form, FLAT, repeats=2)
            assert row.form == form and row.copies == 2 and not row.note
            assert row.error is not None and row.error < limit, (case, form)
            assert row.seconds is not None and 0 < row.least <= row.seconds <= row.most


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler: there is no such form")
def test_forms_that_run() -> None:
    """Heads that share channels have no C++ replay, Triton needs a GPU, and packed weights serve both dtypes or one."""
    native_in = {case.shape: forms_of(case, F32, FORMS) for case in plan("mamba2_commit")}
    assert native_in == {"tiny-bamba": ["naive", "native"], "tiny-mamba_in_llama": ["naive"]}
    (step,) = plan("mamba2_step")[:1]
    assert forms_of(step, F32, FORMS) == ["naive", "native"] and forms_of(step, BF16, FORMS) == ["naive"]
    assert forms_of(plan("linear")[0], F32, ["native", "triton"]) == ["native"]
    assert forms_of(plan("kv_gather")[0], F32, FORMS) == ["naive"]


def test_forced_forms_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "auto")
    before = choice.decide("cpu", torch.float32)
    with forced("naive"):
        assert choice.decide("cpu", torch.float32).form == "naive" and native.library() is None
    assert os.environ[SWITCH] == "auto" and choice.decide("cpu", torch.float32) == before
    monkeypatch.delenv(SWITCH)
    with forced("naive"):
        pass
    assert SWITCH not in os.environ


def test_the_forms_really_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forced, an op runs the code that it names."""
    called = []
    monkeypatch.setattr(native, "call", lambda name, *_: called.append(name))
    for form, expected in (("naive", []), ("native", ["mamba2_tree_scan"])):
        if form == "native" and native.library() is None:
            continue
        with forced(form):
            problem = recurrent.mamba2_tree(*_given("mamba2_tree", 5))
            problem.run()
        assert called == expected


def _given(op: str, count: int) -> tuple[object, int, Where, problems.Numbers]:
    case = plan(op)[0]
    return OPS[op].takes(SHAPES[case.shape]), count, F32, problems.Numbers(F32, op, count, 0)


def test_numbers_of_trees_and_paths() -> None:
    """Plain decoding's op has one token; moves of rows differ by the length of the path alone."""
    assert [case.nodes for case in plan("mamba2_step", counts=(1, 8, 13))] == [1, 1]
    assert path_lengths((1, 2, 8, 13)) == [1, 2, 4]
    assert [case.nodes for case in cases(["tiny-bamba"], ["mamba2_commit"], (8, 13))] == [8, 13], (
        "a peer reads them all"
    )
    assert topology(5, Where(CPU, torch.float32, chain=True)).parents.tolist() == [[-1, 0, 1, 2, 3]]
    assert topology(64, F32).depths.max() < 20


def test_error() -> None:
    """Relative to the largest value; the worst of several outputs; what is not finite is infinite."""
    exact = torch.tensor([1.0, -4.0])

    def gap(*found: torch.Tensor) -> float:
        return problems.error(Problem(lambda: found, lambda: [exact] * len(found)))

    assert gap(torch.tensor([1.0, -3.0])) == 0.25
    assert gap(exact, torch.tensor([1.0, -4.5])) == 0.125
    assert gap(torch.tensor([float("nan"), -4.0])) == float("inf")


def test_prediction() -> None:
    """1 GB/s, 10 GFLOP/s, 1 us a launch."""
    assert FLAT.predict(Cost(2000, 10, launches=3)) == pytest.approx(2e-6 + 3e-6)
    assert FLAT.predict(Cost(20, 50_000, launches=0)) == pytest.approx(5e-6)
    assert (FLAT.bound(Cost(2000, 10)), FLAT.bound(Cost(20, 50_000))) == ("bytes", "FLOPs")
    row = predicted(
        Case("mamba-in-llama-8b", "mamba2_tree", 13), Where(CPU, torch.bfloat16), published("h200", torch.bfloat16)
    )
    assert (row.bytes, row.seconds, row.bound) == (2_631_465, None, "bytes")
    assert row.predicted_seconds == pytest.approx(2_631_465 / 4.8e12)


def test_every_published_roofline_has_every_dtype() -> None:
    for name in PUBLISHED:
        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
            assert published(name, dtype).peak > 1e13


def test_measured_roofline() -> None:
    found = measure_roofline(CPU, torch.float32, repeats=2, size=2**16)
    assert 1e7 < found.bandwidth < 1e13 and 1e7 < found.peak < 1e14
    assert found.launch is not None and 1e-8 < found.launch < 1e-2


def test_timing_takes_the_median_per_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three repeats of two calls that take 1, 5 and 3 seconds together, after the warm-up."""
    clock = iter([0.0, 1.0, 10.0, 15.0, 20.0, 23.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    called: list[str] = []
    found = timed([lambda: called.append("a"), lambda: called.append("b")], CPU, repeats=3)
    assert (found.seconds, found.least, found.most, found.captured) == (1.5, 0.5, 2.5, False)
    assert called == ["a", "b"] * (timing.WARM_UP + 3)


@pytest.mark.slow
def test_triton_in_its_interpreter() -> None:
    """In a process of its own: the interpreter is chosen before triton is imported."""
    command = [sys.executable, "-m", "specdecodes.benchmark.kernels", "--shape", "embedded", "--tree-size", "2"]
    command += ["--implementation", "triton", "--op", "mamba2_tree", "--op", "tree_conv", "--repeats", "1"]
    found = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("triton") == 2
