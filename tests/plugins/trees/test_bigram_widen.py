"""Static trees with followers as further leaves."""

from __future__ import annotations

import pytest
import torch

from specdecodes import load
from specdecodes.core.sampling import SamplingParams
from specdecodes.core.state import DecodeState
from specdecodes.core.tree import Tree
from specdecodes.plugins.trees.bigram_widen import BigramWiden
from specdecodes.plugins.trees.static import Static
from specdecodes.plugins.verifiers.token_match import TokenMatch
from specdecodes.testing import (
    LiteralProposal,
    LiteralTarget,
    check_tree_builder,
    total_variation,
    toy_bigrams,
    toy_context,
    toy_model,
)
from specdecodes.testing.toys import numbers, toy_prompt

from ..verifiers.test_law import PARAMS, decode_law

VOCAB = 24
TABLE = toy_bigrams(VOCAB)


def noise(prefix):
    return torch.randn(VOCAB, generator=numbers(prefix))


def state_of(rows=1):
    target = LiteralTarget(noise, VOCAB)
    prompts = torch.arange(1, rows + 1)[:, None]
    state = DecodeState(target, prompts, SamplingParams(seed=0))
    state.first(target.prefill(prompts))
    return state


def widened(state, candidates=None, table=TABLE, **settings):
    builder = BigramWiden(toy_context(vocab_size=VOCAB), bigrams=table, **settings)
    tree = builder.build_tree(state, LiteralProposal(noise, state, candidates=candidates))
    Tree.checked(tree.tokens, tree.parents, tree.num_nodes, tree.slots, vocab_size=VOCAB)
    assert tree.shape[1] == builder.max_nodes
    return tree


@pytest.mark.parametrize("candidates", [None, 1, 0])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("levels", ["all", "0", "1.3", "4"])
@pytest.mark.parametrize("followers", [1, 2, 3])
def test_every_node_of_the_named_levels_gets_its_followers(followers, levels, rows, candidates):
    state, shape = state_of(rows), "3,2.1,2.1,3"
    base = Static(tree=shape).build_tree(state, LiteralProposal(noise, state, candidates=candidates))
    tree = widened(state, candidates, tree=shape, followers=followers, levels=levels)
    wanted = range(5) if levels == "all" else [int(level) for level in levels.split(".")]
    for row in range(rows):
        size = base.count(row)
        tokens, parents = tree.tokens[row].tolist(), tree.parents[row].tolist()
        assert tokens[:size] == base.tokens[row, :size].tolist(), "the static tree keeps its numbers"
        assert parents[:size] == base.parents[row, :size].tolist()
        assert tree.slots[row, :size].tolist() == base.slots[row, :size].tolist()
        assert tree.slots[row, size:].tolist() == [-1] * (tree.shape[1] - size), "the drafter has not run them"
        expected = []
        for node in range(size):
            if int(base.structure.depths[row, node]) in wanted:
                own = {tokens[child] for child in range(1, size) if parents[child] == node}
                new = [token for token in TABLE.after(tokens[node]) if token not in own][:followers]
                expected += [(node, token) for token in new]
        end = tree.count(row)
        assert list(zip(parents[size:end], tokens[size:end], strict=True)) == expected
        assert end == size + len(expected)


