"""``mode="auto"``: what the tuner found, while it pays."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specdecodes import assets
from specdecodes.plugin import Decision, Mode, registry
from specdecodes.tuning.gate import Gate, GatedDrafter, GatedTree
from specdecodes.tuning.recipe import Recipe, target_facts

if TYPE_CHECKING:
    from specdecodes.models.target import Target


def decide(compile: bool, embedded: bool, *, recipe: str = "") -> Decision:
    """The mode of ``recipe``, drafting only while the running estimate of its speed-up is at least one.

    Sampled tokens are verified by token matching: with it a seed gives the same tokens whether a step drafts or not.

    Args:
        recipe: path of what ``specdecodes tune`` wrote; "" for the one that ships for the embedded target.

    Raises:
        ValueError: no recipe for another target than the embedded one, or a file that is none.
    """
    if not recipe and not embedded:
        raise ValueError(
            "recipe: mode 'auto' expected a file that 'specdecodes tune' wrote for this target, got none; "
            "run it and name its file"
        )
    found = Recipe.read(Path(recipe) if recipe else assets.recipe(compile))
    mode = registry().get("mode", found.mode).factory
    assert isinstance(mode, Mode)
    if mode.decide is not None:
        raise ValueError(
            f"recipe: mode: expected the mode that was found fastest, got {found.mode!r}, which asks for one"
        )
    if found.compile != compile:
        warnings.warn(
            f"recipe: measured {'compiled' if found.compile else 'eager'}, used "
            f"{'compiled' if compile else 'eager'}, where costs differ; tune with the same",
            stacklevel=2,
        )

    def check(target: Target) -> None:
        found.check_target(target_facts(target.model))

    def wrap(drafter: Any, builder: Any) -> tuple[Any, Any]:  # noqa: ANN401 - components have no base class
        gate = Gate(found.step_cost, found.tau)
        return GatedDrafter(drafter, gate), GatedTree(builder, gate)

    gated = replace(mode, greedy="greedy", sampling=("token-match",))
    return Decision(gated, found.draft, found.settings, check, wrap if builds_trees(mode) else None)


def builds_trees(mode: Mode) -> bool:
    """Whether there is anything to hold back; a recipe may say that plain decoding is fastest."""
    return mode.build_tree != "root"
