"""Bigram tables: counting, the file, and the tables that are refused."""

from __future__ import annotations

import pickle
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from specdecodes import assets, load
from specdecodes.models.loading import tokenizer_fingerprint
from specdecodes.plugins.bigrams import BigramTable, bigrams_of
from specdecodes.plugins.drafters.ngram_table import NgramTable
from specdecodes.testing import toy_bigrams, toy_context
from specdecodes.testing.toys import numbers

VOCAB = 20


class Tokenizer:
    """All that a fingerprint looks at."""

    def __init__(self, tokens):
        self.tokens = tokens

    def get_vocab(self):
        return {token: index for index, token in enumerate(self.tokens)}


def documents():
    source = numbers("documents")
    return [torch.randint(VOCAB, (length,), generator=source).tolist() for length in (40, 1, 0, 77, 2)]


def test_followers_are_the_most_frequent_first():
    counts = Counter(pair for document in documents() for pair in pairwise(document))
    table = BigramTable.build(documents(), VOCAB, top=4, tokenizer="x")
    assert table.followers.shape == (VOCAB, 4) and table.followers.dtype == np.int32
    assert (table.tokens, table.tokenizer, table.vocab_size) == (120, "x", VOCAB)
    for token in range(VOCAB):
        own = Counter({b: n for (a, b), n in counts.items() if a == token})
        best = sorted(own, key=lambda b: (-own[b], b))[:4]
        assert table.after(token) == best
        assert table.followers[token].tolist() == best + [-1] * (4 - len(best))
    assert table.after(VOCAB) == table.after(-1) == []


def test_no_pair_crosses_documents():
    table = BigramTable.build([[1, 2], [3, 4]], 5)
    assert [table.after(token) for token in range(5)] == [[], [2], [], [4], []]


def test_fewer_followers_than_asked_for_are_padding():
    table = BigramTable.build([[1, 2, 1]], 3, top=12)
    assert table.followers.shape == (3, 12) and int((table.followers >= 0).sum()) == 2


@pytest.mark.parametrize(
    ("found", "settings", "line"),
    [
        ([], {}, "documents: expected at least one of two tokens or more, got none"),
        ([[1], []], {}, "documents: expected at least one of two tokens or more, got none"),
        ([[1, 99]], {}, "documents: expected token ids 0 to 19, got 1 to 99"),
        ([[1, 2]], {"top": 0}, "top: expected at least 1 follower per token, got 0"),
    ],
)
def test_what_cannot_be_counted(found, settings, line):
    with pytest.raises(ValueError, match=line):
        BigramTable.build(found, VOCAB, **settings)


def test_one_token_contexts_of_an_ngram_table():
    found = documents()
    ngrams = NgramTable.build(found, VOCAB, min_counts=(1, 1), max_successors=5)
    table = BigramTable.from_ngrams(ngrams)
    counted = BigramTable.build(found, VOCAB, top=5)
    assert np.array_equal(table.followers, counted.followers)


def test_the_embedded_table():
    decoder = load(mode="commonsense")
    table = decoder.greedy.hooks.manager.get_plugin("verifier").table
    lookup = NgramTable.load(assets.ngram_table()).lookup
    assert table.vocab_size == decoder.target.vocab_size
    for token in range(0, table.vocab_size, 97):
        row = lookup.rows[1].get(token + 1)
        expected = [] if row is None else [token for token, _ in lookup.successors(row)]
        assert table.after(token) == expected
    assert sum(bool(table.after(token)) for token in range(table.vocab_size)) > 3000


# The file


def test_a_file_comes_back(tmp_path):
    table, path = BigramTable.build(documents(), VOCAB, tokenizer="sha256 0"), tmp_path / "table.safetensors"
    table.save(path)
    table.save(path)
    found = BigramTable.load(path)
    assert np.array_equal(found.followers, table.followers)
    assert (found.tokens, found.tokenizer) == (120, "sha256 0")
    assert [p.name for p in path.parent.iterdir()] == ["table.safetensors"], "nothing half written is left"


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "table.safetensors"
    toy_bigrams().save(path)
    before = path.read_bytes()

    def fails(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fails)
    with pytest.raises(OSError, match="disk full"):
        toy_bigrams(20).save(path)
    assert path.read_bytes() == before


