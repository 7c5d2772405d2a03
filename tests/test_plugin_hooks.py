"""One decoder's hooks: exactly one answer per phase, order, independence, tracing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import specdecodes
from specdecodes import hookimpl, hookspecs
from specdecodes.core.decoder import Decoder
from specdecodes.plugin import Hooks
from specdecodes.plugins.states.replay import Replay
from specdecodes.testing.toys import toy_model

ROOT = Path(__file__).parents[1]
PROMPT = torch.tensor([[5, 6, 7, 8, 5, 6, 7, 8, 5, 6]])


class Drafter:
    @hookimpl
    def propose(self, state: Any) -> str:
        return "proposal"

    @hookimpl
    def commit_state(self, state: Any) -> None:
        state.calls.append("drafter")


class Builder:
    @hookimpl
    def build_tree(self, proposal: Any) -> str:
        return f"tree of {proposal}"


class Verifier:
    @hookimpl
    def verify(self, tree: Any) -> str:
        return f"verdict on {tree}"


def complete(**more: object) -> dict[str, object]:
    return {"drafter": Drafter(), "tree": Builder(), "verifier": Verifier(), "state": Replay(), **more}


def state() -> Any:
    """What the fakes above and the real back-end need: a target whose commits are written down."""
    calls: list[str] = []
    target = SimpleNamespace(commit=lambda path, nodes: calls.append("state"))
    return SimpleNamespace(calls=calls, target=target, path_of=lambda verdict, tree: [SimpleNamespace(nodes=[0])])


def test_facade_hands_on_and_returns() -> None:
    hooks, at = Hooks(complete()), state()
    proposal: Any = hooks.propose(at)
    tree: Any = hooks.build_tree(at, proposal)
    assert hooks.verify(at, tree) == "verdict on tree of proposal"


# Exactly one implementation


@pytest.mark.parametrize(("role", "phase"), [("drafter", "propose"), ("tree", "build_tree"), ("verifier", "verify")])
def test_phase_needs_exactly_one_implementation(role: str, phase: str) -> None:
    with pytest.raises(ValueError, match=rf"expected exactly one implementation of {phase}, got 0 \(\)"):
        Hooks({name: plugin for name, plugin in complete().items() if name != role})
    second = type(complete()[role])()
    with pytest.raises(ValueError, match=rf"expected exactly one implementation of {phase}, got 2 \({role}, other\)"):
        Hooks(complete(other=second))


def test_state_back_end_is_needed() -> None:
    class Silent:
        @hookimpl
        def propose(self, state: Any) -> str:
            return "proposal"

    with pytest.raises(ValueError, match="expected a state back-end that implements commit_state, got none"):
        Hooks({"drafter": Silent(), "tree": Builder(), "verifier": Verifier()})


def test_a_drafter_that_commits_is_no_state_back_end() -> None:
    class Drafter:
        @hookimpl
        def propose(self, state: Any) -> str:
            return "proposal"

        @hookimpl
        def commit_state(self, state: Any, tree: Any, verdict: Any) -> None:
            raise AssertionError("nothing is decoded here")

    class Forgot:
        def commit_state(self, state: Any, tree: Any, verdict: Any) -> None:  # no hookimpl: it would not be called
            raise AssertionError("nothing is decoded here")

    with pytest.raises(ValueError, match="expected a state back-end that implements commit_state, got none"):
        Hooks(complete(drafter=Drafter(), state=Forgot()))


def test_wrappers_do_not_count_as_implementations() -> None:
    class Watcher:
        @hookimpl(wrapper=True)
        def propose(self, state: Any) -> Iterator[None]:
            state.calls.append("before")
            answer = yield
            state.calls.append("after")
            return f"{answer}!"

    at = state()
    assert Hooks(complete(watcher=Watcher())).propose(at) == "proposal!"  # type: ignore[comparison-overlap]
    assert at.calls == ["before", "after"]
    without = {name: plugin for name, plugin in complete(watcher=Watcher()).items() if name != "drafter"}
    with pytest.raises(ValueError, match="exactly one implementation of propose, got 0"):
        Hooks(without)


@pytest.mark.parametrize(("role", "phase"), [("drafter", "propose"), ("tree", "build_tree"), ("verifier", "verify")])
def test_none_is_no_answer(role: str, phase: str) -> None:
    def nothing(self: Any) -> None:
        return None

    silent = type("Silent", (), {phase: hookimpl(nothing)})()
    hooks = Hooks(complete(**{role: silent}))
    arguments = {"propose": (1,), "build_tree": (1, 2), "verify": (1, 2)}[phase]
    with pytest.raises(TypeError, match=f"{phase} returned None; its plugin must return a {hookspecs.RETURNS[phase]}"):
        getattr(hooks, phase)(*arguments)


# What is never called is refused


def misnamed(self: Any, state: Any) -> None: ...
def surplus(self: Any, state: Any, surprise: Any) -> None: ...


@pytest.mark.parametrize(
    ("name", "function", "message"),
    [("proposed", misnamed, "unknown hook 'proposed'"), ("step_finished", surplus, "surprise")],
    ids=["unknown hook", "unknown argument"],
)
def test_hook_that_would_never_be_called_is_refused(name: str, function: Any, message: str) -> None:
    observer = type("Observer", (), {name: hookimpl(function)})()
    with pytest.raises(ValueError, match=f"(?s)^plugins: .*{message}"):
        Hooks(complete(observer=observer))


# Order and independence


@pytest.mark.parametrize("order", [["drafter", "state"], ["state", "drafter"]], ids=" then ".join)
def test_back_end_commits_before_the_drafter(order: list[str]) -> None:
    plugins = complete()
    hooks = Hooks({name: plugins[name] for name in [*order, "tree", "verifier"]})
    at: Any = state()
    verdict: Any = SimpleNamespace(path=None)
    hooks.commit_state(at, None, verdict)  # type: ignore[arg-type]
    assert at.calls == ["state", "drafter"]


def decoder(mode: str = "stree", **settings: Any) -> Decoder:
    draft = toy_model("mamba2", seed=1) if mode in ("sd", "stree") else None
    return specdecodes.load(toy_model("bamba"), draft, mode, **settings)


class Counting:
    """An observer of one decoder."""

    def __init__(self) -> None:
        self.steps = 0
        self.started = 0
        self.finished = 0

    @hookimpl
    def generation_started(self) -> None:
        self.started += 1

    @hookimpl
    def step_finished(self) -> None:
        self.steps += 1

    @hookimpl
    def generation_finished(self) -> None:
        self.finished += 1


def test_decoders_have_managers_of_their_own() -> None:
    one, two = Counting(), Counting()
    first, second = decoder("naive", observers=[one]), decoder("naive", observers=[two])
    first.generate(PROMPT, max_new_tokens=4)
    assert (one.started, one.steps, one.finished) == (1, 3, 1)
    assert (two.started, two.steps, two.finished) == (0, 0, 0)
    second.generate(PROMPT, max_new_tokens=2)
    assert (one.steps, two.steps) == (3, 1)


def test_an_observer_joins_for_a_while() -> None:
    made, visitor = decoder("naive"), Counting()
    assert not isinstance(made.greedy, str)
    with made.greedy.hooks.joined_by(visitor):
        made.generate(PROMPT, max_new_tokens=4)
    made.generate(PROMPT, max_new_tokens=4)
    assert (visitor.started, visitor.steps, visitor.finished) == (1, 3, 1)
    stranger = type("Observer", (), {"proposed": hookimpl(misnamed)})()
    with pytest.raises(ValueError, match="unknown hook 'proposed'"), made.greedy.hooks.joined_by(stranger):
        pass
    assert not made.greedy.hooks.manager.is_registered(stranger)


@pytest.mark.parametrize("mode", ["naive", "sd", "stree", "ngram"])
def test_every_hook_is_called_once_per_step(mode: str) -> None:
    made = decoder(mode)
    assert not isinstance(made.greedy, str)
    calls: list[str] = []
    made.greedy.hooks.manager.add_hookcall_monitoring(
        lambda hook_name, hook_impls, kwargs: calls.append(hook_name),
        lambda outcome, hook_name, hook_impls, kwargs: None,
    )
    generation = made.generate(PROMPT, max_new_tokens=12)
    steps = len(generation.accept_lengths)
    assert calls == ["generation_started", *([*hookspecs.PHASES, "step_finished"] * steps), "generation_finished"]


# Tracing


def test_trace_names_every_call_and_who_answered(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SPECDECODES_TRACE_HOOKS", "1")
    made = decoder("stree")
    generation = made.generate(PROMPT, max_new_tokens=8)
    lines = [re.fullmatch(r"hook (\w+) -> ([\w ,]+): \d+\.\d{3} ms", line) for line in caplog.messages]
    traced = [(line[1], line[2].split(", ")) for line in lines if line is not None]
    assert len(traced) == len(caplog.messages)
    steps = len(generation.accept_lengths)
    once = {"generation_started": 1, "generation_finished": 1}
    assert Counter(name for name, _ in traced) == {**dict.fromkeys([*hookspecs.PHASES, "step_finished"], steps), **once}
    answered = dict(traced)
    assert answered["propose"][-1] == "drafter" and answered["verify"][-1] == "verifier"
    assert answered["commit_state"][-2:] == ["state", "drafter"]


def test_nothing_is_traced_unless_asked_for(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("SPECDECODES_TRACE_HOOKS", "0")
    decoder("naive").generate(PROMPT, max_new_tokens=3)
    assert not caplog.messages
