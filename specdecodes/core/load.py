"""From names to a decoder: the target, one component per hook, and a check that they fit together."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from specdecodes import assets
from specdecodes.core.decoder import Assembly, Decoder
from specdecodes.core.settings import read_setting
from specdecodes.core.tree import check_size
from specdecodes.models.loading import (
    check_own,
    is_embedded,
    load_model,
    load_tokenizer,
    parse_device,
    parse_dtype,
)
from specdecodes.models.selftest import self_test
from specdecodes.models.target import Target
from specdecodes.plugin import Component, Context, Decision, Hooks, Mode, Registry, check_lossless, registry, unknown

_checked: weakref.WeakKeyDictionary[PreTrainedModel, torch.dtype] = weakref.WeakKeyDictionary()


def load(
    target: str | PreTrainedModel = "embedded",
    draft: str | PreTrainedModel | None = None,
    mode: str = "stree",
    *,
    tokenizer: Any = None,  # noqa: ANN401 - tokenizers have no common base
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    propose: Any = None,  # noqa: ANN401 - a name or an object
    build_tree: Any = None,  # noqa: ANN401
    verify: Any = None,  # noqa: ANN401
    commit_state: Any = None,  # noqa: ANN401
    trust_remote_code: bool = False,
    compile: bool = False,
    max_length: int | None = None,
    lossless_only: bool = False,
    observers: Sequence[Any] = (),
    **settings: Any,
) -> Decoder:
    """Make a decoder.

    Args:
        target, draft: a folder, a hub id, a loaded model; ``draft`` may also name a drafter (``ngram``) or an
            embedded draft (``mamba2``). The default pair is the embedded one.
        mode: which components fill the hooks (``specdecodes plugins`` lists them).
        tokenizer: an object, folder or hub id; default: the one beside the target.
        device, dtype: default: CUDA where there is one; float32 on a CPU, the checkpoint's own on a GPU. A loaded
            model stays where and as it is: others than its own are refused.
        propose, build_tree, verify, commit_state: replace one part of the mode each: a component's name or an object.
        trust_remote_code: run code that comes with a checkpoint or a tokenizer; the default never does.
        compile: compile the forwards with ``torch.compile`` (static caches; the first steps take long).
        max_length: tokens that a static cache can hold, prompt included; default: grow as needed.
        lossless_only: refuse a mode in which a lossy verifier decides at any temperature.
        observers: names or objects that get the events.
        **settings: the components' keyword settings, for example ``tree="3,2.1,2.1,3"``.

    Raises:
        ValueError: an unknown name or setting, a ``max_length`` below 1, a lossy verifier where ``lossless_only``, a
            model that cannot be loaded or fails the self-test, components that do not fit together at any temperature.
    """
    components = registry()
    components.get("mode", mode)  # an unknown one is refused before anything is loaded
    if isinstance(observers, str):
        raise ValueError(f"observers: expected a list of names or objects, got the string {observers!r}")
    if lossless_only:
        check_lossless(components, mode, verify)
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length: expected at least 1 token, got {max_length}; leave it out to grow as needed")
    if isinstance(target, PreTrainedModel):
        check_own(target, device, dtype)
    where = parse_device(device)
    model = load_model(target, "target", where, parse_dtype(dtype, where), trust_remote_code=trust_remote_code)
    runner = Target(model, compile=compile, max_length=max_length)
    runner.is_embedded = is_embedded(model)
    if _checked.get(model) != model.dtype:
        self_test(Target(model))
        _checked[model] = model.dtype
    decision, settings = decide(components.get("mode", mode), settings, compile=compile, embedded=runner.is_embedded)
    if decision.check is not None:
        decision.check(runner)
    chosen, draft = decision.mode, decision.draft if draft is None else draft
    found = load_tokenizer(target, tokenizer, trust_remote_code=trust_remote_code)
    context = Context(runner, found, draft, compile, trust_remote_code=trust_remote_code)
    parts = _Parts(components, chosen, context, settings)
    parts.known |= set(components.get("mode", mode).settings)
    drafting = parts.drafting(propose)
    builder = parts.make("tree", chosen.build_tree if build_tree is None else build_tree)
    drafter = parts.drafter(drafting, builder)
    if decision.wrap is not None:
        drafter, builder = decision.wrap(drafter, builder)
    backend = parts.make("state", chosen.commit_state if commit_state is None else commit_state)
    watching = {f"observer {i}": parts.make("observer", o) for i, o in enumerate(["timing", *observers])}
    verifiers = parts.verifiers(verify)
    parts.check_settings()
    runner.backend = backend
    runner.step_in_place = True  # the loop commits every tree that it scores
    check_size("tree", builder.max_nodes)
    runner.hold_nodes(builder.max_nodes)
    roles = {"drafter": drafter, "tree": builder, "state": backend, **watching}
    greedy = _assemble("greedy", verifiers["greedy"], roles)
    sampling = _assemble("sampling", verifiers["sampling"], roles)
    if isinstance(greedy, str) and isinstance(sampling, str):
        raise ValueError(f"mode {mode!r}: {'; '.join(dict.fromkeys([greedy, sampling]))}")
    return Decoder(runner, context.tokenizer, mode, greedy, sampling)


def decide(
    component: Component, settings: Mapping[str, Any], *, compile: bool, embedded: bool
) -> tuple[Decision, dict[str, Any]]:
    """What the mode ``component`` stands for (see :class:`Mode`), and the settings left for its parts.

    Raises:
        ValueError: what the mode's own ``decide`` refuses.
    """
    mode = component.factory
    assert isinstance(mode, Mode)  # the registry takes nothing else as a mode
    if mode.decide is None:
        return Decision(mode), dict(settings)
    taken = component.settings
    own = {name: read_setting(taken[name], value) for name, value in settings.items() if name in taken}
    rest = {name: value for name, value in settings.items() if name not in taken}
    decision = mode.decide(compile, embedded, **own)
    return decision, {**decision.settings, **rest}


class _Parts:
    """Makes the components of one decoder and hands each the settings that it takes."""

    def __init__(self, components: Registry, mode: Mode, context: Context, settings: Mapping[str, Any]) -> None:
        self.components = components
        self.mode = mode
        self.context = replace(context, maker=self.make)
        self.making: list[str] = []
        self.settings = dict(settings)
        self.known: set[str] = set()
        self.measured: Mapping[str, Mapping[str, Any]] = {}

    def make(self, kind: str, part: Any) -> Any:  # noqa: ANN401
        """The component called ``part``; an object is taken as it is."""
        if not isinstance(part, str):
            _check_declares(kind, type(part).__name__, part)
            return part
        component = self.components.get(kind, part)
        if (name := f"{kind} {component.name!r}") in self.making:
            raise ValueError(f"{name}: expected parts other than itself, got {' > '.join([*self.making, name])}")
        self.making.append(name)
        made = component.factory(self.context, **self._for(component))  # type: ignore[operator]
        self.making.pop()
        _check_declares(kind, component.name, made)
        return made

    def _for(self, component: Component) -> dict[str, Any]:
        taken = component.settings
        self.known |= set(taken)
        merged = {**self.mode.settings, **self.measured.get(component.name, {}), **self.settings}
        return {name: read_setting(taken[name], value) for name, value in merged.items() if name in taken}

    def drafting(self, override: Any) -> Any:  # noqa: ANN401
        """The drafter: named outright, or by ``draft``, or the mode's own; its measured settings count from now on."""
        draft = self.context.draft
        if draft is None and override is None and self.mode.propose == "model" and self.context.target.is_embedded:
            draft = assets.DEFAULT_DRAFT
        if (
            override is None
            and self.mode.propose == "model"
            and isinstance(draft, str)
            and draft in self.components.names("drafter")
        ):
            override, draft = draft, None
        self.context = replace(self.context, draft=draft)
        name = self.mode.propose if override is None else override
        if self.context.target.is_embedded and isinstance(name, str):
            self.measured = assets.SETTINGS.get((draft or assets.DEFAULT_MODEL) if name == "model" else name, {})
        return name

    def drafter(self, name: Any, builder: Any) -> Any:  # noqa: ANN401
        """The drafter ``name`` (or that object), with room for what ``builder`` runs."""
        needed = getattr(builder, "max_slots", None)
        self.context = replace(self.context, max_slots=needed)
        made = self.make("drafter", name)
        room = getattr(made, "max_slots", None)
        if needed is not None and room is not None and room < needed:
            raise ValueError(
                f"propose: expected a drafter with room for the {needed} nodes that this tree may run in a step, got "
                f"one with max_slots {room}; make it with max_slots={needed}, or make the tree smaller"
            )
        return made

    def verifiers(self, override: Any) -> dict[str, list[Any]]:  # noqa: ANN401
        """Candidates per kind of temperature; an override takes the place of what it can serve."""
        made = {
            "greedy": [self.make("verifier", self.mode.greedy)],
            "sampling": [self.make("verifier", name) for name in self.mode.sampling],
        }
        if override is not None:
            verifier = self.make("verifier", override)
            made |= {kind: [verifier] for kind in verifier.serves}
        return made

    def check_settings(self) -> None:
        """Refuse a setting that no chosen component takes."""
        for name in self.settings:
            if name not in self.known:
                raise ValueError(unknown("setting", name, self.known))


