"""``specdecodes score``: how good drafters would be for a target."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from specdecodes.benchmark.folder import DEFAULT_PARENT, check_folder, new_folder
from specdecodes.benchmark.provenance import provenance
from specdecodes.benchmark.score import ON, DraftScore, Score, ScoreSettings, score
from specdecodes.benchmark.score_files import PLOTS, can_plot, check_plot, write_files
from specdecodes.cli.arguments import (
    DRAFT_HELP,
    OneLineParser,
    add_draft_argument,
    add_length_argument,
    add_target_arguments,
    add_text_arguments,
    run_reporting_errors,
)
from specdecodes.cli.seeds import add_range_arguments
from specdecodes.models.loading import parse_device

PROG = "specdecodes score"
EXAMPLE = f"""\
examples:
  {PROG} --draft mamba2 --draft ngram
  {PROG} --target FOLDER --draft FOLDER --dataset openwebtext --on text --limit 100
  {PROG} --draft mamba2 --draft ngram --temperature 0 --dataset question.jsonl --measure --out-dir scores
"""
DESCRIPTION = """\
Score drafters for a target without decoding with them: KL(target || draft) per token, the overlap of the two
distributions, acceptance vectors by depth and rank, and the tokens per step of a chain. The best drafter is first."""
WIDTH = 120
"""Columns of the table where the output is no terminal."""

SAME = (
    *("target", "tokenizer", "device", "dtype", "trust_remote_code", "max_length"),
    *("dataset", "split", "field", "start", "end", "limit"),
    *("on", "temperature", "max_tokens", "prompt_tokens", "depth", "ranks", "chat", "measure", "seed"),
)
"""Flags that go into the settings as they are."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_reporting_errors(lambda: run(parser().parse_args(arguments), arguments), PROG)


def parser() -> OneLineParser:
    """The command's flags."""
    made = OneLineParser(prog=PROG, description=DESCRIPTION, epilog=EXAMPLE)
    group = made.add_argument_group("models")
    add_target_arguments(group)
    again = "; may be repeated (default: those of the embedded target)"
    add_draft_argument(group, "--model", action="append", default=[], help=DRAFT_HELP + again)
    add_length_argument(group)
    group = made.add_argument_group("texts")
    add = group.add_argument
    add_text_arguments(group, "--dataset", limit=None, many="24, or all up to --end", default="embedded")
    add_range_arguments(group)
    add(
        "--on",
        choices=ON,
        default="answers",
        help="answers: the texts are prompts, and what the target answers is scored, as in a decode (default); "
        "text: the texts themselves are scored, and tokens per step are an estimate",
    )
    form = made.add_mutually_exclusive_group()
    form.add_argument(
        "--chat", action="store_true", default=None, help="use the chat template (default where there is one)"
    )
    form.add_argument("--raw", dest="chat", action="store_false", help="let the target continue the texts as they are")
    add("--prompt-tokens", type=int, default=256, metavar="N", help="cut longer prompts (default: 256)")
    add("--max-tokens", type=int, default=128, metavar="N", help="tokens scored of each (default: 128)")
    add = made.add_argument_group("what is measured").add_argument
    add(
        "--temperature",
        "--temp",
        "--T",
        type=float,
        default=1.0,
        metavar="T",
        help="of the answers and of both distributions; 0 is greedy, the divergences are then those at 1 (default: 1)",
    )
    add("--depth", type=int, default=4, metavar="N", help="of the chain and of the acceptance vectors (default: 4)")
    add("--ranks", type=int, default=8, metavar="N", help="candidates at each depth (default: 8)")
    add("--measure", action="store_true", help="also decode the prompts with each drafter (mode sd) and count")
    add("--seed", type=int, default=0, help="of the sampled answers (default: 0)")
    add = made.add_argument_group("files").add_argument
    add("--out-dir", type=Path, metavar="DIR", help="score.json, score.csv and the plot go here (default: runs/TIME)")
    add("--plot", choices=(*PLOTS, "none"), help="(default: svg where matplotlib is installed)")
    return made


def run(args: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Score, write the files, print the table.

    Raises:
        ValueError: bad input; nothing has been written then.
    """
    settings = ScoreSettings(drafts=tuple(args.draft), **{name: getattr(args, name) for name in SAME})
    plot = None if args.plot == "none" else args.plot
    check_plot(plot)
    check_folder("out_dir", args.out_dir)
    found = score(settings)
    if args.plot is None and can_plot():
        plot = PLOTS[0]
    session = provenance(["specdecodes", "score", *arguments], parse_device(settings.device))
    paths = write_files(args.out_dir or new_folder(DEFAULT_PARENT), found, session, plot)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    print_score(found, console)
    if args.plot is None and plot is None:
        console.print(Text("no plot: matplotlib is not installed (pip install 'specdecodes[pictures]')"))
    console.print(Text(f"files: {', '.join(map(str, paths))}"), soft_wrap=True)


def print_score(found: Score, console: Console) -> None:
    """A row per drafter, the best first, and what must be said beside it."""
    settings = found.settings
    law = "greedy" if settings["temperature"] == 0 else f"temperature {settings['temperature']:g}"
    title = (
        f"{settings['target']}: {found.tokens} tokens of {found.texts} "
        f"{'answers to ' if settings['on'] == 'answers' else 'texts of '}{settings['dataset']}, {law}, {found.dtype}"
    )
    console.print(Text(title, style="bold"))
    table = Table()
    for name in ("", "drafter", "tokens/step"):
        table.add_column(name, justify="left" if name == "drafter" else "right")
    measured = any(draft.measured_tau is not None for draft in found.drafts)
    rest = [*(["measured"] if measured else []), "overlap", "KL, nats", "rank 1", f"ranks 1-{settings['ranks']}"]
    for name in rest:
        table.add_column(name, justify="right")
    for place, draft in enumerate(found.drafts, 1):
        cells = [_number(draft.measured_tau)] if measured else []
        table.add_row(str(place), draft.draft, f"{draft.tau:.2f}", *cells, *_cells(draft))
    console.print(table)
    for line in notes(found):
        console.print(Text(line))


def notes(found: Score) -> list[str]:
    """Sentences below the table."""
    settings = found.settings
    greedy = settings["temperature"] == 0
    kind = "the target's best token" if greedy else "the target's draw"
    lines = [
        f"tokens/step: expected of a chain of {settings['depth']}, bonus included. rank 1: how often {kind} is the "
        "drafter's first candidate at depth 1 of a step; ranks: one of its candidates. A small KL and a large overlap "
        "mean a strong drafter.",
        "Measured along the answers of the target itself."
        if settings["on"] == "answers"
        else "Measured along the texts: tokens/step is an estimate of what the target would take after their tokens; "
        "it answers otherwise where it would not write such texts ('--on answers').",
    ]
    if greedy:
        lines.append("KL and overlap are those at temperature 1.")
    without = [draft.draft for draft in found.drafts if not draft.probabilities]
    if without:
        lines.append(
            f"{', '.join(without)}: without probabilities KL and overlap are not defined; the acceptance vectors are."
        )
    for draft in found.drafts:
        if draft.unknown is not None and draft.unknown > 0.01:
            lines.append(f"{draft.draft}: gives no probability to {draft.unknown:.1%} of the target's mass.")
    return lines + [f"skipped {line}" for line in found.skipped]


def _cells(draft: DraftScore) -> list[str]:
    first = (draft.greedy if draft.sampled is None else draft.sampled)[0]
    return [_number(draft.overlap, 3), _number(draft.kl, 3), f"{first[0]:.1%}", f"{sum(first):.1%}"]


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
