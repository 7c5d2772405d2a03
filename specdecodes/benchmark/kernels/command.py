"""Time every op of a decode step on the sizes of real models, against the device's roofline and float64.

Bytes and FLOPs are the least that the op can do (specdecodes/benchmark/kernels/costs.py). The roofline is measured in
the same run: a copy, a product of matrices, the smallest call. On a GPU calls run inside a CUDA graph where they can be
captured. --predict prints what the published figures of a card allow, and needs none.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from specdecodes.benchmark.kernels.measure import Case, Row, cases, forms_of, measured, measured_peer, predicted
from specdecodes.benchmark.kernels.ops import FORMS, OPS
from specdecodes.benchmark.kernels.peers import PEERS, Loaded, load_peers
from specdecodes.benchmark.kernels.problems import Where
from specdecodes.benchmark.kernels.table import describe, print_rows, together
from specdecodes.benchmark.kernels.timing import PUBLISHED, Roofline, measure_roofline, published, published_for
from specdecodes.benchmark.provenance import write_measurement
from specdecodes.benchmark.shapes import SHAPES, shape_named
from specdecodes.cli.arguments import OneLineParser, check_out, run_reporting_errors
from specdecodes.core.tree import check_size
from specdecodes.models.loading import DTYPES, parse_device

MODULE = "specdecodes.benchmark.kernels"
PROG = f"python -m {MODULE}"
TREE_SIZES = (1, 8, 13, 32, 64, 128)
BIG, SMALL = "mamba-in-llama-8b", "embedded"
"""The default shapes: for a GPU, for a CPU."""
WIDE = 150
"""Columns of what goes to a file or a pipe: all of a table's."""


def _example() -> str:
    about = "\n".join(f"  {name:18} {shape.about}" for name, shape in SHAPES.items())
    ops = "\n".join(f"  {name:18} {op.about}" for name, op in OPS.items())
    peers = "\n".join(
        f"  {name:22} {peer.op:18} {peer.module}: {', '.join(peer.functions)}"
        for name, each in PEERS.items()
        for peer in each
    )
    return f"""\
shapes:
{about}

ops:
{ops}

peers, the op that each stands beside, and what is called:
{peers}

examples:
  {PROG} --shape embedded --tree-size 13 --json kernels.json
  {PROG} --predict h200 --shape mamba-in-llama-8b
  {PROG} --op mamba2_tree --shape mamba-in-llama-8b --peer stree=../stree
"""


def main(argv: list[str] | None = None) -> int:
    """Print the tables; 2 for bad input."""
    return run_reporting_errors(lambda: _main(argv), PROG)


def _parser() -> OneLineParser:
    parser = OneLineParser(prog=PROG, description=__doc__, epilog=_example())
    many: dict[str, Any] = {"action": "append"}
    help = f"a model's sizes; may be repeated (default: {BIG} on a GPU and for --predict, {SMALL} on a CPU)"
    parser.add_argument("--shape", metavar="NAME", help=help, **many)
    sizes = " ".join(map(str, TREE_SIZES))
    help = f"nodes; may be repeated (default: {sizes})"
    parser.add_argument("--tree-size", type=int, metavar="T", help=help, **many)
    parser.add_argument("--op", choices=OPS, metavar="NAME", help="only this one; may be repeated", **many)
    parser.add_argument("--device", help="cpu or cuda[:N] (default: cuda where there is one)")
    parser.add_argument("--dtype", choices=DTYPES, help="(default: float32 on a CPU, else bfloat16)")
    help = "may be repeated (default: those that run; Triton's interpreter only by name)"
    parser.add_argument("--implementation", choices=FORMS, help=help, **many)
    parser.add_argument("--context", type=int, default=1024, metavar="N", help="committed tokens (default: 1024)")
    parser.add_argument("--repeats", type=int, default=20, metavar="N", help="of which the median (default: 20)")
    help = "time a peer's kernels beside ours; may be repeated"
    parser.add_argument("--peer", metavar="NAME=FOLDER", default=[], help=help, **many)
    parser.add_argument("--predict", choices=PUBLISHED, help="run nothing: what this card's published figures allow")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows, rooflines, versions, hardware to FILE")
    return parser


