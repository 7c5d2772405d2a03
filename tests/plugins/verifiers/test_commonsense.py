"""Common-sense verification on scores written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from specdecodes.core.sampling import Best
from specdecodes.core.tree import Tree
from specdecodes.plugins.bigrams import BigramTable
from specdecodes.plugins.verifiers.commonsense import Commonsense
from specdecodes.testing import explore, toy_context

VOCAB = 6
FOLLOWERS = {0: [4, 2], 1: [5], 2: [1, 3], 4: [5]}


@pytest.fixture
def rule():
    rows = [[*FOLLOWERS.get(token, []), -1, -1][:2] for token in range(VOCAB)]
    return Commonsense(toy_context(vocab_size=VOCAB), bigrams=BigramTable(np.array(rows, dtype=np.int32)))


def scores(*best):
    """Scores not normalised, the best token of each node as given."""
    rows = torch.arange(VOCAB).expand(len(best), VOCAB).double() * -0.1 + 50
    rows = rows + 9 * torch.nn.functional.one_hot(torch.tensor(best), VOCAB)
    return rows[None]


def judged(rule, tokens, parents, logits, count=None):
    num_nodes = None if count is None else torch.tensor([count])
    tree = Tree(torch.tensor([tokens]), torch.tensor([parents]), num_nodes)
    verdict = rule.accept(logits, tree, Best())
    return [node for node in verdict.path[0].tolist() if node >= 0], int(verdict.bonus)


CASES = {
    # tokens, parents, the target's best after each node, count: path, bonus
    "a match": ([0, 4, 3], [-1, 0, 0], [3, 5, 1], None, [0, 2], 1),
    "a match goes before a follower": ([0, 4, 2, 3], [-1, 0, 0, 0], [3, 5, 1, 1], None, [0, 3], 1),
    "a follower of the root": ([0, 3, 4], [-1, 0, 0], [1, 0, 2], None, [0, 2], 2),
    "no follower": ([0, 3, 5], [-1, 0, 0], [1, 0, 2], None, [0], 1),
    "followers of the parent, not of the root": ([0, 2, 4, 3], [-1, 0, 1, 1], [2, 0, 0, 5], None, [0, 1, 3], 5),
    "a token without followers": ([3, 4, 2], [-1, 0, 0], [1, 0, 0], None, [0], 1),
    "a match below a follower": ([0, 4, 5, 1], [-1, 0, 1, 2], [1, 5, 1, 3], None, [0, 1, 2, 3], 3),
    "of two followers the target's better": ([0, 4, 2], [-1, 0, 0], [1, 3, 3], None, [0, 2], 3),
    "padding": ([0, 3, 4], [-1, 0, 0], [1, 0, 2], 2, [0], 1),
}


@pytest.mark.parametrize("case", CASES)
def test_commonsense_by_hand(rule, case):
    tokens, parents, best, count, path, bonus = CASES[case]
    assert judged(rule, tokens, parents, scores(*best), count) == (path, bonus)


def test_what_the_target_rules_out_is_never_accepted(rule):
    logits = scores(1, 0)
    logits[0, 0, 4] = -torch.inf
    assert judged(rule, [0, 4], [-1, 0], logits) == ([0], 1)


def test_above_temperature_0_the_targets_choice_is_drawn(rule):
    logp = torch.tensor([[[0.2, 0.2, 0, 0.1, 0.5, 0], [1, 0, 0, 0, 0, 0]]], dtype=torch.float64).log()
    tree = Tree(torch.tensor([[0, 4]]), torch.tensor([[-1, 0]]))
    law = {}
    for weight, verdict in explore(lambda rng: rule.accept(logp, tree, rng)):
        key = (int(verdict.num_accepted), int(verdict.bonus))
        law[key] = law.get(key, 0.0) + weight
    assert law == pytest.approx({(1, 0): 1.0}), "the follower is accepted whatever is drawn"
    unlisted = Tree(torch.tensor([[0, 3]]), torch.tensor([[-1, 0]]))
    found = {int(v.num_accepted) for _, v in explore(lambda rng: rule.accept(logp, unlisted, rng))}
    assert found == {0, 1}, "a child that is no follower only by a draw"


def test_nothing_of_the_tree_is_changed(rule):
    tree = Tree(torch.tensor([[0, 3, 4]]), torch.tensor([[-1, 0, 0]]))
    before = tree.tokens.clone()
    rule.accept(scores(1, 0, 2), tree, Best())
    assert torch.equal(tree.tokens, before)


def test_a_target_without_a_table_needs_one():
    with pytest.raises(ValueError, match=r"bigrams: expected a table for this target \(--set bigrams=FILE\), got none"):
        Commonsense(toy_context())
