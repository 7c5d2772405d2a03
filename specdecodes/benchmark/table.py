"""``python -m specdecodes.benchmark.table summary.json ...``: the README's table from summary files."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specdecodes.benchmark.stats import Pair, bootstrap_ratio, speed_ratio
from specdecodes.benchmark.summary import FORMAT
from specdecodes.cli.arguments import OneLineParser, run_reporting_errors

HEAD = (
    "mode",
    "drafter",
    "questions",
    "execution",
    "tokens/s",
    "speed-up [95 %]",
    "tau",
    "equal answers",
    "distinct 4-grams",
    "prefill",
    "note",
)
PROG = "python -m specdecodes.benchmark.table"


def markdown(
    summaries: Sequence[Mapping[str, Any]], against: str | None = None, modes: Sequence[str] | None = None
) -> str:
    """One row per mode of every summary, the baselines included, and one line per summary on where it comes from.

    Log-perplexities have a column where any summary holds them.

    Args:
        summaries: as :func:`read_summary` returns them.
        against: one more column: every mode's speed over this mode's, paired by question; 'best' stands for each
            summary's fastest lossless mode ('auto' left out, which chooses among the others).
        modes: only rows of these modes (None: of all).

    Raises:
        ValueError: a summary without the mode ``against``, or none with one of ``modes``.
    """
    numbered = [(number, s, mode) for number, s in enumerate(summaries, 1) for mode in s["modes"]]
    if modes is not None:
        known = dict.fromkeys(mode["mode"] for _, _, mode in numbered)
        if missing := [mode for mode in modes if mode not in known]:
            raise ValueError(f"--modes: expected modes of the runs ({', '.join(known)}), got {missing[0]!r}")
        numbered = [entry for entry in numbered if entry[2]["mode"] in modes]
    rows = [HEAD, *(_row(*entry) for entry in numbered)]
    perplexities = [_perplexity(mode) for _, _, mode in numbered]
    if any(cell != "-" for cell in perplexities):
        rows = _with_column(rows, "log-perplexity [95 % of difference]", perplexities)
    if against is not None:
        cells = [_speed_over(s, mode, _rival(s, against)) for _, s, mode in numbered]
        rows = _with_column(rows, f"speed / {against} [95 %]", cells)
    rows.insert(1, ("---",) * len(rows[0]))
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return table + "\n\n" + "\n".join(_source(number, s) for number, s in enumerate(summaries, 1)) + "\n"


def read_summary(path: Path) -> dict[str, Any]:
    """One summary file.

    Raises:
        ValueError: not a summary of this format.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected a summary JSON file, got {error}; give a run's summary.json") from error
    found = values.get("format") if isinstance(values, dict) else type(values).__name__
    if found != FORMAT:
        raise ValueError(f"{path}: expected a summary of format {FORMAT!r}, got {found!r}; give a run's summary.json")
    return dict(values)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit code (2 for bad input)."""
    return run_reporting_errors(lambda: _main(argv), PROG)


def _main(argv: Sequence[str] | None) -> None:
    parser = OneLineParser(prog=PROG, description=__doc__, epilog=f"example:\n  {PROG} benchmark/results/*.json")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a run's summary.json")
    parser.add_argument(
        "--against", metavar="MODE", help="add every mode's speed over this one's, or over the 'best' lossless one's"
    )
    parser.add_argument("--modes", metavar="A,B", help="only the rows of these modes (default: of all)")
    args = parser.parse_args(argv)
    modes = args.modes.split(",") if args.modes is not None else None
    print(markdown([read_summary(path) for path in args.files], args.against, modes), end="")


def _row(number: int, summary: Mapping[str, Any], mode: Mapping[str, Any]) -> tuple[str, ...]:
    settings = summary["settings"]
    baseline = mode is summary["modes"][0]
    sampling = "greedy" if settings["temperature"] == 0 else f"T = {settings['temperature']:g}"
    return (
        f"`{mode['mode']}`{'' if mode['components']['lossless'] else ' (lossy)'}",
        mode["components"]["draft"] or mode["components"]["drafter"],
        f"{Path(settings['questions']).stem} ({summary['num_questions']}) [{number}]",
        f"{'compiled' if settings['compile'] else 'eager'}, {summary['dtype']}, {sampling}",
        f"{mode['tokens_per_second']:.1f}",
        _speedup(mode, baseline),
        f"{mode['tau']:.2f}",
        _equal(mode, baseline),
        f"{mode['distinct_4grams']:.0%}",
        f"{mode['seconds']['prefill'] / max(mode['answers'], 1) * 1e3:.0f} ms",
        "baseline" if baseline else mode["verdict"],
    )


def _with_column(rows: Sequence[tuple[str, ...]], head: str, cells: Sequence[str]) -> list[tuple[str, ...]]:
    """``rows``, the head among them, with one more column before the last."""
    return [(*row[:-1], cell, row[-1]) for row, cell in zip(rows, [head, *cells], strict=True)]


def _rival(summary: Mapping[str, Any], against: str) -> str:
    modes = summary["modes"]
    if against == "best":
        sound = [mode for mode in modes if mode["components"]["lossless"] and mode["valid"] and mode["mode"] != "auto"]
        return str(max(sound, key=lambda mode: mode["speedup"])["mode"])
    names = [mode["mode"] for mode in modes]
    if against not in names:
        raise ValueError(f"--against: expected 'best' or a mode of the run ({', '.join(names)}), got {against!r}")
    return against


def _speed_over(summary: Mapping[str, Any], mode: Mapping[str, Any], rival: str) -> str:
    """The ratio of two modes' decode speeds, with its bootstrap interval over questions."""
    if mode["mode"] == rival:
        return "this one"
    if not mode["valid"]:
        return "not valid"
    base, own = (_measured(summary, name) for name in (rival, mode["mode"]))
    pairs = [Pair(*base[question], *own[question]) for question in base if question in own]
    interval = bootstrap_ratio(pairs)
    return f"{speed_ratio(pairs):.2f}" + (f" [{interval.low:.2f}, {interval.high:.2f}]" if interval else "")


