"""The Jacobi drafter: guesses are the shifted predictions of the rejected branch, the pool what was predicted last."""

from __future__ import annotations

import torch

from specdecodes import load
from specdecodes.plugins.drafters.jacobi import Jacobi
from specdecodes.testing import check_drafter, toy_model
from specdecodes.testing.toys import toy_prompt

from .histories import context, found_at, score, slots_of, state_of

VOCAB = 32


def predicting(*tokens):
    return torch.nn.functional.one_hot(torch.tensor(tokens), VOCAB).float()


def walk(proposal, *tokens):
    """The slot behind ``tokens``."""
    slot = 0
    for token in tokens:
        slot = int(proposal.expand(slots_of(slot), slots_of(token)))
    return slot


def test_the_predictions_behind_the_accepted_path_are_the_next_guesses():
    """Jacobi on a chain: 11 is accepted, 12 and 13 are not; what stood behind them moves up."""
    drafter, state = Jacobi(context(VOCAB)), state_of([9, 10])
    drafter.propose(state)
    score(drafter, state, [10, 11, 12, 13], [-1, 0, 1, 2], predicting(11, 20, 21, 22), [0, 1], 20)
    proposal = drafter.propose(state)
    assert found_at(proposal, 0) == [21], "20 was never scored, so that there is no match"
    assert found_at(proposal, walk(proposal, 21)) == [22]
    assert found_at(proposal, walk(proposal, 30)) == [22], "by position, whatever the path"
    assert found_at(proposal, walk(proposal, 21, 22)) == [22], "no guess left: the token itself"


def test_the_first_rejected_branch_is_followed():
    drafter, state = Jacobi(context(VOCAB)), state_of([9, 10])
    drafter.propose(state)
    #        0
    #    1       2
    #   3 4      5
    tokens, parents = [10, 11, 12, 13, 14, 15], [-1, 0, 0, 1, 1, 2]
    score(drafter, state, tokens, parents, predicting(12, 21, 22, 23, 24, 25), [0, 2], 22)
    assert found_at(drafter.propose(state), 0) == [25], "the child of the accepted node"
    state = state_of([9, 10])
    drafter.propose(state)
    score(drafter, state, tokens, parents, predicting(19, 21, 22, 23, 24, 25), [0], 19)
    proposal = drafter.propose(state)
    assert found_at(proposal, 0) == [21]
    assert found_at(proposal, walk(proposal, 30)) == [23]


def test_matches_come_before_guesses_and_longer_ones_first():
    drafter, state = Jacobi(context(VOCAB)), state_of([1, 2, 3, 5, 2, 4, 5, 9])
    drafter.propose(state)
    score(drafter, state, [9, 2], [-1, 0], predicting(1, 30), [0], 1)
    proposal = drafter.propose(state)
    assert found_at(proposal, 0) == [2, 30], "1 was followed by 2 in the prompt; the guess"
    assert found_at(proposal, walk(proposal, 2)) == [3, 30], "1 2 was followed by 3; 30 was predicted after 2 last"
    assert found_at(proposal, walk(proposal, 4)) == [5]
    assert proposal.topk(slots_of(0), 3)[1].exp().tolist() == [[[0.5, 0.25, 0.0]]]


def test_padding_predicts_nothing():
    drafter, state = Jacobi(context(VOCAB)), state_of([9, 10])
    drafter.propose(state)
    score(drafter, state, [10, 11, 0], [-1, 0, 0], predicting(12, 21, 22), [0], 12, num_nodes=2)
    proposal = drafter.propose(state)
    assert found_at(proposal, 0) == [21]
    assert found_at(proposal, walk(proposal, 0)) == [0]


def test_generations_do_not_leak_into_each_other():
    drafter, first, second = Jacobi(context(VOCAB)), state_of([1, 2]), state_of([1, 2])
    for state in (first, second):
        drafter.generation_started(state)
    score(drafter, first, [2, 3], [-1, 0], predicting(5, 6), [0], 2)
    assert found_at(drafter.propose(first), 0) == [2, 6]
    assert found_at(drafter.propose(second), 0) == [2]


def test_a_decode_is_that_of_the_target_and_faster():
    target = toy_model("bamba", dtype=torch.float64)
    prompt = toy_prompt(9)
    out = load(target, mode="stree", propose="jacobi").generate(prompt, max_new_tokens=60)
    assert out.tokens == load(target, mode="naive").generate(prompt, max_new_tokens=60).tokens
    assert out.tau > 1


def test_the_contract():
    check_drafter(Jacobi)
