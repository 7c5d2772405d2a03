"""The datastore and the drafter over it, against a naive search of the documents."""

from __future__ import annotations

import random
import sys
from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from specdecodes import load
from specdecodes.models.loading import tokenizer_fingerprint
from specdecodes.plugins.drafters import datastore, rest
from specdecodes.plugins.drafters.datastore import Datastore, suffix_array
from specdecodes.plugins.drafters.rest import Rest
from specdecodes.testing import check_drafter, toy_context, toy_model
from specdecodes.testing.toys import toy_prompt

from .histories import check_best, context, found_at, interpolated, levels, places, random_paths, slots_of, state_of

VOCAB = 5

documents = st.lists(st.lists(st.integers(0, 2), max_size=12), min_size=1, max_size=4).filter(any)


class Vocabulary:
    """A tokenizer of which nothing but its vocabulary matters."""

    def __init__(self, *tokens):
        self.tokens = tokens

    def get_vocab(self):
        return {token: index for index, token in enumerate(self.tokens)}


@given(texts=documents, words=st.lists(st.lists(st.integers(0, 3), max_size=5), max_size=5))
@settings(max_examples=200, deadline=None)
def test_ranges_and_continuations_equal_a_naive_search(texts, words):
    store = Datastore.build(texts, VOCAB)
    assert store.size == sum(map(len, texts)) + len(texts) + 1
    for word in filter(None, words):
        ranges = [(0, store.size)]
        for token in word:
            ranges = store.step(ranges, token)
        found = places(texts, word)
        assert [high - low for low, high in ranges] == ([len(found)] if found else [])
        for low, high in ranges:
            expected = Counter(texts[text][end] if end < len(texts[text]) else VOCAB for text, end in found)
            assert Counter(store.following(low, high, 1000)) == expected
            assert len(store.following(low, high, 2)) <= 2


@pytest.mark.parametrize("seed", range(6))
def test_answers_follow_the_formula_along_every_path(seed, monkeypatch):
    monkeypatch.setattr(rest, "MAX_SUFFIXES", 99)
    rng = random.Random(seed)
    unit = [rng.randrange(VOCAB) for _ in range(6)]
    texts = [[rng.randrange(VOCAB - 1) for _ in range(40)], [1], unit * 3, [0, 0, *unit]]
    drafter = Rest(context(VOCAB), datastore=Datastore.build(texts, VOCAB), prior=2.0)
    for length in (1, 2, 5, 30):
        history = [rng.choice([*unit, VOCAB - 1]) for _ in range(length)] + unit[: length % 7]
        proposal = drafter.propose(state_of(history))
        paths = random_paths(proposal, rng, VOCAB)
        for k, (slot, path) in product((1, 2, VOCAB + 2), enumerate(paths)):
            p = interpolated([counts for _, counts in levels(texts, [*history, *path])], 2.0, k)
            check_best(proposal.topk(slots_of(slot), k), p)


def test_a_loop_in_the_corpus_has_no_more_suffixes_than_are_kept():
    texts = [[1] * 300, [2] * 20 + [3], *[[0, 4, 2]] * 80]
    drafter, state = Rest(context(VOCAB), datastore=Datastore.build(texts, VOCAB)), state_of([1] * 200)
    drafter.propose(state)
    sizes = [high - low for low, high in drafter._indices[state][0].root]
    assert sizes == [101, 102, 299, 300], "the longest suffixes and the shortest"
    proposal = drafter.propose(state_of([1] * 50 + [2] * 20))
    assert found_at(proposal, 0, 1) == [3]
    assert found_at(proposal, int(proposal.expand(slots_of(0), slots_of(4)))) == [2], "what goes on shorter is found"


@given(values=st.lists(st.integers(0, 300), min_size=1, max_size=60))
@settings(max_examples=200, deadline=None)
def test_prefix_doubling_sorts_suffixes(values):
    expected = sorted(range(len(values)), key=lambda place: values[place:])
    assert datastore._prefix_doubling(np.array(values, dtype=np.uint16)).tolist() == expected


@pytest.mark.parametrize("vocab_size", [3, 4096, 100_000])
def test_the_library_sorts_the_same(vocab_size):
    pytest.importorskip("pydivsufsort")
    values = (
        np.random.default_rng(0).integers(0, vocab_size, 3000).astype(np.uint16 if vocab_size < 2**16 else np.uint32)
    )
    for part in (values[:1], values[:2], values, np.tile(values[:50], 20)):
        assert suffix_array(part).tolist() == datastore._prefix_doubling(part).tolist()


