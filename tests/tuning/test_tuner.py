"""The tuner: its words, and a run on the embedded pair from prompts to a recipe that decodes."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from specdecodes import load
from specdecodes.cli import main
from specdecodes.plugins.trees.optimise import Measurements
from specdecodes.tuning.costs import Costs
from specdecodes.tuning.recipe import Recipe
from specdecodes.tuning.tuner import Candidate, Tuner, TuneSettings, sentence_of

TREE = Candidate("ngram", "stree", {"tree": "2,1"}, "the tree 2,1", 4, 1.5, 2.4, 2.3, 1.5)
CHAIN = replace(TREE, mode="sd", settings={"depth": 3}, name="a chain of 3", speedup=1.31)


def test_the_choice_in_words() -> None:
    said = sentence_of([CHAIN, replace(TREE, speedup=1.22)])
    assert said == "a chain of 3 from ngram beats every tree here: 1.31x against 1.22x"
    assert sentence_of([TREE, CHAIN]) == "the tree 2,1 from ngram beats every chain here: 1.50x against 1.31x"
    assert sentence_of([replace(TREE, draft=None)]) == "the tree 2,1 is best here: 1.50x"
    said = sentence_of([replace(CHAIN, speedup=0.9), replace(TREE, speedup=0.8)])
    assert said == "plain decoding beats every tree here: the best, a chain of 3 from ngram, reaches 0.90x"
    assert "plain decoding is best" in sentence_of([])


@pytest.mark.slow
def test_a_run_writes_a_recipe_that_decodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "recipe.json"
    flags = ["--limit", "4", "--max-new-tokens", "16", "--max-nodes", "6", "--max-depth", "3", "--out", str(out)]
    assert main(["tune", "--draft", "ngram", *flags]) == 0
    printed = capsys.readouterr().out
    recipe = Recipe.read(out)
    assert recipe.sentence in printed.replace("\n", " ") and "speed-up" in printed
    found = recipe.found
    assert found["provenance"]["command"].startswith("specdecodes tune --draft ngram")
    assert {candidate["mode"] for candidate in found["candidates"]} <= {"sd", "stree", "dynamic"}
    assert list(found["costs"]) == ["ngram"]
    best = max(found["candidates"], key=lambda each: each["speedup"], default=None)
    if best is not None and best["speedup"] > 1:
        assert (recipe.mode, recipe.settings) == (best["mode"], best["settings"])
        assert recipe.step_cost == pytest.approx(best["tau"] / best["speedup"])
    else:
        assert (recipe.mode, recipe.step_cost) == ("naive", 1.0)
    measured = Measurements.read(out)  # the tree builder "optimal" takes the same file
    assert measured.cost[1] == 1.0 and max(measured.cost) == 6
    assert load(mode="auto", recipe=str(out)).generate("A cat", max_new_tokens=8).tokens == (
        load(mode="naive").generate("A cat", max_new_tokens=8).tokens
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--limit", "3"], "limit: expected at least 4 prompts"),
        (["--out", "no/such/folder/recipe.json"], "make the folder first"),
        (["--max-nodes", "1"], "max_nodes: expected at least 3, got 1"),
        (["--max-new-tokens", "2"], "max_new_tokens: expected at least 8, got 2"),
        (["--dataset", "no-such-file"], "no-such-file"),
    ],
)
def test_bad_input_is_one_line(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", *flags]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1


def test_a_falling_cost_curve_is_said_once() -> None:
    tuner = Tuner(TuneSettings(max_nodes=6, max_depth=3), lambda line: None)
    costs = Costs(plain=1.0, score={2: 0.5, 4: 1.2, 6: 1.4}, draft=0.0, level=0.0, node=0.0)
    traces = [[(0, 1), (0,), (), (1, 0)] * 4]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        measured = tuner._measurements(traces, costs)
    assert ["c(2) = 0.5 is below c(1) = 1" in str(warning.message) for warning in said] == [True]
    assert 0 < measured.acceptance[0][0][0] < 1


def test_both_sides_need_prompts() -> None:
    tuner = Tuner(TuneSettings(max_new_tokens=8), lambda line: None)
    prompt = tuner.encode("A cat sat on the mat", 3)
    with pytest.raises(ValueError, match="held_out: expected at least two prompts, got 1"):
        tuner.tune([prompt, prompt], [prompt])
    assert tuner.encode("A cat sat on the mat", 3).shape[1] < tuner.encode("A cat sat on the mat", 30).shape[1]


def test_the_recipe_is_json_throughout(tmp_path: Path) -> None:
    recipe = Recipe({}, "sd", None, {"depth": 3}, 1.2, 2.0, "float32", compile=False, sentence="a chain")
    recipe.write(tmp_path / "recipe.json")
    assert json.loads((tmp_path / "recipe.json").read_text())["format"] == "specdecodes recipe"
