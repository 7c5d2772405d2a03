"""What the checks share: how a broken clause is reported, and how a component is made."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from specdecodes.core.tree import DRAWS
from specdecodes.hookspecs import hookimpl
from specdecodes.plugin import Context, Hooks

if TYPE_CHECKING:
    from specdecodes.core.state import DecodeState


def expect(condition: object, message: str) -> None:
    """Raise AssertionError(message) unless ``condition`` holds (an assert statement vanishes under ``python -O``)."""
    if not condition:
        raise AssertionError(message)


@contextmanager
def during(what: str) -> Iterator[None]:
    """Say in a note what was being checked when something was raised."""
    try:
        yield
    except Exception as error:
        error.add_note(f"while checking {what}")
        raise


def is_factory(component: object) -> bool:
    """Whether ``component`` makes components: a class, a function or a partial of one."""
    return inspect.isclass(component) or inspect.isroutine(component) or isinstance(component, functools.partial)


def made(component: Any, context: Context, settings: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """The component itself, or what the factory makes of ``context`` and ``settings``.

    Raises:
        AssertionError: settings for a component that is made already.
    """
    if is_factory(component):
        return component(context, **settings)
    expect(not settings, f"settings are for factories, got {sorted(settings)} and a {type(component).__name__}")
    return component


def declares(component: object, kind: str, **kinds: type) -> None:
    """Every name is an attribute of that type; ``load`` reads them without a default."""
    name = type(component).__name__
    for attribute, expected in kinds.items():
        expect(hasattr(component, attribute), f"{kind} {name}: must declare {attribute!r} ({expected.__name__})")
        got = getattr(component, attribute)
        expect(
            isinstance(got, expected),
            f"{kind} {name}.{attribute}: expected {expected.__name__}, got {type(got).__name__} {got!r}",
        )


def check_draws(name: str, draws: Sequence[str]) -> None:
    """What builder or verifier ``name`` declares as ``draws`` are ways of coming by children."""
    expect(draws and set(draws) <= set(DRAWS), f"{name}.draws: expected some of {DRAWS}, got {draws}")


class _Propose:
    @hookimpl
    def propose(self, state: DecodeState) -> None:
        """Not called."""


class _BuildTree:
    @hookimpl
    def build_tree(self, state: DecodeState) -> None:
        """Not called."""


class _Verify:
    @hookimpl
    def verify(self, state: DecodeState) -> None:
        """Not called."""


class _Commit:
    @hookimpl
    def commit_state(self, state: DecodeState) -> None:
        """Does nothing."""


IDLE = {"propose": _Propose, "build_tree": _BuildTree, "verify": _Verify, "commit_state": _Commit}


def hooked(phase: str, component: object) -> Hooks:
    """The hooks of a decoder in which ``component`` implements ``phase`` and what nobody implements is idle.

    Raises:
        AssertionError: a hook that is missing, not marked with ``hookimpl`` or unknown.
    """
    others = {name: idle() for name, idle in IDLE.items() if name != phase and not hasattr(component, name)}
    try:
        return Hooks({"component": component, **others})
    except ValueError as error:
        raise AssertionError(f"{type(component).__name__}: {error} (mark hooks with @specdecodes.hookimpl)") from error
