"""The tuner's answer as a file: which mode, drafter and tree to use on this machine, and what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from specdecodes.benchmark.journal import read_json, replace_json

FORMAT = "specdecodes recipe"
VERSION = 1


@dataclass(frozen=True)
class Recipe:
    """What ``specdecodes tune`` found and ``mode="auto"`` uses.

    Attributes:
        target: what it was measured for: ``family``, ``parameters`` and ``vocab_size``.
        mode, draft, settings: as for :func:`specdecodes.load`; ``draft`` None for the mode's own drafter.
        step_cost: of one step of this mode, in plain steps. tau: tokens per step that it got.
        dtype, compile: how it was measured.
        sentence: the choice in words.
        found: everything measured: candidates, cost curves, acceptance; and where it comes from.
        acceptance, cost, draft_cost: of the drafter chosen, as the tree builder ``optimal`` reads them from this file.
    """

    target: Mapping[str, Any]
    mode: str
    draft: str | None
    settings: Mapping[str, Any]
    step_cost: float
    tau: float
    dtype: str
    compile: bool
    sentence: str
    acceptance: Sequence[Any] = ()
    cost: Mapping[str, float] = field(default_factory=dict)
    draft_cost: float = 0.0
    found: Mapping[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the JSON file, replaced as a whole."""
        replace_json(path, {"format": FORMAT, "version": VERSION, **asdict(self)})

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Read what :meth:`write` wrote.

        Raises:
            ValueError: no such file, not a recipe, another version, a field that is missing, of another type or
                out of range.
        """
        values = read_json(path, "recipe", "'specdecodes tune' writes one")
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ValueError(f"recipe: {path}: expected a file that 'specdecodes tune' wrote, got another")
        if values.get("version") != VERSION:
            raise ValueError(
                f"recipe: {path}: expected version {VERSION}, got {values.get('version')!r}; "
                "run 'specdecodes tune' again"
            )
        for name, kinds in _KINDS.items():
            if name not in values or not isinstance(values[name], kinds):
                expected = " or ".join(kind.__name__ for kind in kinds)
                raise ValueError(f"recipe: {path}: {name}: expected {expected}, got {values.get(name)!r}")
        for name in ("step_cost", "tau"):
            if not 0 < values[name] < math.inf:  # nan is neither
                raise ValueError(f"recipe: {path}: {name}: expected a number above 0, got {values[name]!r}")
        return cls(**{name: values[name] for name in _KINDS})

    def check_target(self, target: Mapping[str, Any]) -> None:
        """Refuse another target than the one that was measured.

        Raises:
            ValueError: another family, size or vocabulary.
        """
        for name, expected in self.target.items():
            if target.get(name) != expected:
                raise ValueError(
                    f"recipe: it was measured for a target with {name} {expected!r}, got {target.get(name)!r}; "
                    "run 'specdecodes tune' for this target"
                )


def target_facts(model: Any) -> dict[str, Any]:  # noqa: ANN401 - a stock model
    """What tells one target from another in a recipe."""
    return {
        "family": model.config.model_type,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocab_size": model.config.get_text_config().vocab_size,
    }


_KINDS: dict[str, tuple[type, ...]] = {
    "target": (dict,),
    "mode": (str,),
    "draft": (str, type(None)),
    "settings": (dict,),
    "step_cost": (int, float),
    "tau": (int, float),
    "dtype": (str,),
    "compile": (bool,),
    "sentence": (str,),
    "acceptance": (list,),
    "cost": (dict,),
    "draft_cost": (int, float),
    "found": (dict,),
}
