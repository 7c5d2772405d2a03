"""The most memory in use while something runs."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


class PeakMemory:
    """Peak bytes since :meth:`reset`: of the allocator on CUDA, of the process's resident memory elsewhere.

    All modes of a run live in one process, so the resident peak of one holds the weights of all. Where the system
    cannot reset its high-water mark (anything but Linux), the peak is the process's since its start.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.kind = "cuda" if device.type == "cuda" else "resident"

    def reset(self) -> None:
        """Start over."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        with contextlib.suppress(OSError):
            _CLEAR.write_text("5")  # resets VmHWM, see proc(5)

    def read(self) -> int:
        """Peak bytes since the last reset."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        with contextlib.suppress(OSError):
            for line in _STATUS.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return peak_resident()


def peak_resident() -> int:
    """The process's largest resident size so far, in bytes (0 where the system does not tell)."""
    if resource is None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024
