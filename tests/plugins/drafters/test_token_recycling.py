"""Token recycling: the matrix is what the target said, and it is kept only where asked to."""

from __future__ import annotations

import math

import pytest
import torch

from specdecodes import hookimpl, load
from specdecodes.plugins.drafters.token_recycling import TokenRecycling
from specdecodes.testing import check_drafter, toy_model
from specdecodes.testing.toys import FAMILIES, toy_prompt

from .histories import context, found_at, score, slots_of, state_of

VOCAB = 8


def ranking(*rows):
    """Logits [T, V] under which row i ranks its tokens in this order, the rest behind."""
    logits = torch.full((len(rows), VOCAB), -9.0)
    for row, tokens in enumerate(rows):
        logits[row, list(tokens)] = -torch.arange(len(tokens)).float()
    return logits


def test_the_rows_are_the_targets_best_after_each_token():
    drafter, state = TokenRecycling(context(VOCAB), width=3), state_of([1, 2])
    assert found_at(drafter.propose(state), 0) == []
    logits = ranking((3, 4, 5, 6), (4, 3, 1), (7, 6, 5), (6, 6, 6))
    score(drafter, state, [2, 3, 4, 0], [-1, 0, 1, 0], logits, [0, 1, 2], 7, num_nodes=3)
    proposal = drafter.propose(state)
    assert found_at(proposal, 0) == [], "7 was never scored"
    slots = proposal.expand(slots_of(0, 0, 0, 0), slots_of(2, 3, 4, 0))[0].tolist()
    assert [found_at(proposal, slot) for slot in slots] == [[3, 4, 5], [4, 3, 1], [7, 6, 5], []], "0 was padding"
    tokens, logq = proposal.topk(slots_of(slots[1]), 2)
    assert tokens.tolist() == [[[4, 3]]]
    assert logq[0, 0].tolist() == pytest.approx([math.log(0.5), math.log(0.25)])


def test_the_last_score_counts():
    drafter, state = TokenRecycling(context(VOCAB), width=2), state_of([1, 2])
    drafter.propose(state)
    score(drafter, state, [2, 3, 3], [-1, 0, 0], ranking((3, 4), (4, 5), (5, 6)), [0], 2)
    score(drafter, state, [2, 5], [-1, 0], ranking((6, 7), (1, 0)), [0], 3)
    proposal = drafter.propose(state)
    assert found_at(proposal, 0) == [5, 6], "of a token's nodes in one tree the last"
    assert found_at(proposal, int(proposal.expand(slots_of(0), slots_of(2)))) == [6, 7]


def test_what_the_processors_cut_off_is_no_candidate():
    drafter, state = TokenRecycling(context(VOCAB), width=4), state_of([1, 2], temperature=1.0, top_k=2)
    drafter.propose(state)
    score(drafter, state, [2], [-1], ranking((3, 4, 5, 6)), [0], 2)
    assert found_at(drafter.propose(state), 0) == [3, 4]


@pytest.mark.parametrize("warm", [False, True])
def test_only_a_warm_matrix_outlives_its_request(warm):
    drafter, first, second = TokenRecycling(context(VOCAB), warm=warm), state_of([1, 2]), state_of([3, 2])
    for state in (first, second):
        drafter.generation_started(state)
    score(drafter, first, [2], [-1], ranking((5, 6)), [0], 2)
    third = state_of([2])
    for state in (second, third):
        assert found_at(drafter.propose(state), 0)[:2] == ([5, 6] if warm else [])
    assert found_at(TokenRecycling(context(VOCAB), warm=warm).propose(third), 0) == []


def test_a_width_beyond_the_vocabulary_and_below_one():
    drafter, state = TokenRecycling(context(VOCAB), width=99), state_of([2])
    drafter.propose(state)
    score(drafter, state, [2], [-1], ranking(range(VOCAB)), [0], 2)
    assert found_at(drafter.propose(state), 0) == list(range(VOCAB))
    with pytest.raises(ValueError, match="width: expected at least 1 candidate per token, got 0"):
        TokenRecycling(context(VOCAB), width=0)


class Watching:
    """Keeps what the target ranked best at every node, in order."""

    def __init__(self):
        self.rows = {}

    @hookimpl
    def step_finished(self, state, tree, verdict):
        best = state.scores.topk(8, dim=-1)[1]
        for node in range(tree.count()):
            self.rows[int(tree.tokens[0, node])] = best[0, node].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_matrix_of_a_decode_is_what_the_target_said(family):
    watching, target = Watching(), toy_model(family)
    decoder = load(target, mode="recycling", observers=[watching])
    drafter = next(p for p in decoder.greedy.hooks.manager.get_plugins() if isinstance(p, TokenRecycling))
    out = decoder.generate(toy_prompt(9), max_new_tokens=40)
    assert out.tau > 1
    assert drafter._matrix == watching.rows and len(watching.rows) > 8
    again = decoder.generate(toy_prompt(9), max_new_tokens=40)
    assert again.tokens == out.tokens and again.tau >= out.tau, "warm by default in this mode"


def test_the_contract():
    check_drafter(TokenRecycling)
