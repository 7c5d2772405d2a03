"""The progress bar names modes as they are shown."""

from __future__ import annotations

import io

from rich.console import Console

from specdecodes.benchmark.progress import ProgressBar
from specdecodes.benchmark.questions import Question
from specdecodes.benchmark.records import QuestionRecord, TurnRecord


def turn(mode: str, decoded: int) -> TurnRecord:
    return TurnRecord(
        mode=mode,
        repeat=0,
        turn=0,
        prompt_tokens=3,
        new_tokens=decoded + 1,
        text="",
        accept_lengths=[decoded],
        seconds={"prefill": 0.1, "decode": 1.0},
        ngrams=(1, 1),
        peak_bytes=0,
        mismatch=None,
    )


def test_lossy_modes_say_so() -> None:
    out = io.StringIO()
    bar = ProgressBar(Console(file=out, force_terminal=True, width=200))
    bar.begun([QuestionRecord(1, "writing", [turn("naive", 10), turn("commonsense", 30)])], 2)
    bar.asking(Question(2, "writing", ["Why?"]), "commonsense")
    bar.finished(QuestionRecord(2, "writing", [turn("naive", 10), turn("stree", 20)]))
    bar.ended()
    shown = out.getvalue()
    assert "question 2 commonsense (lossy)" in shown
    assert "naive 10 tokens/s  commonsense (lossy) 30 tokens/s (3.00x)  stree 20 tokens/s (2.00x)" in shown
