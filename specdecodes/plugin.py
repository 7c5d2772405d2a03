"""Components by name, their discovery, and the typed facade over one decoder's hooks."""

from __future__ import annotations

import difflib
import importlib.metadata
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import pluggy

from specdecodes import hookspecs
from specdecodes.tracing import trace

if TYPE_CHECKING:
    from specdecodes.core.decoder import Generation
    from specdecodes.core.state import DecodeState
    from specdecodes.core.tree import Proposal, Tree, Verdict
    from specdecodes.models.target import Target

KINDS = ("drafter", "tree", "verifier", "state", "observer", "mode")

Factory = Callable[..., Any]
"""``factory(context, *, setting=default, ...)`` returns the component; a mode is registered as a :class:`Mode`."""


@dataclass(frozen=True)
class Context:
    """What a component's factory is told about the decoder that it will serve.

    Attributes:
        target: the target model, already loaded; its ``device``, ``dtype`` and ``vocab_size`` are what matters.
        tokenizer: the target's tokenizer, or None.
        draft: what the user named with ``draft=``: a folder, a hub id, a loaded model, a component's own word, or None.
        compile: whether the decoder's forwards are compiled.
        trust_remote_code: whether code that comes with a draft may be run.
        maker: how ``load`` makes components of this decoder; None: each with its own default settings.
        max_slots: slots of the drafter that the tree builder may use in a step, the root's included; None: not known.
    """

    target: Target
    tokenizer: Any = None
    draft: Any = None
    compile: bool = False
    maker: Callable[[str, str], Any] | None = None
    max_slots: int | None = None
    trust_remote_code: bool = False

    def make(self, kind: str, name: str) -> Any:  # noqa: ANN401 - a component
        """Another component for this decoder, for one that is made of others; it gets those settings that it takes.

        Raises:
            ValueError: an unknown name; a component that is made of itself.
        """
        if self.maker is not None:
            return self.maker(kind, name)
        return cast("Factory", registry().get(kind, name).factory)(self)


@dataclass(frozen=True)
class Mode:
    """One component per hook, plus settings. ``sampling`` lists verifiers in order of preference.

    At temperature 0 ``greedy`` verifies; above it the first verifier of ``sampling`` whose declarations the drafter
    and the tree builder can satisfy.

    A mode may be decided when a decoder is made: ``decide(compile, embedded, *, setting=...)`` then returns a
    :class:`Decision`, and the names here stand for what it may decide. ``compile``: whether forwards are compiled;
    ``embedded``: whether the target is the embedded one; the keywords are the mode's own settings.
    """

    propose: str
    build_tree: str
    greedy: str
    sampling: tuple[str, ...]
    commit_state: str = "replay"
    settings: Mapping[str, Any] = field(default_factory=dict)
    help: str = ""
    decide: Callable[..., Decision] | None = None


@dataclass(frozen=True)
class Decision:
    """What a mode with ``decide`` has come to.

    Attributes:
        mode: what fills the hooks.
        draft, settings: as for ``load``; what the caller names comes first. A draft of None is the mode's own.
        check: called with the loaded target; raises ValueError where the decision does not fit it.
        wrap: called with the drafter and the tree builder; what it returns takes their places.
    """

    mode: Mode
    draft: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    check: Callable[[Target], None] | None = None
    wrap: Callable[[Any, Any], tuple[Any, Any]] | None = None


@dataclass(frozen=True)
class Component:
    """One registered component: ``owner`` is the distribution (or module) that registered it."""

    kind: str
    name: str
    factory: Factory | Mode
    owner: str
    aliases: tuple[str, ...] = ()

    @property
    def help(self) -> str:
        """One line: a mode's own, else the first line of the factory's documentation."""
        if isinstance(self.factory, Mode):
            return self.factory.help
        return (inspect.getdoc(self.factory) or "").split("\n", 1)[0]

    @property
    def lossless(self) -> bool | None:
        """What a verifier's factory declares; None for what does not decide (modes: see :func:`mode_is_lossless`)."""
        return getattr(self.factory, "lossless", None)

    @property
    def settings(self) -> dict[str, inspect.Parameter]:
        """The keyword-only settings that the factory takes."""
        factory = self.factory.decide if isinstance(self.factory, Mode) else self.factory
        if factory is None:
            return {}
        parameters = inspect.signature(factory).parameters.values()
        return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}


