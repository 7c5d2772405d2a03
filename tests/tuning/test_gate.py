"""The running estimate of mode auto, and decoding behind it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from specdecodes import load
from specdecodes.core.decoder import Decoder
from specdecodes.tuning.gate import PAUSES, TRIAL, Estimate
from specdecodes.tuning.recipe import Recipe, target_facts

PROMPT = [{"role": "user", "content": "Write a short story about a lighthouse."}]


def _steps(estimate: Estimate, tokens: int, count: int) -> list[bool]:
    """Whether each of ``count`` steps drafts, when every drafted one gives ``tokens``."""
    drafting = []
    for _ in range(count):
        drafting.append(not estimate.left)
        if estimate.left:
            estimate.went_on_plainly()
        else:
            estimate.drafted(tokens)
    return drafting


def test_it_drafts_on_while_that_pays() -> None:
    assert _steps(Estimate(cost=2.0, mean=2.5), 3, 1000) == [False, *[True] * 999], "the first step is plain"


def test_it_gives_up_and_tries_again_ever_more_rarely() -> None:
    estimate = Estimate(cost=2.0, mean=2.5)
    drafting = _steps(estimate, 1, 4000)[1:]
    first = drafting.index(False)
    assert first < 40  # from 2.5 towards 1, one in 64
    runs, start = [], first
    for place in range(first + 1, len(drafting)):
        if drafting[place] != drafting[place - 1]:
            runs.append((drafting[place - 1], place - start))
            start = place
    pauses = [length for drafted, length in runs if not drafted]
    trials = [length for drafted, length in runs if drafted]
    assert pauses[:5] == [PAUSES[0], 2 * PAUSES[0], 4 * PAUSES[0], PAUSES[1], PAUSES[1]]
    assert set(trials) == {TRIAL}
    # What the tries cost: (cost - 1) plain steps each and nothing gained.
    late = drafting[1000:]
    assert sum(late) / len(late) < 0.02


def test_it_takes_up_drafting_when_a_try_succeeds() -> None:
    estimate = Estimate(cost=2.0, mean=2.1, left=0)
    while not estimate.left:
        estimate.drafted(1)
    drafting = _steps(estimate, 3, PAUSES[0] + 200)
    assert drafting == [False] * PAUSES[0] + [True] * 200
    assert estimate.pause == PAUSES[0] and estimate.speedup == pytest.approx(1.5, rel=0.01)


def _recipe(folder: Path, **changes: Any) -> str:
    model = load(mode="naive").target.model
    recipe = Recipe(
        target=target_facts(model),
        mode="stree",
        draft="ngram",
        settings={"tree": "3,1,1"},
        step_cost=1.6,
        tau=2.4,
        dtype="float32",
        compile=False,
        sentence="for a test",
    )
    path = folder / "recipe.json"
    replace(recipe, **changes).write(path)
    return str(path)


def _tokens(decoder: Decoder, **settings: Any) -> list[int]:
    return decoder.generate(PROMPT, max_new_tokens=150, ignore_eos=True, **settings).tokens[0]


@pytest.mark.slow
@pytest.mark.parametrize("draft", ["ngram", "mamba2"])
@pytest.mark.parametrize("cost", [0.1, 3.0, 100.0])
def test_whatever_the_gate_does_the_tokens_are_those_of_plain_decoding(tmp_path: Path, draft: str, cost: float) -> None:
    plain = load(mode="naive")
    auto = load(mode="auto", recipe=_recipe(tmp_path, step_cost=cost, draft=draft))
    for settings in ({}, {"temperature": 0.7, "seed": 3}):
        for _ in range(2):  # the second answer goes on with the estimate of the first
            assert _tokens(auto, **settings) == _tokens(plain, **settings)


@pytest.mark.slow
def test_a_step_that_costs_too_much_is_given_up(tmp_path: Path) -> None:
    auto = load(mode="auto", recipe=_recipe(tmp_path, step_cost=50.0))
    first = auto.generate(PROMPT, max_new_tokens=60, ignore_eos=True)
    second = auto.generate(PROMPT, max_new_tokens=60, ignore_eos=True)
    assert first.accept_lengths[2:] == [1] * (len(first.accept_lengths) - 2)
    assert first.tokens == second.tokens
    cheap = load(mode="auto", recipe=_recipe(tmp_path, step_cost=1.0))
    stree = load(mode="stree", draft="ngram", tree="3,1,1")
    assert cheap.generate(PROMPT, max_new_tokens=60).accept_lengths[0] == 1
    assert cheap.generate(PROMPT, max_new_tokens=60).accept_lengths == (
        stree.generate(PROMPT, max_new_tokens=60).accept_lengths
    )


def test_a_recipe_of_plain_decoding_decodes_plainly(tmp_path: Path) -> None:
    auto = load(mode="auto", recipe=_recipe(tmp_path, mode="naive", draft=None, settings={}, step_cost=1.0, tau=1.0))
    assert set(auto.generate(PROMPT, max_new_tokens=20, ignore_eos=True).accept_lengths) == {1}


@pytest.mark.slow
def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path)
    wrong = _recipe(tmp_path, target={"family": "llama"})
    with pytest.raises(ValueError, match="measured for a target with family 'llama', got 'bamba'"):
        load(mode="auto", recipe=wrong)
    itself = _recipe(tmp_path, mode="auto")
    with pytest.raises(ValueError, match="mode: expected the mode that was found fastest, got 'auto'"):
        load(mode="auto", recipe=itself)
    with pytest.raises(ValueError, match="specdecodes tune"):
        load(mode="auto", recipe=str(tmp_path / "none.json"))
    with pytest.raises(ValueError, match="unknown setting 'recipes'"):
        load(mode="auto", recipes=recipe)
