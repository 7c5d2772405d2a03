"""Recipes: written, read, and refused where they do not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from specdecodes.tuning.recipe import Recipe

RECIPE = Recipe(
    target={"family": "bamba", "parameters": 12, "vocab_size": 4096},
    mode="stree",
    draft="ngram",
    settings={"tree": "2,1"},
    step_cost=1.5,
    tau=2.5,
    dtype="float32",
    compile=False,
    sentence="the tree 2,1 is best here: 1.67x",
    acceptance=[0.6, 0.3],
    cost={"1": 1.0, "4": 1.4},
    draft_cost=0.01,
    found={"candidates": []},
)


def test_a_recipe_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    RECIPE.write(path)
    assert Recipe.read(path) == RECIPE
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "something"}, "expected a file that 'specdecodes tune' wrote"),
        ({"version": 0}, "expected version 1, got 0"),
        ({"mode": 3}, "mode: expected str, got 3"),
        ({"step_cost": None}, "step_cost: expected int or float, got None"),
        ({"step_cost": 0}, "step_cost: expected a number above 0, got 0"),
        ({"step_cost": float("nan")}, "step_cost: expected a number above 0, got nan"),
        ({"tau": -1}, "tau: expected a number above 0, got -1"),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "recipe.json"
    RECIPE.write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        Recipe.read(path)


def test_a_missing_file_says_what_writes_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="specdecodes tune"):
        Recipe.read(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match="expected JSON"):
        Recipe.read(tmp_path / "broken.json")


def test_another_target_is_refused() -> None:
    RECIPE.check_target(RECIPE.target)
    with pytest.raises(ValueError, match="vocab_size 4096, got 97"):
        replace(RECIPE).check_target({**RECIPE.target, "vocab_size": 97})
