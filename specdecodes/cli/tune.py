"""``specdecodes tune``: which mode, tree and size are fastest on this machine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from specdecodes.benchmark.provenance import provenance
from specdecodes.cli.arguments import (
    DRAFT_HELP,
    OneLineParser,
    add_draft_argument,
    add_sampling_arguments,
    add_target_arguments,
    add_text_arguments,
    check_out,
    run_reporting_errors,
    sampling_from,
)
from specdecodes.data import texts
from specdecodes.plugins.trees.drafted import check_positive
from specdecodes.tuning.tuner import Tuned, Tuner, TuneSettings

PROG = "specdecodes tune"
EXAMPLE = f"""\
examples:
  {PROG} --draft ngram --draft mamba2 --out recipe.json
  {PROG} --target FOLDER --draft FOLDER --dataset prompts.jsonl --compile --out recipe.json
  specdecodes generate --mode auto --set recipe=recipe.json --prompt "Why is the sky blue?"
"""
DESCRIPTION = """\
Measure on this machine what a step costs by the size of its tree, and on prompts which of a drafter's candidates the
target takes; choose the best chain and the best tree of every drafter, measure those on other prompts, and write the
best as a recipe for mode 'auto'."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_reporting_errors(lambda: run(parser().parse_args(arguments), arguments), PROG)


def parser() -> OneLineParser:
    """The command's flags."""
    made = OneLineParser(prog=PROG, description=DESCRIPTION, epilog=EXAMPLE)
    group = made.add_argument_group("models")
    add_target_arguments(group)
    again = "; may be repeated, all are tried (default: the mode's own)"
    add_draft_argument(group, action="append", default=[], help=DRAFT_HELP + again)
    group.add_argument("--compile", "--cg", action="store_true", help="tune compiled decoding; each size is compiled")
    group = made.add_argument_group("prompts (every other one is held out)")
    add_text_arguments(group, "--dataset", limit=24, default="embedded")
    group.add_argument("--prompt-tokens", type=int, default=256, metavar="N", help="cut longer prompts (default: 256)")
    add_sampling_arguments(made, seed=False)
    made.set_defaults(max_new_tokens=96)
    add = made.add_argument_group("trees").add_argument
    add("--max-nodes", type=int, default=32, metavar="N", help="of a tree, its root included (default: 32)")
    add("--max-depth", type=int, default=8, metavar="N", help="levels below the root (default: 8)")
    add("--width", type=int, default=4, metavar="N", help="children of a node (default: 4)")
    made.add_argument("--out", type=Path, default=Path("recipe.json"), metavar="FILE", help="(default: recipe.json)")
    return made


def run(args: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Tune, write the recipe, say what was found.

    Raises:
        ValueError: bad input; nothing has been written then.
    """
    sampling = sampling_from(args)
    sampling.pop("seed")  # each prompt has its own
    settings = TuneSettings(
        drafts=tuple(args.draft) or (None,),
        max_new_tokens=sampling.pop("max_new_tokens"),
        sampling=sampling,
        **{name: getattr(args, name) for name in _SAME},
    )
    check_out(args.out)
    check_positive(prompt_tokens=args.prompt_tokens)
    if args.limit < 4:
        raise ValueError(f"limit: expected at least 4 prompts, half of them held out, got {args.limit}")
    asked = list(texts(args.dataset, split=args.split, field=args.field, limit=args.limit, first_turn=True))
    console = Console(stderr=True)
    tuner = Tuner(settings, lambda line: console.print(Text(line, style="dim")))
    prompts = [tuner.encode(text, args.prompt_tokens) for text in asked]
    tuned = tuner.tune(prompts[::2], prompts[1::2])
    session = provenance(["specdecodes", "tune", *arguments], tuner.plain.target.device)
    tuner.recipe(tuned, session).write(args.out)
    print_tuned(tuned, Console(width=None if sys.stdout.isatty() else 120))
    print(f"recipe: {args.out}")


_SAME = (
    *("target", "tokenizer", "device", "dtype", "trust_remote_code", "compile"),
    *("max_nodes", "max_depth", "width"),
)
"""Flags that go into the settings as they are."""


def print_tuned(tuned: Tuned, console: Console) -> None:
    """The candidates, best first, and the choice in words."""
    table = Table()
    for name in (
        "candidate",
        "drafter",
        "nodes",
        "step cost",
        "tau predicted",
        "tau",
        "speed-up predicted",
        "speed-up",
    ):
        table.add_column(name, justify="left" if name in ("candidate", "drafter") else "right")
    for each in tuned.candidates:
        spread = "" if each.interval is None else f" [{each.interval.low:.2f}, {each.interval.high:.2f}]"
        table.add_row(
            each.name,
            each.draft or "-",
            str(each.nodes),
            f"{each.cost:.2f}",
            _number(each.predicted_tau),
            f"{each.tau:.2f}",
            _number(each.predicted),
            f"{each.speedup:.2f}{spread}",
        )
    console.print(table)
    console.print(Text("step cost in plain steps; tau: tokens per step, bonus included; measured on held-out prompts."))
    console.print(Text(tuned.sentence, style="bold"))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
