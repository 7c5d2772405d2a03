"""What a captured step leaves to the host: part of ``python -m specdecodes.benchmark.overhead``.

Forwards, drafting, acceptance and commits are recorded, and their replay does nothing; all the rest is as on CUDA. So
what is measured here is what a GPU would wait for, or launch one by one, beside its graphs. The launches themselves
are those of a CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from specdecodes.core.load import load
from specdecodes.core.loop import steps
from specdecodes.core.sampling import LogitsPipeline, SamplingParams
from specdecodes.models import target
from specdecodes.models.captured import Replay
from specdecodes.plugins.drafters.model import ModelDrafter
from specdecodes.testing import toy_model

MODES = {"naive": None, "stree": "bamba", "dynamic": "bamba", "ngram": "ngram"}
"""Modes and their drafts: none, a toy model, an index."""
LENGTH = 4096
WARM_UP, COUNTED = 8, 3
"""Steps before anything is measured, and those whose launches are counted."""


def captured_overhead(mode: str, repeats: int = 300) -> dict[str, float]:
    """One mode of ``MODES``, over ``repeats`` steps.

    ``graphs``: replayed in a step. ``launches``: operations beside them that are more than a view or an allocation.
    ``host_us``: of a step, the median. ``waits_us``: of that, from the verdict, which a GPU has been waited for, to the
    replay of the first run of a model after it: nothing of weight runs meanwhile.
    """
    draft = MODES[mode]
    models = toy_model("bamba"), toy_model("bamba", seed=1) if draft == "bamba" else draft
    load(*models, mode)  # tests the model, which no replay does
    with _recording() as replays:
        decoder = load(*models, mode, max_length=LENGTH)
        assert not isinstance(decoder.greedy, str)
        for plugin in decoder.greedy.hooks.manager.get_plugins():
            if isinstance(plugin, ModelDrafter):  # static caches, as where it is compiled
                plugin.runner.max_length = LENGTH
                plugin.runner.hold_nodes(plugin.runner.max_slots)
        params = SamplingParams(max_new_tokens=LENGTH - 512, ignore_eos=True)
        prompt = torch.arange(64).remainder(24)[None] + 5
        state, assembly, _ = decoder.start(prompt, params, LogitsPipeline(params), eos_ids=[])
        verdicts: list[float] = []
        state.clip = _stamped(state.clip, verdicts)  # type: ignore[method-assign]
        running = steps(assembly.hooks, state)
        for _ in range(WARM_UP):
            next(running)
        replays.clear()
        with _Launches() as launched:
            for _ in range(COUNTED):
                next(running)
        graphs, hosts, waits = len(replays) / COUNTED, [], []
        for _ in range(repeats):
            replays.clear()
            began = time.perf_counter()
            next(running)
            hosts.append(time.perf_counter() - began)
            waits.append(replays[0] - verdicts[-2])
    return {
        "graphs": graphs,
        "launches": launched.count / COUNTED,
        "host_us": median(hosts) * 1e6,
        "waits_us": median(waits) * 1e6,
    }


@contextmanager
def _recording() -> Iterator[list[float]]:
    """Targets that are made inside capture their forwards; gives when each was replayed."""
    replays: list[float] = []

    def record(function: Callable[[], Any]) -> tuple[Any, Replay]:
        return function(), lambda: replays.append(time.perf_counter())

    real = target.recorder_for
    target.recorder_for = lambda device, compile: record
    try:
        yield replays
    finally:
        target.recorder_for = real


def _stamped(method: Callable[..., Any], stamps: list[float]) -> Callable[..., Any]:
    def stamped(*args: Any) -> Any:  # noqa: ANN401 - as the method
        stamps.append(time.perf_counter())
        return method(*args)

    return stamped


class _Launches(TorchDispatchMode):
    """Counts operations that write memory."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        found = func(*args, **(kwargs or {}))
        name = func._schema.name
        writes = func._schema.is_mutable and name != "aten::detach_"
        mine = {each.untyped_storage().data_ptr() for each in args if isinstance(each, Tensor)}
        makes = isinstance(found, Tensor) and found.untyped_storage().data_ptr() not in mine and "empty" not in name
        self.count += writes or makes
        return found
