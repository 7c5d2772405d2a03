"""From records to the numbers of the closing table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from specdecodes.benchmark.records import BASELINE, Mismatch, QuestionRecord, TurnRecord
from specdecodes.benchmark.sample import Sample
from specdecodes.benchmark.stats import (
    Interval,
    Pair,
    acceptance_by_depth,
    add_by_depth,
    add_by_rank,
    bootstrap_difference,
    bootstrap_ratio,
    mean_difference,
    rate,
    speed_ratio,
)

FORMAT = "specdecodes.benchmark/1"

PARTS = ("propose", "build", "verify", "commit", "host")
"""The parts of decode time; with ``prefill`` they make up the whole."""

DEFINITIONS = {
    "tokens_per_second": "new tokens after each answer's first, over decode seconds, all answers together; decode is "
    "the wall time from the end of the target's prefill to the last token: propose (the drafter's own prefill "
    "included), build, verify, commit and host work",
    "mean_tokens_per_second": "the same ratio per question, averaged over questions",
    "total_tokens_per_second": "all new tokens, over prefill and decode seconds together",
    "speedup": "tokens_per_second over the baseline's, measured in the same process on the same prompts in alternation",
    "interval": "95 % percentile bootstrap of speedup, 10,000 resamples of whole questions, both sides together",
    "total_speedup": "total_tokens_per_second over the baseline's",
    "tau": "tokens per decode step with the bonus token; tau_drafted is without it",
    "acceptance": "accepted over drafted tokens, padding left out",
    "acceptance_by_depth": "of the steps whose tree had a node at this depth, the share that accepted one there",
    "acceptance_by_rank": "of the steps in which an accepted node had a child of this rank (the first is 1) at this "
    "depth, the share that accepted the child",
    "equal": "greedy answers with the baseline's tokens; a mismatch is explained by rounding if both tokens lie within "
    "the tolerance (1e-4 in float32 and float64) of the target's best logit after the common prefix",
    "distinct_4grams": "distinct over all 4-grams within each answer, summed over answers; repetition flatters "
    "speculation",
    "log_perplexity": "mean negative log-likelihood of an answer's tokens under the target, nats per token, at the "
    "run's temperature (greedy: 1) and without truncation, averaged over answers",
    "log_perplexity_difference": "log_perplexity minus the baseline's on the same prompts; its interval is the 95 % "
    "percentile bootstrap over whole questions. A lossless mode's includes 0 in 19 of 20 runs",
    "peak_bytes": "CUDA: the allocator's peak; elsewhere: the process's resident peak with every mode's weights",
}


@dataclass(frozen=True)
class Components:
    """What filled the hooks of a mode; ``draft``: the model that the drafter ran; ``lossless``: the verifier's word."""

    drafter: str
    draft: str | None
    tree: str
    verifier: str
    state: str
    lossless: bool


@dataclass(frozen=True)
class ModeSummary:
    """One mode's numbers; :data:`DEFINITIONS` says what each is.

    Attributes:
        mismatches: one dict per unequal answer: question_id, turn, repeat and the fields of :class:`Mismatch`.
        compared: answers that were compared (0 when sampling: equality is not defined there).
        valid: False if an answer differs where rounding does not explain it; then the speed-up means nothing.
        verdict: the outcome in words.
        seconds: prefill, decode, propose, build, verify, commit, host.
    """

    mode: str
    model_id: str
    components: Components
    answers: int
    new_tokens: int
    tokens_per_second: float
    mean_tokens_per_second: float
    total_tokens_per_second: float
    speedup: float
    interval: Interval | None
    total_speedup: float
    tau: float
    tau_drafted: float
    steps: int
    drafted: int
    acceptance: float
    offered: list[int]
    accepted: list[int]
    acceptance_by_depth: list[float]
    compared: int
    equal: int
    mismatches: list[dict[str, Any]]
    valid: bool
    distinct_4grams: float
    seconds: dict[str, float]
    peak_bytes: int
    verdict: str
    log_perplexity: float | None = None
    log_perplexity_difference: float | None = None
    log_perplexity_interval: Interval | None = None
    offered_by_rank: list[list[int]] = field(default_factory=list)
    accepted_by_rank: list[list[int]] = field(default_factory=list)

    @property
    def label(self) -> str:
        """The mode's name as it is shown: a lossy one says so."""
        return self.mode if self.components.lossless else f"{self.mode} (lossy)"


