"""``python -m specdecodes.train pretrain|distill --recipe FILE --output FOLDER [--data FOLDER]``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from specdecodes.train.pretrain import pretrain
from specdecodes.train.recipe import load_recipe


def main(argv: list[str] | None = None) -> int:
    """Run one recipe; returns the exit code (2 for bad input)."""
    parser = argparse.ArgumentParser(prog="python -m specdecodes.train", description=__doc__)
    parser.add_argument("task", choices=("pretrain", "distill"))
    parser.add_argument("--recipe", required=True, help="a TOML file, for example train/recipes/smoke.toml")
    parser.add_argument(
        "--output", required=True, type=Path, help="folder for the model; a run that was cut off goes on there"
    )
    parser.add_argument("--data", type=Path, help="folder with the recipe's files (default: load them from the hub)")
    parser.add_argument("--tokenizer", help="use this tokenizer (folder or hub id) instead of training one")
    args = parser.parse_args(argv)
    try:
        recipe = load_recipe(args.recipe)
        if recipe.task != args.task:
            raise ValueError(
                f"--recipe: expected a recipe with task = {args.task!r}, got {recipe.task!r} in {args.recipe}"
            )
        outcome = pretrain(recipe, args.output, args.data, args.tokenizer)
    except (ValueError, FileNotFoundError) as error:
        print(f"specdecodes.train: {error}", file=sys.stderr)
        return 2
    print({key: value for key, value in outcome.items() if key != "log"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