def _main(argv: list[str] | None) -> int:
    options = _parser().parse_args(argv)
    _check(options)
    device = torch.device("cpu") if options.predict else parse_device(options.device)
    small = device.type == "cpu" and not options.predict
    where = Where(device, DTYPES[options.dtype or ("float32" if small else "bfloat16")], options.context)
    planned, loaded = _planned(options, SMALL if small else BIG)
    if options.predict:
        roofline, name = published(options.predict, where.dtype), options.predict
        rows = [predicted(case, where, roofline) for case in planned]
    else:
        wanted = _wanted(options.implementation, planned, where)
        roofline, name = measure_roofline(device, where.dtype, options.repeats), str(device)
        rows = _measured(planned, wanted, loaded, where, roofline, options.repeats)
    rooflines = {name: roofline}
    if (card := None if options.predict else published_for(device)) is not None:
        rooflines[card] = published(card, where.dtype)
    _print(rows, rooflines, where)
    if options.json is not None:
        found = {"dtype": str(where.dtype).removeprefix("torch."), "context": where.context}
        found |= {"rooflines": {key: asdict(each) for key, each in rooflines.items()}, "rows": list(map(asdict, rows))}
        write_measurement(options.json, MODULE, argv, found, device)
    return 0


def _check(options: argparse.Namespace) -> None:
    for name in ("context", "repeats"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name}: expected at least 1, got {getattr(options, name)}")
    for count in options.tree_size or ():
        if count < 1:
            raise ValueError(f"--tree-size: expected at least 1, got {count}")
        check_size("--tree-size", count)
    if options.json is not None:
        check_out(options.json, "--json")
    for name in ("device", "peer", "implementation"):
        if options.predict and getattr(options, name):
            raise ValueError(f"--{name}: expected none with --predict, which runs nothing; leave one of the two out")


def _planned(options: argparse.Namespace, shape: str) -> tuple[list[Case], list[Loaded]]:
    """What to run, of ``shape`` where none is named, and the peers to run beside it.

    Raises:
        ValueError: names of nothing, or a peer with nothing to stand beside.
    """
    shapes = options.shape or [shape]
    for name in shapes:
        shape_named(name)
    planned = cases(shapes, options.op or list(OPS), options.tree_size or TREE_SIZES)
    if not planned:
        raise ValueError(f"--op: expected one that {', '.join(shapes)} has, got {', '.join(options.op)}")
    ops = {case.op for case in planned}
    return planned, [loaded for each in options.peer for loaded in load_peers(each, ops)]


def _wanted(asked: Sequence[str] | None, planned: Sequence[Case], where: Where) -> Sequence[str]:
    """The forms to time.

    Raises:
        ValueError: one that was asked for and that no op has here.
    """
    if asked is None:
        return FORMS if where.device.type == "cuda" else FORMS[:2]
    for form in asked:
        if not any(forms_of(case, where, [form]) for case in planned):
            dtype = str(where.dtype).removeprefix("torch.")
            raise ValueError(
                f"--implementation: expected one that an op has for {dtype} on {where.device.type}, got {form!r}; "
                "'specdecodes doctor' says why"
            )
    return asked


def _measured(
    planned: Sequence[Case],
    wanted: Sequence[str],
    loaded: Sequence[Loaded],
    where: Where,
    roofline: Roofline,
    repeats: int,
) -> list[Row]:
    rows = []
    progress = Console(stderr=True)
    for case in track(planned, "timing", console=progress, transient=True, disable=not progress.is_terminal):
        rows += [measured(case, where, form, roofline, repeats) for form in forms_of(case, where, wanted)]
        rows += [measured_peer(case, where, each, roofline, repeats) for each in loaded if each.peer.op == case.op]
    return rows


def _print(rows: Sequence[Row], rooflines: dict[str, Roofline], where: Where) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    roofline = next(iter(rooflines.values()))
    for _, group in groupby(rows, key=lambda row: row.shape):
        of_shape = list(group)
        print_rows(of_shape, roofline, console)
        for line in together(of_shape):
            print(line)
    print(f"{str(where.dtype).removeprefix('torch.')}, one row, {where.context} committed tokens")
    for name, each in rooflines.items():
        print(describe(each, name))