@dataclass(frozen=True)
class Summary:
    """A whole run: what was asked, where it ran, and what came out.

    Attributes:
        settings: of the run, as plain values. sessions: provenance, one entry per process that worked on it.
        baseline_distinct_4grams: how repetitive the text is.
        skipped: question id and reason of every question that was left out.
        modes: the baseline first. rows: one dict per answer, without its text.
        samples: one answer of every mode but the baseline, step by step.
        folder: where the files are.
    """

    settings: dict[str, Any]
    sessions: list[dict[str, Any]]
    num_questions: int
    skipped: list[dict[str, Any]]
    baseline_distinct_4grams: float
    modes: list[ModeSummary]
    rows: list[dict[str, Any]]
    dtype: str
    memory: str
    folder: str
    samples: list[Sample] = field(default_factory=list)
    format: str = FORMAT
    definitions: dict[str, str] = field(default_factory=lambda: dict(DEFINITIONS))

    def mode(self, name: str) -> ModeSummary:
        """One mode's numbers."""
        return next(mode for mode in self.modes if mode.mode == name)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; the folder is left out, since files move."""
        return {name: value for name, value in asdict(self).items() if name != "folder"}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Summary:
        """The inverse of :meth:`to_json`; earlier runs' files may lack acceptance by rank and samples.

        Raises:
            KeyError, TypeError: the values are not those of a summary.
        """
        modes = [_mode(mode) for mode in values["modes"]]
        samples = [Sample.from_json(sample) for sample in values.get("samples", [])]
        return cls(**{**values, "modes": modes, "samples": samples, "folder": ""})


def summarise_mode(
    records: Sequence[QuestionRecord],
    mode: str,
    model_id: str,
    components: Components,
    *,
    greedy: bool,
) -> ModeSummary:
    """All numbers of one mode from the questions that were answered."""
    answered = [record for record in records if record.skipped is None]
    turns = [turn for record in answered for turn in record.of(mode)]
    pairs, total_pairs = _pairs(answered, mode)
    seconds = {part: sum(t.seconds.get(part, 0.0) for t in turns) for part in ("prefill", "decode", *PARTS)}
    new_tokens, decoded = sum(t.new_tokens for t in turns), sum(t.decoded for t in turns)
    mismatches = _mismatches(answered, mode)
    valid = all(m["explained"] for m in mismatches)
    speedup, interval = speed_ratio(pairs), bootstrap_ratio(pairs)
    speeds = [rate(pair.tokens, pair.seconds) for pair in pairs if pair.seconds > 0]
    return ModeSummary(
        mode=mode,
        model_id=model_id,
        components=components,
        answers=len(turns),
        new_tokens=new_tokens,
        tokens_per_second=rate(decoded, seconds["decode"]),
        mean_tokens_per_second=sum(speeds) / len(speeds) if speeds else 0.0,
        total_tokens_per_second=rate(new_tokens, seconds["prefill"] + seconds["decode"]),
        speedup=speedup,
        interval=None if mode == BASELINE else interval,
        total_speedup=speed_ratio(total_pairs),
        **_acceptance(turns),
        compared=len(turns) if greedy else 0,
        equal=len(turns) - len(mismatches) if greedy else 0,
        mismatches=mismatches,
        valid=valid,
        distinct_4grams=distinct_share(turns),
        seconds=seconds,
        peak_bytes=max((t.peak_bytes for t in turns), default=0),
        verdict=verdict(mode, speedup, interval, valid, components.lossless),
        **_log_perplexity(answered, mode),
    )


def _acceptance(turns: Sequence[TurnRecord]) -> dict[str, Any]:
    """The fields of :class:`ModeSummary` on steps, drafted and accepted tokens."""
    decoded, steps = sum(t.decoded for t in turns), sum(len(t.accept_lengths) for t in turns)
    drafted = sum(t.drafted for t in turns)
    offered, accepted = add_by_depth([t.offered for t in turns]), add_by_depth([t.accepted for t in turns])
    return {
        "tau": decoded / steps if steps else 0.0,
        "tau_drafted": decoded / steps - 1 if steps else 0.0,
        "steps": steps,
        "drafted": drafted,
        "acceptance": (decoded - steps) / drafted if drafted else 0.0,
        "offered": offered,
        "accepted": accepted,
        "acceptance_by_depth": acceptance_by_depth(offered, accepted),
        "offered_by_rank": add_by_rank([t.offered_by_rank for t in turns]),
        "accepted_by_rank": add_by_rank([t.accepted_by_rank for t in turns]),
    }


def _log_perplexity(records: Sequence[QuestionRecord], mode: str) -> dict[str, Any]:
    """The fields of :class:`ModeSummary` on log-perplexity; none where it was not asked for."""
    own = [[t.log_perplexity for t in record.of(mode) if t.log_perplexity is not None] for record in records]
    base = [[t.log_perplexity for t in record.of(BASELINE) if t.log_perplexity is not None] for record in records]
    if not any(own):
        return {}
    found: dict[str, Any] = {"log_perplexity": mean_difference(own)}
    if mode != BASELINE:
        pairs = [[a - b for a, b in zip(*both, strict=True)] for both in zip(own, base, strict=True)]
        found["log_perplexity_difference"] = mean_difference(pairs)
        found["log_perplexity_interval"] = bootstrap_difference(pairs)
    return found


def verdict(mode: str, speedup: float, interval: Interval | None, valid: bool, lossless: bool = True) -> str:
    """A mode's outcome in words."""
    if not lossless:
        return f"lossy; {verdict(mode, speedup, interval, valid)}"
    if mode == BASELINE:
        return "plain decoding"
    if not valid:
        return "NOT EQUAL to plain decoding, speed-up not valid"
    if speedup < 1:
        unsure = " (the interval includes 1)" if interval is not None and interval.high >= 1 else ""
        return f"slower than plain decoding{unsure}"
    if interval is None or interval.low <= 1:
        return "no clear difference from plain decoding"
    return "faster than plain decoding"