class Registry:
    """Components by kind and name."""

    def __init__(self) -> None:
        self._components: dict[tuple[str, str], Component] = {}
        self._owner = "specdecodes"

    @contextmanager
    def owned_by(self, owner: str) -> Iterator[None]:
        """Attribute what is added inside the block to ``owner``."""
        before, self._owner = self._owner, owner
        try:
            yield
        finally:
            self._owner = before

    def add(self, kind: str, name: str, factory: Factory | Mode, *, aliases: Iterable[str] = ()) -> None:
        """Register ``factory`` under ``name`` (and ``aliases``).

        Raises:
            ValueError: unknown kind, or a name of that kind that somebody registered before (both owners are named).
        """
        if kind not in KINDS:
            raise ValueError(f"registry: expected a kind of {', '.join(KINDS)}, got {kind!r}")
        if not (isinstance(factory, Mode) if kind == "mode" else callable(factory)):
            expected = "a Mode" if kind == "mode" else "a callable factory"
            raise ValueError(f"registry: {kind} {name!r}: expected {expected}, got {type(factory).__name__}")
        component = Component(kind, name, factory, self._owner, tuple(aliases))
        for key in (name, *component.aliases):
            if (other := self._components.get((kind, key))) is not None:
                raise ValueError(
                    f"registry: {kind} {key!r} is registered twice, "
                    f"by {other.owner} and by {self._owner}; rename one of them"
                )
        for key in (name, *component.aliases):
            self._components[kind, key] = component

    def get(self, kind: str, name: str) -> Component:
        """Look a component up by name or alias.

        Raises:
            ValueError: unknown; the message suggests a near name and lists all.
        """
        if not isinstance(name, str):
            raise ValueError(f"{kind}: expected a name, got {type(name).__name__}")
        component = self._components.get((kind, name))
        if component is None:
            raise ValueError(unknown(kind, name, [key for k, key in self._components if k == kind]))
        return component

    def names(self, kind: str) -> list[str]:
        """The names of one kind, sorted, aliases left out."""
        return sorted(c.name for (k, key), c in self._components.items() if k == kind and key == c.name)

    def components(self) -> list[Component]:
        """All components, by kind (in the order of ``KINDS``) and name."""
        return [self.get(kind, name) for kind in KINDS for name in self.names(kind)]


def mode_is_lossless(components: Registry, mode: Mode) -> bool:
    """Whether every verifier that the mode may use is lossless."""
    return all(bool(components.get("verifier", name).lossless) for name in (mode.greedy, *mode.sampling))


def check_lossless(components: Registry, name: str, verify: Any = None) -> None:  # noqa: ANN401 - a name or an object
    """Refuse the mode ``name``, some of whose verifiers may be replaced by ``verify``, unless all are lossless.

    Raises:
        ValueError: a lossy verifier, or one that does not say; an unknown name.
    """
    mode = components.get("mode", name).factory
    assert isinstance(mode, Mode)
    used: dict[str, tuple[Any, ...]] = {"greedy": (mode.greedy,), "sampling": mode.sampling}
    if verify is not None:
        judge = components.get("verifier", verify).factory if isinstance(verify, str) else verify
        used |= dict.fromkeys(getattr(judge, "serves", used), (verify,))
    for part in (part for parts in used.values() for part in parts):
        judge = components.get("verifier", part).factory if isinstance(part, str) else part
        if not getattr(judge, "lossless", False):
            got = part if isinstance(part, str) else type(part).__name__
            raise ValueError(
                f"mode {name!r}: expected lossless verifiers alone (--lossless-only), got {got!r}, which is lossy; "
                "choose another mode or verifier, or allow lossy ones"
            )


def mode_label(components: Registry, name: str) -> str:
    """The mode's name as it is shown: a lossy one says so."""
    mode = components.get("mode", name).factory
    assert isinstance(mode, Mode)
    return name if mode_is_lossless(components, mode) else f"{name} (lossy)"


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for an unknown name: a near one, then the sorted list."""
    known = sorted(known)
    near = nearest(name, known)
    hint = "" if near is None else f"did you mean {near!r}? "
    return f"unknown {kind} {name!r}; {hint}known: {', '.join(known) or '(none)'}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Which of ``known`` was probably meant by ``name``, in whatever case; None where none is near."""
    folded = {other.casefold(): other for other in known}
    near = difflib.get_close_matches(name.casefold(), folded, n=1)
    return folded[near[0]] if near else None


@cache
def registry() -> Registry:
    """The process-wide registry: the built-ins and every installed plugin, discovered at the first call.

    ``SPECDECODES_PLUGINS=a,b`` limits the entry points to those names (empty: none at all).

    Raises:
        ValueError: two components of one kind and name; a name in ``SPECDECODES_PLUGINS`` that is not installed; a
            plugin that cannot be imported or implements what no discovery hook asks for.
    """
    from specdecodes import plugins as builtins

    manager = pluggy.PluginManager("specdecodes")
    manager.add_hookspecs(hookspecs.Discovery)
    plugins, owners = {"builtins": builtins}, {"builtins": "specdecodes"}
    for entry in _entry_points():
        owner = entry.dist.name if entry.dist is not None else entry.value
        name = f"{entry.name} of {owner}"  # two distributions may call their entry points alike
        plugins[name], owners[name] = _imported(entry, name), owner
    _register(manager, plugins)
    result = Registry()
    for implementation in reversed(manager.hook.register_components.get_hookimpls()):
        with result.owned_by(owners[implementation.plugin_name]):
            implementation.function(registry=result)
    return result


