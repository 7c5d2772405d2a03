"""The Triton kernels as a GPU runs them: the tests that run in Triton's interpreter elsewhere, compiled."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "tests" / "kernels").glob("interpreted*.py"))
SANITIZER = shutil.which("compute-sanitizer")

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def run(file: Path, *before: str, **environment: str) -> None:
    """All tests of ``file`` that are not slow, in a process of their own that makes its tensors on the GPU."""
    own = {**os.environ, "SPECDECODES_TEST_DEVICE": "cuda", "SPECDECODES_KERNELS": "triton", **environment}
    own.pop("TRITON_INTERPRET", None)
    # Dynamo does not trace through what puts tensors onto the GPU; captured decodes are compiled in their own tests.
    chosen = ("-m", "not slow", "-k", "not it_is_compiled")
    command = [*before, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, str(file)]
    done = subprocess.run(command, env=own, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert re.search(r"\d+ passed", done.stdout) and "skipped" not in done.stdout


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_values(file: Path) -> None:
    run(file)


@pytest.mark.slow
@pytest.mark.skipif(SANITIZER is None, reason="compute-sanitizer is not installed")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_kernel_reads_or_writes_outside_its_tensors(file: Path) -> None:
    """Every tensor has memory of its own, so that one byte too far is seen."""
    assert SANITIZER is not None
    check = (SANITIZER, "--tool", "memcheck", "--target-processes", "all", "--error-exitcode", "9")
    run(file, *check, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
