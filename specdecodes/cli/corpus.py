"""``specdecodes corpus build``: index texts for the drafter ``rest``."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from specdecodes.cli.arguments import OneLineParser, run_reporting_errors
from specdecodes.cli.building import add_build_arguments, read
from specdecodes.plugins.drafters.datastore import Datastore

PROG = "specdecodes corpus"
EXAMPLE = f"""\
examples:
  {PROG} build --corpus notes.txt --out notes.safetensors
  {PROG} build --target FOLDER --corpus answers.jsonl --field answer --out answers.safetensors
  specdecodes generate --draft rest --set datastore=notes.safetensors --prompt "Why is the sky blue?"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_reporting_errors(lambda: run(parser().parse_args(argv)), PROG)


def parser() -> OneLineParser:
    """The command's flags."""
    made = OneLineParser(
        prog=PROG,
        description="Index texts, so that the drafter 'rest' finds what followed a context in them.",
        epilog=EXAMPLE,
    )
    add_build_arguments(made, makes="index a corpus and write the datastore", out="the datastore (safetensors)")
    return made


def run(args: argparse.Namespace) -> None:
    """Read, index, write.

    Raises:
        ValueError: see :func:`specdecodes.cli.building.read`.
    """
    began = time.perf_counter()
    corpus = read(args)
    Datastore.build(*corpus).save(args.out)
    size = args.out.stat().st_size / 1e6
    print(f"{args.out}: {corpus.size} indexed, {size:,.2f} MB, {time.perf_counter() - began:.1f} s")
