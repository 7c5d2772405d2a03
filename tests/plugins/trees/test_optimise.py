"""Sequoia's dynamic programme against all trees that there are, and what goes into it."""

from __future__ import annotations

import json
import math
import random
import warnings

import pytest

from specdecodes.core.settings import SettingWarning
from specdecodes.plugins.trees.optimal import Optimal
from specdecodes.plugins.trees.optimise import Measurements, expected_tokens, optimise
from specdecodes.plugins.trees.shape import TreeShape
from specdecodes.testing import check_tree_builder, toy_context


def forests(nodes, trees, levels, most):
    """All ordered forests of so many nodes: at most ``trees`` trees, ``levels`` levels, ``most`` children of a node."""
    if nodes == 0:
        yield ()
    elif trees and levels:
        for size in range(1, nodes + 1):
            for first in forests(size - 1, most, levels - 1, most):
                for rest in forests(nodes - size, trees - 1, levels, most):
                    yield (first, *rest)


def shape_of(tree):
    levels, above = [], [tree]
    while any(above):
        levels.append(tuple(len(children) for children in above))
        above = [child for children in above for child in children]
    return TreeShape(tuple(levels))


def tau_of(tree, acceptance, depth=0, detours=0):
    """Expected tokens by walking down: child k is entered if it is accepted and none before it was."""
    block = acceptance[min(detours, len(acceptance) - 1)]
    row, none_before, total = block[min(depth, len(block) - 1)], 1.0, 1.0
    for k, child in enumerate(tree):
        total += none_before * row[k] * tau_of(child, acceptance, depth + 1, detours + (k > 0))
        none_before *= 1 - row[k]
    return total


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("dims", [(1, 1, 3), (1, 3, 2), (2, 2, 3), (3, 4, 6)])
def test_no_tree_is_better(dims, seed):
    source = random.Random(f"{dims} {seed}")
    blocks, depths, ranks = dims
    acceptance = [[[source.random() for _ in range(ranks)] for _ in range(depths)] for _ in range(blocks)]
    cost, total = {1: 1.0}, 1.0
    for nodes in (3, 5, 7):
        cost[nodes] = total = total + 0.4 * source.random()
    measured = Measurements.checked(acceptance, cost, 0.3 * source.random())
    levels = source.choice([1, 3, 6])
    best = 1.0
    for nodes in range(2, 8):
        for tree in forests(nodes - 1, ranks, levels, ranks):
            shape, tau = shape_of(tree), tau_of(tree, acceptance)
            assert math.isclose(expected_tokens(shape, measured.acceptance), tau, rel_tol=1e-12)
            best = max(best, tau / (measured.cost_of(nodes) + shape.depth * measured.draft_cost))
    found = optimise(measured, max_depth=levels)
    assert math.isclose(found.speedup, best, rel_tol=1e-12)
    assert found.nodes == len(found.shape.parents) and found.shape.depth <= levels
    assert math.isclose(expected_tokens(found.shape, measured.acceptance), found.tau, rel_tol=1e-12)
    assert math.isclose(
        found.tau / (measured.cost_of(found.nodes) + found.shape.depth * measured.draft_cost), best, rel_tol=1e-12
    )


def test_by_hand():
    # Two nodes: 1 + .6; three: the chain 1 + .6 + .36, the siblings 1 + .6 + .4 * .5 = 1.8.
    measured = Measurements.checked([0.6, 0.5], {1: 10, 3: 10})
    assert optimise(measured).shape == TreeShape.parse("1,1")
    assert optimise(measured).tau == pytest.approx(1.96) and optimise(measured).speedup == pytest.approx(1.96)
    assert optimise(measured, max_depth=1).shape == TreeShape.parse("2")
    assert optimise(measured, max_nodes=2).shape == TreeShape.parse("1")
    assert optimise(measured, max_nodes=99).nodes == 3, "no cost was measured beyond"
    # A level costs 2.5 of 10: the siblings win, 18 / 12.5 against 19.6 / 15 and 16 / 12.5.
    measured = Measurements.checked([0.6, 0.5], {1: 10, 3: 10}, 2.5)
    assert optimise(measured).shape == TreeShape.parse("2")
    assert optimise(measured).speedup == pytest.approx(1.44)
    assert optimise(measured, max_children=1).shape == TreeShape.parse("1,1")


def test_costs_between_measured_ones_are_interpolated():
    measured = Measurements.checked([0.9], {1: 1.0, 5: 3.0})
    assert [measured.cost_of(nodes) for nodes in (1, 2, 3, 5)] == [1.0, 1.5, 2.0, 3.0]


def test_plain_decoding_may_be_the_best():
    found = optimise(Measurements.checked([0.1], {1: 1.0, 2: 1.5, 8: 2.0}))
    assert (found.shape, found.nodes, found.tau, found.speedup) == (TreeShape(()), 1, 1.0, 1.0)
    builder = Optimal(acceptance=[0.1], cost={1: 1.0, 8: 2.0})
    assert (builder.max_nodes, builder.max_depth) == (1, 0)
    check_tree_builder(Optimal, acceptance=[0.1], cost={1: 1.0, 8: 2.0})


