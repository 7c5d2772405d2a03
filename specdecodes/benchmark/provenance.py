"""Where a number comes from: command, commit, versions, hardware."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import specdecodes
from specdecodes.benchmark.journal import replace_json

PACKAGES = ("torch", "transformers", "tokenizers", "triton")


def provenance(command: Sequence[str], device: torch.device) -> dict[str, Any]:
    """Describe this process as plain JSON values.

    Args:
        command: the command line, program first.
        device: where the models run.
    """
    return {
        "command": shlex.join(command),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": commit(),
        "versions": versions(),
        "hardware": hardware(device),
    }


def write_measurement(
    path: Path,
    module: str,
    argv: Sequence[str] | None,
    found: Mapping[str, Any],
    device: torch.device = torch.device("cpu"),  # noqa: B008 - a constant
) -> None:
    """Write what ``python -m module argv`` has ``found`` on a device, with where it comes from (None: sys.argv)."""
    command = ["python", "-m", module, *(sys.argv[1:] if argv is None else argv)]
    replace_json(path, {**provenance(command, device), **found})


def commit() -> dict[str, Any] | None:
    """The commit of the checkout that the package is imported from, and whether files differ from it; else None."""
    here = Path(specdecodes.__file__).parent
    head = _git(here, "rev-parse", "HEAD")
    # An environment folder inside somebody else's checkout is not this package's source.
    if head is None or _git(here, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return {"id": head, "dirty": bool(_git(here, "status", "--porcelain", "--", "."))}


def versions() -> dict[str, str]:
    """Versions of Python, of this package, and of what the numbers depend on."""
    found = {"python": platform.python_version(), "specdecodes": specdecodes.__version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware(device: torch.device) -> dict[str, Any]:
    """Processor, cores, threads, memory, and the GPU where the models run on one; no host name."""
    affinity = getattr(os, "sched_getaffinity", None)
    found = {
        "cpu": _cpu_name(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": _memory_gb(),
        "device": str(device),
    }
    if device.type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return found


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None
