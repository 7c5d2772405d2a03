"""Every hook says what it gets and returns, when it fires, and what None means; no hook goes undocumented."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specdecodes import hookspecs
from specdecodes.core.decoder import Generation
from specdecodes.core.state import DecodeState
from specdecodes.core.tree import Proposal, Tree, Verdict
from specdecodes.plugin import Hooks, Registry

ROOT = Path(__file__).parents[1]
GROUPS = (hookspecs.Discovery, hookspecs.Phases, hookspecs.Events)
HOOKS: dict[str, tuple[type, Callable[..., Any]]] = {
    name: (group, function)
    for group in GROUPS
    for name, function in vars(group).items()
    if inspect.isfunction(function)
}
TYPES = {
    "registry": Registry,
    "state": DecodeState,
    "proposal": Proposal,
    "tree": Tree,
    "verdict": Verdict,
    "generation": Generation,
}


def options(name: str) -> dict[str, Any]:
    return dict(HOOKS[name][1].specdecodes_spec)


@pytest.mark.parametrize("name", HOOKS)
def test_is_annotated_with_what_it_gets_and_returns(name: str) -> None:
    hints = typing.get_type_hints(HOOKS[name][1], localns={kind.__name__: kind for kind in TYPES.values()})
    parameters = list(inspect.signature(HOOKS[name][1]).parameters)
    assert parameters[0] == "self" and len(parameters) > 1
    for parameter in parameters[1:]:
        assert hints[parameter] is TYPES[parameter], parameter
    returned = hints["return"]
    if options(name)["firstresult"]:
        assert returned.__name__ == hookspecs.RETURNS[name]
    else:
        assert returned is type(None)


@pytest.mark.parametrize("name", HOOKS)
def test_says_when_it_fires(name: str) -> None:
    assert re.search(r"\bFires\b", inspect.getdoc(HOOKS[name][1]) or "")


@pytest.mark.parametrize("name", HOOKS)
def test_says_what_an_answer_means(name: str) -> None:
    group, function = HOOKS[name]
    text = f"{inspect.getdoc(function)} {inspect.getdoc(group)}"
    expected = r"None is not an answer" if options(name)["firstresult"] else r"nothing that they return|[Rr]eturn"
    assert re.search(expected, text)


@pytest.mark.parametrize("name", hookspecs.PHASES[:3])
def test_phases_give_shapes(name: str) -> None:
    assert re.search(r"\[B, \w", inspect.getdoc(HOOKS[name][1]) or "")


def test_lists_of_hooks_are_complete() -> None:
    def names(group: type) -> tuple[str, ...]:
        return tuple(name for name, (owner, _) in HOOKS.items() if owner is group)

    assert names(hookspecs.Phases) == hookspecs.PHASES
    assert names(hookspecs.Events) == hookspecs.EVENTS
    assert set(hookspecs.RETURNS) == {name for name in HOOKS if options(name)["firstresult"]}


@pytest.mark.parametrize("name", [*hookspecs.PHASES, *hookspecs.EVENTS])
def test_facade_has_a_method_with_the_same_arguments(name: str) -> None:
    facade, spec = inspect.signature(getattr(Hooks, name)), inspect.signature(HOOKS[name][1])
    assert facade == spec


def table() -> list[str]:
    """The hooks that the plugin guide lists, in its order."""
    guide = (ROOT / "plugins" / "README.md").read_text(encoding="utf-8")
    section = guide.split("## Hooks", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)


def test_guide_documents_every_hook_and_no_other() -> None:
    assert sorted(table()) == sorted(HOOKS)


def test_guide_lists_phases_in_the_order_of_a_step() -> None:
    assert [name for name in table() if name in hookspecs.PHASES] == list(hookspecs.PHASES)


def test_guide_documents_every_kind() -> None:
    from specdecodes.plugin import KINDS

    guide = (ROOT / "plugins" / "README.md").read_text(encoding="utf-8")
    section = guide.split("## Kinds", 1)[1].split("\n## ", 1)[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(KINDS)