def _entry_points() -> list[importlib.metadata.EntryPoint]:
    found = sorted(importlib.metadata.entry_points(group="specdecodes"), key=lambda entry: entry.name)
    limit = os.environ.get("SPECDECODES_PLUGINS")
    if limit is None:
        return found
    wanted = [name.strip() for name in limit.split(",") if name.strip()]
    for name in wanted:
        if name not in {entry.name for entry in found}:
            raise ValueError("SPECDECODES_PLUGINS: " + unknown("entry point", name, (entry.name for entry in found)))
    return [entry for entry in found if entry.name in wanted]


def _imported(entry: importlib.metadata.EntryPoint, name: str) -> Any:  # noqa: ANN401 - a module or any object
    try:
        return entry.load()
    except Exception as error:
        way_out = "repair or uninstall it, or leave it out with SPECDECODES_PLUGINS"
        raise ValueError(f"plugin {name}: cannot import {entry.value}: {error!r}; {way_out}") from error


def _register(manager: pluggy.PluginManager, plugins: Mapping[str, object]) -> None:
    """Register by name; an unknown hook or argument is an error instead of a hook that is never called."""
    try:
        for name, plugin in plugins.items():
            manager.register(plugin, name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise ValueError(f"plugins: {error}") from error


class Hooks:
    """The hooks of one decoder: the only place that touches ``pm.hook``.

    Args:
        plugins: components by role, in any order; exactly one must implement each of propose, build_tree, verify.
        phases: which of the phases must be implemented; a component that is made of others needs some of them.

    Raises:
        ValueError: a phase with no implementation or with several, or a hook that no specification names.
    """

    def __init__(self, plugins: Mapping[str, object], phases: Sequence[str] = hookspecs.PHASES) -> None:
        manager = pluggy.PluginManager("specdecodes")
        manager.add_hookspecs(hookspecs.Phases)
        manager.add_hookspecs(hookspecs.Events)
        _register(manager, plugins)
        for phase in phases:
            if phase == "commit_state":  # called on all
                continue
            owners = [i.plugin_name for i in getattr(manager.hook, phase).get_hookimpls() if not _wraps(i)]
            if len(owners) != 1:
                raise ValueError(
                    f"plugins: expected exactly one implementation of {phase}, got {len(owners)} ({', '.join(owners)})"
                )
        if "commit_state" in phases:
            committing = [i.plugin_name for i in manager.hook.commit_state.get_hookimpls() if not _wraps(i)]
            # A drafter that commits its own state cannot stand in for a back-end that does not commit the target's.
            if not committing or ("state" in plugins and "state" not in committing):
                raise ValueError("plugins: expected a state back-end that implements commit_state, got none")
        if os.environ.get("SPECDECODES_TRACE_HOOKS") == "1":
            trace(manager)
        self.manager = manager
        self._hook = manager.hook

    @contextmanager
    def joined_by(self, observer: object) -> Iterator[None]:
        """Let one more observer get its hooks called while the block runs.

        Raises:
            ValueError: it implements a hook that no specification names.
        """
        try:
            _register(self.manager, {"joined": observer})
            yield
        finally:
            if self.manager.is_registered(observer):
                self.manager.unregister(observer)

    def propose(self, state: DecodeState) -> Proposal:
        """See :meth:`specdecodes.hookspecs.Phases.propose`."""
        return cast("Proposal", _answer("propose", self._hook.propose(state=state)))

    def build_tree(self, state: DecodeState, proposal: Proposal) -> Tree:
        """See :meth:`specdecodes.hookspecs.Phases.build_tree`."""
        return cast("Tree", _answer("build_tree", self._hook.build_tree(state=state, proposal=proposal)))

    def verify(self, state: DecodeState, tree: Tree) -> Verdict:
        """See :meth:`specdecodes.hookspecs.Phases.verify`."""
        return cast("Verdict", _answer("verify", self._hook.verify(state=state, tree=tree)))

    def commit_state(self, state: DecodeState, tree: Tree, verdict: Verdict) -> None:
        """See :meth:`specdecodes.hookspecs.Phases.commit_state`."""
        self._hook.commit_state(state=state, tree=tree, verdict=verdict)

    def generation_started(self, state: DecodeState) -> None:
        """See :meth:`specdecodes.hookspecs.Events.generation_started`."""
        self._hook.generation_started(state=state)

    def step_finished(self, state: DecodeState, tree: Tree, verdict: Verdict) -> None:
        """See :meth:`specdecodes.hookspecs.Events.step_finished`."""
        self._hook.step_finished(state=state, tree=tree, verdict=verdict)

    def generation_finished(self, state: DecodeState, generation: Generation) -> None:
        """See :meth:`specdecodes.hookspecs.Events.generation_finished`."""
        self._hook.generation_finished(state=state, generation=generation)


def _wraps(implementation: Any) -> bool:  # noqa: ANN401 - pluggy's HookImpl
    return bool(implementation.wrapper or implementation.hookwrapper)


def _answer(phase: str, value: object) -> object:
    if value is None:
        raise TypeError(f"{phase} returned None; its plugin must return a {hookspecs.RETURNS[phase]}")
    return value
