"""Trees of the most probable paths: by hand, and against all paths that there are."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from specdecodes.plugins.trees.best_first import BestFirst
from specdecodes.testing import LiteralProposal, check_tree_builder
from specdecodes.testing.toys import numbers

DRAFT = {
    (): {0: 0.5, 1: 0.25, 2: 0.15, 3: 0.1},
    (0,): {3: 0.5, 4: 0.4, 5: 0.1},
    (1,): {3: 0.9, 4: 0.1},
    (2,): {3: 1.0},
    (0, 3): {5: 0.9, 6: 0.1},
    (0, 4): {5: 0.95, 6: 0.05},
    (1, 3): {6: 0.99, 5: 0.01},
}
"""Paths by probability: 0 .5, 03 .25 = 1 .25, 13 and 035 .225, 136 .223, 04 .2, 045 .19, 2 and 23 .15, ..."""


@pytest.mark.parametrize(
    ("max_nodes", "expected"),
    [
        (1, [()]),
        (2, [(), (0,)]),
        (3, [(), (0,), (1,)]),  # of 03 and 1, both 0.25, the one that was drafted first
        (4, [(), (0,), (1,), (0, 3)]),
        (7, [(), (0,), (1,), (0, 3), (1, 3), (0, 3, 5), (1, 3, 6)]),
        (9, [(), (0,), (1,), (0, 3), (0, 4), (1, 3), (0, 3, 5), (0, 4, 5), (1, 3, 6)]),
    ],
)
def test_the_most_probable_paths_by_hand(ask, paths, max_nodes, expected):
    tree, _ = ask(BestFirst(max_nodes=max_nodes, depth=3, topk=3, width=3), DRAFT)
    assert paths(tree) == expected
    assert tree.draws == "none" and tree.logq is None


@pytest.mark.parametrize(("depth", "width", "topk"), [(1, 3, 3), (2, 3, 3), (3, 1, 3), (3, 2, 1), (3, 3, 2)])
def test_limits_are_kept(ask, paths, depth, width, topk):
    builder = BestFirst(max_nodes=9, depth=depth, topk=topk, width=width)
    tree, proposal = ask(builder, DRAFT)
    assert builder.max_depth == depth
    assert max(len(path) for path in paths(tree)) <= depth
    assert proposal.asked[0] == (1, topk) and all(n <= width and k == topk for n, k in proposal.asked)
    parents = tree.parents[0, : len(paths(tree))].tolist()
    assert max(parents.count(node) for node in parents if node >= 0) <= topk
    assert builder.chain == (topk == 1)


def test_nodes_that_were_run_have_their_slots(ask, paths):
    tree, proposal = ask(BestFirst(max_nodes=6, depth=3, topk=3, width=2), DRAFT)
    assert proposal.slots[0] == [(), (0,), (1,), (0, 3), (1, 3)], "run level by level, in the order of the nodes"
    slots = dict(zip(paths(tree), tree.slots[0].tolist(), strict=True))
    assert slots == {(): 0, (0,): 1, (1,): 2, (0, 3): 3, (1, 3): 4, (0, 3, 5): -1}


def test_every_level_runs_the_same_number_of_nodes(ask):
    few = {(): {0: 0.9, 1: 0.1}, (0,): {1: 1.0}, (1,): {1: 1.0}}  # one candidate where four could be
    _, proposal = ask(BestFirst(max_nodes=40, depth=4, topk=2, width=4), few, candidates=1)
    assert proposal.asked == [(1, 2), (2, 2), (4, 2), (4, 2)]
    assert proposal.expanded == [2, 4, 4]


def test_drafting_ends_when_nothing_deeper_can_be_better(ask, paths):
    flat = {(): {0: 0.3, 1: 0.26, 2: 0.24, 3: 0.2}}
    tree, proposal = ask(BestFirst(max_nodes=4, depth=5, topk=4, width=4), flat)
    assert paths(tree) == [(), (0,), (1,), (2,)]
    # Three nodes below the root fit, so that three are run: a second level of 0.3 / 8 and less, no third.
    assert proposal.asked == [(1, 4), (3, 4)]
    certain = {(): {0: 1.0}, (0,): {1: 1.0}, (0, 1): {2: 1.0}}
    tree, proposal = ask(BestFirst(max_nodes=4, depth=3, topk=2, width=2), certain)
    assert paths(tree) == [(), (0,), (0, 1), (0, 1, 2)]
    assert len(proposal.asked) == 3


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_the_best_of_all_paths(ask, paths, seed, rows):
    """Wide enough to run everything that can matter, it finds the best n - 1 of all paths."""

    def rule(prefix):
        return 1.5 * torch.randn(8, generator=numbers(seed, prefix), dtype=torch.float64)

    tree, proposal = ask(BestFirst(max_nodes=10, depth=3, topk=8, width=64), rule, rows=rows)
    for row in range(rows):
        scores = {}
        for length in (1, 2, 3):
            for path in product(range(8), repeat=length):
                above = scores.get(path[:-1], 0.0)
                scores[path] = above + float(proposal.distribution(row, path[:-1])[path[-1]])
        expected = sorted(scores, key=scores.get, reverse=True)[:9]
        assert set(paths(tree, row)) == {(), *expected}


@pytest.mark.parametrize("candidates", [0, 1, 2])
def test_missing_candidates_become_padding(ask, paths, candidates):
    tree, _ = ask(BestFirst(max_nodes=12, depth=3, topk=3, width=2), DRAFT, candidates=candidates)
    expected = {
        0: [()],
        1: [(), (0,), (0, 3), (0, 3, 5)],
        2: [(), (0,), (1,), (0, 3), (0, 4), (1, 3), (1, 4), (0, 3, 5), (0, 3, 6), (1, 3, 6), (1, 3, 5)],
    }[candidates]
    assert paths(tree) == expected
    assert tree.num_nodes.tolist() == [len(expected)]
    assert tree.slots[0, len(expected) :].tolist() == [-1] * (12 - len(expected))


def test_rows_may_have_different_shapes(ask, paths):
    def rule(prefix):  # row 0 is sure, row 1 is not
        return torch.tensor([9.0 if prefix[0] == 0 else 0.1, *[0.0] * 7], dtype=torch.float64)

    tree, _ = ask(BestFirst(max_nodes=4, depth=3, topk=3, width=3), rule, rows=2)
    assert paths(tree, 0) == [(), (0,), (0, 0), (0, 0, 0)]
    assert [len(path) for path in paths(tree, 1)] == [0, 1, 1, 1]


def test_a_log_probability_above_zero_makes_no_child_better_than_its_parent(ask, paths):
    """Rounding does that; the child must not be kept without its parent."""

    class Rounded(BestFirst):
        def build_tree(self, state, proposal):
            topk = proposal.topk
            proposal.topk = lambda slots, k: (topk(slots, k)[0], topk(slots, k)[1] + 1e-3)
            return super().build_tree(state, proposal)

    certain = {(): {0: 0.5001, 1: 0.4999}, (0,): {1: 1.0}, (0, 1): {2: 1.0}, (1,): {2: 1.0}}
    tree, _ = ask(Rounded(max_nodes=3, depth=3, topk=2, width=2), certain)
    assert paths(tree) == [(), (0,), (0, 1)]


def test_more_nodes_than_the_levels_can_give_are_not_declared():
    assert BestFirst(max_nodes=64, depth=2, topk=2, width=3).max_nodes == 1 + 2 + 2 * 2
    assert BestFirst(max_nodes=64, depth=3, topk=2, width=3).max_nodes == 1 + 2 + 4 + 3 * 2
    assert BestFirst(max_nodes=3, depth=9).max_depth == 2


@pytest.mark.parametrize("name", ["max_nodes", "depth", "topk", "width"])
def test_settings_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"^{name}: expected at least 1, got 0$"):
        BestFirst(**{name: 0})


@pytest.mark.parametrize(
    "settings", [{}, {"max_nodes": 1}, {"max_nodes": 2}, {"depth": 1}, {"topk": 1}, {"width": 1}, {"max_nodes": 60}]
)
def test_contract(settings):
    check_tree_builder(BestFirst, **settings)


class LookedUp(LiteralProposal):
    """The same distributions, looked up one by one; being asked level by level is an error."""

    def candidates(self, row, slot, k):
        assert row == 0
        tokens, logq = super().topk(torch.tensor([[slot]]), k)
        return [(t, math.exp(q)) for t, q in zip(tokens[0, 0].tolist(), logq[0, 0].tolist(), strict=True) if t >= 0]

    def enter(self, row, slot, token):
        assert row == 0
        return int(super().expand(torch.tensor([[slot]]), torch.tensor([[token]])))

    def topk(self, slots, k):
        raise AssertionError("asked level by level")


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("max_nodes", [1, 2, 5, 12, 30])
def test_what_is_looked_up_gives_the_same_paths_as_levels_of_any_width(ask, paths, max_nodes, seed):
    def rule(prefix):
        return torch.randn(8, generator=numbers(seed, *prefix[1:]), dtype=torch.float64).mul(2).log_softmax(-1)

    levels, _ = ask(BestFirst(max_nodes=max_nodes, depth=3, topk=3, width=9), rule)
    looked_up, proposal = ask(BestFirst(max_nodes=max_nodes, depth=3, topk=3, width=9), rule, kind=LookedUp)
    assert sorted(paths(looked_up)) == sorted(paths(levels))
    assert set(proposal.slots[0]) <= set(paths(levels)), "only what enters the tree is entered"