_DECLARES = {
    "drafter": ("has_probs",),
    "tree": ("max_nodes", "chain", "draws", "needs_marginals"),
    "verifier": ("serves", "draws", "chain_only", "needs_draft_probs"),
    "state": ("keep", "move", "commit_state"),
}
"""What is read off a component of each kind before the first step."""


def _check_declares(kind: str, name: str, component: object) -> None:
    missing = [attribute for attribute in _DECLARES.get(kind, ()) if not hasattr(component, attribute)]
    if missing:
        raise ValueError(
            f"{kind} {name!r}: expected it to have {', '.join(_DECLARES[kind])}, got none of the name {missing[0]!r}; "
            f"specdecodes.testing checks a {kind} against its contract"
        )


def _assemble(kind: str, candidates: Sequence[Any], roles: dict[str, Any]) -> Assembly | str:
    """Hooks with the first verifier that fits the drafter and the builder, or why none does."""
    reasons = []
    for verifier in candidates:
        draws = _fit(kind, verifier, roles["tree"], roles["drafter"])
        if draws in roles["tree"].draws:
            return Assembly(Hooks({**roles, "verifier": verifier}), draws)
        reasons.append(f"verifier {type(verifier).__name__}: {draws}")
    return "; ".join(reasons)


def _fit(kind: str, verifier: Any, builder: Any, drafter: Any) -> str:  # noqa: ANN401
    """How children must come about for these three to work together, or a sentence why they cannot."""
    if kind not in verifier.serves:
        return f"it does not serve {kind}"
    if verifier.chain_only and not builder.chain:
        return "it judges chains only, but the tree builder branches"
    if verifier.needs_draft_probs and not drafter.has_probs:
        return "it needs the draft's probabilities, which this drafter does not have"
    if builder.needs_marginals and not getattr(drafter, "has_marginals", False):
        return "the tree builder needs per-depth marginals, which this drafter does not have"
    wanted = ("none",) if kind == "greedy" else verifier.draws
    fitting = [str(draws) for draws in wanted if draws in builder.draws]
    for draws in fitting:
        if draws == "none" or drafter.has_probs:
            return draws
    if fitting:
        return "the tree builder draws from the draft's probabilities, which this drafter does not have"
    return f"it judges children drawn as {' or '.join(wanted)}, the tree builder gives {' or '.join(builder.draws)}"