def distinct_share(turns: Sequence[TurnRecord]) -> float:
    """Distinct over all 4-grams, counted within each answer (0 for answers too short to hold one)."""
    distinct, every = (sum(column) for column in zip(*(t.ngrams for t in turns), strict=True)) if turns else (0, 0)
    return distinct / every if every else 0.0


def summary_row(record: QuestionRecord, turn: TurnRecord) -> dict[str, Any]:
    """One answer as the summary keeps it: without its text, with its steps counted."""
    row: dict[str, Any] = {"question_id": record.question_id, "category": record.category, **asdict(turn)}
    row["steps"] = len(row.pop("accept_lengths"))
    row["seconds"] = {name: round(value, 6) for name, value in row["seconds"].items()}
    del row["text"]
    return row


def _pairs(records: Sequence[QuestionRecord], mode: str) -> tuple[list[Pair], list[Pair]]:
    """Per question, all turns and repeats together: (decode only, prefill and first token included)."""
    decode, total = [], []
    for record in records:
        base, own = record.of(BASELINE), record.of(mode)
        decode.append(Pair(*_measured(base, "decode"), *_measured(own, "decode")))
        total.append(Pair(*_measured(base, "all"), *_measured(own, "all")))
    return decode, total


def _measured(turns: Sequence[TurnRecord], what: str) -> tuple[float, float]:
    if what == "decode":
        return sum(t.decoded for t in turns), sum(t.seconds["decode"] for t in turns)
    return sum(t.new_tokens for t in turns), sum(t.wall_seconds for t in turns)


def _mismatches(records: Sequence[QuestionRecord], mode: str) -> list[dict[str, Any]]:
    return [
        {"question_id": record.question_id, "turn": turn.turn, "repeat": turn.repeat, **_mismatch(turn.mismatch)}
        for record in records
        for turn in record.of(mode)
        if turn.mismatch is not None
    ]


def _mode(values: Mapping[str, Any]) -> ModeSummary:
    intervals = {
        name: Interval(**values[name])
        for name in ("interval", "log_perplexity_interval")
        if values.get(name) is not None
    }
    return ModeSummary(**{**values, "components": Components(**values["components"]), **intervals})


def _mismatch(mismatch: Mismatch) -> Mapping[str, Any]:
    return {**asdict(mismatch), "explained": mismatch.explained}
