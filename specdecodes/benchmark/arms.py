"""The decoders that a run compares: plain decoding, and one per mode, on one loaded target."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from specdecodes import assets
from specdecodes.benchmark.records import BASELINE
from specdecodes.benchmark.settings import RunSettings
from specdecodes.core.decoder import Decoder
from specdecodes.core.load import load
from specdecodes.plugin import Mode, registry, unknown
from specdecodes.plugins.observers.acceptance import Acceptance

Load = Callable[..., Decoder]

_PARTS = ("propose", "build_tree", "verify", "commit_state")


def load_arms(settings: RunSettings, load: Load = load) -> dict[str, Decoder]:
    """One decoder per mode, the baseline first; all share the target's weights.

    Raises:
        ValueError: what :func:`specdecodes.load` refuses, a setting that no mode takes, a target without a tokenizer.
    """
    plans = plan_settings(settings)
    common: dict[str, Any] = {"compile": settings.compile, "observers": [Acceptance()]}
    baseline = load(
        settings.target,
        mode=BASELINE,
        tokenizer=settings.tokenizer,
        device=settings.device,
        dtype=settings.dtype,
        **common,
    )
    if baseline.tokenizer is None:
        raise ValueError(
            f"tokenizer: expected one beside the target {settings.target_name!r}, got none; name one with --tokenizer"
        )
    arms = {BASELINE: baseline}
    for mode in settings.modes:
        if mode != BASELINE:
            parts = {part: getattr(settings, part) for part in _PARTS}
            arms[mode] = load(
                baseline.target.model,
                settings.draft,
                mode,
                tokenizer=baseline.tokenizer,
                **parts,
                **common,
                **plans[mode],
            )
    return arms


def plan_settings(settings: RunSettings) -> dict[str, dict[str, Any]]:
    """The component settings of every mode but the baseline.

    A key goes to every mode with a component that takes it; ``mode.key`` goes to that mode alone.

    Raises:
        ValueError: a key that no component of any mode takes, or a mode that does not run.
    """
    takes = {mode: _settings_of(mode, settings) for mode in settings.modes if mode != BASELINE}
    plans: dict[str, dict[str, Any]] = {mode: {} for mode in takes}
    for name, value in settings.settings.items():
        only, dot, key = name.rpartition(".")
        if dot and only not in takes:
            raise ValueError(f"setting {name!r}: expected a mode of this run ({', '.join(takes)}), got {only!r}")
        takers = [mode for mode in ([only] if dot else takes) if key in takes[mode]]
        if not takers:
            raise ValueError(unknown("setting", key, {known for mode in takes.values() for known in mode}))
        for mode in takers:
            plans[mode][key] = read_value(value, takes[mode][key])
    return plans


def read_value(value: Any, parameter: inspect.Parameter) -> Any:  # noqa: ANN401
    """A string read as a Python or JSON literal, unless the setting's default is itself a string."""
    if not isinstance(value, str) or isinstance(parameter.default, str):
        return value
    for parse in (ast.literal_eval, json.loads):
        try:
            return parse(value)
        except (ValueError, SyntaxError):
            continue
    return value


def _settings_of(mode: str, settings: RunSettings) -> Mapping[str, inspect.Parameter]:
    """The settings that the components of ``mode`` take, the replaced parts included."""
    components = registry()
    return {
        name: parameter
        for kind, part in _components_of(mode, settings)
        for name, parameter in components.get(kind, part).settings.items()
    }


def _components_of(mode: str, settings: RunSettings) -> Iterator[tuple[str, str]]:
    components = registry()
    chosen = components.get("mode", mode).factory
    assert isinstance(chosen, Mode)  # the registry takes nothing else as a mode
    drafters = components.names("drafter")
    draft = settings.draft
    if draft is None and settings.target == "embedded":
        draft = assets.DEFAULT_DRAFT
    named = draft if chosen.propose == "model" and draft in drafters else None
    yield "drafter", settings.propose or named or chosen.propose
    yield "tree", settings.build_tree or chosen.build_tree
    yield "state", settings.commit_state or chosen.commit_state
    for verifier in (chosen.greedy, *chosen.sampling, *([settings.verify] if settings.verify else [])):
        yield "verifier", verifier
