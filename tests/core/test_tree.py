"""Tree and topology against definitions written out by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specdecodes import Proposal, Tree
from specdecodes.core.parents import children_of
from specdecodes.core.tree import Topology, topology_of
from specdecodes.testing import LiteralProposal

LONGEST = 24


@st.composite
def parent_rows(draw, rows=2):
    """Parents of ``rows`` trees of one size."""
    count = draw(st.integers(1, LONGEST))
    return [[-1, *(draw(st.integers(0, node - 1)) for node in range(1, count))] for _ in range(rows)]


def path_to(parents, node):
    return [*(path_to(parents, parents[node]) if node else []), node]


@settings(max_examples=60, deadline=None)
@given(parent_rows(), st.integers(1, 5))
def test_topology_equals_brute_force(rows, width):
    topology = Topology(torch.tensor(rows))
    deepest = 0
    for row, parents in enumerate(rows):
        for node in range(len(parents)):
            path = path_to(parents, node)
            deepest = max(deepest, len(path))
            assert topology.ancestors[row, node].nonzero()[:, 0].tolist() == sorted(path)
            assert int(topology.depths[row, node]) == len(path) - 1
            found = topology.paths[row, node].tolist()
            assert found[: len(path)] == path
            assert set(found[len(path) :]) <= {-1}
            taps = [*range(width), *(width + i for i in path)]
            assert topology.windows(width)[row, node].tolist() == taps[-width:]
    assert topology.paths.shape == (len(rows), len(rows[0]), deepest)
    assert topology.windows(width) is topology.windows(width)


def test_a_long_chain_has_all_its_ancestors():
    count = 300
    topology = Topology(torch.arange(-1, count - 1)[None])
    assert torch.equal(topology.ancestors[0], torch.ones(count, count, dtype=torch.bool).tril())
    assert topology.depths[0].tolist() == list(range(count))


def test_a_checked_tree_keeps_what_it_was_given():
    tokens, parents = torch.tensor([[5, 6, 7, 0]]), torch.tensor([[-1, 0, 1, 0]])
    tree = Tree.checked(tokens, parents, torch.tensor([3]), torch.tensor([[0, 1, -1, -1]]), draws="iid", vocab_size=8)
    assert tree.shape == (1, 4)
    assert tree.tokens is tokens and tree.parents is parents and tree.draws == "iid"
    assert tree.real.tolist() == [[True, True, True, False]]
    assert Tree(tokens, parents).real.all()
    shared = Topology(parents)
    assert Tree(tokens, parents, topology=shared).structure is shared


def ids(*rows):
    return torch.tensor(rows)


CHAIN = ids([-1, 0, 1])
WRONG = {
    "tokens of float": (
        dict(tokens=torch.zeros(1, 3), parents=CHAIN),
        r"Tree.tokens: .*int64.*got torch.float32 of shape \(1, 3\)",
    ),
    "tokens without rows": (
        dict(tokens=torch.tensor([1, 2, 3]), parents=CHAIN),
        r"Tree.tokens: expected .* \[B, T\], got .*\(3,\)",
    ),
    "a list": (dict(tokens=[[1, 2, 3]], parents=CHAIN), "Tree.tokens: expected .* got list"),
    "no node": (dict(tokens=torch.zeros(1, 0, dtype=torch.long), parents=CHAIN), "Tree.tokens: expected a non-empty"),
    "another shape": (dict(parents=ids([-1, 0])), r"Tree.parents: expected the shape of tokens \(1, 3\), got \(1, 2\)"),
    "no root": (dict(parents=ids([0, 0, 1])), "Tree.parents: row 0: expected -1 at the root .*got 0"),
    "two roots": (
        dict(parents=ids([-1, 0, -1])),
        "Tree.parents: row 0: node 2 is a second root; expected a parent from 0 to 1",
    ),
    "own parent": (dict(parents=ids([-1, 1, 0])), "node 1 has parent 1; expected 0 to 0 .*no cycles"),
    "forward parent": (dict(parents=ids([-1, 2, 0])), "node 1 has parent 2; expected 0 to 0"),
    "negative parent": (dict(parents=ids([-1, 0, -2])), "node 2 has parent -2; expected 0 to 1"),
    "second row": (
        dict(tokens=ids([1, 2, 3], [1, 2, 3]), parents=ids([-1, 0, 1], [-1, 0, 2])),
        "row 1: node 2 has parent 2",
    ),
    "no nodes": (dict(num_nodes=ids(0)), "Tree.num_nodes: row 0: expected 1 to 3, got 0"),
    "too many nodes": (dict(num_nodes=ids(4)), "Tree.num_nodes: row 0: expected 1 to 3, got 4"),
    "num_nodes per node": (
        dict(num_nodes=ids(3, 3)),
        r"Tree.num_nodes: expected int64 of shape \(1,\), got torch.int64 \(2,\)",
    ),
    "padding below a node": (dict(num_nodes=ids(2)), "padding node 2 must have parent 0, got 1"),
    "token too large": (dict(vocab_size=3), "Tree.tokens: expected token ids 0 to 2, got 1 to 3"),
    "token below 0": (dict(tokens=ids([1, -1, 3])), "Tree.tokens: expected token ids at least 0, got -1 to 3"),
    "slots": (dict(slots=ids([0])), r"Tree.slots: expected the shape of tokens \(1, 3\), got \(1, 1\)"),
    "logq": (dict(logq=torch.zeros(3, 8)), r"Tree.logq: expected \[1, 3, V\], got \(3, 8\)"),
    "draws": (dict(draws="sorted"), "Tree.draws: expected one of none, iid, without_replacement, got 'sorted'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_checked_says_what_is_wrong(case):
    arguments, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        Tree.checked(**{"tokens": ids([1, 2, 3]), "parents": CHAIN, **arguments})


def test_a_proposal_is_known_by_its_members():
    assert not isinstance(object(), Proposal)
    assert all(hasattr(LiteralProposal, name) for name in ("topk", "logq", "expand"))


def test_a_topology_of_the_host_and_its_copy_elsewhere():
    parents = ((-1, 0, 0, 1, 3),)
    with torch.device("meta"):  # whatever tensors are made on by default
        found = topology_of(parents, torch.device("cpu"))
    assert {each.device.type for each in (found.parents, found.ancestors, found.depths, found.paths)} == {"cpu"}
    copy = found.to(torch.device("meta"))
    assert {each.device.type for each in (copy.parents, copy.ancestors, copy.paths, copy.windows(4))} == {"meta"}
    assert copy.windows(4).shape == found.windows(4).shape and copy.windows(4) is copy.windows(4)
    same = found.to(torch.device("cpu"))
    assert all(torch.equal(*both) for both in zip(pieces(same), pieces(Topology(torch.tensor(parents))), strict=True))


def pieces(topology):
    return topology.parents, topology.ancestors, topology.depths, topology.paths, topology.windows(3)


def test_children_in_draw_order():
    """Of every node, rows of different trees; on another device they come from the same."""
    parents = [[-1, 0, 0, 1, 1, 1, 2], [-1, 0, 1, 2, 3, 4, 5]]
    topology = Topology(torch.tensor(parents))
    for row, above in enumerate(parents):
        found = [[node for node in nodes if node >= 0] for nodes in topology.children[row].tolist()]
        assert found == children_of(above)
    assert topology.children.shape == (2, 7, 3)
    assert torch.equal(topology.to(torch.device("cpu")).children, topology.children)
    assert Topology(torch.tensor([[-1]])).children.tolist() == [[[-1]]]