def test_without_the_library_numpy_sorts(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydivsufsort", None)  # an import of it now fails
    assert suffix_array(np.array([1, 0, 1], dtype=np.uint16)).tolist() == [1, 2, 0]


def test_a_file_gives_the_same_answers(tmp_path):
    store = Datastore.build([[1, 2, 3, 1, 2, 4, 1, 2, 4]], VOCAB, "name")
    path = tmp_path / "store.safetensors"
    store.save(path)
    store.save(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    loaded = Datastore.load(path)
    assert (loaded.vocab_size, loaded.tokenizer) == (VOCAB, "name")
    for name in ("ranks", "starts"):
        assert np.array_equal(getattr(loaded, name), getattr(store, name))
    for source in (path, str(path), store):
        assert found_at(Rest(context(VOCAB), datastore=source).propose(state_of([1, 2])), 0) == [4, 3]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "store.safetensors"
    Datastore.build([[1]], VOCAB).save(path)
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        Datastore.build([[1, 2, 3]], VOCAB).save(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("texts", [[], [[]], [[], []]])
def test_an_empty_corpus_is_refused(texts):
    with pytest.raises(ValueError, match=r"corpus: expected 1 to .* tokens, got 0; give it some text"):
        Datastore.build(texts, VOCAB)


@pytest.mark.parametrize("token", [-1, VOCAB, VOCAB + 1])
def test_ids_outside_the_vocabulary_are_refused(token):
    with pytest.raises(ValueError, match="corpus: expected token ids 0 to 4"):
        Datastore.build([[1, token]], VOCAB)


def test_files_that_are_no_datastores_are_refused(tmp_path):
    path = tmp_path / "store.safetensors"
    for wrong in (tmp_path / "missing", tmp_path):
        with pytest.raises(
            ValueError, match=r"datastore: expected a file, got .*; make one with 'specdecodes corpus build'"
        ):
            Datastore.load(wrong)
    path.write_bytes(b"text")
    with pytest.raises(ValueError, match="expected a safetensors file"):
        Datastore.load(path)
    save_file({"ranks": np.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"expected format 'specdecodes.datastore', version '1', got format None"):
        Datastore.load(path)


@pytest.mark.parametrize("name", ["ranks", "starts"])
def test_damaged_files_are_refused(tmp_path, name):
    path = tmp_path / "store.safetensors"
    Datastore.build([[1, 2, 3, 1]], VOCAB).save(path)
    metadata = {"format": "specdecodes.datastore", "version": "1", "vocab_size": str(VOCAB), "tokenizer": ""}
    whole = load_file(path)
    for change in (whole[name][:-1], whole[name].astype(np.int16), None):
        tensors = {key: value for key, value in whole.items() if key != name}
        save_file(tensors if change is None else {**tensors, name: change}, path, metadata)
        with pytest.raises(ValueError, match=r"damaged .*; make one with"):
            Datastore.load(path)
    save_file({**whole, name: np.ones_like(whole[name])}, path, metadata)
    with pytest.raises(ValueError, match=f"damaged .*{name}"):
        Datastore.load(path)


def test_a_datastore_of_another_tokenizer_is_refused():
    ours, other = Vocabulary("a", "b", "c"), Vocabulary("a", "c", "b")
    store = Datastore.build([[1, 2]], 3, tokenizer_fingerprint(ours))
    Rest(context(3, ours), datastore=store)
    Rest(context(4, ours), datastore=store)  # a padded vocabulary
    Rest(context(3), datastore=store)
    with pytest.raises(ValueError, match="datastore: expected one built with the target's tokenizer"):
        Rest(context(3, other), datastore=store)
    with pytest.raises(ValueError, match=r"datastore: expected ids below 2 .*, got 3"):
        Rest(context(2, ours), datastore=store)


def test_bad_settings_are_refused():
    with pytest.raises(
        ValueError, match="datastore: expected a file, got none; make one with 'specdecodes corpus build'"
    ):
        Rest(context(VOCAB))
    with pytest.raises(ValueError, match="prior: expected a number above 0, got 0"):
        Rest(context(VOCAB), datastore=Datastore.build([[1]], VOCAB), prior=0.0)


def test_generations_do_not_leak_into_each_other():
    drafter = Rest(context(VOCAB), datastore=Datastore.build([[1, 2], [3, 4]], VOCAB))
    first, second = state_of([0, 1]), state_of([0, 3])
    for _ in range(2):
        assert found_at(drafter.propose(first), 0) == [2]
        assert found_at(drafter.propose(second), 0) == [4]


def test_the_contract():
    toys = toy_context()
    size = toys.target.vocab_size
    texts = [toy_prompt(50, size, seed)[0].tolist() for seed in range(20)]
    check_drafter(Rest, datastore=Datastore.build(texts, size))


def test_a_decode_is_that_of_the_target_and_faster_where_the_corpus_holds_the_answer():
    target, prompt = toy_model("bamba", dtype=torch.float64), toy_prompt(9)
    plain = load(target, mode="naive").generate(prompt, max_new_tokens=40)
    store = Datastore.build([toy_prompt(30, 48, "other")[0].tolist(), plain.tokens[0]], 48)
    out = load(target, mode="sd", propose="rest", datastore=store).generate(prompt, max_new_tokens=40)
    assert out.tokens == plain.tokens and out.tau > 3
