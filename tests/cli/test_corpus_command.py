"""``specdecodes corpus build``: what it writes is what ``rest`` drafts from."""

from __future__ import annotations

import json

import pytest

from specdecodes import load
from specdecodes.cli import main
from specdecodes.plugins.drafters.datastore import Datastore


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "texts.jsonl"
    lines = [{"text": "w1 w2 w3 w4 w5 w6 w7 w8 w9"}, {"text": "w1 w2 w3 w4 w20"}, {"other": "", "text": "w1 w2 w21"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_corpus_becomes_a_datastore_that_is_drafted_from(pair, corpus, tmp_path, capsys):
    out = tmp_path / "new" / "store.safetensors"
    out.parent.mkdir()
    assert main(["corpus", "build", "--target", pair.target, "--corpus", str(corpus), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{out}: 17 tokens of 3 texts indexed, ") and printed.count("\n") == 1
    assert [file.name for file in out.parent.iterdir()] == [out.name]
    decoder = load(pair.target, mode="sd", propose="rest", datastore=str(out))
    plain = load(pair.target, mode="naive")
    for prompt in ("w1 w2 w3", "w9"):
        assert decoder.generate(prompt, max_new_tokens=12).tokens == plain.generate(prompt, max_new_tokens=12).tokens
    store, ranges = Datastore.load(out), [(0, 21)]
    for token in decoder.tokenizer.encode("w1 w2 w3"):
        ranges = store.step(ranges, token)
    assert [decoder.tokenizer.decode(store.following(*found, 9)) for found in ranges] == ["w4 w4"]


def test_a_field_may_be_named(pair, tmp_path):
    path, out = tmp_path / "texts.jsonl", tmp_path / "store.safetensors"
    path.write_text('{"text": "w1", "answer": "w2 w3"}\n')
    arguments = ["--tokenizer", pair.target, "--corpus", str(path), "--out", str(out), "--field", "answer"]
    assert main(["corpus", "build", *arguments]) == 0
    assert Datastore.load(out).size == 4


def test_bad_input_is_one_line(pair, corpus, refused, tmp_path):
    def build(tokenizer, source, *more):
        return refused("corpus", "build", "--tokenizer", tokenizer, "--corpus", str(source), "--out", "x", *more)

    empty, broken = tmp_path / "empty.txt", tmp_path / "broken.jsonl"
    empty.write_text("\n \n")
    broken.write_text('{"text": "w1"}\n{')
    assert "expected at least one text, got none" in build(pair.target, empty)
    assert "broken.jsonl: line 2: expected one JSON object per line" in build(pair.target, broken)
    assert "missing.txt" in build(pair.target, tmp_path / "missing.txt")
    assert "tokenizer: expected a folder, a hub id or" in build(str(tmp_path / "nothing"), corpus)
    assert "expected the field 'answer'" in build(pair.target, corpus, "--field", "answer")
    assert "invalid choice: 'make'" in refused("corpus", "make")


def test_a_datastore_of_another_tokenizer_is_refused(pair, corpus, tmp_path, capsys, generate_refused):
    out = tmp_path / "store.safetensors"
    assert main(["corpus", "build", "--tokenizer", "embedded", "--corpus", str(corpus), "--out", str(out)]) == 0
    capsys.readouterr()
    line = generate_refused("--propose", "rest", "--set", f"datastore={out}")
    assert line.startswith("datastore: expected ids below 48 (the target's vocabulary), got 4096")
    line = generate_refused("--propose", "rest")
    assert line == "datastore: expected a file, got none; make one with 'specdecodes corpus build'"
