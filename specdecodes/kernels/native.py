"""The C++ kernels for CPUs: compiled once per machine with the system's compiler, called through ctypes.

Every ``native.cpp`` below this folder goes into one library, kept under ``$XDG_CACHE_HOME/specdecodes`` (by default
``~/.cache/specdecodes``) under a name that depends on the sources, the compiler and the processor. Without a compiler
there is no library, and every op has another form. Plain C functions over pointers, so that compiling takes seconds
and no header of torch is needed; OpenMP's runtime is the one that torch has loaded.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specdecodes.kernels.switch import SWITCH, wanted

FLAGS = (
    "-std=gnu++17",
    "-O3",
    "-march=native",
    "-fopenmp",
    "-shared",
    "-fPIC",
    "-fno-math-errno",
    "-fno-trapping-math",
)
TIMEOUT = 300
"""Seconds that compiling may take."""

_log = logging.getLogger(__name__)


LIBRARY = torch.library.Library("specdecodes", "DEF")
"""Where ops are registered that ``torch.compile`` must leave whole; ``torch.library.custom_op`` costs 20 us a call."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library, or None where there is none; compiles it on first use.

    Raises:
        ValueError: the switch is none of its values, or says ``native`` where compiling failed.
    """
    forced = wanted()
    if forced == "naive":
        return None
    found = _loaded()
    if isinstance(found, ctypes.CDLL):
        return found
    if forced == "native":
        raise ValueError(f"{SWITCH}: expected kernels that compile, got: {found}; unset it to go without")
    _log.warning("no native kernels: %s; slower ones are used", found)
    return None


def missing() -> str | None:
    """Why there is no library; None where there is one."""
    if wanted() == "naive":
        return f"{SWITCH}=naive"
    found = _loaded()
    return found if isinstance(found, str) else None


@functools.cache
def _loaded() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    try:
        return ctypes.CDLL(str(_built()))
    except (OSError, subprocess.SubprocessError) as error:
        return _reason(error)


@functools.cache
def function(name: str, *, pointers: int, integers: int) -> Any:  # noqa: ANN401 - a ctypes function
    """A function of the library that takes pointers first (None is null), then int64 numbers."""
    found = getattr(library(), name)
    found.restype = None
    found.argtypes = [ctypes.c_void_p] * pointers + [ctypes.c_int64] * integers
    return found


def call(name: str, tensors: Sequence[Tensor | None], *numbers: int) -> None:
    """Call :func:`function` on the first elements of ``tensors``."""
    serve = function(name, pointers=len(tensors), integers=len(numbers))
    serve(*[None if each is None else each.data_ptr() for each in tensors], *numbers)


def rows(x: Tensor, free: int) -> Tensor:
    """``x``, or a copy if its dimensions behind the first ``free`` do not lie together in memory."""
    expected = 1
    for size, stride in zip(reversed(x.shape[free:]), reversed(x.stride()[free:]), strict=True):
        if size != 1 and stride != expected:
            return x.contiguous()
        expected *= size
    return x


def compiler() -> str | None:
    """The C++ compiler that builds the library: ``$CXX``, else g++ or c++."""
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")


def _built() -> Path:
    compiles = compiler()
    if compiles is None:
        raise OSError("no C++ compiler: neither CXX nor g++ nor c++ was found")
    here = Path(__file__).parent
    sources = sorted(here.glob("*/native.cpp"))
    parts = [path.read_bytes() for path in (*sources, here / "native.h")]
    parts += [" ".join(FLAGS).encode(), _run([compiles, "--version"]), _processor()]
    name = hashlib.sha256(b"\0".join(parts)).hexdigest()[:24] + ".so"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "specdecodes"
    path = folder / name
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as own:  # several processes may compile at once
            made = Path(own) / name
            _run([compiles, *FLAGS, *map(str, sources), "-o", str(made)])
            made.replace(path)
    return path


def _processor() -> bytes:
    """What ``-march=native`` stands for here."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return b""
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(("flags", "Features")))).encode()


def _run(command: list[str]) -> bytes:
    return subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT).stdout


def _reason(error: Exception) -> str:
    said = getattr(error, "stderr", None) or b""
    lines = [line for line in said.decode(errors="replace").splitlines() if "error" in line] or [str(error)]
    return lines[0]
