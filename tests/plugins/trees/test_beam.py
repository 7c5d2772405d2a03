"""Beam trees, by hand."""

from __future__ import annotations

import pytest

from specdecodes.plugins.trees.beam import Beam
from specdecodes.testing import check_tree_builder

DRAFT = {
    (): {0: 0.6, 1: 0.3, 2: 0.1},
    (0,): {3: 0.4, 4: 0.35, 5: 0.25},
    (1,): {3: 0.9, 4: 0.1},
    (0, 3): {5: 0.45, 6: 0.35, 7: 0.2},
    (1, 3): {6: 0.7, 5: 0.3},
}


def test_the_best_of_every_level_by_hand(ask, paths):
    tree, proposal = ask(Beam(width=2, depth=3), DRAFT)
    # Level 2: 03 .24, 04 .21, 13 .27, 14 .03; level 3: 035 .108, 036 .084, 136 .189, 135 .081.
    assert paths(tree) == [(), (0,), (1,), (0, 3), (1, 3), (0, 3, 5), (1, 3, 6)]
    assert tree.parents.tolist() == [[-1, 0, 0, 1, 2, 3, 4]]
    assert tree.slots.tolist() == [[0, 1, 2, 3, 4, -1, -1]], "every beam is run but those of the last level"
    assert proposal.asked == [(1, 2), (2, 2), (2, 2)]
    assert tree.num_nodes is None and tree.logq is None and tree.draws == "none"


def test_a_beam_may_end(ask, paths):
    sharp = {**DRAFT, (0,): {3: 1 / 8, 4: 1 / 8, 5: 3 / 4}, (1,): {3: 0.4, 4: 0.6}, (0, 5): {1: 0.6, 2: 0.4}}
    tree, _ = ask(Beam(width=2, depth=3), sharp)
    # Level 2: 05 .45, 14 .18, 13 .12, 03 .075; level 3: both best ones below 05.
    assert paths(tree) == [(), (0,), (1,), (0, 5), (1, 4), (0, 5, 1), (0, 5, 2)]


def test_one_beam_is_a_chain(ask, paths):
    builder = Beam(width=1, depth=3)
    tree, _ = ask(builder, DRAFT)
    assert paths(tree) == [(), (0,), (0, 3), (0, 3, 5)]
    assert builder.chain and (builder.max_nodes, builder.max_depth) == (4, 3)


@pytest.mark.parametrize(("candidates", "count"), [(0, 1), (1, 4)])
def test_missing_candidates_become_padding(ask, paths, candidates, count):
    tree, _ = ask(Beam(width=3, depth=3), DRAFT, candidates=candidates)
    assert tree.num_nodes.tolist() == [count] and tree.shape == (1, 10)
    assert paths(tree) == [(), (0,), (0, 3), (0, 3, 5)][:count]


@pytest.mark.parametrize("name", ["width", "depth"])
def test_settings_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"^{name}: expected at least 1, got -1$"):
        Beam(**{name: -1})


@pytest.mark.parametrize("settings", [{}, {"width": 1}, {"depth": 1}, {"width": 6, "depth": 2}])
def test_contract(settings):
    check_tree_builder(Beam, **settings)
