"""How long calls take, and how fast the device can copy and multiply: the roofline, measured in the same run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from specdecodes.benchmark.kernels.costs import Cost

WARM_UP = 3
Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median of the repeats, the least and the most; whether a CUDA graph ran it."""

    seconds: float
    least: float
    most: float
    captured: bool = False


@dataclass(frozen=True)
class Roofline:
    """What a device can do at most.

    Attributes:
        bandwidth: bytes a second. peak: FLOPs a second of products in the dtype. launch: seconds that the smallest call
            takes, None where it is not known. source: where the numbers come from.
    """

    bandwidth: float
    peak: float
    launch: float | None
    source: str

    def predict(self, cost: Cost) -> float:
        """Seconds of an op that is bound by nothing else: the larger of moving and computing, and its launches."""
        return max(cost.bytes / self.bandwidth, cost.flops / self.peak) + cost.launches * (self.launch or 0.0)

    def bound(self, cost: Cost) -> str:
        """Which of the two is larger: ``bytes`` or ``FLOPs``."""
        return "bytes" if cost.bytes / self.bandwidth >= cost.flops / self.peak else "FLOPs"


TENSOR = {"float64": 67e12, "bfloat16": 989.4e12, "float16": 989.4e12}
"""Dense products on the tensor cores of both cards."""
PLAIN = {"float32": 67e12}
"""Float32 stays float32: TF32 is another dtype."""
DATASHEET = "https://www.nvidia.com/en-us/data-center/{}/, SXM, dense"
PUBLISHED: dict[str, tuple[float, dict[str, float], str]] = {
    "h100": (3.35e12, {**TENSOR, **PLAIN}, DATASHEET.format("h100")),
    "h200": (4.8e12, {**TENSOR, **PLAIN}, DATASHEET.format("h200")),
}
"""Bytes a second, FLOPs a second by dtype, and who says so."""


def published(name: str, dtype: torch.dtype) -> Roofline:
    """The roofline that the maker of a card publishes; ``name``: of :data:`PUBLISHED`."""
    bandwidth, peaks, source = PUBLISHED[name]
    return Roofline(bandwidth, peaks[str(dtype).removeprefix("torch.")], None, source)


def published_for(device: torch.device) -> str | None:
    """The name in :data:`PUBLISHED` of the GPU that is here."""
    if device.type != "cuda":
        return None
    found = torch.cuda.get_device_name(device).casefold()
    return next((name for name in PUBLISHED if name in found), None)


def measure_roofline(device: torch.device, dtype: torch.dtype, repeats: int, size: int = 2**28) -> Roofline:
    """Copy ``size`` bytes, multiply square matrices, and call the smallest op there is."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = timed([lambda: target.copy_(source)], device, repeats).least
    side = 8192 if device.type == "cuda" else 1024
    side = min(side, int(size**0.5))
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    multiplied = timed([lambda: torch.mm(a, b, out=product)], device, repeats).least
    tiny = torch.zeros(1, device=device)
    launched = timed([lambda: tiny.add_(1)] * 100, device, repeats).seconds
    return Roofline(2 * size / copied, 2 * side**3 / multiplied, launched, "measured in this run")


@torch.inference_mode()
def timed(calls: Sequence[Call], device: torch.device, repeats: int) -> Timing:
    """Seconds per call of ``calls``, one after the other, as often as ``repeats`` says, after some that do not count.

    On a GPU inside one CUDA graph where the calls can be captured, between two events; else launched one by one.
    """
    if device.type == "cuda":
        return _timed_on_gpu(calls, repeats)
    for _ in range(WARM_UP):
        _each(calls)
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        _each(calls)
        seconds.append((time.perf_counter() - began) / len(calls))
    return _summary(seconds, captured=False)


def _timed_on_gpu(calls: Sequence[Call], repeats: int) -> Timing:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            _each(calls)
    torch.cuda.current_stream().wait_stream(side)
    graph = _captured(calls)
    run = graph.replay if graph is not None else lambda: _each(calls)
    run()
    seconds = []
    for _ in range(repeats):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        before.record()
        run()
        after.record()
        torch.cuda.synchronize()
        seconds.append(before.elapsed_time(after) / 1e3 / len(calls))
    return _summary(seconds, captured=graph is not None)


def _captured(calls: Sequence[Call]) -> torch.cuda.CUDAGraph | None:
    """A graph of all calls; None where one of them synchronises or allocates in a way that no graph can hold."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            _each(calls)
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph


def _each(calls: Sequence[Call]) -> None:
    for call in calls:
        call()


def _summary(seconds: Sequence[float], captured: bool) -> Timing:
    return Timing(statistics.median(seconds), min(seconds), max(seconds), captured)
