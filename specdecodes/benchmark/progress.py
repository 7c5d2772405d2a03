"""The live progress bar of a run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from specdecodes.benchmark.questions import Question
from specdecodes.benchmark.records import BASELINE, QuestionRecord
from specdecodes.benchmark.stats import rate
from specdecodes.benchmark.watcher import Watcher
from specdecodes.plugin import mode_label, registry


class ProgressBar(Watcher):
    """Shows questions done, the one at hand, and every mode's decode tokens/s so far."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[speeds]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = TaskID(0)
        self._tokens: dict[str, float] = defaultdict(float)
        self._seconds: dict[str, float] = defaultdict(float)

    def begun(self, records: Sequence[QuestionRecord], total: int) -> None:
        """Show the bar."""
        self._task = self._progress.add_task("questions", total=total, completed=len(records), speeds="")
        for record in records:
            self._count(record)
        self._progress.start()

    def asking(self, question: Question, mode: str) -> None:
        """Name the question and the mode."""
        self._progress.update(self._task, description=f"question {question.question_id} {_label(mode)}")

    def finished(self, record: QuestionRecord) -> None:
        """Move the bar."""
        self._count(record)
        self._progress.update(self._task, advance=1, speeds=self._speeds())

    def ended(self) -> None:
        """Take the bar away."""
        self._progress.stop()

    def _count(self, record: QuestionRecord) -> None:
        for turn in record.turns:
            self._tokens[turn.mode] += turn.decoded
            self._seconds[turn.mode] += turn.seconds["decode"]

    def _speeds(self) -> str:
        base = rate(self._tokens[BASELINE], self._seconds[BASELINE])
        speeds = {mode: rate(tokens, self._seconds[mode]) for mode, tokens in self._tokens.items()}
        return "  ".join(
            f"{_label(mode)} {speed:.0f} tokens/s" + (f" ({speed / base:.2f}x)" if base and mode != BASELINE else "")
            for mode, speed in speeds.items()
        )


def _label(mode: str) -> str:
    return mode_label(registry(), mode)
