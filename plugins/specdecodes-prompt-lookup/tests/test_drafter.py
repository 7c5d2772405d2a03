"""The lookup against a search by hand, the contract, and tokens against plain decoding."""

from __future__ import annotations

import random
import re

import pytest
import torch
from specdecodes_prompt_lookup import MODE
from specdecodes_prompt_lookup.drafter import Continuations, FirstOccurrences, PromptLookup

import specdecodes
from specdecodes.testing import check_drafter, toy_model


def test_keeps_the_contract():
    check_drafter(PromptLookup)


def by_hand(history: list[int], sizes: range) -> int:
    for size in sizes:
        for end in range(size, len(history)):
            if history[end - size : end] == history[-size:]:
                return end
    return len(history)


@pytest.mark.parametrize("sizes", [range(3, 0, -1), range(2, 1, -1), range(1, 0, -1)], ids=str)
def test_growing_index_finds_what_a_search_finds(sizes):
    source = random.Random(0)
    for _ in range(50):
        history = [source.randrange(4) for _ in range(source.randrange(1, 8))]
        index = FirstOccurrences(sizes)
        for _ in range(12):
            assert index.find(history) == by_hand(history, sizes), history
            history += [source.randrange(4) for _ in range(source.randrange(1, 4))]


def test_longest_run_goes_first_and_the_first_place_counts():
    #          the 2-gram (7, 8) first here -> 1     the 1-gram 8 even earlier -> 5
    history = [8, 5, 7, 8, 1, 2, 7, 8, 3, 7, 8]
    assert history[FirstOccurrences(range(2, 0, -1)).find(history)] == 1
    assert history[FirstOccurrences(range(1, 0, -1)).find(history)] == 5
    assert FirstOccurrences(range(3, 0, -1)).find([1, 2, 3]) == 3


def test_chain_ends_where_another_token_is_drafted_or_nothing_is_left():
    proposal = Continuations([[4, 5]], torch.device("cpu"))
    root = torch.tensor([[0]])
    tokens, logq = proposal.topk(root, 2)
    assert tokens.tolist() == [[[4, -1]]] and logq.tolist() == [[[0.0, -torch.inf]]]
    one = proposal.expand(root, torch.tensor([[4]]))
    two = proposal.expand(one, torch.tensor([[5]]))
    assert proposal.topk(one, 1)[0].item() == 5 and proposal.topk(two, 1)[0].item() == -1
    assert proposal.topk(proposal.expand(root, torch.tensor([[9]])), 1)[0].item() == -1
    assert proposal.topk(proposal.expand(two, torch.tensor([[0]])), 1)[0].item() == -1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_ngram": 0}, "min_ngram: expected 1 to max_ngram (0), got 1"),
        ({"min_ngram": 4}, "min_ngram: expected 1 to max_ngram (3), got 4"),
        ({"lookahead": 0}, "lookahead: expected at least 1 token, got 0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        PromptLookup(**settings)


def test_is_discovered_with_its_distribution():
    mode = specdecodes.registry().get("mode", "prompt-lookup")
    assert mode.owner == "specdecodes-prompt-lookup" and mode.factory is MODE


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tokens_are_those_of_plain_decoding(temperature):
    model = toy_model("bamba", dtype=torch.float64)
    prompt = torch.tensor([[5, 6, 7, 8, 5, 6, 7, 8, 5, 6]])
    settings = {"max_new_tokens": 96, "temperature": temperature, "seed": 3}
    plain = specdecodes.load(model, mode="naive").generate(prompt, **settings)
    found = specdecodes.load(model, mode="prompt-lookup").generate(prompt, **settings)
    # Token-match draws once per emitted token, in the same order as plain decoding.
    assert found.tokens == plain.tokens
    assert len(found.tokens[0]) == 96
    if temperature == 0:
        assert len(found.accept_lengths) < len(plain.accept_lengths), "nothing was ever accepted"
