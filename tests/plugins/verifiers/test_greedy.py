"""The greedy rule on trees written out by hand."""

from __future__ import annotations

import pytest
import torch

from specdecodes.core.sampling import Rng
from specdecodes.core.tree import Tree
from specdecodes.plugins.verifiers.greedy import Greedy


def scores(*best):
    """Scores whose best token per node is as given; not normalised, as greedy scores come."""
    return torch.nn.functional.one_hot(torch.tensor([best]), 8).float() * 3 - 100


CASES = {
    "nothing": ([0, 1, 2], [-1, 0, 0], [5, 6, 7], None, [0], 5),
    "first child": ([0, 5, 2], [-1, 0, 0], [5, 6, 7], None, [0, 1], 6),
    "second child": ([0, 2, 5], [-1, 0, 0], [5, 6, 7], None, [0, 2], 7),
    "a grandchild": ([0, 5, 2, 1, 6], [-1, 0, 0, 1, 1], [5, 6, 7, 1, 3], None, [0, 1, 4], 3),
    "a match below a miss": ([0, 4, 6], [-1, 0, 1], [5, 6, 7], None, [0], 5),
    "padding that would match": ([0, 2, 5], [-1, 0, 0], [5, 6, 7], 2, [0], 5),
    "twins": ([0, 5, 5, 6], [-1, 0, 0, 2], [5, 6, 6, 1], None, [0, 2, 3], 1),
    "the root alone": ([0], [-1], [4], None, [0], 4),
}


@pytest.mark.parametrize("case", CASES)
def test_greedy_by_hand(case):
    tokens, parents, best, count, path, bonus = CASES[case]
    num_nodes = None if count is None else torch.tensor([count])
    tree = Tree(torch.tensor([tokens]), torch.tensor([parents]), num_nodes)
    verdict = Greedy().accept(scores(*best), tree, Rng(0))
    assert [node for node in verdict.path[0].tolist() if node >= 0] == path
    assert verdict.num_accepted.tolist() == [len(path) - 1]
    assert verdict.bonus.tolist() == [bonus]


def test_rows_are_judged_apart():
    tree = Tree(torch.tensor([[0, 5, 6], [0, 1, 2]]), torch.tensor([[-1, 0, 1], [-1, 0, 0]]), torch.tensor([3, 2]))
    verdict = Greedy().accept(torch.cat([scores(5, 6, 7), scores(2, 6, 7)]), tree, Rng(0))
    assert verdict.path.tolist() == [[0, 1, 2], [0, -1, -1]]
    assert verdict.num_accepted.tolist() == [2, 0] and verdict.bonus.tolist() == [7, 2]
