"""``specdecodes doctor``: what it says agrees with what runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from specdecodes.cli import main
from specdecodes.cli.doctor import served
from specdecodes.kernels import installed, native
from specdecodes.kernels.choice import Choice, decide

from ..kernels.stand_in import StandIn

OPS = [
    "mamba2 tree scan",
    "mamba2 jump",
    "mamba2 step",
    "tree conv",
    "weight products",
    "prefill conv",
    "prefill attention",
    "tree attention",
]

ONLY_TRITON = ["S6 tree scan and jump", "delta-rule tree scan and jump", "kv gather"]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str) -> str:
        assert main(["doctor", "--device", "cpu", *arguments]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        return captured.out

    return run


def test_every_op_and_version_is_named(said: Any) -> None:
    out = said()
    lines = out.splitlines()
    for name in (*OPS, *ONLY_TRITON, "torch", "transformers", "triton", "CUDA", "C++ compiler", "SPECDECODES_KERNELS"):
        assert sum(line.startswith(f"{name} ") for line in lines) == 1, name
    assert torch.__version__ in out and "ops on cpu in float32:" in lines


def test_json_says_the_same(said: Any) -> None:
    found = json.loads(said("--json"))
    assert found["machine"]["torch"] == torch.__version__
    forms = {each["op"]: each["form"] for each in found["ops"]}
    fast = "naive" if native.library() is None else "native"
    assert {forms[op] for op in OPS[:4]} == {fast}
    assert {forms[op] for op in ("prefill conv", *ONLY_TRITON)} == {"naive"}
    assert all(each["why"] for each in found["ops"])


def test_other_dtypes_have_no_kernels_on_a_cpu(said: Any) -> None:
    found = {each["op"]: each for each in json.loads(said("--dtype", "bfloat16", "--json"))["ops"]}
    assert found["mamba2 tree scan"]["form"] == "naive"
    assert "bfloat16 on cpu" in found["mamba2 tree scan"]["why"]


def test_a_gpu_is_served_by_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    decide.cache_clear()
    try:
        found = {each.op: each for each in served("cuda", torch.bfloat16)}
        assert [found[op].form for op in OPS[:5]] == ["triton", "triton", "naive", "triton", "torch"]
        assert {found[op].form for op in ONLY_TRITON} == {"triton"}
        assert decide("cuda", torch.float64) == Choice("naive", "the Triton kernels have no float64")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
        decide.cache_clear()
        assert "this GPU has 7.5" in decide("cuda", torch.bfloat16).why
    finally:
        decide.cache_clear()


def prefill_attention(device: str, dtype: torch.dtype = torch.bfloat16) -> tuple[str, str]:
    return next((each.form, each.why) for each in served(device, dtype) if each.op == "prefill attention")


def test_prefill_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is transformers' where flash-attn does not serve, and why that is."""
    kernel, stock = replace(installed.ATTENTION), "transformers' sdpa or eager"
    monkeypatch.setattr(installed, "ATTENTION", kernel)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    StandIn(kernel, None, monkeypatch)
    decide.cache_clear()
    try:
        serves = f"flash_attn.flash_attn_func; models with sdpa and without windows. Others: {stock}"
        assert prefill_attention("cuda") == ("flash-attn", serves)
        assert prefill_attention("cpu") == ("torch", f"{stock}; flash-attn is for CUDA")
        why = f"{stock}; flash-attn is less exact in float32"
        assert prefill_attention("cuda", torch.float32) == ("torch", why)
        monkeypatch.setattr(installed, "ATTENTION", replace(kernel))
        monkeypatch.setitem(sys.modules, kernel.module, None)  # as if it were not installed
        assert prefill_attention("cuda") == ("torch", f"{stock}: flash-attn is not installed")
    finally:
        decide.cache_clear()


def test_a_compiler_that_is_missing_is_named(said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert json.loads(said("--json"))["machine"]["C++ compiler"].startswith("no-such-compiler does not run: ")


def test_a_device_that_is_none_is_refused(refused: Any) -> None:
    assert "device: expected 'cpu' or 'cuda[:N]', got 'abacus'" in refused("doctor", "--device", "abacus")


@pytest.mark.parametrize(
    ("switch", "expected"),
    [("naive", "SPECDECODES_KERNELS=naive"), ("triton", "expected 'triton' where it runs"), ("fast", "got 'fast'")],
)
def test_the_switch(switch: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECDECODES_KERNELS", switch)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    decide.cache_clear()
    try:
        if switch == "naive":
            assert decide("cpu", torch.float32) == Choice("naive", expected)
        else:
            with pytest.raises(ValueError, match=r"^SPECDECODES_KERNELS: expected ") as raised:
                decide("cpu", torch.float32)
            assert expected in str(raised.value)
    finally:
        decide.cache_clear()


@pytest.mark.slow
def test_the_interpreter_serves_where_it_is_forced() -> None:
    own = {**os.environ, "SPECDECODES_KERNELS": "triton", "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "specdecodes", "doctor", "--device", "cpu"]
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "SPECDECODES_KERNELS=triton; Triton's interpreter" in done.stdout
