"""The Triton kernels: values in Triton's interpreter, and compilation for GPUs that are not here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")  # on Linux and x86-64 it is a dependency

from specdecodes.benchmark import compile_kernels as aot

from .on_device import OnDevice

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
INTERPRETED = sorted(HERE.glob("interpreted*.py"))
REPORT = ROOT / "benchmark" / "results" / "kernels-aot.json"


def _interpreted(*arguments: str, **environment: str) -> str:
    """Run what is interpreted in a process of its own and expect it to pass; returns the summary."""
    own = {**os.environ, "TRITON_INTERPRET": "1", "SPECDECODES_KERNELS": "triton", **environment}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *map(str, INTERPRETED)]
    done = subprocess.run([*command, *arguments], env=own, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout
    return done.stdout


@pytest.mark.slow
def test_values_of_small_trees() -> None:
    found = re.search(r"(\d+) passed", _interpreted("-m", "not slow"))
    assert found and int(found[1]) >= 25


@pytest.mark.slow
def test_values_of_large_trees() -> None:
    found = re.search(r"(\d+) passed", _interpreted("-m", "slow"))
    assert found and int(found[1]) >= 20


def _compile(cases: list[aot.Case]) -> None:
    problems = [
        f"{case.name} {case.constants} sm_{capability}: {problem}"
        for case in cases
        for capability in aot.SHARED_LIMIT
        if (problem := aot.too_much(aot.compiled(case, capability)))
    ]
    assert not problems, "\n".join(problems)


def test_one_configuration_of_every_kernel_compiles() -> None:
    first = {case.name: case for case in reversed(list(aot.cases()))}
    scans = {"tree_scan", "replay_scan", "s6_tree_scan", "delta_tree_scan"}
    jumps = {"jump_states", "jump_windows", "s6_jump", "delta_jump"}
    others = {"tree_conv", "replay_conv", "kv_gather", "attention_piece", "attention_merge"}
    assert set(first) == scans | jumps | others
    _compile(list(first.values()))


@pytest.mark.slow
def test_every_configuration_compiles() -> None:
    _compile(list(aot.cases()))


def test_too_much_is_told() -> None:
    row = {"capability": 80, "spilled_bytes": 0, "shared_bytes": 0}
    assert aot.too_much(row) is None
    assert f"spills {aot.SPILL_LIMIT + 8} bytes" in str(aot.too_much({**row, "spilled_bytes": aot.SPILL_LIMIT + 8}))
    assert "166913 bytes of shared" in str(aot.too_much({**row, "shared_bytes": 166913}))


def test_the_report_is_of_the_kernels_that_there_are() -> None:
    rows = json.loads(REPORT.read_text(encoding="utf-8"))["rows"]
    found = [(row["kernel"], row["capability"], row["settings"]) for row in rows]
    expected: list[tuple[object, ...]] = [
        (case.name, capability, {**case.constants, **case.options})
        for case in aot.cases()
        for capability in aot.SHARED_LIMIT
    ]
    assert found == expected
    assert all(aot.too_much(row) is None for row in rows)


def test_the_command_refuses_the_interpreter(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(aot.triton.knobs.runtime, "interpret", True)
    assert aot.main([]) == 2
    assert "TRITON_INTERPRET: expected 0" in capsys.readouterr().err


def test_tests_can_make_their_tensors_elsewhere() -> None:
    """As ``tests/cuda`` has the interpreted files do it, with the numbers that they have here."""
    elsewhere = torch.device("meta")
    generator = torch.Generator().manual_seed(3)
    with OnDevice(elsewhere):
        made = [torch.zeros(2), torch.tensor([1]), torch.arange(3), torch.randn(4, generator=generator)]
        stays = torch.tensor([1], device="cpu")
    assert [each.device for each in made] == [elsewhere] * 4 and stays.device.type == "cpu"
    here = torch.Generator().manual_seed(3)
    torch.randn(4, generator=here)
    assert torch.equal(torch.randn(2, generator=generator), torch.randn(2, generator=here))
