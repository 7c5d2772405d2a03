"""Which form of an op runs for tensors of a device and dtype, and why.

``triton`` on CUDA, ``native`` (C++) for float32 on a CPU, ``naive`` (plain torch) otherwise; the switch
``SPECDECODES_KERNELS`` forces one. On a CPU Triton runs in its interpreter, which is for tests.
"""

from __future__ import annotations

import functools
import os
from typing import NamedTuple

import torch

from specdecodes.kernels import native
from specdecodes.kernels.switch import SWITCH, wanted

TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CAPABILITY = (8, 0)
"""What the Triton kernels need: TF32 products and bfloat16."""


class Choice(NamedTuple):
    """A form (``triton``, ``native``, ``naive``) and the reason for it."""

    form: str
    why: str


@torch.compiler.assume_constant_result
def serves(form: str, device: str, dtype: torch.dtype) -> bool:
    """Whether ``form`` runs for tensors like that."""
    return decide(device, dtype).form == form


@functools.cache
def decide(device: str, dtype: torch.dtype) -> Choice:
    """The form that runs for tensors of a device type and dtype.

    Raises:
        ValueError: the switch says what cannot be had on this machine.
    """
    forced = wanted()
    if forced == "naive":
        return Choice("naive", f"{SWITCH}=naive")
    name = str(dtype).removeprefix("torch.")
    if forced == "triton" or (forced == "auto" and device == "cuda"):
        missing = _without_triton(device)
        if missing and forced == "triton":
            raise ValueError(f"{SWITCH}: expected 'triton' where it runs, got: {missing}; unset it to go without")
        if missing or dtype not in TRITON_DTYPES:
            return Choice("naive", missing or f"the Triton kernels have no {name}")
        return Choice("triton", _because(forced, "a GPU" if device == "cuda" else "Triton's interpreter"))
    if device != "cpu" or dtype != torch.float32:
        return Choice("naive", f"the C++ kernels serve float32 on a CPU, not {name} on {device}")
    if native.library() is None:
        return Choice("naive", f"no C++ kernels: {native.missing()}")
    return Choice("native", _because(forced, "float32 on a CPU, compiled with the system's compiler"))


def _because(forced: str, why: str) -> str:
    return why if forced == "auto" else f"{SWITCH}={forced}; {why}"


def _without_triton(device: str) -> str | None:
    """Why Triton's kernels do not run on a device type; None if they do."""
    if device not in ("cuda", "cpu"):
        return f"the Triton kernels serve CUDA, not {device}"
    if device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "a CPU, and TRITON_INTERPRET is not 1"
    try:
        import triton.language  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        return f"triton does not import ({' '.join(str(error).split())})"
    if device == "cuda" and torch.cuda.get_device_capability() < CAPABILITY:
        found = ".".join(map(str, torch.cuda.get_device_capability()))
        return f"the Triton kernels need compute capability 8.0, this GPU has {found}"
    return None
