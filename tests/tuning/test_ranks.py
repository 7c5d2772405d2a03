"""Rank traces: what a tree would have accepted, against decoding with that tree."""

from __future__ import annotations

import pytest

from specdecodes import load
from specdecodes.plugins.trees.shape import TreeShape
from specdecodes.tuning.ranks import PRIOR, RankTracer, acceptance, accepted_lengths, trace_ranks

PROMPTS = ["Why is the sky blue?", "Write a short poem about the sea."]
TOKENS = 40


@pytest.mark.slow
@pytest.mark.parametrize("draft", ["ngram", "mamba2"])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8}], ids=["greedy", "sampled"])
def test_a_trace_foretells_every_step_of_every_tree(draft: str, sampling: dict[str, float]) -> None:
    plain = load(mode="naive")
    prompts = [plain.encode([{"role": "user", "content": text}]) for text in PROMPTS]
    settings = {"max_new_tokens": TOKENS, "ignore_eos": True, **sampling}
    answers = [plain.generate(prompt, seed=seed, **settings).tokens[0] for seed, prompt in enumerate(prompts)]
    tracer = RankTracer(depth=5, width=3)
    common = {"tokenizer": plain.tokenizer, "mode": "stree", "verify": "token-match" if sampling else None}
    decoder = load(plain.target.model, draft, build_tree=tracer, **common)
    traces = trace_ranks(decoder, tracer, prompts, answers, sampling)
    assert [len(trace) for trace in traces] == [TOKENS - 1] * len(prompts)
    for spec in ("1,1,1", "3,2.1,2.1,3", "2,1,1"):
        tree = load(plain.target.model, draft, tree=spec, **common)
        found = [tree.generate(prompt, seed=seed, **settings) for seed, prompt in enumerate(prompts)]
        assert [generation.tokens[0] for generation in found] == answers
        assert accepted_lengths(TreeShape.parse(spec), traces) == [each.accept_lengths for each in found]


def test_acceptance_counts_each_depth_below_what_was_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specdecodes.tuning.ranks.PRIOR", 0.0)
    # Four places with ranks; the answer ends behind the last, where deeper levels are unknown.
    traces = [[(0, 1), (1,), (), (0,)]]
    straight, turned = acceptance(traces, depth=2, width=2, detours=1)
    # Depth 0 is asked at four places: rank 0 twice, rank 1 once, so 1 of the 2 that were not rank 0.
    assert straight[0] == pytest.approx([2 / 4, 1 / 2])
    # Depth 1 without a detour below the first place alone: rank 1.
    assert straight[1] == pytest.approx([0, 1])
    # With one detour below the second place: nothing.
    assert turned == [[0, 0], [0, 0]]
    # Steps over a chain of two start at the places 0 (two tokens), 2 and 3.
    straight, _ = acceptance(traces, depth=2, width=2, detours=1, shape=TreeShape.chain(2))
    assert straight[0] == pytest.approx([2 / 3, 0])


def test_rare_combinations_lean_on_other_depths() -> None:
    traces = [[(0, 0)] * 50 + [(0,)] * 50]
    (straight,) = acceptance(traces, depth=3, width=1, detours=0)
    common = 150 / (100 + 100 + 50)
    assert straight[2][0] == pytest.approx((0 + PRIOR * common) / (50 + PRIOR), rel=0.1)
    assert 0 < straight[2][0] < straight[1][0] < straight[0][0] < 1


def test_the_last_step_ends_with_the_answer() -> None:
    assert accepted_lengths(TreeShape.chain(3), [[(0, 0, 0), (0, 0), (0,)]]) == [[3]]
    assert accepted_lengths(TreeShape.chain(1), [[(0, 0, 0), (0, 0), (0,)]]) == [[2, 1]]
