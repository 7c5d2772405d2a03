"""Speed-ups by category of questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specdecodes.benchmark.records import BASELINE
from specdecodes.benchmark.stats import Interval, Pair, bootstrap_ratio, speed_ratio


@dataclass(frozen=True)
class CategorySpeed:
    """One mode on one category: how many questions, the speed-up and its interval (None for a single question)."""

    category: str
    questions: int
    speedup: float
    interval: Interval | None


def speed_by_category(rows: Sequence[Mapping[str, Any]], mode: str) -> list[CategorySpeed]:
    """The speed-ups of ``mode``, in the order in which the categories were first asked.

    Args:
        rows: a summary's, one per answer. mode: not the baseline.
    """
    measured: dict[str, dict[Any, dict[str, list[float]]]] = {}
    for row in rows:
        if row["mode"] in (BASELINE, mode):
            sides = measured.setdefault(row["category"], {}).setdefault(row["question_id"], {})
            side = sides.setdefault(row["mode"], [0.0, 0.0])
            side[0] += row["new_tokens"] - 1  # the first comes with the prefill
            side[1] += row["seconds"]["decode"]
    found = []
    for category, questions in measured.items():
        pairs = [Pair(*sides[BASELINE], *sides[mode]) for sides in questions.values()]
        found.append(CategorySpeed(category, len(pairs), speed_ratio(pairs), bootstrap_ratio(pairs)))
    return found
