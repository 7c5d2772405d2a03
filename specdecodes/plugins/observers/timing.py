"""Seconds per phase of the decode loop."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import TYPE_CHECKING, TypeVar

import torch

from specdecodes.hookspecs import hookimpl

if TYPE_CHECKING:
    from specdecodes.core.decoder import Generation
    from specdecodes.core.state import DecodeState
    from specdecodes.core.tree import Proposal, Tree, Verdict
    from specdecodes.plugin import Context

Answer = TypeVar("Answer")

PHASES = ("propose", "build", "verify", "commit")
"""The keys that :class:`Timing` adds to ``Generation.timings``, beside ``host``."""


class Timing:
    """Adds seconds per phase to ``Generation.timings``: propose, build, verify, commit, and host (the rest of decode).

    What components do before the first step (a draft model's prefill) counts as propose; where a draft is captured with
    the tree builder, all of a step's drafting counts as build.
    On CUDA a phase lasts from the moment when the stream reaches it to the moment when the stream has done it (events
    on the current stream, read when the generation is finished), so that measuring synchronises nothing. Elsewhere
    it is the wall time of the hook. Costs two clock readings and one wrapper per phase and step (about 2 us each).
    """

    def __init__(self, context: Context | None = None) -> None:
        self.on_stream = context is not None and context.target.device.type == "cuda"

    @hookimpl(wrapper=True, tryfirst=True)
    def generation_started(self, state: DecodeState) -> Generator[None, object, object]:
        """Start from zero; time what components prepare."""
        _clear(state)
        return (yield from self._timed("propose", state))

    @hookimpl(wrapper=True, tryfirst=True)
    def propose(self, state: DecodeState) -> Generator[None, Proposal, Proposal]:
        """Time the drafter."""
        return (yield from self._timed("propose", state))

    @hookimpl(wrapper=True, tryfirst=True)
    def build_tree(self, state: DecodeState) -> Generator[None, Tree, Tree]:
        """Time the tree builder (and what it makes the drafter expand)."""
        return (yield from self._timed("build", state))

    @hookimpl(wrapper=True, tryfirst=True)
    def verify(self, state: DecodeState) -> Generator[None, Verdict, Verdict]:
        """Time the scoring and the acceptance rule."""
        return (yield from self._timed("verify", state))

    @hookimpl(wrapper=True, tryfirst=True)
    def commit_state(self, state: DecodeState) -> Generator[None, object, object]:
        """Time what moves caches and states."""
        return (yield from self._timed("commit", state))

    @hookimpl
    def generation_finished(self, state: DecodeState, generation: Generation) -> None:
        """Put the sums into ``generation.timings``."""
        seconds = state.extras.get("timings", dict.fromkeys(PHASES, 0.0))
        if marks := state.extras.get("timing_marks"):
            torch.cuda.synchronize(state.target.device)
            for phase, start, end in marks:
                seconds[phase] += start.elapsed_time(end) / 1e3
        host = generation.timings["decode"] - sum(seconds.values())
        generation.timings.update(seconds, host=max(host, 0.0))

    def _timed(self, phase: str, state: DecodeState) -> Generator[None, Answer, Answer]:
        if self.on_stream:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            answer = yield
            end.record()
            state.extras.setdefault("timing_marks", []).append((phase, start, end))
            return answer
        began = time.perf_counter()
        answer = yield
        elapsed = time.perf_counter() - began
        if "timings" not in state.extras:
            _clear(state)
        state.extras["timings"][phase] += elapsed
        return answer


def _clear(state: DecodeState) -> None:
    state.extras["timings"] = dict.fromkeys(PHASES, 0.0)
    state.extras["timing_marks"] = []
