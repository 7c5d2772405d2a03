"""``specdecodes tune``: its own defaults, and what it refuses before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from specdecodes.cli.tune import parser


def test_help_says_the_defaults_that_are_used() -> None:
    made = parser()
    assert f"(default: {made.parse_args([]).max_new_tokens})" in made.format_help()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt-tokens", "0"], "prompt_tokens: expected at least 1, got 0"),
        (["--max-new-tokens", "7"], "max_new_tokens: expected at least 8, got 7"),
        (["--seed", "3"], "unrecognized arguments: --seed 3"),  # the place of a prompt is its seed
        (["--out", "none/recipe.json"], "--out: expected a file in a folder that exists, got 'none/recipe.json'"),
        (["--out", "."], "--out: expected a file, got the folder '.'"),
        (["--dataset", "gsm8"], "did you mean 'gsm8k'?"),
    ],
)
def test_bad_input_is_one_line(refused: Callable[..., str], arguments: list[str], message: str) -> None:
    line = refused("tune", "--target", "nowhere", *arguments)
    assert line.startswith("specdecodes tune: ") and message in line
