"""Static trees over a literal drafter."""

from __future__ import annotations

import pytest
import torch

from specdecodes.core.sampling import SamplingParams
from specdecodes.core.state import DecodeState
from specdecodes.core.tree import Tree
from specdecodes.plugins.trees.static import Chain, Root, Static
from specdecodes.testing import EnumeratingRng, LiteralProposal, LiteralTarget
from specdecodes.testing.toys import numbers

from .conftest import Counting

VOCAB = 20


def noise(prefix):
    return torch.randn(VOCAB, generator=numbers(prefix))


def state_of(draws="none", rows=1, **params):
    target = LiteralTarget(noise, VOCAB)
    prompts = torch.arange(1, rows + 1)[:, None]
    settings = SamplingParams(temperature=0.0 if draws == "none" else 1.0, seed=0, **params)
    state = DecodeState(target, prompts, settings, draws=draws)
    state.first(target.prefill(prompts))
    return state


def test_stree_asks_once_a_level_and_expands_parents_only():
    state = state_of()
    proposal = Counting(noise, state)
    tree = Static(tree="3,2.1,2.1,3").build_tree(state, proposal)
    assert tree.parents.tolist() == [[-1, 0, 0, 0, 1, 1, 2, 4, 4, 5, 7, 7, 7]]
    assert proposal.asked == [(1, 3), (2, 2), (2, 2), (1, 3)]
    assert proposal.expanded == [2, 2, 1]
    assert tree.slots.tolist() == [[0, 1, 2, -1, 3, 4, -1, 5, -1, -1, -1, -1, -1]]
    assert tree.num_nodes is None and tree.logq is None and tree.draws == "none"


@pytest.mark.parametrize("shape", ["3,2.1,2.1,3", "2,1.2,1.0.2", "2,0.2,1.1"])
@pytest.mark.parametrize("rows", [1, 3])
def test_children_are_the_best_of_their_own_path(rows, shape):
    state = state_of(rows=rows)
    tree = Static(tree=shape).build_tree(state, LiteralProposal(noise, state))
    for row in range(rows):
        for node in range(tree.shape[1]):
            path = [int(tree.tokens[row, i]) for i in tree.structure.paths[row, node] if i > 0]
            children = (tree.parents[row] == node).nonzero()[:, 0]
            best = noise((*state.history[row], *path)).argsort(descending=True)[: len(children)]
            assert tree.tokens[row, children].tolist() == best.tolist()


@pytest.mark.parametrize("draws", ["iid", "without_replacement"])
def test_drawn_children_stay_in_draw_order(draws):
    state = state_of(draws)
    # Depth first, the last outcome of every choice: far from the best first.
    state.rng = EnumeratingRng([VOCAB - 1, 0, 3])
    tree = Static(tree="3").build_tree(state, LiteralProposal(noise, state))
    expected = [VOCAB - 1, 0, 3] if draws == "iid" else [VOCAB - 1, 0, 4]
    assert tree.tokens[0, 1:].tolist() == expected
    assert torch.allclose(tree.logq[0, 0], noise(tuple(state.history[0])).log_softmax(-1))


def test_missing_candidates_become_padding():
    state = state_of()
    tree = Static(tree="3,2.1,2.1,3").build_tree(state, LiteralProposal(noise, state, candidates=1))
    assert tree.num_nodes.tolist() == [5], "one candidate everywhere leaves the leftmost chain"
    assert tree.parents.tolist() == [[-1, 0, 1, 2, 3, *[0] * 8]]
    assert tree.slots.tolist() == [[0, 1, 3, 5, *[-1] * 9]]
    assert tree.tokens[0, 5:].tolist() == [0] * 8
    Tree.checked(tree.tokens, tree.parents, tree.num_nodes, tree.slots, vocab_size=VOCAB)


def test_rows_lose_different_nodes():
    state = state_of("without_replacement", rows=2)

    def one_or_two(prefix):  # row 0 can draw one token after the root, row 1 two
        return noise(prefix).masked_fill(torch.arange(VOCAB) >= len(state.history) * 0 + prefix[0], -torch.inf)

    tree = Static(tree="2,1.1").build_tree(state, LiteralProposal(one_or_two, state))
    assert tree.num_nodes.tolist() == [3, 5]
    assert tree.parents.tolist() == [[-1, 0, 1, 0, 0], [-1, 0, 0, 1, 2]]
    for row, count in ((0, 1), (1, 2)):
        assert int(torch.isfinite(tree.logq[row, 0]).sum()) == count
    Tree.checked(tree.tokens, tree.parents, tree.num_nodes, tree.slots, tree.logq, tree.draws, vocab_size=VOCAB)


def test_a_drafter_without_candidates_leaves_the_root():
    state = state_of()
    tree = Static(tree="2,1.1").build_tree(state, LiteralProposal(noise, state, candidates=0))
    assert tree.num_nodes.tolist() == [1] and tree.shape == (1, 5)


def test_chain_and_root():
    state = state_of()
    chain = Chain(depth=3)
    tree = chain.build_tree(state, LiteralProposal(noise, state))
    assert tree.parents.tolist() == [[-1, 0, 1, 2]] and tree.slots.tolist() == [[0, 1, 2, -1]]
    assert (chain.max_nodes, chain.max_depth, chain.chain) == (4, 3, True)
    tree = Root().build_tree(state, LiteralProposal(noise, state))
    assert tree.parents.tolist() == [[-1]] and torch.equal(tree.tokens, state.root)
    assert tree.slots.tolist() == [[0]], "a drafter that runs the root commits it"


def test_a_shape_is_built_once():
    builder, state = Static(tree="2,1.1"), state_of()
    trees = [builder.build_tree(state, LiteralProposal(noise, state)) for _ in range(2)]
    assert trees[0].structure is trees[1].structure
    with pytest.raises(ValueError, match="tree: expected levels like"):
        Static(tree="x")
    with pytest.raises(ValueError, match="depth: expected at least 1"):
        Chain(depth=0)
