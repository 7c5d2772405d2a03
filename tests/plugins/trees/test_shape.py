"""Shapes of static trees, as text and as files."""

from __future__ import annotations

import json
import pickle

import pytest

from specdecodes.plugins.trees.shape import TreeShape
from specdecodes.plugins.trees.static import drop

STREE = [-1, 0, 0, 0, 1, 1, 2, 4, 4, 5, 7, 7, 7]


def test_stree_has_its_thirteen_nodes():
    shape = TreeShape.parse("3,2.1,2.1,3")
    assert list(shape.parents) == STREE
    assert shape.depth == 4 and not shape.is_chain


@pytest.mark.parametrize(
    ("spec", "parents"),
    [
        ("1", [-1, 0]),
        ("4", [-1, 0, 0, 0, 0]),
        ("1,1,1", [-1, 0, 1, 2]),
        ("2,0.2,1", [-1, 0, 0, 2, 2, 3]),
        ("2,1.0,2", [-1, 0, 0, 1, 3, 3]),
        ("2,1,1", [-1, 0, 0, 1, 3]),
        ("10,1", [-1, *[0] * 10, 1]),
    ],
)
def test_levels_by_commas_nodes_by_dots(spec, parents):
    assert list(TreeShape.parse(spec).parents) == parents


def test_chains():
    assert list(TreeShape.chain(3).parents) == [-1, 0, 1, 2] and TreeShape.chain(3).is_chain
    assert TreeShape.parse("1,1").is_chain
    with pytest.raises(ValueError, match="depth: expected at least 1 drafted token, got 0"):
        TreeShape.chain(0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "expected levels like '3,2.1,2.1,3'"),
        ("3,", "expected levels like"),
        ("3;2", "expected levels like"),
        ("a", "expected levels like .*got 'a'"),
        ("-1", "expected levels like"),
        ("3,2..1", "expected levels like"),
        ("0", "level 1: expected counts of 0 or more and at least one child"),
        ("2,0.0", "level 2: expected counts of 0 or more and at least one child"),
        ("1,1.1", "level 2 gives children to 2 nodes, but the level above has only 1"),
        ("1.2", "level 1 gives children to 2 nodes, but the level above has only 1"),
    ],
)
def test_malformed_specs_say_what_is_expected(spec, message):
    with pytest.raises(ValueError, match=message):
        TreeShape.parse(spec)


@pytest.fixture
def growmap(tmp_path):
    def write(content):
        path = tmp_path / "tree.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return str(path)

    return write


def test_a_growmap_is_a_shape(growmap):
    successors = [[1, 2, 3], [4, 5], [6], [], [7, 8], [9], [], [10, 11, 12], [], [], [], [], []]
    assert list(TreeShape.parse(growmap({"successors": successors})).parents) == STREE
    # Nodes may be numbered in any order that puts parents first; here the second child has the children.
    assert list(TreeShape.parse(growmap({"successors": [[1, 2], [], [3, 4], [], []]})).parents) == [-1, 0, 0, 2, 2]
    assert list(TreeShape.parse(growmap({"successors": [[1, 3], [2], [], []]})).parents) == [-1, 0, 0, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"successors": [[1], [2], [1]]}, r"node 2 has child 1; children must come after their parent \(no cycles\)"),
        ({"successors": [[1], [1]]}, r"node 1 has child 1; .*\(no cycles\)"),
        ({"successors": [[1, 2], [2], []]}, "node 2 has two parents, 0 and 1"),
        ({"successors": [[1], [], []]}, r"node 2 is a second root; expected one root \(node 0\)"),
        ({"successors": [[1, 5], []]}, "node 0 has child 5; expected 1 to 1"),
        ({"successors": [[1, -1], []]}, "node 0 has child -1; expected 1 to 1"),
        ({"successors": [["1"], []]}, "node 0 has child '1'"),
        ({"successors": [[]]}, "expected at least one child of the root"),
        ({"successors": []}, "expected a list of children per node"),
        ({"successors": 3}, "expected a list of children per node"),
        ({"children": []}, "expected JSON"),
        ("{", "expected JSON"),
        ("[]", "expected JSON"),
    ],
)
def test_a_broken_growmap_says_where(growmap, content, message):
    path = growmap(content)
    with pytest.raises(ValueError, match=message) as caught:
        TreeShape.parse(path)
    assert path in str(caught.value)


def test_a_large_pickle_in_place_of_json_is_one_short_line(tmp_path):
    path = tmp_path / "growmap.json"
    path.write_bytes(pickle.dumps({"successors": [[1], []], "more": list(range(10_000))}))
    with pytest.raises(ValueError, match=r'expected JSON \{"successors"') as caught:
        TreeShape.parse(str(path))
    assert len(str(caught.value)) < 300


def test_a_missing_growmap_is_named():
    with pytest.raises(ValueError, match=r"cannot read the growmap nowhere.json: No such file"):
        TreeShape.parse("nowhere.json")


@pytest.mark.parametrize(
    ("missing", "order", "parents", "left"),
    [
        ([], [0, 1, 2, 3, 4], [-1, 0, 0, 1, 2], 5),
        ([1], [0, 2, 4, 1, 3], [-1, 0, 1, 0, 0], 3),
        ([4], [0, 1, 2, 3, 4], [-1, 0, 0, 1, 0], 4),
        ([1, 2], [0, 1, 2, 3, 4], [-1, 0, 0, 0, 0], 1),
        ([3], [0, 1, 2, 4, 3], [-1, 0, 0, 2, 0], 4),
    ],
)
def test_what_is_missing_and_what_hangs_below_goes_to_the_end(missing, order, parents, left):
    found = drop((-1, 0, 0, 1, 2), [node in missing for node in range(5)])
    assert found == (tuple(order), tuple(parents), left)
