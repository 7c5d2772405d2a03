"""Losslessness by statistics on real decodes: tiny stock models, real randomness, the whole program."""

from __future__ import annotations

import pytest
import torch

from specdecodes import load
from specdecodes.core.sampling import LogitsPipeline, SamplingParams
from specdecodes.testing import toy_model
from specdecodes.testing.state_backend import stock_logits

from ...testing.mutants import SortsSiblings

VOCAB, LENGTH, TIMES = 10, 3, 1500
PROMPT = [3, 7]
SAMPLING = dict(temperature=1.3, top_k=3)

MODES = {
    "token-match": dict(mode="stree", verify="token-match", tree="2,1.1"),
    "rejection": dict(mode="sd", depth=2),
    "multi-step": dict(mode="stree", verify="multi-step", tree="2,1.1"),
    "without-replacement": dict(mode="stree", tree="2,1.1"),
    "block": dict(mode="sd", verify="block", depth=2),
    "traversal": dict(mode="stree", verify="traversal", tree="2,1.1"),
}


def expected_law():
    """Probabilities of all answers of LENGTH tokens, from the stock model without a cache."""
    pipeline = LogitsPipeline(SamplingParams(**SAMPLING))
    law = {(): 1.0}
    for _ in range(LENGTH):
        logits = stock_logits(toy_model("llama", vocab_size=VOCAB), [[*PROMPT, *prefix] for prefix in law])
        law = {
            (*prefix, token): mass * share
            for (prefix, mass), row in zip(law.items(), pipeline(logits).exp().double().tolist(), strict=True)
            for token, share in enumerate(row)
            if share > 0
        }
    return law


def p_value(decoder):
    """Of Pearson's statistic over TIMES answers; cells with fewer than 5 expected answers are put together."""
    law, counts = expected_law(), {}
    prompt = torch.tensor([PROMPT])
    for seed in range(TIMES):
        answer = tuple(decoder.generate(prompt, max_new_tokens=LENGTH, seed=seed, **SAMPLING).tokens[0])
        assert answer in law, "an answer that the target cannot give"
        counts[answer] = counts.get(answer, 0) + 1
    cells, rest = [], [0.0, 0.0]
    for answer, share in law.items():
        cell = [counts.get(answer, 0), share * TIMES]
        if cell[1] >= 5:
            cells.append(cell)
        else:
            rest = [a + b for a, b in zip(rest, cell, strict=True)]
    cells += [rest] if rest[1] > 0 else []
    statistic = sum((found - expected) ** 2 / expected for found, expected in cells)
    return float(
        torch.special.gammaincc(torch.tensor((len(cells) - 1) / 2).double(), torch.tensor(statistic / 2).double())
    )


def make(**settings):
    target, draft = toy_model("llama", vocab_size=VOCAB), toy_model("mamba2", vocab_size=VOCAB, seed=1)
    return load(target, draft, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODES)
def test_real_answers_have_the_law_of_the_target(name, record_property):
    p = p_value(make(**MODES[name]))
    record_property("p_value", p)
    assert p > 1e-4


@pytest.mark.slow
def test_the_statistic_finds_a_bias(record_property):
    p = p_value(make(mode="stree", tree="3,1.1.1", verify=SortsSiblings()))
    record_property("p_value", p)
    assert p < 1e-4
