"""What a run tells whoever watches it."""

from __future__ import annotations

from collections.abc import Sequence

from specdecodes.benchmark.questions import Question
from specdecodes.benchmark.records import QuestionRecord


class Watcher:
    """Gets told how a run goes on, and does nothing; the progress bar does more."""

    def begun(self, records: Sequence[QuestionRecord], total: int) -> None:
        """Decoding begins; ``records`` are already done (resume), of ``total`` questions."""

    def asking(self, question: Question, mode: str) -> None:
        """The next answer is about to be decoded."""

    def finished(self, record: QuestionRecord) -> None:
        """A question's answers are on the disk."""

    def ended(self) -> None:
        """Decoding is over, or has failed."""
