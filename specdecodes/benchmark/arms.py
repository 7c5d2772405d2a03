"""The decoders that a run compares: plain decoding, and one per mode, on one loaded target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from specdecodes import assets
from specdecodes.benchmark.records import BASELINE
from specdecodes.benchmark.settings import RunSettings
from specdecodes.core.decoder import Decoder
from specdecodes.core.load import decide, load
from specdecodes.plugin import Decision, registry, unknown
from specdecodes.plugins.observers.acceptance import Acceptance

Load = Callable[..., Decoder]

PARTS = ("propose", "build_tree", "verify", "commit_state")
"""The settings that replace one part of a mode each."""


def load_arms(settings: RunSettings, load: Load = load) -> dict[str, Decoder]:
    """One decoder per mode, the baseline first; all share the target's weights.

    Raises:
        ValueError: what :func:`specdecodes.load` refuses, a setting that no mode takes, a target without a tokenizer.
    """
    plans = plan_settings(settings)
    common: dict[str, Any] = {
        "trust_remote_code": settings.trust_remote_code,
        "compile": settings.compile,
        "max_length": settings.max_length,
        "observers": [Acceptance()],
    }
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
            parts = {part: getattr(settings, part) for part in PARTS}
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
            plans[mode][key] = value
    return plans


def components_of(mode: str, settings: RunSettings) -> dict[str, list[Any]]:
    """Kind to what may fill the hooks of ``mode``, names or objects; only verifiers are several."""
    components = registry()
    decision = _decision(mode, settings)
    chosen = decision.mode
    replaced = dict.fromkeys(PARTS) if mode == BASELINE else {part: getattr(settings, part) for part in PARTS}
    draft = decision.draft if settings.draft is None else settings.draft
    if draft is None and settings.target == "embedded":
        draft = assets.DEFAULT_DRAFT
    named = chosen.propose == "model" and isinstance(draft, str) and draft in components.names("drafter")
    return {
        "drafter": [replaced["propose"] or (draft if named else chosen.propose)],
        "tree": [replaced["build_tree"] or chosen.build_tree],
        "verifier": [chosen.greedy, *chosen.sampling, *filter(None, [replaced["verify"]])],
        "state": [replaced["commit_state"] or chosen.commit_state],
    }


def _decision(mode: str, settings: RunSettings) -> Decision:
    """What ``mode`` stands for in this run."""
    component = registry().get("mode", mode)
    given = settings.settings
    own = {key: given[name] for key in component.settings for name in (key, f"{mode}.{key}") if name in given}
    return decide(component, own, compile=settings.compile, embedded=settings.target == "embedded")[0]


def _settings_of(mode: str, settings: RunSettings) -> set[str]:
    """The settings that ``mode`` and its components take, the replaced parts included."""
    return set(registry().get("mode", mode).settings) | {
        key
        for kind, parts in components_of(mode, settings).items()
        for part in parts
        if isinstance(part, str)
        for key in registry().get(kind, part).settings
    }
