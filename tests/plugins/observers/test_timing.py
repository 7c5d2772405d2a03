"""Seconds per phase of the decode loop."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from specdecodes.core.decoder import Generation
from specdecodes.hookspecs import hookimpl
from specdecodes.plugin import Hooks
from specdecodes.plugins.observers.timing import PHASES, Timing


class Sleeps:
    """A component for every phase; each takes its own time."""

    @hookimpl
    def generation_started(self, state: Any) -> None:
        time.sleep(0.032)

    @hookimpl
    def propose(self, state: Any) -> str:
        time.sleep(0.004)
        return "proposal"

    @hookimpl
    def build_tree(self, state: Any, proposal: Any) -> str:
        time.sleep(0.008)
        return f"tree of {proposal}"

    @hookimpl
    def verify(self, state: Any, tree: Any) -> str:
        time.sleep(0.016)
        return f"verdict on {tree}"

    @hookimpl
    def commit_state(self, state: Any, tree: Any, verdict: Any) -> None:
        time.sleep(0.002)


def step(hooks: Hooks, state: Any) -> str:
    tree = hooks.build_tree(state, hooks.propose(state))
    verdict = hooks.verify(state, tree)
    hooks.commit_state(state, tree, verdict)
    return str(verdict)


def test_each_phase_gets_its_own_time_and_host_the_rest() -> None:
    hooks = Hooks({"all": Sleeps(), "timing": Timing()})
    state: Any = SimpleNamespace(extras={})
    hooks.generation_started(state)
    assert step(hooks, state) == "verdict on tree of proposal"
    step(hooks, state)
    generation = Generation([[1]], "", [], {"prefill": 0.5, "decode": 10.0}, 1)
    hooks.generation_finished(state, generation)
    found = generation.timings
    for phase, least in zip(PHASES, (0.040, 0.016, 0.032, 0.004), strict=True):
        assert found[phase] >= least, phase
    assert found["prefill"] == 0.5
    assert sum(found[part] for part in (*PHASES, "host")) == pytest.approx(10.0)


def test_a_second_generation_starts_from_zero() -> None:
    hooks = Hooks({"all": Sleeps(), "timing": Timing()})
    state: Any = SimpleNamespace(extras={})
    for _ in range(2):
        hooks.generation_started(state)
        step(hooks, state)
    generation = Generation([[1]], "", [], {"prefill": 0.0, "decode": 0.0}, 1)
    hooks.generation_finished(state, generation)
    assert 0.016 <= generation.timings["verify"] < 0.032
    assert generation.timings["host"] == 0.0
