"""What the conformance run measured, by family: read, written and put together for ``specdecodes models``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from specdecodes.assets import measured
from specdecodes.benchmark.journal import read_json, replace_json
from specdecodes.benchmark.provenance import provenance
from specdecodes.models.families import SUPPORTED

FORMAT = 1
WAY_OUT = "write it with: python -m pytest tests/models/test_measured.py --conformance-json FILE"

Run = Mapping[str, Any]


def shipped() -> Path:
    """The file that comes with the package."""
    return measured("conformance")


def read(path: Path) -> list[Run]:
    """The runs of a file, one per version of transformers, the oldest first.

    Each has what :func:`provenance` says, and ``rows``: ``name`` and ``family`` of a configuration, its ``layers``,
    ``errors`` by dtype (``logits``, and ``state`` by back-end), how many ``greedy`` tokens were equal, and ``limits``.

    Raises:
        ValueError: a file that cannot be read or is of another format.
    """
    values = read_json(path, "conformance", WAY_OUT)
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ValueError(f"conformance: {path}: expected format {FORMAT}, got something else; {WAY_OUT}")
    return list(values["runs"])


def write(path: Path, command: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Add a run to a file; it takes the place of an earlier one with the same version of transformers."""
    run = {**provenance(command, torch.device("cpu")), "rows": [_rounded(row) for row in rows]}
    others = read(path) if path.exists() else []
    runs = [each for each in others if _version(each) != _version(run)]
    replace_json(path, {"format": FORMAT, "runs": sorted([*runs, run], key=lambda each: _numbers(_version(each)))})


@dataclass
class Family:
    """One family over all of its configurations and all runs.

    Attributes:
        layers: what its layers are. backends: state back-ends that were compared with stock.
        errors: the largest by dtype, of logits and states alike; a dtype that was not measured is missing.
        greedy: tokens that were equal to stock's, 0 where nothing was measured. limits: what a user should know.
    """

    name: str
    layers: str
    backends: list[str] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    greedy: int = 0
    limits: list[str] = field(default_factory=list)


def families(runs: Sequence[Run]) -> list[Family]:
    """Every supported family, in the order of :data:`SUPPORTED`; what was never measured has no errors."""
    found = {name: Family(name, layers) for name, layers in SUPPORTED.items()}
    for row in (row for run in runs for row in run["rows"] if row["family"] in found):
        family = found[row["family"]]
        family.backends += [name for name in _backends(row) if name not in family.backends]
        family.limits += [limit for limit in row["limits"] if limit not in family.limits]
        family.greedy = row["greedy"] if not family.greedy else min(family.greedy, row["greedy"])
        for dtype, error in row["errors"].items():
            family.errors[dtype] = max(family.errors.get(dtype, 0.0), error["logits"], *error["state"].values())
    return list(found.values())


def sources(runs: Sequence[Run]) -> Iterator[str]:
    """A line per run on where its numbers come from."""
    for run in runs:
        commit, versions = run["commit"], run["versions"]
        at = f"commit {commit['id'][:12]}{' with changes' if commit['dirty'] else ''}" if commit else "no checkout"
        yield (
            f"transformers {versions['transformers']}, torch {versions['torch']}, {at}, {run['started'][:10]}: "
            f"`{run['command']}`"
        )


def _backends(row: Mapping[str, Any]) -> list[str]:
    return list(row["errors"]["float32"]["state"])


def _version(run: Run) -> str:
    return str(run["versions"]["transformers"])


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _rounded(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Two digits of every error."""
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    return float(f"{value:.2g}") if isinstance(value, float) else value