def test_no_token_stands_twice_below_a_node():
    state = state_of()
    best = int(noise(tuple(state.history[0])).argmax())
    followers = TABLE.followers.copy()
    followers[:] = best  # the drafter's own best token, everywhere
    tree = widened(state, tree="1,1", followers=1, table=type(TABLE)(followers))
    pairs = list(zip(tree.parents[0, : tree.count()].tolist(), tree.tokens[0, : tree.count()].tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    assert (0, best) in pairs[:3], "drafted, and so not added at the root"


def test_the_budget_is_that_of_the_full_tree():
    builder = BigramWiden(toy_context(vocab_size=VOCAB), tree="2,1.1", followers=3, levels="0.2", bigrams=TABLE)
    assert (builder.max_nodes, builder.max_depth, builder.chain, builder.draws) == (
        5 + 3 * (1 + 2),
        3,
        False,
        ("none",),
    )
    builder = BigramWiden(toy_context(vocab_size=VOCAB), tree="2,1.1", followers=1, levels="1", bigrams=TABLE)
    assert (builder.max_nodes, builder.max_depth) == (7, 2)


@pytest.mark.parametrize("settings", [{"levels": "0"}, {"tree": "1,1,1", "followers": 3}, {"levels": "1.4"}])
def test_it_keeps_the_contract(settings):
    check_tree_builder(BigramWiden, context=toy_context(vocab_size=VOCAB), bigrams=TABLE, **settings)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"followers": 0}, "followers: expected at least 1 per node, got 0"),
        ({"levels": "5"}, r"levels: expected 'all' or levels 0 \(the root\) to 4 by dots \('0.1'\), got '5'"),
        ({"levels": ""}, "levels: expected 'all' or levels"),
        ({"levels": "0,1"}, "levels: expected 'all' or levels"),
        ({"levels": "-1"}, "levels: expected 'all' or levels"),
        ({"tree": "x"}, "tree: expected levels like"),
        ({"bigrams": None}, "bigrams: expected a table for this target"),
    ],
)
def test_bad_settings(settings, line):
    with pytest.raises(ValueError, match=line):
        BigramWiden(toy_context(vocab_size=VOCAB), **{"bigrams": TABLE, **settings})


# Whole decodes


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bamba", "mamba2", "llama"])
@pytest.mark.parametrize("backend", ["replay", "copy", "reforward"])
def test_tokens_are_those_of_plain_decoding(family, backend):
    target, draft = toy_model(family, dtype=torch.float64), toy_model("mamba2", dtype=torch.float64, seed=1)
    plain = load(target, mode="naive").generate(toy_prompt(9), max_new_tokens=24)
    settings = dict(build_tree="bigram-widen", bigrams=toy_bigrams(top=12), followers=8, commit_state=backend)
    ours = load(target, draft, "stree", **settings).generate(toy_prompt(9), max_new_tokens=24)
    assert ours.tokens == plain.tokens and ours.lossless
    static = load(target, draft, "stree").generate(toy_prompt(9), max_new_tokens=24)
    assert ours.tau > static.tau, "and in fewer steps"


@pytest.mark.slow
@pytest.mark.parametrize("params", ["as they are", "top-k", "repetition penalty"])
def test_with_token_match_a_decode_has_the_law_of_the_target(params):
    builder = BigramWiden(toy_context(vocab_size=5), tree="1,1", bigrams=toy_bigrams(5))
    law, expected = decode_law(TokenMatch(), builder, "none", PARAMS[params], vocab=5, length=3)
    assert total_variation(law, expected) < 1e-12


@pytest.mark.slow
def test_followers_help_the_embedded_pair():
    prompt = [{"role": "user", "content": "How many apples are in 3 boxes of 12 apples each?"}]
    plain, static, wide = (
        load(mode=mode, **settings).generate(prompt, max_new_tokens=64)
        for mode, settings in (("naive", {}), ("stree", {}), ("stree", {"build_tree": "bigram-widen", "followers": 4}))
    )
    assert plain.tokens == static.tokens == wide.tokens
    assert wide.tau >= static.tau


def test_sampling_goes_with_token_match_alone():
    target, draft = toy_model("llama"), toy_model("llama", seed=1)
    settings = dict(build_tree="bigram-widen", bigrams=toy_bigrams())
    decoder = load(target, draft, "stree", **settings)
    assert type(decoder.sampling.hooks.manager.get_plugin("verifier")).__name__ == "TokenMatch"
    refused = load(target, draft, "stree", verify="traversal", **settings).sampling
    assert "it judges children drawn as without_replacement or iid, the tree builder gives none" in refused
