"""Dynamic and optimised trees on the embedded pair: the tokens of plain decoding, in fewer steps."""

from __future__ import annotations

from functools import cache

import pytest

from specdecodes import assets, load

PROMPTS = ("Write a short poem about the sea.", "Tom has 3 boxes with 12 pens each. How many pens has he?", "def add(")
LENGTH = 40

DECODERS = {
    "dynamic": {"mode": "dynamic"},
    "sequoia": {"mode": "sequoia"},
    "beam": {"mode": "beam"},
    "optimal": {"mode": "stree", "build_tree": "optimal"},
    "wide": {"mode": "dynamic", "max_nodes": 24, "depth": 6, "topk": 6, "width": 6},
}


@cache
def plain(prompt):
    return load(mode="naive", dtype="float32").generate(prompt, max_new_tokens=LENGTH).tokens


@pytest.mark.slow
@pytest.mark.parametrize("draft", ["ngram", "mamba2"])
@pytest.mark.parametrize("name", DECODERS)
def test_greedy_tokens_are_those_of_plain_decoding(name, draft):
    decoder = load(draft=draft, dtype="float32", **DECODERS[name])
    steps = []
    for prompt in PROMPTS:
        out = decoder.generate(prompt, max_new_tokens=LENGTH)
        assert out.tokens == plain(prompt)
        steps += out.accept_lengths
    assert sum(steps) / len(steps) > 1.4, "the draft should be right often"


@pytest.mark.slow
@pytest.mark.parametrize("parts", [{}, {"build_tree": "best-first-sampled", "verify": "without-replacement"}])
def test_a_sampled_dynamic_tree_is_reproduced_by_its_seed(parts):
    decoder = load(draft="mamba2", mode="dynamic", dtype="float32", **parts)
    assert decoder.sampling.draws == ("without_replacement" if parts else "none")
    runs = [
        decoder.generate(PROMPTS[0], max_new_tokens=LENGTH, temperature=0.8, seed=seed, ignore_eos=True)
        for seed in (1, 1, 2)
    ]
    assert runs[0].tokens == runs[1].tokens != runs[2].tokens
    assert runs[0].tau > 1.2


@pytest.mark.slow
def test_a_tree_of_drawn_children_alone_cannot_be_greedy():
    decoder = load(draft="mamba2", mode="dynamic", build_tree="best-first-sampled")
    with pytest.raises(
        ValueError, match=r"cannot decode at temperature 0: .* draws? .*without_replacement|judges children"
    ):
        decoder.generate(PROMPTS[0], max_new_tokens=2)


@pytest.mark.slow
@pytest.mark.parametrize("draft", ["ngram", "mamba2"])
def test_the_embedded_pair_has_settings_per_drafter_and_builder(draft):
    def builder(**settings):
        return load(draft=draft, mode="dynamic", **settings).greedy.hooks.manager.get_plugin("tree")

    measured = assets.SETTINGS[draft]["best-first"]
    assert (builder().max_nodes, builder().max_depth) == (measured["max_nodes"], measured["depth"])
    assert (builder(depth=2).max_nodes, builder(depth=2).max_depth) == (measured["max_nodes"], 2)
    chain = load(draft=draft, mode="sd").greedy.hooks.manager.get_plugin("tree")
    assert chain.max_depth == 4, "the same name at another builder is another setting"
