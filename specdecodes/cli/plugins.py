"""``specdecodes plugins``: what is registered, by whom."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.console import Console
from rich.table import Table

from specdecodes.cli.arguments import OneLineParser, run_reporting_errors
from specdecodes.cli.columns import print_columns
from specdecodes.plugin import KINDS, Component, Mode, Registry, mode_is_lossless, registry

PROG = "specdecodes plugins"
EXAMPLE = f"""\
example:
  {PROG} --kind mode
"""
HEADER = ("name", "distribution", "lossless", "help")


@dataclass(frozen=True)
class Row:
    """One component as it is listed; ``lossless`` is None for kinds that decide nothing."""

    kind: str
    name: str
    aliases: tuple[str, ...]
    distribution: str
    lossless: bool | None
    help: str

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """The row's text under ``HEADER``."""
        name = f"{self.name} ({', '.join(self.aliases)})" if self.aliases else self.name
        lossless = "" if self.lossless is None else "yes" if self.lossless else "no (lossy)"
        return name, self.distribution, lossless, self.help


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_reporting_errors(lambda: run(parser().parse_args(argv)), PROG)


def parser() -> OneLineParser:
    """The command's flags."""
    made = OneLineParser(prog=PROG, description="List modes and components by kind.", epilog=EXAMPLE)
    made.add_argument("--kind", choices=KINDS, help="only this kind")
    made.add_argument("--json", action="store_true", help="print JSON")
    return made


def run(args: argparse.Namespace) -> None:
    """Print the list: JSON, a table on a terminal, aligned text elsewhere."""
    rows = [row for row in rows_of(registry()) if args.kind in (None, row.kind)]
    if args.json:
        print(json.dumps([vars(row) for row in rows], indent=2))
    elif sys.stdout.isatty():
        print_tables(rows)
    else:
        print_text(rows)


def rows_of(components: Registry) -> list[Row]:
    """Every component, by kind and name."""
    return [Row(c.kind, c.name, c.aliases, c.owner, _lossless(components, c), c.help) for c in components.components()]


def _lossless(components: Registry, component: Component) -> bool | None:
    if isinstance(component.factory, Mode):
        try:
            return mode_is_lossless(components, component.factory)
        except ValueError:  # it names a verifier that is not installed; loading it says which
            return None
    return bool(component.lossless) if component.kind == "verifier" else None


def print_tables(rows: Sequence[Row]) -> None:
    """One table per kind."""
    console = Console()
    for kind, members in groupby(rows, key=lambda row: row.kind):
        table = Table(*HEADER, title=kind, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
        for row in members:
            table.add_row(*row.cells)
        console.print(table, end="\n")


def print_text(rows: Sequence[Row]) -> None:
    """One line per component, its kind first, in columns of one width for the whole list."""
    print_columns([("kind", *HEADER), *((row.kind, *row.cells) for row in rows)])
