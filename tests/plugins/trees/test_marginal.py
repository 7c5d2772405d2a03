"""Best-first search over per-depth marginals, and a decode with a parallel drafter."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from specdecodes import hookimpl, load
from specdecodes.plugins.trees.marginal import Marginal
from specdecodes.testing import LiteralProposal, check_tree_builder, toy_model
from specdecodes.testing.toys import numbers, toy_prompt

VOCAB = 8


def by_depth(seed):
    return lambda prefix: 1.5 * torch.randn(VOCAB, generator=numbers(seed, len(prefix)), dtype=torch.float64)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_the_paths_with_the_largest_products(ask, paths, seed, rows):
    tree, proposal = ask(Marginal(max_nodes=12, depth=3, topk=VOCAB), by_depth(seed), rows=rows, depth=3)
    for row in range(rows):
        logq = proposal.marginals[row].tolist()
        scores = {
            path: sum(logq[depth][token] for depth, token in enumerate(path))
            for length in (1, 2, 3)
            for path in product(range(VOCAB), repeat=length)
        }
        expected = sorted(scores, key=scores.get, reverse=True)[:11]
        assert set(paths(tree, row)) == {(), *expected}
        assert tree.slots[row].tolist() == [0, *[-1] * 11], "nothing was run"
    assert not proposal.asked and not proposal.expanded


def test_by_hand(ask, paths):
    laws = [{0: 0.7, 1: 0.3}, {2: 0.6, 3: 0.4}]
    rules = [torch.tensor([law.get(token, 0.0) for token in range(VOCAB)]).log() for law in laws]
    tree, _ = ask(Marginal(max_nodes=12, depth=2), lambda prefix: rules[len(prefix) - 2], depth=2)
    # 0 .7, 02 .42, 1 .3, 03 .28, 12 .18, 13 .12; the other tokens are impossible
    assert paths(tree) == [(), (0,), (0, 2), (1,), (0, 3), (1, 2), (1, 3)]
    assert tree.num_nodes.tolist() == [7]


@pytest.mark.parametrize(
    ("settings", "count", "deepest"),
    [({"max_nodes": 1}, 1, 0), ({"max_nodes": 2}, 2, 1), ({"depth": 1}, 5, 1), ({"topk": 1}, 3, 2), ({}, 13, 2)],
)
def test_limits(ask, paths, settings, count, deepest):
    builder = Marginal(**{"topk": 4, **settings})
    tree, _ = ask(builder, by_depth(0), depth=2)  # the drafter looks two tokens ahead, whatever the builder wants
    assert len(paths(tree)) == count
    assert max(len(path) for path in paths(tree)) <= deepest
    assert builder.chain == (settings in ({"topk": 1}, {"max_nodes": 1}, {"max_nodes": 2}))


@pytest.mark.parametrize("settings", [{}, {"max_nodes": 2}, {"depth": 1}, {"topk": 30}, {"topk": 1}])
def test_contract(settings):
    check_tree_builder(Marginal, **settings)


@pytest.mark.parametrize("name", ["max_nodes", "depth", "topk"])
def test_settings_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"^{name}: expected at least 1, got 0$"):
        Marginal(**{name: 0})


class Parallel:
    """A drafter with marginals: at every depth, the last tokens of the prompt again."""

    has_probs = False
    has_marginals = True
    capturable = False

    def __init__(self, vocab):
        self.vocab = vocab

    @hookimpl
    def propose(self, state):
        def rule(prefix):
            weights = torch.zeros(self.vocab)
            for back, token in enumerate(reversed(state.history[0][-6:])):
                weights[token] += 4.0 - 0.5 * back
            return weights

        return LiteralProposal(rule, state, depth=3)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "seed": 3}])
def test_a_parallel_drafter_decodes_losslessly(sampling):
    target = toy_model("bamba", dtype=torch.float64)
    decoder = load(target, mode="naive", propose=Parallel(target.config.vocab_size), build_tree="marginal")
    out = decoder.generate(toy_prompt(9), max_new_tokens=20, **sampling)
    assert len(out.tokens[0]) == 20
    if not sampling:
        assert out.tokens == load(target, mode="naive").generate(toy_prompt(9), max_new_tokens=20).tokens
        assert out.tau > 1


def test_a_drafter_without_marginals_is_refused(ask):
    with pytest.raises(
        ValueError, match="the tree builder needs per-depth marginals, which this drafter does not have"
    ):
        load(toy_model("bamba"), mode="ngram", build_tree="marginal")
    with pytest.raises(ValueError, match="expected per-depth marginals, got none from this drafter"):
        ask(Marginal(), by_depth(0))
