"""The closing table, and what must be said beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from specdecodes.benchmark.records import BASELINE
from specdecodes.benchmark.summary import PARTS, ModeSummary, Summary

REPETITIVE = 0.7
"""Below this share of distinct 4-grams the table says that the text is repetitive."""

Row = tuple[str, Callable[[ModeSummary], str]]


def print_report(summary: Summary, console: Console) -> None:
    """Print one column per mode, then verdicts, mismatches, skipped questions and where the files are."""
    console.print(Text(title(summary), style="bold"))
    table = Table()
    table.add_column("", no_wrap=True)
    for mode in summary.modes:
        table.add_column(mode.label, justify="right")
    for label, cell in _rows(summary):
        table.add_row(label, *(cell(mode) for mode in summary.modes))
    console.print(table)
    for mode in summary.modes:
        if mode.mode != BASELINE:
            console.print(_verdict(mode))
    for line in notes(summary):
        console.print(Text(line))


def title(summary: Summary) -> str:
    """What was run, in one line."""
    settings = summary.settings
    sampling = "greedy" if _greedy(summary) else f"temperature {settings['temperature']:g}"
    execution = "compiled" if settings["compile"] else "eager"
    draft = f", draft {settings['draft']}" if settings["draft"] else ""
    skipped = f" ({len(summary.skipped)} skipped)" if summary.skipped else ""
    return (
        f"{settings['target']}{draft}: {summary.num_questions} questions{skipped}, {settings['questions']}, "
        f"{sampling}, {summary.dtype}, {execution}, {settings['max_new_tokens']} new tokens"
    )


def notes(summary: Summary) -> list[str]:
    """Sentences below the table."""
    share = summary.baseline_distinct_4grams
    flatters = "; the text is repetitive, which flatters speculation" if share < REPETITIVE else ""
    lines = [
        f"{share:.0%} of the 4-grams in the baseline's answers are distinct{flatters}.",
        "tokens/s: decode = without prefill and first token; total = with both. "
        "speed-up: decode tokens/s of all answers over the baseline's, same process, same prompts, in alternation; "
        "brackets: 95 % bootstrap over questions.",
    ]
    if not _greedy(summary):
        lines.append("Sampled answers are not compared token by token; 'lossless' is what the verifier declares.")
    lines += [line for mode in summary.modes if (line := _perplexity_line(mode))]
    for question in summary.skipped:
        lines.append(f"skipped question {question['question_id']}: {question['reason']}")
    lines += [line for mode in summary.modes for line in _mismatch_lines(mode)]
    return [*lines, f"files: {summary.folder}"] if summary.folder else lines


def speedup_cell(mode: ModeSummary) -> str:
    """The speed-up with its interval, or that it is not valid."""
    if mode.mode == BASELINE:
        return "1.00 (baseline)"
    if not mode.valid:
        return f"not valid ({mode.speedup:.2f})"
    if mode.interval is None:
        return f"{mode.speedup:.2f}"
    return f"{mode.speedup:.2f} [{mode.interval.low:.2f}, {mode.interval.high:.2f}]"


def equal_cell(mode: ModeSummary) -> str:
    """How many answers equal the baseline's; when sampling, what the verifier declares."""
    if mode.mode == BASELINE:
        return "-"
    if not mode.compared:
        return "lossless" if mode.components.lossless else "NOT lossless"
    share = f"{mode.equal}/{mode.compared} ({mode.equal / mode.compared:.0%})"
    return share if mode.valid else f"NOT EQUAL {share}"


def judged(summary: Summary) -> bool:
    """Whether the run measured log-perplexities."""
    return any(mode.log_perplexity is not None for mode in summary.modes)


def log_perplexity_cell(mode: ModeSummary) -> str:
    """The answers' mean log-perplexity under the target."""
    return "-" if mode.log_perplexity is None else f"{mode.log_perplexity:.3f}"


def difference_cell(mode: ModeSummary) -> str:
    """By how much it differs from the baseline's, with the interval."""
    if mode.log_perplexity_difference is None:
        return "-"
    interval = mode.log_perplexity_interval
    bounds = f" [{interval.low:+.3f}, {interval.high:+.3f}]" if interval is not None else ""
    return f"{mode.log_perplexity_difference:+.3f}{bounds}"


