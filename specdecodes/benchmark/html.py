"""``python -m specdecodes.benchmark.html FOLDER``: a run's report as one HTML file, made from its summary."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from specdecodes.benchmark.journal import replace
from specdecodes.benchmark.page import page
from specdecodes.benchmark.summary import Summary
from specdecodes.benchmark.table import read_summary
from specdecodes.cli.arguments import OneLineParser, run_reporting_errors

PROG = "python -m specdecodes.benchmark.html"


def write_html(summary_path: Path, summary: Summary) -> Path:
    """Write the report of ``summary`` beside its file, with the ending ``.html``; returns where."""
    path = summary_path.with_suffix(".html")
    replace(path, [page(summary).encode()])
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report; returns the exit code (2 for bad input)."""
    return run_reporting_errors(lambda: _main(argv), PROG)


def _main(argv: Sequence[str] | None) -> None:
    parser = OneLineParser(prog=PROG, description=__doc__, epilog=f"example:\n  {PROG} runs/20260131-120000")
    parser.add_argument("place", type=Path, metavar="FOLDER", help="a run's folder, or its summary file")
    place = parser.parse_args(argv).place
    path = place / "summary.json" if place.is_dir() else place
    try:
        summary = Summary.from_json(read_summary(path))
        print(write_html(path, summary))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected the values of a summary, got {error!r}; give a run's folder") from error


if __name__ == "__main__":
    sys.exit(main())
