"""Sampling parameters, logit processing, randomness."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from transformers import LogitsProcessorList

from specdecodes.core.sampling import LogitsPipeline, Rng, SamplingParams, node_prefixes
from specdecodes.core.tree import Tree
from specdecodes.testing import EnumeratingRng, explore, total_variation

WRONG = [
    (dict(max_new_tokens=0), "max_new_tokens: expected at least 1, got 0"),
    (dict(max_new_tokens=1.5), "max_new_tokens: expected at least 1, got 1.5"),
    (dict(top_k=True), r"top_k: expected 0 \(off\) or more, got True"),
    (dict(temperature=-0.1), r"temperature: expected 0 \(greedy\) or 1e-10 to 1e\+10, got -0.1"),
    (dict(temperature=math.nan), "temperature: expected .* got nan"),
    (dict(top_k=-1), r"top_k: expected 0 \(off\) or more, got -1"),
    (dict(top_p=0.0), r"top_p: expected a number in \(0, 1\], got 0.0"),
    (dict(top_p=1.1), r"top_p: expected a number in \(0, 1\], got 1.1"),
    (dict(min_p=1.0), r"min_p: expected a number in \[0, 1\), got 1.0"),
    (dict(repetition_penalty=0.0), r"repetition_penalty: expected 1e-10 to 1e\+10 .*got 0.0"),
    (dict(stop="end"), "stop: expected a sequence of non-empty strings, got 'end'"),
    (dict(stop=("",)), "stop: expected a sequence of non-empty strings"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG)
def test_a_setting_out_of_range_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**settings)


@pytest.mark.parametrize("settings", list(itertools.product((1e-10, 1e10), repeat=2)))
def test_the_ends_of_the_ranges_leave_a_distribution(settings):
    temperature, penalty = settings
    pipeline = LogitsPipeline(SamplingParams(temperature=temperature, repetition_penalty=penalty))
    logp = pipeline(torch.tensor([[1e4, -1e4, 0.0, 3.0]]), [[0, 1]])
    assert float(logp.exp().sum()) == pytest.approx(1.0)


PARAMS = [
    dict(temperature=0.0),
    dict(temperature=1.0),
    dict(temperature=0.5),
    dict(temperature=0.7, top_k=3),
    dict(temperature=1.3, top_p=0.6),
    dict(temperature=1.0, min_p=0.3),
    dict(temperature=0.9, top_k=5, top_p=0.8, min_p=0.05, repetition_penalty=1.4),
    dict(temperature=0.0, repetition_penalty=1.4),
]


@pytest.mark.parametrize("params", PARAMS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_processing_follows_the_definitions_and_leaves_its_input_alone(params, dtype):
    logits = torch.randn(4, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = logits.clone()
    prefixes = [[1, 2, 3], [4, 4], [0], [11, 5]]
    settings = SamplingParams(**params)
    out = LogitsPipeline(settings)(logits, prefixes)
    assert torch.equal(logits, before)
    assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for row, prefix, got in zip(before.double(), prefixes, out.double(), strict=True):
        assert torch.allclose(got.exp(), by_hand(row, prefix, settings).exp(), atol=1e-5)


def by_hand(row, prefix, settings):
    """One row, step by step, as the papers define the cuts."""
    row = row.clone()
    for token in set(prefix):
        row[token] = (
            row[token] * settings.repetition_penalty if row[token] < 0 else row[token] / settings.repetition_penalty
        )
    if settings.greedy:
        return row
    row = row / settings.temperature
    if settings.top_k:
        row[row < row.sort(descending=True)[0][settings.top_k - 1]] = -torch.inf
    if settings.top_p < 1:
        order = row.argsort(descending=True)
        mass = row.softmax(-1)[order].cumsum(-1)
        row[order[1 + int((mass < settings.top_p).sum()) :]] = -torch.inf
    if settings.min_p:
        probs = row.softmax(-1)
        row[probs < settings.min_p * probs.max()] = -torch.inf
    return row.log_softmax(-1)


def test_extra_processors_see_the_prefix_of_their_own_row():
    def forbid_last(ids, scores):
        return scores.scatter(1, ids[:, -1:], -torch.inf)

    def forbid_last_in_place(ids, scores):
        scores[:, ids[0, -1]] = -torch.inf
        return scores

    for processor in (forbid_last, forbid_last_in_place):
        for temperature in (0.0, 1.0):
            params, logits = SamplingParams(temperature=temperature), torch.zeros(2, 4)
            pipeline = LogitsPipeline(params, LogitsProcessorList([processor]))
            assert pipeline.needs_prefix
            out = pipeline(logits, [[0, 1], [2]])
            assert (out == -torch.inf).nonzero().tolist() == [[0, 1], [1, 2]]
            assert torch.equal(logits, torch.zeros(2, 4))


def test_every_node_has_its_own_prefix():
    tree = Tree(torch.tensor([[9, 1, 2, 3]]), torch.tensor([[-1, 0, 0, 2]]))
    assert node_prefixes([[7, 8, 9]], tree) == [[7, 8, 9], [7, 8, 9, 1], [7, 8, 9, 2], [7, 8, 9, 2, 3]]


def test_a_seed_reproduces_and_none_does_not():
    probs = torch.rand(3, 50)
    first, second, other, fresh = (
        (r.bernoulli(0.5), r.categorical(probs[0]), r.draws(probs, 8, True).tolist(), r.draws(probs, 8, False).tolist())
        for r in (Rng(5), Rng(5), Rng(6), Rng(None))
    )
    assert first == second
    assert first != other
    assert first != fresh


def test_draws_without_replacement_end_with_the_support():
    probs = torch.tensor([[0.0, 0.5, 0.0, 0.5], [0.25, 0.25, 0.25, 0.25]])
    drawn = Rng(0).draws(probs, 6, replacement=False)
    assert drawn.shape == (2, 6) and drawn.dtype == torch.long
    assert sorted(drawn[0, :2].tolist()) == [1, 3] and drawn[0, 2:].tolist() == [-1] * 4
    assert sorted(drawn[1, :4].tolist()) == [0, 1, 2, 3] and drawn[1, 4:].tolist() == [-1] * 2


@pytest.mark.parametrize("replacement", [True, False])
def test_real_draws_have_the_enumerated_law(replacement):
    probs, count, times = torch.tensor([[0.5, 0.3, 0.2, 0.0]]), 2, 20000
    law = {}
    for weight, drawn in explore(lambda rng: tuple(rng.draws(probs, count, replacement)[0].tolist())):
        law[drawn] = law.get(drawn, 0.0) + weight
    assert math.isclose(sum(law.values()), 1.0)
    assert len(law) == (9 if replacement else 6)
    rng = Rng(0)
    drawn = rng.draws(probs.expand(times, 4).contiguous(), count, replacement)
    found = {}
    for row in drawn.tolist():
        found[tuple(row)] = found.get(tuple(row), 0.0) + 1 / times
    assert total_variation(law, found) < 0.02
    assert {key for key, weight in law.items() if weight > 0.01} <= set(found)


def test_real_coins_and_categories_have_their_law():
    rng = Rng(0)
    assert abs(sum(rng.bernoulli(0.3) for _ in range(5000)) / 5000 - 0.3) < 0.03
    assert not any(rng.bernoulli(0.0) for _ in range(100)) and all(rng.bernoulli(1.0) for _ in range(100))
    counts = torch.bincount(
        torch.tensor([rng.categorical(torch.tensor([2.0, 0.0, 6.0])) for _ in range(5000)]), minlength=3
    )
    assert counts[1] == 0 and abs(float(counts[2]) / 5000 - 0.75) < 0.03


def test_enumeration_sees_every_outcome_once():
    def run(rng):
        return rng.bernoulli(0.25), rng.categorical(torch.tensor([1.0, 0.0, 3.0])), rng.bernoulli(1.0)

    outcomes = list(explore(run))
    assert {result: weight for weight, result in outcomes} == {
        (False, 0, True): 0.75 * 0.25,
        (False, 2, True): 0.75 * 0.75,
        (True, 0, True): 0.25 * 0.25,
        (True, 2, True): 0.25 * 0.75,
    }
    assert len(outcomes) == 4


@pytest.mark.parametrize(
    "bad",
    [
        lambda rng: rng.bernoulli(1.5),
        lambda rng: rng.bernoulli(float("nan")),
        lambda rng: rng.categorical(torch.tensor([0.0, 0.0])),
        lambda rng: rng.categorical(torch.tensor([-1.0, 2.0])),
        lambda rng: rng.categorical(torch.tensor([[1.0]])),
    ],
)
def test_enumeration_refuses_what_is_no_distribution(bad):
    with pytest.raises(AssertionError, match="expected"):
        bad(EnumeratingRng())
