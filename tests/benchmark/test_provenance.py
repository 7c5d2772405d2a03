"""Where numbers come from, and the peak of memory."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import specdecodes
from specdecodes.benchmark.memory import PeakMemory, peak_resident
from specdecodes.benchmark.provenance import commit, provenance

CPU = torch.device("cpu")

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository that holds the package, as far as the package's file can tell."""
    package = tmp_path / "specdecodes"
    package.mkdir()
    (package / "__init__.py").write_text("")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    monkeypatch.setattr(specdecodes, "__file__", str(package / "__init__.py"))
    return package


@needs_git
def test_the_commit_and_whether_files_differ_from_it(checkout: Path) -> None:
    found = commit()
    assert found is not None
    assert re.fullmatch("[0-9a-f]{40}", found["id"])
    assert found["dirty"] is False
    (checkout / "new.py").write_text("")
    assert commit() == {"id": found["id"], "dirty": True}


@needs_git
def test_a_package_installed_inside_another_checkout_has_no_commit(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = checkout.parent / "env" / "specdecodes"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    monkeypatch.setattr(specdecodes, "__file__", str(installed / "__init__.py"))
    assert commit() is None


def test_provenance_is_plain_and_complete() -> None:
    found = provenance(["python", "-m", "x", "a b"], CPU)
    assert found["command"] == "python -m x 'a b'"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", found["started"])
    assert {"python", "specdecodes", "torch", "transformers"} <= found["versions"].keys()
    assert found["hardware"].keys() >= {"cpu", "cores", "threads", "memory_gb", "device"}
    assert found["hardware"]["cores"] >= 1


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux resets its high-water mark")
def test_the_peak_starts_over() -> None:
    memory = PeakMemory(CPU)
    memory.reset()
    before = memory.read()
    big = torch.ones(512 << 20, dtype=torch.uint8)  # far more than what earlier tests may give back meanwhile
    assert memory.read() >= before + (256 << 20)
    del big
    memory.reset()
    assert memory.read() < before + (256 << 20)
    assert peak_resident() >= before - (16 << 20)  # what other tests held may have been given back meanwhile
