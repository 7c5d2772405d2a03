"""What is kept of a run: one record per question, holding every turn of every mode and repeat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

BASELINE = "naive"
"""The mode that every other one is compared with."""


@dataclass(frozen=True)
class Mismatch:
    """Where a greedy answer leaves the baseline's, and how close the target's call was there.

    Attributes:
        position: index of the first differing token. tokens: (baseline's, mode's) token there, None past an end.
        gap: difference of the target's two best logits after the common prefix.
        shortfall: how far the worse of the two tokens lies below the best logit; None past an end.
        tolerance: up to where rounding explains a shortfall.
    """

    position: int
    tokens: tuple[int | None, int | None]
    gap: float
    shortfall: float | None
    tolerance: float

    @property
    def explained(self) -> bool:
        """Whether rounding explains it: both tokens are as good as the best."""
        return self.shortfall is not None and self.shortfall <= self.tolerance


@dataclass(frozen=True)
class TurnRecord:
    """One answer: one mode, one turn, one repeat.

    Attributes:
        mode, repeat, turn: which answer (repeat and turn count from 0).
        prompt_tokens, new_tokens: lengths; the first new token comes from the prefill.
        text: the answer without special tokens.
        accept_lengths: tokens emitted per decode step, bonus included.
        seconds: prefill, decode, and decode's parts propose, build, verify, commit, host.
        drafted, offered, accepted, offered_by_rank, accepted_by_rank: see
            :class:`specdecodes.plugins.observers.acceptance.Acceptance`.
        ngrams: distinct and all 4-grams.
        peak_bytes: the most memory in use while it was decoded (see :mod:`specdecodes.benchmark.memory`).
        mismatch: greedy only: None for an answer equal to the baseline's.
        log_perplexity: nats per token (see :mod:`specdecodes.benchmark.likelihood`); None: not asked for.
    """

    mode: str
    repeat: int
    turn: int
    prompt_tokens: int
    new_tokens: int
    text: str
    accept_lengths: list[int]
    seconds: dict[str, float]
    drafted: int = 0
    offered: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    offered_by_rank: list[list[int]] = field(default_factory=list)
    accepted_by_rank: list[list[int]] = field(default_factory=list)
    ngrams: tuple[int, int] = (0, 0)
    peak_bytes: int = 0
    mismatch: Mismatch | None = None
    log_perplexity: float | None = None

    @property
    def wall_seconds(self) -> float:
        """Prefill and decode together."""
        return self.seconds["prefill"] + self.seconds["decode"]

    @property
    def decoded(self) -> int:
        """Tokens that came after the prefill's, in the time ``seconds["decode"]``."""
        return self.new_tokens - 1


@dataclass(frozen=True)
class QuestionRecord:
    """One question with its answers, or the reason why it was left out."""

    question_id: int | str
    category: str
    turns: list[TurnRecord] = field(default_factory=list)
    skipped: str | None = None

    def of(self, mode: str) -> list[TurnRecord]:
        """One mode's answers, in order of repeat and turn."""
        return sorted((t for t in self.turns if t.mode == mode), key=lambda t: (t.repeat, t.turn))

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> QuestionRecord:
        """The inverse of :meth:`to_json`.

        Raises:
            KeyError, TypeError: the values are not those of a record.
        """
        return cls(**{**values, "turns": [_turn(turn) for turn in values["turns"]]})


def _turn(values: Mapping[str, Any]) -> TurnRecord:
    mismatch = values["mismatch"]
    if mismatch is not None:
        mismatch = Mismatch(**{**mismatch, "tokens": tuple(mismatch["tokens"])})
    return TurnRecord(**{**values, "ngrams": tuple(values["ngrams"]), "mismatch": mismatch})
