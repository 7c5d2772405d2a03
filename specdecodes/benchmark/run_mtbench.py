"""Compare modes with plain decoding on MT-Bench questions, or any other set of questions.

Plain decoding always runs too, in the same process, question by question in alternation with every mode. It stays
as it is when parts of a mode are replaced; a setting goes to every mode with a component that takes it, and
MODE.KEY=VALUE to that mode alone. Without --seed the seed is 0. Beside summary.json comes summary.html, a report to
look at; python -m specdecodes.benchmark.html makes it again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from specdecodes.benchmark.progress import ProgressBar
from specdecodes.benchmark.questions import KNOWN_SETS
from specdecodes.benchmark.report import print_report
from specdecodes.benchmark.runner import run
from specdecodes.benchmark.settings import RunSettings
from specdecodes.cli.arguments import (
    PARTS,
    OneLineParser,
    add_model_arguments,
    add_sampling_arguments,
    parse_settings,
    run_reporting_errors,
    sampling_from,
)
from specdecodes.cli.seeds import add_protocol_argument, add_range_arguments, add_seed_arguments, apply_protocol

MODULE = "specdecodes.benchmark.run_mtbench"
PROG = f"python -m {MODULE}"
EXAMPLES = f"""examples:
  {PROG}
  {PROG} --modes sd,stree,ngram --max-questions 8 --compile
  {PROG} --target FOLDER --draft FOLDER --set stree.tree=3,2.1,2.1,3 --questions mt_bench
  {PROG} --resume --out-dir runs/20260131-120000
"""

_SAME = (
    *("target", "draft", "tokenizer", "dtype", "device", "trust_remote_code", "compile", "max_length", "threads"),
    *("questions", "hub_id"),
    *("raw", "prompt_tokens", "start", "end", "max_questions", "repeat", "warmup", "perplexity"),
    *("out_dir", "log_dir", "resume", "lossless_only"),
)
"""Flags that go into the settings as they are."""

WIDTH = 140
"""Columns of the table where the output is no terminal: enough for four modes beside the baseline."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns 0, 2 for bad input, or 130 when interrupted (the run can be resumed)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_reporting_errors(lambda: _main(arguments), PROG)


def _main(arguments: list[str]) -> None:
    settings = to_settings(make_parser().parse_args(arguments))
    try:
        summary = run(settings, watcher=ProgressBar(Console(stderr=True)), command=["python", "-m", MODULE, *arguments])
    except KeyboardInterrupt:
        print("finished questions are kept; the same command with --resume goes on", file=sys.stderr)
        raise
    print_report(summary, Console(width=None if sys.stdout.isatty() else WIDTH))


def to_settings(flags: argparse.Namespace) -> RunSettings:
    """The run that the flags ask for.

    Raises:
        ValueError: a value out of range, or flags that contradict each other.
    """
    sampling = sampling_from(flags)
    sampling["seed"] = sampling["seed"] or 0
    modes = apply_protocol(flags, _names("--mode", flags.mode or [])) or ("stree",)
    return RunSettings(
        **{name: getattr(flags, name) for name in (*_SAME, *PARTS)},
        **sampling,
        modes=modes,
        categories=_names("--category", flags.category),
        settings=parse_settings(flags.set),
    )


def make_parser() -> OneLineParser:
    """Every flag, with the names that other benchmarks use as aliases."""
    parser = OneLineParser(prog=PROG, description=__doc__, epilog=EXAMPLES)
    parser.add_argument(
        "--mode",
        "--modes",
        action="append",
        metavar="NAME,...",
        help="what to compare with plain decoding (default: stree); naive alone is plain decoding alone",
    )
    add_model_arguments(parser, "--model")
    _add_questions(parser)
    add_sampling_arguments(parser)
    add_protocol_argument(add_seed_arguments(parser))
    _add_running(parser)
    return parser


def _add_questions(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("questions")
    add = group.add_argument
    add(
        *("--questions", "--dataset"),
        default="embedded",
        metavar="NAME",
        help=f"{', '.join(KNOWN_SETS)}, a file or a folder (default: embedded); texts are continued as they are",
    )
    add("--raw", action="store_true", help="continue as texts what would be asked as questions, too")
    add("--prompt-tokens", type=int, metavar="N", help="cut texts to so many (default: 128)")
    add("--hub-id", metavar="ID", help="another home on the hub for mt_bench, gsm8k or humaneval")
    add_range_arguments(group)
    add("--max-questions", type=int, metavar="N", help="ask so many, spread over the categories")
    add("--category", action="append", default=[], metavar="NAME,...", help="ask only these")


def _add_running(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("running").add_argument
    add("--threads", type=int, metavar="N", help="torch's threads")
    add("--repeat", type=int, default=1, metavar="N", help="answers per turn and mode (default: 1)")
    add("--warmup", type=int, default=1, metavar="N", help="rounds before measuring (default: 1)")
    add("--perplexity", action="store_true", help="compare the answers' mean log-perplexity under the target, too")
    add("--out-dir", type=_folder, metavar="DIR", help="the run's folder (default: named after the time, in --log-dir)")
    add(
        "--log-dir",
        type=_folder,
        metavar="DIR",
        help="where runs go (default: runs); with --out-dir: the summary alone",
    )
    add("--resume", action="store_true", help="go on with the run in --out-dir, or with the latest in --log-dir")


def _folder(name: str) -> Path:
    if not name:  # Path("") is the working directory
        raise argparse.ArgumentTypeError("expected a folder, got ''")
    return Path(name)


def _names(flag: str, given: Sequence[str]) -> tuple[str, ...]:
    names = tuple(name.strip() for text in given for name in text.split(","))
    if "" in names:
        raise ValueError(f"{flag}: expected NAME,..., got {','.join(given)!r}; leave it out for the default")
    return names


if __name__ == "__main__":
    sys.exit(main())