def damaged(name, path):
    """Write a file that is no table."""
    followers = np.zeros((3, 2), dtype=np.int32)
    metadata = {"format": "specdecodes.bigrams", "version": "1", "vocab_size": "3", "tokenizer": "", "tokens": "9"}
    if name == "pickle":
        path.write_bytes(pickle.dumps({"followers": followers}))
    elif name == "torch pickle":
        torch.save({"followers": torch.zeros(3, 2)}, path)
    elif name == "cut off":
        save_file({"followers": followers}, path, metadata)
        path.write_bytes(path.read_bytes()[:-5])
    elif name == "empty":
        path.touch()
    elif name == "other format":
        save_file({"followers": followers}, path, {**metadata, "format": "specdecodes.ngram_table"})
    elif name == "no metadata":
        save_file({"followers": followers}, path)
    elif name == "other version":
        save_file({"followers": followers}, path, {**metadata, "version": "2"})
    elif name == "no followers":
        save_file({"successors": followers}, path, metadata)
    elif name == "ids out of range":
        save_file({"followers": followers + 3}, path, metadata)
    elif name == "ids below -1":
        save_file({"followers": followers - 2}, path, metadata)
    elif name == "floats":
        save_file({"followers": followers.astype(np.float32)}, path, metadata)
    elif name == "other shape":
        save_file({"followers": followers[:, 0]}, path, metadata)
    elif name == "another vocabulary":
        save_file({"followers": followers[:2]}, path, metadata)
    elif name == "no count":
        save_file({"followers": followers}, path, {**metadata, "tokens": "many"})
    return path


SAYS = {
    "pickle": "expected a safetensors file, got something else or a damaged one",
    "torch pickle": "expected a safetensors file, got something else or a damaged one",
    "cut off": "expected a safetensors file, got something else or a damaged one",
    "empty": "expected a safetensors file, got something else or a damaged one",
    "other format": "expected format 'specdecodes.bigrams', version '1', got format 'specdecodes.ngram_table'",
    "no metadata": "got format None, version None",
    "other version": "got format 'specdecodes.bigrams', version '2'",
    "no followers": "damaged",
    "ids out of range": "damaged (followers: expected ids below 3 or -1, got 3 to 3)",
    "ids below -1": "damaged (followers: expected ids below 3 or -1, got -2 to -2)",
    "floats": "damaged (followers: expected int32 [3, K], got float32 [3, 2])",
    "other shape": "damaged (followers: expected int32 [3, K], got int32 [3])",
    "another vocabulary": "damaged (followers: expected int32 [3, K], got int32 [2, 2])",
    "no count": "damaged",
}


@pytest.mark.parametrize("name", SAYS)
def test_a_file_that_is_no_table_is_refused(name, tmp_path):
    path = damaged(name, tmp_path / "table.safetensors")
    with pytest.raises(ValueError, match="bigrams: ") as caught:
        BigramTable.load(path)
    message = str(caught.value)
    assert message.startswith(f"bigrams: {path}: ") and SAYS[name] in message
    assert message.endswith("make one with 'specdecodes bigrams build'")


@pytest.mark.parametrize("name", ["none.safetensors", "."])
def test_no_file(name, tmp_path):
    with pytest.raises(ValueError, match=r"bigrams: expected a file, got .* which is none; make one with"):
        BigramTable.load(tmp_path / name)


# Which table fits


def context(tokenizer, vocab_size=48):
    made = toy_context(vocab_size=vocab_size)
    return type(made)(made.target, tokenizer)


def test_a_fingerprint_tells_vocabularies_apart():
    own = tokenizer_fingerprint(Tokenizer(["a", "b", "c"]))
    assert own == tokenizer_fingerprint(Tokenizer(["a", "b", "c"]))
    others = {tokenizer_fingerprint(Tokenizer(words)) for words in (["a", "c", "b"], ["a", "b"])}
    assert len({own, *others}) == 3


def test_a_table_for_another_tokenizer_is_refused(tmp_path):
    ours, theirs = Tokenizer([str(i) for i in range(48)]), Tokenizer([f"<{i}>" for i in range(48)])
    path = tmp_path / "table.safetensors"
    BigramTable(toy_bigrams().followers, tokenizer_fingerprint(theirs)).save(path)
    with pytest.raises(ValueError, match="bigrams: expected a table that was counted with the target's tokenizer"):
        bigrams_of(context(ours), str(path))
    assert bigrams_of(context(theirs), str(path)).vocab_size == 48


def test_the_tokenizers_vocabulary_may_be_smaller_than_the_padded_target():
    tokenizer = Tokenizer([str(i) for i in range(40)])
    table = BigramTable(toy_bigrams(40).followers, tokenizer_fingerprint(tokenizer))
    assert bigrams_of(context(tokenizer), table) is table
    assert table.after(47) == []


def test_without_a_tokenizer_the_vocabularies_must_be_equal():
    assert bigrams_of(context(None), toy_bigrams(48)).vocab_size == 48
    for size in (40, 60):
        with pytest.raises(ValueError, match=rf"bigrams: expected a vocabulary of 48 \(the target's\), got {size}"):
            bigrams_of(context(None), toy_bigrams(size))


@pytest.mark.parametrize("named", [None, ""])
def test_only_the_embedded_target_has_a_table(named):
    with pytest.raises(ValueError, match="bigrams: expected a table for this target"):
        bigrams_of(context(None), named)
