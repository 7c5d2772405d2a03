"""The cost model: shapes that are timed, and the fit of drafting."""

from __future__ import annotations

import pytest

from specdecodes import load
from specdecodes.tuning.costs import Costs, Shape, _fit_drafting, measure_costs, timing_shapes


def test_shapes_tell_levels_from_nodes_within_the_limits() -> None:
    shapes = timing_shapes(20, 4)
    assert all(2 <= shape.nodes <= 20 and shape.levels <= 4 for shape in shapes)
    assert {shape.nodes for shape in shapes if shape.levels == 1} >= {4, 8, 16, 20}
    assert {shape.levels for shape in shapes} == {1, 2, 4}


def test_a_linear_cost_is_found_again() -> None:
    shapes = timing_shapes(32, 8)
    found = [(s, 3.0 + 0.5 * (s.levels - 1) + 0.02 * (s.nodes - 1)) for s in shapes]
    assert _fit_drafting(found) == pytest.approx((3.0, 0.5, 0.02))


def test_no_part_is_ever_negative() -> None:
    shapes = timing_shapes(32, 8)
    found = [(s, 3.0 - 0.05 * (s.levels - 1) + 0.1 * (s.nodes - 1)) for s in shapes]
    draft, level, node = _fit_drafting(found)
    assert level == 0 and draft > 0 and node > 0


def test_the_curve_is_in_plain_steps() -> None:
    costs = Costs(plain=2.0, score={4: 3.0, 2: 2.5}, draft=0.1, level=0.5, node=0.05)
    assert costs.curve() == pytest.approx({1: 1.0, 2: (2.5 + 0.1 + 0.05) / 2, 4: (3.0 + 0.1 + 0.15) / 2})
    assert list(costs.curve()) == [1, 2, 4]
    assert costs.per_level == 0.25


def test_costs_are_measured_in_the_loop() -> None:
    plain = load(mode="naive")
    shapes = [Shape("1", 2, 1), Shape("7", 8, 1), Shape("1,1,1", 4, 3)]
    trees = {
        shape: load(plain.target.model, "ngram", "stree", tokenizer=plain.tokenizer, tree=shape.spec)
        for shape in shapes
    }
    prompts = [plain.encode("A small town by the sea")]
    costs = measure_costs(plain, trees, prompts, tokens=12, rounds=1)
    assert set(costs.score) == {2, 4, 8} and costs.plain > 0 and min(costs.score.values()) > 0
    with pytest.raises(ValueError, match="at least two shapes"):
        measure_costs(plain, {shapes[0]: trees[shapes[0]]}, prompts, tokens=12)


def test_noise_that_makes_a_larger_tree_cheaper_is_averaged_out() -> None:
    costs = Costs(plain=1.0, score={2: 1.5, 3: 1.75, 4: 1.25, 8: 2.0}, draft=0.0, level=0.0, node=0.0)
    assert costs.curve() == pytest.approx({1: 1.0, 2: 1.5, 3: 1.5, 4: 1.5, 8: 2.0})
    costs = Costs(plain=1.0, score={2: 3.0, 3: 2.0, 4: 1.0}, draft=0.0, level=0.0, node=0.0)
    assert set(costs.curve().values()) == {1.0, 2.0}
