"""``specdecodes models``: which families work, how exact each is, and what is known to be missing."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence

from specdecodes.benchmark.conformance import Family, families, read, shipped, sources
from specdecodes.cli.arguments import OneLineParser, run_reporting_errors
from specdecodes.cli.columns import print_columns

PROG = "specdecodes models"
EXAMPLE = f"""\
examples:
  {PROG}
  {PROG} --markdown > docs/models.md
  specdecodes check FOLDER
"""
HEADER = ("family", "layers", "trees", "state back-ends", "float32", "float64", "greedy", "known limits")
NOTES = """\
float32 and float64: the largest absolute difference from stock transformers, fed one token at a time, of the logits of
every node of six trees and of the states after four steps; tiny random models, logits with a standard deviation of 1,
in float64 with the stock models' internal casts to float32 lifted. greedy: tokens equal to stock generate's.
One row at a time (B = 1)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_reporting_errors(lambda: run(parser().parse_args(argv)), PROG)


def parser() -> OneLineParser:
    """The command's flags."""
    description = "List the model families and what the conformance run measured on each."
    made = OneLineParser(prog=PROG, description=description, epilog=EXAMPLE)
    form = made.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--markdown", action="store_true", help="print the page docs/models.md")
    return made


def run(args: argparse.Namespace) -> None:
    """Print the list.

    Raises:
        ValueError: a copy of the package whose measurements are missing or damaged.
    """
    runs = read(shipped())
    found = families(runs)
    if args.json:
        print(json.dumps([dataclasses.asdict(family) for family in found], indent=2))
    elif args.markdown:
        print(markdown(found, list(sources(runs))), end="")
    else:
        print_columns([HEADER, *map(cells, found)])
        print("", NOTES, "", *sources(runs), sep="\n")


def cells(family: Family) -> tuple[str, ...]:
    """A family's text under :data:`HEADER`."""
    errors = (f"{family.errors[dtype]:.0e}" if dtype in family.errors else "-" for dtype in ("float32", "float64"))
    measured = "yes" if family.errors else "not measured"
    greedy = str(family.greedy or "-")
    return (
        family.name,
        family.layers,
        measured,
        ", ".join(family.backends),
        *errors,
        greedy,
        "; ".join(family.limits),
    )


def markdown(found: Sequence[Family], measured: Sequence[str]) -> str:
    """The page ``docs/models.md``."""
    rows = [HEADER, ("---",) * len(HEADER), *map(cells, found)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    lines = "\n".join(f"- {line}" for line in measured)
    return (
        "# Model families\n\n"
        "This page is the output of `specdecodes models --markdown`; `specdecodes check FOLDER` runs the self-test on\n"
        f"a model of yours.\n\n{table}\n\n{NOTES}\n\nMeasured with\n\n{lines}\n"
    )
