"""What scoring and committing a tree costs in plain steps: ``python -m specdecodes.benchmark.step``.

On one model, with real or random weights, in rounds: a step of stock transformers, a plain step of ours, and trees of
several sizes, each eager and, with ``--compile``, compiled. A plain step is the fastest one-token step of the run;
every ratio is taken within a round, and the median over the rounds counts. A tree is a binary heap, so that its depth
grows with its size, and the commit moves along its leftmost path: few of its rows lie where they belong. Then whole
decode steps of ``stree``: drafting, verifying, committing, and the host's work between them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from specdecodes.benchmark.kernels.timing import PUBLISHED
from specdecodes.benchmark.provenance import write_measurement
from specdecodes.benchmark.shapes import SHAPES, shape_named
from specdecodes.benchmark.step_predict import predict
from specdecodes.benchmark.step_report import WIDTH, print_found, print_predicted
from specdecodes.benchmark.step_rounds import NODES, Found, Settings, measure
from specdecodes.cli.arguments import OneLineParser, check_out, run_reporting_errors
from specdecodes.models.loading import parse_device, parse_dtype

PROG = "python -m specdecodes.benchmark.step"


def main(argv: list[str] | None = None) -> int:
    """Print a table per shape; ``--json FILE`` keeps the numbers with their provenance."""
    return run_reporting_errors(lambda: _main(argv), PROG)


def _main(argv: list[str] | None) -> None:
    args = _parser().parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    if args.json is not None:
        check_out(args.json, "--json")
    if args.predict is not None:
        _predict(args, argv, console)
        return
    all_found = []
    for shape in args.shape or ["embedded"]:
        settings = Settings(
            shape=shape,
            layers=args.layers,
            nodes=args.nodes or NODES,
            context=args.context,
            rounds=args.rounds,
            compile=args.compile,
            draft=args.draft,
            device=args.device,
            dtype=args.dtype,
        )
        found = _with_progress(settings, Console(stderr=True))
        print_found(found, console)
        all_found.append({"settings": asdict(settings), **asdict(found)})
    if args.json:
        device = parse_device(args.device)
        write_measurement(args.json, "specdecodes.benchmark.step", argv, {"shapes": all_found}, device)


def _predict(args: argparse.Namespace, argv: Sequence[str] | None, console: Console) -> None:
    dtype = parse_dtype(args.dtype or "bfloat16", torch.device("cpu"))
    assert isinstance(dtype, torch.dtype)  # one was named
    kind = str(dtype).removeprefix("torch.")
    everything = {}
    for name in args.shape or ["mamba-in-llama-8b"]:
        shape = shape_named(name)
        rows = [predict(shape, nodes, args.predict, dtype, args.context) for nodes in args.nodes or NODES]
        print_predicted(rows, f"{name}, {kind}, {args.context} committed tokens, {args.predict}", console)
        everything[name] = [asdict(row) for row in rows]
    if args.json:
        found = {"card": args.predict, "dtype": kind, "context": args.context, "predicted": everything}
        write_measurement(args.json, "specdecodes.benchmark.step", argv, found)


def _with_progress(settings: Settings, console: Console) -> Found:
    with console.status(settings.shape) as status:
        return measure(settings, lambda line: status.update(f"{settings.shape}: {line}"))


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog=PROG,
        description=__doc__,
        epilog=f"examples:\n  {PROG} --compile\n  {PROG} --shape hybrid-50m --nodes 8 --nodes 13 --compile\n"
        f"  {PROG} --predict h200 --shape mamba-in-llama-8b",
    )
    parser.add_argument(
        "--shape", action="append", metavar="NAME", help=f"{', '.join(SHAPES)}; may be repeated (default: embedded)"
    )
    parser.add_argument("--layers", type=int, metavar="N", help="keep the first N layers (default: all)")
    parser.add_argument("--nodes", type=int, action="append", metavar="T", help=f"may be repeated (default: {NODES})")
    parser.add_argument("--context", type=int, default=256, metavar="L", help="committed tokens (default: 256)")
    parser.add_argument("--rounds", type=int, default=30, metavar="N", help="(default: 30)")
    parser.add_argument("--compile", action="store_true", help="measure compiled steps beside the eager ones")
    parser.add_argument("--draft", default="ngram", metavar="NAME", help="for the whole decode steps (default: ngram)")
    parser.add_argument("--device", metavar="DEVICE", help="cpu or cuda[:N] (default: cuda where there is one)")
    parser.add_argument("--dtype", metavar="DTYPE", help="(default: float32 on a CPU, the checkpoint's own on a GPU)")
    parser.add_argument("--predict", choices=PUBLISHED, help="run nothing: what this card's published figures allow")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write numbers, versions and hardware to FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
