"""``python -m specdecodes.benchmark.table summary.json ...``: the README's table from summary files."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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


def markdown(summaries: Sequence[Mapping[str, Any]]) -> str:
    """One row per mode of every summary, the baselines included, and one line per summary on where it comes from.

    Log-perplexities have a column where any summary holds them.
    """
    numbered = [(number, s, mode) for number, s in enumerate(summaries, 1) for mode in s["modes"]]
    rows = [HEAD, *(_row(*entry) for entry in numbered)]
    perplexities = [_perplexity(mode) for _, _, mode in numbered]
    if any(cell != "-" for cell in perplexities):
        cells = ["log-perplexity [95 % of difference]", *perplexities]
        rows = [(*row[:-1], cell, row[-1]) for row, cell in zip(rows, cells, strict=True)]
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
    files = parser.parse_args(argv).files
    print(markdown([read_summary(path) for path in files]), end="")


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
