"""The HTML report: a summary's numbers arranged for the template beside this file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from specdecodes.benchmark.categories import CategorySpeed, speed_by_category
from specdecodes.benchmark.records import BASELINE
from specdecodes.benchmark.report import (
    difference_cell,
    equal_cell,
    judged,
    log_perplexity_cell,
    notes,
    speedup_cell,
    title,
)
from specdecodes.benchmark.sample import Sample, SampledStep
from specdecodes.benchmark.stats import add_by_depth
from specdecodes.benchmark.summary import PARTS, ModeSummary, Summary
from specdecodes.pictures.layout import Label, lay_out, row
from specdecodes.pictures.svg import STYLE, svg_element
from specdecodes.pictures.tokens import shorten
from specdecodes.plugins.observers.trace import KINDS, headline

TEMPLATE = Path(__file__).with_name("report.html.jinja")
LONGEST = 16
"""Terminal cells of a token's text in a drawing; pointing at the node shows all of it."""


@dataclass(frozen=True)
class Mark:
    """A speed-up on the chart: dot and interval in percent of the width; None where it means nothing."""

    mode: ModeSummary
    text: str
    tone: str
    dot: float | None
    start: float = 0.0
    width: float = 0.0


@dataclass(frozen=True)
class Cell:
    """A share with the counts behind it."""

    accepted: int
    offered: int

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return self.accepted / self.offered if self.offered else 0.0


def page(summary: Summary) -> str:
    """The report of a run: a page that needs nothing but itself."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    others = [mode for mode in summary.modes if mode.mode != BASELINE]
    axis = Axis.over([(m, speed) for m in others for speed in (_whole(summary, m), *_categories(summary, m))])
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        summary=summary,
        title=title(summary),
        style=STYLE,
        notes=notes(replace(summary, folder="")),  # where the files were made is no part of the report
        modes=summary.modes,
        others=others,
        tone=_tone,
        speedup_cell=speedup_cell,
        equal_cell=equal_cell,
        judged=judged(summary),
        log_perplexity_cell=log_perplexity_cell,
        difference_cell=difference_cell,
        axis=axis,
        groups=list(_groups(summary, others, axis)),
        drafting=[mode for mode in others if mode.drafted],
        by_depth=lambda mode: [Cell(*counts) for counts in zip(mode.accepted, mode.offered, strict=True)],
        by_rank=_by_rank,
        parts=PARTS,
        ms_per_token=_ms_per_token,
        slowest=max((_decode_ms(mode) for mode in summary.modes), default=0.0),
        decode_ms=_decode_ms,
        samples=[(summary.mode(sample.mode), sample, list(_drawn(sample))) for sample in summary.samples],
        legend=svg_element(row([Label(kind, kind=kind) for kind in KINDS]), f"legend: {', '.join(KINDS)}"),
        plain=_plain,
    )


@dataclass(frozen=True)
class Axis:
    """The scale that all speed-ups share, from ``low`` to ``high``, with 1 on it."""

    low: float
    high: float

    @classmethod
    def over(cls, speeds: Sequence[tuple[ModeSummary, CategorySpeed]]) -> Axis:
        """Long enough for all intervals of the modes whose speed-up means something."""
        ends = [1.0]
        for mode, speed in speeds:
            if mode.valid:
                ends += [speed.speedup, *((speed.interval.low, speed.interval.high) if speed.interval else ())]
        return cls(max(math.floor(min(ends) * 4 - 0.5) / 4, 0.0), math.ceil(max(ends) * 4 + 0.5) / 4)

    def place(self, value: float) -> float:
        """Where ``value`` stands, in percent from the left."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """At most eight round values (place, label), 1 among them."""
        step = next(step for step in (0.25, 0.5, 1, 2, 5, 10, 50, 1e9) if (self.high - self.low) / step <= 8)
        first, last = math.ceil((self.low - 1) / step), math.floor((self.high - 1) / step)
        return [(self.place(1 + i * step), f"{1 + i * step:g}") for i in range(first, last + 1)]


def _whole(summary: Summary, mode: ModeSummary) -> CategorySpeed:
    return CategorySpeed("all questions", summary.num_questions, mode.speedup, mode.interval)


def _categories(summary: Summary, mode: ModeSummary) -> list[CategorySpeed]:
    return speed_by_category(summary.rows, mode.mode)


def _groups(summary: Summary, modes: Sequence[ModeSummary], axis: Axis) -> Iterator[tuple[CategorySpeed, list[Mark]]]:
    """All questions, then every category, with one mark per mode."""
    columns = [[_whole(summary, mode), *_categories(summary, mode)] for mode in modes]
    for speeds in zip(*columns, strict=True):
        yield speeds[0], [_mark(mode, speed, axis) for mode, speed in zip(modes, speeds, strict=True)]


def _mark(mode: ModeSummary, speed: CategorySpeed, axis: Axis) -> Mark:
    shown = replace(mode, speedup=speed.speedup, interval=speed.interval)
    tone, text = _tone(shown), speedup_cell(shown)
    if not mode.valid:
        return Mark(mode, text, tone, None)
    dot = axis.place(speed.speedup)
    if speed.interval is None:
        return Mark(mode, text, tone, dot)
    start, end = axis.place(speed.interval.low), axis.place(speed.interval.high)
    return Mark(mode, text, tone, dot, start, round(end - start, 2))


def _tone(mode: ModeSummary) -> str:
    """How a speed-up is coloured: bad, slow, fast or even (no clear difference)."""
    if not mode.valid:
        return "bad"
    if mode.mode == BASELINE:
        return "even"
    if mode.interval is not None and mode.interval.low <= 1 <= mode.interval.high:
        return "even"
    return "slow" if mode.speedup < 1 else "even" if mode.interval is None else "fast"


def _by_rank(mode: ModeSummary) -> list[tuple[str, list[Cell]]]:
    """Rows of the table of acceptance by rank: every depth, then all of them together."""
    rows = [
        (str(depth), [Cell(*counts) for counts in zip(accepted, offered, strict=True)])
        for depth, (accepted, offered) in enumerate(zip(mode.accepted_by_rank, mode.offered_by_rank, strict=True), 1)
    ]
    together = zip(add_by_depth(mode.accepted_by_rank), add_by_depth(mode.offered_by_rank), strict=True)
    return [*rows, ("all", [Cell(*counts) for counts in together])]


def _decode_ms(mode: ModeSummary) -> float:
    """Milliseconds of decode time per token that came after the prefill's."""
    return 1e3 / mode.tokens_per_second if mode.tokens_per_second else 0.0


def _ms_per_token(mode: ModeSummary, part: str) -> float:
    decode = mode.seconds["decode"]
    return _decode_ms(mode) * mode.seconds[part] / decode if decode else 0.0


def _drawn(sample: Sample) -> Iterator[tuple[str, str]]:
    """Every step's headline and picture."""
    for number, step in enumerate(sample.steps, 1):
        words = headline(number, step.kinds)
        yield words, _picture(step, words)


def _picture(step: SampledStep, words: str) -> str:
    labels = [
        Label(shorten(text, LONGEST), kind=kind, title=f"{text} ({kind})")
        for text, kind in zip(step.texts, step.kinds, strict=True)
    ]
    return svg_element(lay_out(step.parents, labels), words)


def _plain(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """A setting as people write it; a dash for what was not given."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        value = [f"{name}={_plain(item)}" for name, item in value.items()]
    if isinstance(value, list):
        value = ", ".join(map(_plain, value)) or None
    return "-" if value is None else str(value)
