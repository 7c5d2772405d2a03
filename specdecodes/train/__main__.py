"""``python -m specdecodes.train pretrain|distill|answers|ngram|questions --recipe FILE --output PATH``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from specdecodes.cli.arguments import OneLineParser, run_reporting_errors

EXAMPLE = """example:
  python -m specdecodes.train pretrain --recipe train/recipes/smoke.toml --output out/target --data FOLDER
  python -m specdecodes.train answers  --recipe train/recipes/smoke.toml --target out/target --output out/answers.jsonl
  python -m specdecodes.train distill  --recipe train/recipes/smoke_draft.toml --target out/target \\
      --answers out/answers.jsonl --output out/draft
  python -m specdecodes.train ngram    --recipe train/recipes/smoke.toml --target out/target \\
      --answers out/answers.jsonl --output out/ngram.safetensors
"""

TASKS = {
    "pretrain": "train a model and its tokenizer from scratch",
    "distill": "train a draft model against a target: KL(target || draft)",
    "answers": "let a target answer training prompts (what its drafters should learn from)",
    "ngram": "count the static back-off table of the n-gram drafter",
    "questions": "write the prompts that the training holds out as questions for run_mtbench",
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(
        prog="python -m specdecodes.train",
        description="Make the models and tables that draft, from recipes.",
        epilog=EXAMPLE,
    )
    commands = parser.add_subparsers(dest="task", required=True)
    for task, text in TASKS.items():
        command = commands.add_parser(task, help=text, description=text)
        _add_options(command, task)
    return parser


def _add_options(command: argparse.ArgumentParser, task: str) -> None:
    command.add_argument("--recipe", required=True, help="a TOML file, for example train/recipes/smoke.toml")
    going_on = "; a training that was cut off goes on there" if task in ("pretrain", "distill") else ""
    command.add_argument("--output", required=True, type=Path, help=f"what to write{going_on}")
    command.add_argument(
        "--data", type=Path, help="folder with the recipe's files (default: load them by their public ids)"
    )
    if task == "pretrain":
        command.add_argument("--tokenizer", help="use this tokenizer (folder or hub id) instead of training one")
    elif task != "questions":
        needed = task != "distill"
        command.add_argument("--target", required=needed, help="folder, hub id or 'embedded' (distill: the recipe's)")
    if task in ("distill", "ngram"):
        command.add_argument("--answers", type=Path, help="the target's own answers, from the task 'answers'")
        command.add_argument("--answer-weight", type=_count, default=1, help="take every answer so many times")
    if task == "answers":
        command.add_argument("--count", type=_count, default=1000, help="prompts to answer")
        command.add_argument("--max-new-tokens", type=_count, default=160, help="longest answer")
    if task == "questions":
        command.add_argument("--source", metavar="NAME", help="only those of this data source of the recipe")
        command.add_argument("--count", type=_count, help="the first so many (default: all)")
    if task == "ngram":
        command.add_argument("--max-bytes", type=_count, default=1_000_000, help="size of the table's file at most")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run one task; returns what came out.

    Raises:
        ValueError, OSError: what a user can mend, in one line.
    """
    from specdecodes.train.recipe import load_recipe

    recipe = load_recipe(args.recipe)
    if args.task in ("pretrain", "distill"):
        if recipe.task != args.task:
            raise ValueError(
                f"--recipe: expected a recipe with task = {args.task!r}, got {recipe.task!r} in {args.recipe}"
            )
        if args.output.exists() and not args.output.is_dir():
            raise ValueError(f"--output: expected a folder, got the file {args.output}")
    elif args.output.is_dir():
        raise ValueError(f"--output: expected a file, got the folder {args.output}")
    if args.task == "pretrain":
        from specdecodes.train.pretrain import pretrain

        return pretrain(recipe, args.output, args.data, args.tokenizer)
    if args.task == "questions":
        from specdecodes.train.questions import write_questions

        written = write_questions(recipe, args.output, args.data, args.source, args.count)
        return {"questions": written, "output": str(args.output)}
    from specdecodes.train.answers import read_answers, write_answers

    if args.task == "answers":
        count = write_answers(recipe, args.output, args.target, args.data, args.count, args.max_new_tokens)
        return {"answers": count, "output": str(args.output)}
    answers = read_answers(args.answers) if args.answers else []
    if args.task == "distill":
        from specdecodes.train.distill import distill

        return distill(recipe, args.output, args.data, args.target, answers, args.answer_weight)
    from specdecodes.train.ngram import build_table

    return build_table(recipe, args.output, args.target, args.data, answers, args.max_bytes, args.answer_weight)


def main(argv: list[str] | None = None) -> int:
    """Run one task from the command line; returns the exit code (2 for bad input, in one line)."""
    return run_reporting_errors(lambda: _report(run(build_parser().parse_args(argv))), "specdecodes.train")


def _report(outcome: dict[str, Any]) -> None:
    from specdecodes.train.trainer import is_main

    if is_main():
        for name, value in outcome.items():
            if not isinstance(value, list | dict):
                print(f"{name}: {value}")


if __name__ == "__main__":
    sys.exit(main())