def _rows(summary: Summary) -> list[Row]:
    deepest = max((len(mode.offered) for mode in summary.modes), default=0)
    rows: list[Row] = [
        ("tokens/s, decode", lambda m: f"{m.tokens_per_second:.1f}"),
        ("  mean over questions", lambda m: f"{m.mean_tokens_per_second:.1f}"),
        ("tokens/s, total", lambda m: f"{m.total_tokens_per_second:.1f}"),
        ("speed-up, decode", speedup_cell),
        ("speed-up, total", lambda m: f"{m.total_speedup:.2f}" if m.valid else "not valid"),
        ("equal answers", equal_cell),
        ("tokens/step (tau)", lambda m: f"{m.tau:.2f}"),
        ("  without bonus", lambda m: f"{m.tau_drafted:.2f}"),
        ("accepted/drafted", lambda m: f"{m.acceptance:.1%}" if m.drafted else "-"),
    ]
    rows += [(f"  at depth {depth + 1}", _at_depth(depth)) for depth in range(deepest)]
    rows.append(("distinct 4-grams", lambda m: f"{m.distinct_4grams:.0%}"))
    if judged(summary):
        rows.append(("log-perplexity, nats/token", log_perplexity_cell))
        rows.append(("  minus the baseline's", difference_cell))
    rows += [(f"{part}, s", _part(part)) for part in ("prefill", "decode")]
    rows += [(f"  {part}", _part(part)) for part in PARTS]
    rows.append((f"peak memory ({summary.memory})", lambda m: f"{m.peak_bytes / 2**20:,.0f} MiB"))
    return rows


def _at_depth(depth: int) -> Callable[[ModeSummary], str]:
    return lambda m: f"{m.acceptance_by_depth[depth]:.1%}" if depth < len(m.offered) else "-"


def _part(part: str) -> Callable[[ModeSummary], str]:
    def cell(mode: ModeSummary) -> str:
        seconds, decode = mode.seconds[part], mode.seconds["decode"]
        share = f" ({seconds / decode:4.0%})" if part in PARTS and decode else ""
        return f"{seconds:.2f}{share}"

    return cell


def _verdict(mode: ModeSummary) -> Text:
    bad = not mode.valid or mode.speedup < 1
    style = "bold red" if not mode.valid else "yellow" if bad else "green" if "faster" in mode.verdict else ""
    number = "" if not mode.valid else f" ({speedup_cell(mode)} times)"
    return Text(f"{mode.label}: {mode.verdict}{number}", style=style)


def _perplexity_line(mode: ModeSummary) -> str:
    interval = mode.log_perplexity_interval
    if interval is None:
        return ""
    if interval.low <= 0 <= interval.high:
        return f"{mode.mode}: the interval of the log-perplexity's difference includes 0."
    return (
        f"{mode.mode}: the interval of the log-perplexity's difference EXCLUDES 0: its answers are "
        f"{'likelier' if interval.high < 0 else 'less likely'} than plain decoding's."
    )


def _mismatch_lines(mode: ModeSummary, most: int = 5) -> list[str]:
    """The unexplained ones first; a few are enough, the summary file holds all."""
    ordered: Sequence[dict[str, object]] = sorted(mode.mismatches, key=lambda m: bool(m["explained"]))
    lines = []
    for found in ordered[:most]:
        reason = "explained by rounding" if found["explained"] else "NOT explained by rounding"
        lines.append(
            f"{mode.label}: question {found['question_id']}, turn {int(str(found['turn'])) + 1}: differs at token "
            f"{found['position']}, logit gap {found['gap']:.2g} ({reason}, tolerance {found['tolerance']:.2g})"
        )
    if len(ordered) > most:
        lines.append(f"{mode.label}: {len(ordered) - most} more unequal answers in the summary")
    return lines


def _greedy(summary: Summary) -> bool:
    return bool(summary.settings["temperature"] == 0)
