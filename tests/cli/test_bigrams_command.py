"""``specdecodes bigrams build``, and the table in use."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from specdecodes import assets
from specdecodes.cli import main
from specdecodes.data import texts
from specdecodes.models.loading import tokenizer_fingerprint
from specdecodes.plugins.bigrams import BigramTable

TEXT = "The cat sat on the mat.\n\nThe cat saw a dog.\n"

Build = Callable[..., tuple[int, str, str]]


@pytest.fixture
def build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Build:
    """Run the command on a corpus; returns exit code, stdout, stderr."""

    def run(corpus: Path | str, *flags: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["bigrams", "build", "--corpus", str(corpus), "--out", str(tmp_path / "table.safetensors"), *flags])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def written(path: Path, content: Any) -> Path:
    if isinstance(content, list):
        content = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_text_file_becomes_a_table(build: Build, tmp_path: Path) -> None:
    code, out, err = build(written(tmp_path / "corpus.txt", TEXT), "--top", "3")
    assert code == 0 and not err
    table = BigramTable.load(tmp_path / "table.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(assets.folder("embedded"))
    (passage,) = texts(str(tmp_path / "corpus.txt"))
    ids = tokenizer.encode(passage, add_special_tokens=False)
    assert table.tokens == len(ids) and f"{len(ids)} tokens of 1 texts counted" in out
    assert table.tokenizer == tokenizer_fingerprint(tokenizer)
    assert table.followers.shape == (len(tokenizer), 3)
    cat = ids[1]
    assert sorted(table.after(cat)) == sorted({after for token, after in pairwise(ids) if token == cat})


def test_json_lines_and_their_field(build: Build, tmp_path: Path) -> None:
    lines = [{"text": "one two"}, "\n", {"text": "three\u2028four"}, {"text": "five six"}]
    corpus = written(tmp_path / "corpus.jsonl", lines)
    assert "of 3 texts counted" in build(corpus)[1]
    assert "of 2 texts counted" in build(corpus, "--limit", "2")[1]
    other = written(tmp_path / "other.jsonl", [{"answer": "one two", "text": "a"}])
    assert build(other, "--field", "answer")[0] == 0


def test_a_folder_of_text_files(build: Build, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    written(tmp_path / "texts" / "a.txt", TEXT)
    written(tmp_path / "texts" / "b.txt", TEXT)
    assert "of 2 texts counted" in build(tmp_path / "texts")[1]
    assert build(tmp_path / "texts", "--split", "test")[0] == 2, "a folder has no splits"


def test_a_data_set_and_its_split(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(path: str, config: str, *, split: str, streaming: bool) -> list[dict[str, str]]:
        return [{"question": f"one two {path} {split}"}]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert "of 1 texts counted" in build("gsm8k", "--split", "train")[1]


def test_a_data_set_that_cannot_be_reached(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*arguments: Any, **settings: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    code, out, err = build("gsm8k")
    assert code == 2 and not out and err.count("\n") == 1
    assert err.endswith("without the hub, give the path of a local file instead (GSM8K's test.jsonl)\n")


BAD: dict[str, tuple[str, Any, list[str], str]] = {
    "empty": ("c.txt", "", [], "expected at least one text, got none"),
    "blank lines": ("c.jsonl", "\n\n", [], "expected at least one text, got none"),
    "one token": ("c.jsonl", [{"text": "a"}], [], "--corpus: expected text with at least one pair of tokens"),
    "no JSON": ("c.jsonl", [{"text": "a b"}, "{torn\n"], [], "line 2: expected one JSON object per line, got"),
    "no field": ("c.jsonl", [{"x": "a b"}], ["--field", "y"], "line 1: expected the field 'y', got the fields x"),
    "no text": ("c.jsonl", [{"text": 3}], [], "line 1: text: expected text or a list of turns, got 3"),
    "no UTF-8": ("c.txt", b"\xff\xfe\xff", [], "expected a readable file of UTF-8 text, got"),
    "top": ("c.txt", TEXT, ["--top", "0"], "--top: expected at least 1 follower per token, got 0"),
    "limit": ("c.txt", TEXT, ["--limit", "0"], "limit: expected at least 1 text, got 0"),
    "tokenizer": (
        "c.txt",
        TEXT,
        ["--tokenizer", "/no/such"],
        "tokenizer: expected a folder, a hub id or 'embedded', got '/no/such'; no such folder",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case: str, build: Build, tmp_path: Path) -> None:
    name, content, flags, line = BAD[case]
    code, out, err = build(written(tmp_path / name, content), *flags)
    assert code == 2 and not out
    assert err.startswith("specdecodes bigrams: ") and line in err and err.count("\n") == 1
    assert not (tmp_path / "table.safetensors").exists(), "nothing is written"


def test_places_that_do_not_exist(build: Build, tmp_path: Path) -> None:
    code, _, err = build(tmp_path / "none.txt")
    assert code == 2 and "none.txt" in err and err.count("\n") == 1
    code, _, err = build(written(tmp_path / "c.txt", TEXT), "--out", str(tmp_path))
    assert code == 2 and "--out: expected a file, got the folder" in err
    code, _, err = build(tmp_path / "c.txt", "--out", str(tmp_path / "none" / "table.safetensors"))
    assert code == 2 and "--out: expected a file in a folder that exists, got" in err


def test_a_target_without_a_tokenizer(build: Build, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    code, _, err = build(written(tmp_path / "c.txt", TEXT), "--target", str(tmp_path / "model"))
    assert code == 2 and "--target: expected a model with a tokenizer, got" in err


def test_the_table_in_use(build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(written(tmp_path / "corpus.txt", TEXT * 3))
    table = f"bigrams={tmp_path / 'table.safetensors'}"
    generate = ["generate", "--prompt", "The cat", "--max-new-tokens", "8", "--set", table]
    assert main([*generate, "--build-tree", "bigram-widen"]) == 0
    assert "mode             stree\n" in capsys.readouterr().out
    assert main([*generate, "--mode", "commonsense"]) == 0
    assert "mode             commonsense (lossy)\n" in capsys.readouterr().out


def test_a_table_of_another_tokenizer_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "table.safetensors"
    table = BigramTable.build([[1, 2, 3]], 4096, tokenizer="sha256 of another")
    table.save(path)
    assert main(["generate", "--prompt", "x", "--mode", "commonsense", "--set", f"bigrams={path}"]) == 2
    err = capsys.readouterr().err
    assert "bigrams: expected a table that was counted with the target's tokenizer" in err and err.count("\n") == 1
