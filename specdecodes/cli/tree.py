"""``specdecodes tree``: tree shapes; ``show`` draws one, ``save`` writes a growmap."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from specdecodes.benchmark.journal import replace
from specdecodes.cli.arguments import OneLineParser, check_out, run_reporting_errors
from specdecodes.core.parents import depths_of, ranks_of
from specdecodes.pictures.layout import Label, Picture, lay_out
from specdecodes.pictures.png import png_bytes
from specdecodes.pictures.svg import svg_file
from specdecodes.pictures.text import branches
from specdecodes.plugins.trees.growmap_file import SUFFIXES
from specdecodes.plugins.trees.shape import TreeShape

PROG = "specdecodes tree"
EXAMPLE = f"""\
examples:
  {PROG} show 3,2.1,2.1,3
  {PROG} show growmap.json --out tree.svg
  {PROG} save 3,2.1,2.1,3 growmap.pt
"""
SHOW = "Draw a tree shape: in the terminal, or as an SVG or PNG file."
SAVE = "Write a tree shape as a growmap: ours (.json) or Sequoia's (.pt)."

FORMATS: dict[str, Callable[[Picture, str], bytes]] = {
    ".svg": lambda picture, title: svg_file(picture, title).encode(),
    ".png": lambda picture, title: png_bytes(picture),
}
"""A file's ending to how it is written."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_reporting_errors(lambda: run(parser().parse_args(argv)), PROG)


def parser() -> OneLineParser:
    """The command's flags."""
    made = OneLineParser(prog=PROG, description="Tree shapes.", epilog=EXAMPLE)
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    spec_help = "levels like 3,2.1,2.1,3, or the path of a growmap"
    command = commands.add_parser("show", help=SHOW, description=SHOW, epilog=EXAMPLE)
    command.add_argument("spec", metavar="SPEC", help=spec_help)
    command.add_argument("--out", type=Path, metavar="FILE", help="write this file, .svg or .png, instead")
    command = commands.add_parser("save", help=SAVE, description=SAVE, epilog=EXAMPLE)
    command.add_argument("spec", metavar="SPEC", help=spec_help)
    command.add_argument("growmap", type=Path, metavar="FILE", help=f"what to write, {' or '.join(SUFFIXES)}")
    return made


def run(args: argparse.Namespace) -> None:
    """Draw, or write a growmap.

    Raises:
        ValueError: see :func:`show` and :meth:`TreeShape.to_growmap`.
    """
    if args.command == "save":
        TreeShape.parse(args.spec).to_growmap(args.growmap)
    else:
        show(args)


def show(args: argparse.Namespace) -> None:
    """Draw ``args.spec`` to ``args.out``, or print it.

    Raises:
        ValueError: a malformed spec, another kind of file than ``FORMATS`` has, no such folder, PNG without Pillow.
    """
    parents = TreeShape.parse(args.spec).parents
    if args.out is None:
        print(*lines(parents), sep="\n")
        return
    written = FORMATS.get(args.out.suffix.lower())
    if written is None:
        raise ValueError(f"--out: expected a file name ending in {' or '.join(FORMATS)}, got {str(args.out)!r}")
    check_out(args.out)
    replace(args.out, [written(picture_of(parents), summary(parents))])


def lines(parents: Sequence[int]) -> Iterator[str]:
    """The drawing: every node's id with its depth and its rank among its siblings, then the summary."""
    depths, ranks = depths_of(parents), ranks_of(parents)
    for before, node in branches(parents):
        yield f"{before}{node}  depth {depths[node]}" + (f", rank {ranks[node]}" if node else "")
    yield f"\n{summary(parents)}"


def picture_of(parents: Sequence[int]) -> Picture:
    """The same as a picture: ids with ranks, columns headed by their depths, the summary above."""
    depths, ranks = depths_of(parents), ranks_of(parents)
    labels = [Label("0", kind="root", title="root: the last accepted token")]
    for node in range(1, len(parents)):
        title = f"node {node}: depth {depths[node]}, rank {ranks[node]}, parent {parents[node]}"
        labels.append(Label(str(node), f"rank {ranks[node]}", title=title))
    return lay_out(parents, labels, headline=summary(parents), depths=True)


def summary(parents: Sequence[int]) -> str:
    """Nodes (the root included), depth, and how many nodes each level has, the root's first."""
    widths = Counter(depths_of(parents))
    return f"{len(parents)} nodes, depth {len(widths) - 1}, width per level {' '.join(map(str, widths.values()))}"
