"""The suffix drafter: its ranking against a naive search, its corpus, and what it remembers."""

from __future__ import annotations

import json
import random
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from specdecodes import load
from specdecodes.plugins.drafters import suffix
from specdecodes.plugins.drafters.suffix import Corpus, Suffix
from specdecodes.plugins.drafters.suffix_automaton import SEPARATOR
from specdecodes.testing import check_drafter, toy_model
from specdecodes.testing.toys import toy_prompt

from .histories import check_best, context, found_at, grow, interpolated, levels, random_paths, slots_of, state_of

VOCAB = 6


class Words:
    """A tokenizer: one token per digit."""

    def __call__(self, texts, add_special_tokens=True):
        assert not add_special_tokens
        return {"input_ids": [[int(character) for character in text if character.isdigit()] for text in texts]}


@pytest.mark.parametrize("with_corpus", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_answers_follow_the_formula_along_every_path(seed, with_corpus, tmp_path):
    rng = random.Random(seed)
    documents = [[rng.randrange(VOCAB - 1) for _ in range(60)] for _ in range(2)] if with_corpus else []
    file = tmp_path / "corpus.jsonl"
    file.write_text("".join(json.dumps({"text": "".join(map(str, d))}) + "\n" for d in documents))
    drafter = Suffix(context(VOCAB, Words()), corpus=str(file) if with_corpus else "", prior=2.0)
    for length in (1, 2, 5, 40):
        history = [rng.randrange(VOCAB) for _ in range(length)]
        proposal = drafter.propose(state_of(history))
        paths = random_paths(proposal, rng, VOCAB)
        for k, (slot, path) in product((1, 2, VOCAB + 2), enumerate(paths)):
            line = [*history, *path]
            found = [*levels([history], line), *levels(documents, line)]
            found.sort(key=lambda level: -level[0])  # of one length the request comes first
            p = interpolated([counts for _, counts in found], 2.0, k)
            check_best(proposal.topk(slots_of(slot), k), p)


def test_frequency_decides_after_the_longest_match():
    proposal = Suffix(context(VOCAB, Words())).propose(state_of([4, 1, 2, 0, 4, 1, 3, 0, 4, 1, 3, 0, 5, 5, 5, 5, 4, 1]))
    assert proposal.topk(slots_of(0), 3)[0].tolist() == [[[3, 2, -1]]]


def test_rows_and_generations_do_not_leak_into_each_other():
    drafter = Suffix(context(VOCAB, Words()))
    first, second = state_of([1, 2, 3, 1], [1, 3, 1]), state_of([1, 4, 5, 1])
    for _ in range(2):
        assert drafter.propose(first).topk(torch.zeros(2, 1, dtype=torch.long), 2)[0].tolist() == [[[2, -1]], [[3, -1]]]
        assert drafter.propose(second).topk(slots_of(0), 2)[0].tolist() == [[[4, -1]]]
    grow(second, 0, [5, 1])
    assert drafter.propose(second).topk(slots_of(0), 2)[0].tolist() == [[[5, 4]]]


def remembered(drafter, *answers):
    for answer in answers:
        generation: Any = SimpleNamespace(tokens=[list(answer)])
        drafter.generation_finished(state_of([0]), generation)


def candidates(drafter, history):
    return found_at(drafter.propose(state_of(history)), 0)


def test_answers_are_remembered_where_asked_to():
    forgetful, keeper = Suffix(context(VOCAB, Words())), Suffix(context(VOCAB, Words()), corpus="answers")
    under_way = state_of([3, 1])
    keeper.propose(under_way)
    for drafter in (forgetful, keeper):
        remembered(drafter, [1, 2, 3], [1, 2, 4])
    assert candidates(forgetful, [1, 2]) == []
    assert candidates(keeper, [1, 2]) == [3, 4]
    assert candidates(keeper, [4]) == [], "an answer ends where it ends"
    assert keeper.propose(under_way).topk(slots_of(0), 1)[0].tolist() == [[[-1]]], "its match is older than the answers"
    grow(under_way, 0, [2])
    assert keeper.propose(under_way).topk(slots_of(0), 2)[0].tolist() == [[[3, 4]]]


def test_old_answers_are_forgotten(monkeypatch):
    monkeypatch.setattr(suffix, "MAX_ANSWERS", 20)
    drafter = Suffix(context(VOCAB, Words()), corpus="answers")
    for token in (2, 3, 4, 5):
        remembered(drafter, [1, token, 0, 0, 0])
        assert drafter.corpus is not None and drafter.corpus.automaton.size <= 20
        assert token in candidates(drafter, [1])
    assert candidates(drafter, [1]) == [4, 5]
    remembered(drafter, [1, 3] * 30)
    assert candidates(drafter, [1]) == [3], "the newest answer is kept, however long"


def test_a_generation_under_way_survives_that_its_corpus_is_built_anew(monkeypatch):
    monkeypatch.setattr(suffix, "MAX_ANSWERS", 40)
    drafter = Suffix(context(VOCAB, Words()), corpus="answers")
    remembered(drafter, *[[1, 2, 3, 4]] * 7)
    under_way = state_of([1, 2, 3])
    assert found_at(drafter.propose(under_way), 0) == [4]
    for number in range(30):
        remembered(drafter, [2, 5, number % 5, 0])
        grow(under_way, 0, [2])
        proposal = drafter.propose(under_way)
        assert found_at(proposal, 0)[0] in (2, 3, 5)
        proposal.topk(proposal.expand(slots_of(0), slots_of(5)), 3)
    assert 3 not in found_at(drafter.propose(state_of([0, 2])), 0), "forgotten"


def test_a_context_in_the_corpus_counts_its_most_frequent_continuations():
    corpus = Corpus()
    for token in range(2, 100):
        corpus.add([1, token])
    corpus.add([1, 99, 1, 99])
    state, _ = corpus.automaton.step(0, 0, 1)
    found = corpus.continuations(state)
    assert len(found) == suffix.MAX_FANOUT and next(iter(found.items())) == (99, 3)
    assert SEPARATOR not in corpus.continuations(corpus.automaton.step(0, 0, 99)[0])


def test_an_answer_remembered_speeds_up_its_repetition():
    target, prompt = toy_model("bamba"), toy_prompt(9)
    decoder = load(target, mode="suffix", corpus="answers")
    first, second = (decoder.generate(prompt, max_new_tokens=40) for _ in range(2))
    assert second.tokens == first.tokens == load(target, mode="naive").generate(prompt, max_new_tokens=40).tokens
    assert second.tau > max(4.0, first.tau)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prior": 0.0}, "prior: expected a number above 0, got 0"),
        ({"corpus": "missing.txt"}, "or the path of a text or JSONL file .* got 'missing.txt'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Suffix(context(VOCAB, Words()), **settings)


def test_bad_corpora_are_refused(tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n\n")
    with pytest.raises(ValueError, match="expected at least one text, got none"):
        Suffix(context(VOCAB, Words()), corpus=str(empty))
    with pytest.raises(ValueError, match="tokenizer: expected one beside the target, got none"):
        Suffix(context(VOCAB), corpus=str(empty))


def test_the_contract():
    check_drafter(Suffix)


def test_a_text_file_is_drafted_from(tmp_path):
    file = tmp_path / "corpus.txt"
    file.write_text("12345 12354")
    assert candidates(Suffix(context(VOCAB, Words()), corpus=str(file)), [1, 2, 3]) == [4, 5]
