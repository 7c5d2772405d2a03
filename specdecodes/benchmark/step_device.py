"""How much of a step a GPU works, by torch's profiler, for :mod:`specdecodes.benchmark.step`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
"""Calls of the CUDA runtime that wait for the GPU. ``cudaMemcpyAsync`` does not."""


def device_share(run: Callable[[], int]) -> dict[str, float]:
    """Milliseconds per step of ``run``, which returns how many it took: wall, and the GPU's part of it.

    ``wall_ms`` is of a run without the profiler, which slows the host down; ``busy_ms``: kernels and copies, of the
    same work under the profiler; ``idle_ms``: the rest. ``waits``: synchronisations per step.
    """
    run()
    torch.cuda.synchronize()
    began = time.perf_counter()
    steps = run()
    torch.cuda.synchronize()
    wall = (time.perf_counter() - began) / steps * 1e3
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        profiled = run()
        torch.cuda.synchronize()
    busy, waits = summed(profiler.events() or ())
    busy_ms = busy / profiled / 1e3
    # One wait is of the synchronisation above.
    return {"wall_ms": wall, "busy_ms": busy_ms, "idle_ms": wall - busy_ms, "waits": max(waits - 1, 0) / profiled}


def summed(events: Iterable[Any]) -> tuple[float, int]:
    """Microseconds that the GPU worked, and how often the host waited for it."""
    busy, waits = 0.0, 0
    for event in events:
        if event.device_type == DeviceType.CUDA:
            busy += event.time_range.elapsed_us()
        else:
            waits += event.name in WAITS
    return busy, waits