def test_depth_and_detours_matter():
    sure_after_first = [[[0.5, 0.5]], [[0.1, 0.1]]]  # one block per number of detours
    assert optimise(Measurements.checked(sure_after_first, {1: 1, 4: 1})).shape == TreeShape.parse("2,1")
    worse_deeper = [[0.8, 0.5], [0.1, 0.1]]  # one row per depth
    assert optimise(Measurements.checked(worse_deeper, {1: 1, 4: 1})).shape == TreeShape.parse("2,1")


def test_impossible_children_are_left_out():
    assert optimise(Measurements.checked([1.0, 0.7], {1: 1, 5: 1.1})).shape == TreeShape.parse("1,1,1,1")
    assert optimise(Measurements.checked([0.5, 0.0], {1: 1, 3: 1})).shape == TreeShape.parse("1,1")


@pytest.mark.parametrize(
    "acceptance",
    [[], [[]], "0.5", 0.5, [1.2], [-0.1], [float("nan")], [[0.5], [0.5, 0.3]], ["a"], ["0.5"], [[[[0.5]]]], None, {}],
)
def test_other_acceptances_are_refused(acceptance):
    with pytest.raises(ValueError, match=r"^acceptance: expected probabilities by child rank"):
        Measurements.checked(acceptance, {1: 1, 2: 1})


@pytest.mark.parametrize(
    "cost",
    [{}, {2: 1.0}, {1: 0}, {1: -1}, {0: 1, 1: 1}, {1: "a"}, {"x": 1, 1: 1}, [1, 2], None, {1: math.nan}, {1: True}],
)
def test_other_costs_are_refused(cost):
    with pytest.raises(ValueError, match=r"^cost: expected positive costs by number of tree nodes, 1 "):
        Measurements.checked([0.5], cost)


@pytest.mark.parametrize("draft_cost", [-1, "a", None, math.inf, True])
def test_other_draft_costs_are_refused(draft_cost):
    with pytest.raises(ValueError, match=r"^draft_cost: expected 0 or more per level"):
        Measurements.checked([0.5], {1: 1}, draft_cost)


@pytest.mark.parametrize("limit", ["max_nodes", "max_depth", "max_children"])
def test_limits_below_one_are_refused(limit):
    with pytest.raises(ValueError, match=f"^{limit}: expected at least 1, got 0$"):
        optimise(Measurements.checked([0.5], {1: 1}), **{limit: 0})


def test_a_cost_that_falls_is_pointed_out():
    cost = {16: 2.0, 1: 1.0, 4: 1.5, 8: 1.25, 12: 1.75}
    with pytest.warns(
        UserWarning, match=r"cost: expected a curve that does not fall .* c\(8\) = 1.25 is below c\(4\) = 1.5;"
    ):
        measured = Measurements.checked([0.5], cost)
    assert measured.cost_of(8) == 1.25, "used as it is"
    with pytest.warns(SettingWarning, match=r"c\(2\) = 2 is below c\(1\) = 3; c\(4\) = 1 is below c\(2\) = 2"):
        Measurements.checked([0.5], {1: 3, 2: 2, 4: 1})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Measurements.checked([0.5], {1: 1, 2: 1, 4: 1.5})


def test_what_is_written_is_read(tmp_path):
    measured = Measurements.checked([[0.5, 0.2], [0.25, 0.1]], {1: 6.1, 8: 7.9}, 0.3)
    measured.write(tmp_path / "pair.json", about="a test")
    assert Measurements.read(tmp_path / "pair.json") == measured
    assert json.loads((tmp_path / "pair.json").read_text())["about"] == "a test"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read .*: No such file"),
        ("{", "expected JSON, got"),
        ("[1]", "got no acceptance and no cost"),
        ('{"acceptance": [0.5]}', "got no cost"),
        ('{"acceptance": [2], "cost": {"1": 1}}', "acceptance: expected probabilities"),
        ('{"acceptance": [0.5], "cost": {"2": 1}}', "cost: expected positive costs"),
    ],
)
def test_files_that_do_not_hold_measurements_are_refused(tmp_path, content, message):
    path = tmp_path / "pair.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=f"^measured: .*{message}") as caught:
        Optimal(measured=str(path))
    assert str(path) in str(caught.value)


def test_the_builder_takes_a_file_and_what_stands_in_for_it(tmp_path):
    path = tmp_path / "pair.json"
    Measurements.checked([0.6, 0.5], {1: 10, 3: 10}, 2.5).write(path)
    assert Optimal(measured=str(path)).shape == TreeShape.parse("2")
    assert Optimal(measured=str(path), draft_cost=0.0).shape == TreeShape.parse("1,1")
    assert Optimal(measured=str(path), acceptance=[0.9]).shape == TreeShape.parse("1,1")
    # A cost in another unit brings its own cost of drafting, or none.
    assert Optimal(measured=str(path), cost={1: 1, 3: 1}).shape == TreeShape.parse("1,1")
    assert Optimal(measured=str(path), max_nodes=2).shape == TreeShape.parse("1")
    assert Optimal(measured=str(path), depth=1).optimum.speedup == pytest.approx(1.44)
    with pytest.raises(ValueError, match=r"^depth: expected at least 1, got 0$"):
        Optimal(depth=0)
    check_tree_builder(Optimal, measured=str(path))


def test_another_pair_without_measurements_is_warned():
    context = toy_context()
    with pytest.warns(SettingWarning, match=r"optimal: expected measurements of this pair.* pass measured=FILE"):
        Optimal(context)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Optimal(context, acceptance=[0.5], cost={1: 1, 2: 1.1})
        Optimal()
