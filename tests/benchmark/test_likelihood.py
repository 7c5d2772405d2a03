"""Logits along given tokens, log-perplexity, and a run that finds out a mode with another law."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from specdecodes.benchmark.likelihood import CHUNK, log_perplexity, logits_along
from specdecodes.benchmark.report import difference_cell, notes
from specdecodes.benchmark.runner import run
from specdecodes.benchmark.settings import RunSettings
from specdecodes.benchmark.stats import Interval
from specdecodes.core.sampling import Rng, SamplingParams
from specdecodes.core.tree import Tree, Verdict
from specdecodes.models.dense import DensePass
from specdecodes.models.interpose import serving
from specdecodes.models.target import Target
from specdecodes.plugins.verifiers.token_match import TokenMatch
from specdecodes.testing.toys import FAMILIES, toy_model, toy_prompt

Make = Callable[..., RunSettings]


@torch.no_grad()
def dense(target: Target, ids: Tensor) -> Tensor:
    with serving(DensePass()):
        return target.model(ids, use_cache=False).logits[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [1, 2, CHUNK, CHUNK + 1, CHUNK + 2, 2 * CHUNK + 5])
def test_logits_along_are_those_of_one_dense_forward(family: str, count: int) -> None:
    target = Target(toy_model(family, dtype=torch.float64))
    ids = toy_prompt(5 + count, target.vocab_size, family, count)
    found = logits_along(target, ids[:, :5], ids[0, 5:].tolist())
    torch.testing.assert_close(found, dense(target, ids)[4:-1], atol=1e-9, rtol=0)


@pytest.mark.parametrize("in_place", [False, True])
def test_log_perplexity_is_minus_the_mean_log_softmax_at_the_temperature(in_place: bool) -> None:
    target = Target(toy_model("bamba", dtype=torch.float64))
    target.step_in_place = in_place
    ids = toy_prompt(12)
    prompt, tokens = ids[:, :10], ids[0, 10:].tolist()
    for temperature, divisor in ((0.0, 1.0), (1.0, 1.0), (0.5, 0.5)):
        logp = (dense(target, ids)[9:-1] / divisor).log_softmax(-1)
        expected = -(logp[0, tokens[0]] + logp[1, tokens[1]]) / 2
        params = SamplingParams(temperature=temperature, top_k=1, top_p=0.1, min_p=0.9)
        assert log_perplexity(target, params, prompt, tokens) == pytest.approx(float(expected), abs=1e-9)


def test_repetition_penalty_counts_with_each_tokens_own_prefix() -> None:
    target = Target(toy_model("llama", dtype=torch.float64))
    ids = torch.tensor([[5, 6, 7, 7, 5]])
    logits = dense(target, ids)[1:-1].clone()
    for row, prefix in enumerate(([5, 6], [5, 6, 7], [5, 6, 7])):
        for token in set(prefix):
            logits[row, token] *= 0.5 if logits[row, token] > 0 else 2.0
    expected = -logits.log_softmax(-1)[torch.arange(3), ids[0, 2:]].mean()
    params = SamplingParams(temperature=1.0, repetition_penalty=2.0)
    assert log_perplexity(target, params, ids[:, :2], ids[0, 2:].tolist()) == pytest.approx(float(expected), abs=1e-9)


# The runner


class Sharpened(TokenMatch):
    """Declares itself lossless and draws from the target's distribution at half the temperature."""

    def accept(self, logp: Tensor, tree: Tree, rng: Rng) -> Verdict:
        return super().accept((2 * logp).log_softmax(-1), tree, rng)


@pytest.fixture
def many_questions(tmp_path: Path) -> str:
    path = tmp_path / "many.jsonl"
    turns = (["What is two?", "And three?"][: 1 + number % 2] for number in range(24))
    records = ({"question_id": number, "turns": own} for number, own in enumerate(turns))
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize(("verify", "equal"), [(None, True), (Sharpened(), False)], ids=["lossless", "sharpened"])
def test_interval_includes_zero_unless_the_mode_has_another_law(
    make_settings: Make, many_questions: str, verify: Any, equal: bool
) -> None:
    settings = make_settings(
        modes=("stree",),
        questions=many_questions,
        temperature=1.0,
        max_new_tokens=24,
        verify=verify,
        perplexity=True,
    )
    summary = run(settings)
    baseline, mode = summary.modes
    assert baseline.log_perplexity is not None and baseline.log_perplexity_interval is None
    assert mode.log_perplexity_difference == pytest.approx(mode.log_perplexity - baseline.log_perplexity)
    interval = mode.log_perplexity_interval
    assert interval is not None and interval.low < mode.log_perplexity_difference < interval.high
    assert (interval.low <= 0 <= interval.high) == equal
    (line,) = [line for line in notes(summary) if line.startswith("stree: the interval")]
    assert ("includes 0" in line) == equal and ("EXCLUDES 0: its answers are likelier" in line) == (not equal)
    assert difference_cell(mode).startswith(f"{mode.log_perplexity_difference:+.3f} [")
    written = json.loads((Path(summary.folder) / "summary.json").read_text())
    assert written["modes"][1]["log_perplexity_interval"] == {"low": interval.low, "high": interval.high}
    assert all(row["log_perplexity"] > 0 for row in written["rows"])


def test_equal_answers_differ_by_nothing(make_settings: Make) -> None:
    summary = run(make_settings(perplexity=True))
    assert summary.modes[1].log_perplexity_difference == 0.0
    assert summary.modes[1].log_perplexity_interval == Interval(0.0, 0.0)


def test_without_the_flag_nothing_is_scored(make_settings: Make) -> None:
    summary = run(make_settings())
    assert [mode.log_perplexity for mode in summary.modes] == [None, None]
    assert not any("log-perplexity" in line for line in notes(summary))