def _measured(summary: Mapping[str, Any], mode: str) -> dict[Any, tuple[int, float]]:
    """Tokens after each answer's first and decode seconds per question, all its turns and repeats together."""
    found: dict[Any, tuple[int, float]] = {}
    for row in summary["rows"]:
        if row["mode"] == mode:
            tokens, seconds = found.get(row["question_id"], (0, 0.0))
            found[row["question_id"]] = tokens + row["new_tokens"] - 1, seconds + row["seconds"]["decode"]
    return found


def _speedup(mode: Mapping[str, Any], baseline: bool) -> str:
    if baseline:
        return "1.00"
    if not mode["valid"]:
        return "not valid"
    interval = mode["interval"]
    bounds = f" [{interval['low']:.2f}, {interval['high']:.2f}]" if interval else ""
    return f"{mode['speedup']:.2f}{bounds}"


def _perplexity(mode: Mapping[str, Any]) -> str:
    mean, interval = mode.get("log_perplexity"), mode.get("log_perplexity_interval")
    if mean is None:
        return "-"
    return f"{mean:.3f}" + (f" [{interval['low']:+.3f}, {interval['high']:+.3f}]" if interval else "")


def _equal(mode: Mapping[str, Any], baseline: bool) -> str:
    if baseline:
        return "-"
    if mode["compared"]:
        return f"{mode['equal']}/{mode['compared']}"
    return "lossless verifier" if mode["components"]["lossless"] else "lossy verifier"


def _source(number: int, summary: Mapping[str, Any]) -> str:
    session = summary["sessions"][-1]
    hardware, versions, commit = session["hardware"], session["versions"], session["commit"]
    where = hardware.get("gpu") or f"{hardware['cpu']}, {hardware['threads']} threads"
    at = f"commit {commit['id'][:12]}{' with changes' if commit['dirty'] else ''}" if commit else "not in a checkout"
    skipped = f"; {len(summary['skipped'])} questions skipped" if summary["skipped"] else ""
    return (
        f"[{number}] `{session['command']}`: target {summary['settings']['target']}, "
        f"{summary['settings']['max_new_tokens']} new tokens at most, {where}, torch {versions['torch']}, "
        f"transformers {versions['transformers']}, {at}, {session['started'][:10]}{skipped}  "
    )


if __name__ == "__main__":
    sys.exit(main())
