"""Data sets from files and from the hub, passages, and the split into training and held-out documents."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets.exceptions import DatasetNotFoundError

from specdecodes.train.answers import read_answers
from specdecodes.train.data import FORMATS, Document, _passages, load_documents, read_source, split_documents
from specdecodes.train.recipe import Source, load_recipe
from tests.train.conftest import ROOT

REAL = ROOT.parent / "shared" / "data" / "train"
LINE_SEPARATOR = "\u2028"  # a line break for str.splitlines, a character like any other in JSON


def chat(*contents: str) -> Document:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


RECORDS: dict[str, tuple[dict[str, Any], Document]] = {
    "gsm8k": (
        {"question": " 4+8? ", "answer": f"4 plus{LINE_SEPARATOR}8 = <<4+8=12>>12\n#### 12"},
        chat("4+8?", f"4 plus{LINE_SEPARATOR}8 = 12\nThe answer is 12"),
    ),
    "gpteacher": (
        {"instruction": "Add.", "input": "4 and 8", "response": " 12\n"},
        chat("Add.\n4 and 8", "12"),
    ),
    "self-instruct": (
        {"instruction": "Add.", "instances": [{"input": "", "output": "12"}, {"input": "1", "output": "1"}]},
        chat("Add.", "12"),
    ),
    "messages": (
        {"messages": [{"role": "system", "content": "Be brief. "}, *chat("4+8?", "12", "Sure?", "Yes.")], "id": 3},
        [{"role": "system", "content": "Be brief."}, *chat("4+8?", "12", "Sure?", "Yes.")],
    ),
    "text": ({"text": "To be,\nor not"}, [{"role": "text", "content": "To be,\nor not"}]),
}


def source(format_name: str, file: str = "x.jsonl", **settings: Any) -> Source:
    return Source(name="ours", file=file, format=format_name, **settings)


def test_every_format_has_a_case() -> None:
    assert set(RECORDS) == set(FORMATS)


@pytest.mark.parametrize("format_name", sorted(FORMATS))
@pytest.mark.parametrize("file", ["x.jsonl", "x.json"])
def test_format_from_a_file(format_name: str, file: str, tmp_path: Path) -> None:
    record, document = RECORDS[format_name]
    lines = [json.dumps(record, ensure_ascii=False)] * 2
    text = "\n".join([*lines, "", ""]) if file == "x.jsonl" else f"[{','.join(lines)}]"
    (tmp_path / file).write_text(text, encoding="utf-8")
    assert read_source(source(format_name, file), tmp_path) == [document, document]


@pytest.mark.parametrize("format_name", sorted(FORMATS))
def test_format_from_the_hub(format_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    record, document = RECORDS[format_name]
    calls = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: calls.append((args, kwargs)) or [record])
    ours = source(format_name, hub="some/set", config="main", split="train[:5]", data_files="https://x/y.json")
    assert read_source(ours, None) == [document]
    assert calls == [(("some/set", "main"), {"split": "train[:5]", "data_files": "https://x/y.json"})]


def test_text_is_the_same_from_a_file_and_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n\n".join(f"ROLE {i}:\n" + "word " * 150 for i in range(9))
    (tmp_path / "x.txt").write_text(text, encoding="utf-8")
    lines = [{"text": line} for line in text.split("\n")]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: lines)
    from_file = read_source(source("text", "x.txt"), tmp_path)
    assert read_source(source("text", hub="text", data_files="https://x/y.txt"), None) == from_file
    assert len(from_file) == 3


def test_passages_lose_nothing_and_end_at_blank_lines() -> None:
    paragraphs = [f"{i}: " + "x" * (i * 97 % 900) for i in range(40)]
    passages = [passage["text"] for passage in _passages("\n\n".join(paragraphs))]
    assert "".join(passages) == "\n\n".join(paragraphs) + "\n\n"
    assert all(passage.endswith("\n\n") for passage in passages)
    assert all(2000 < len(passage) < 2000 + 910 for passage in passages[:-1])
    assert list(_passages(" \n\n\n")) == []


# Mistakes


@pytest.mark.parametrize(
    ("format_name", "record"),
    [
        ("gsm8k", {"question": "4+8?"}),
        ("gsm8k", {"question": "4+8?", "answer": None}),
        ("gsm8k", ["4+8?"]),
        ("gpteacher", {"instruction": "Add.", "input": "", "response": None}),
        ("self-instruct", {"instruction": "Add.", "instances": []}),
        ("messages", {"messages": []}),
        ("messages", {"messages": [{"role": "robot", "content": "Hi"}]}),
        ("messages", {"messages": "Hi"}),
        ("text", {"text": 3}),
    ],
)
def test_record_of_another_format_is_named_by_its_number(format_name: str, record: Any, tmp_path: Path) -> None:
    lines = [RECORDS[format_name][0], record]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    with pytest.raises(ValueError, match=f"data source ours: record 2 is not of format '{format_name}'"):
        read_source(source(format_name), tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("x.jsonl", '{"text": "a"}\n{"text": \n', r"x\.jsonl: line 2: expected one JSON object per line"),
        ("x.json", "[1, ", r"x\.json: not JSON"),
        ("x.json", '{"text": "a"}', r"x\.json: expected a JSON list of records, got dict"),
        ("x.jsonl", "\n", "data source ours: no records"),
        ("x.txt", "\n\n", "data source ours: no records"),
    ],
)
def test_broken_file(file: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_source(source("text", file), tmp_path)


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data source ours: expected the file x\.jsonl in"):
        read_source(source("text"), tmp_path)


def test_formats_and_folder_are_checked_before_anything_is_read(
    make_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    entries = [{"name": f"set-{name}", "file": "x.jsonl", "format": name} for name in ("text", "prose")]
    recipe = load_recipe(make_recipe(data=entries))
    with pytest.raises(ValueError, match="data source set-prose: unknown format 'prose'; known: gpteacher, gsm8k"):
        load_documents(recipe, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"--data: expected a folder, got .*absent; no such folder"):
        load_documents(load_recipe(make_recipe()), tmp_path / "absent")


@pytest.mark.parametrize(
    "error", [ConnectionError("Couldn't reach it\nat all"), DatasetNotFoundError("no set"), ValueError("Bad split")]
)
def test_hub_out_of_reach_names_the_way_out(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        ValueError, match=r"ours: expected the data set some/set.*; give a folder that holds x\.jsonl"
    ) as caught:
        read_source(source("text", hub="some/set"), None)
    assert "\n" not in str(caught.value)


def test_source_without_hub_id_needs_a_folder() -> None:
    with pytest.raises(ValueError, match="ours: no hub id in the recipe; give its folder with --data"):
        read_source(source("text"), None)


def test_answers_are_read_as_messages(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    lines = [{"messages": chat("4+8?", f"12{LINE_SEPARATOR}")}, {"messages": chat("1+1?", "")}]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    assert read_answers(path) == [chat("4+8?", "12"), chat("1+1?", "")]
    path.write_text('{"answer": 3}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"answers\.jsonl: record 1 is not of format 'messages'"):
        read_answers(path)
    with pytest.raises(FileNotFoundError, match="--answers: expected a file written by the task 'answers'"):
        read_answers(tmp_path / "absent.jsonl")


# The split


def test_split_is_the_same_every_time_and_disjoint() -> None:
    documents = [chat(f"question {i}", "answer") for i in range(100)]
    before = list(documents)
    train, held_out = split_documents(documents, 0.1, seed=3)
    assert (train, held_out) == split_documents(documents, 0.1, seed=3)
    assert documents == before
    assert len(held_out) == 10 and len(train) == 90
    names = {d[0]["content"] for d in train}, {d[0]["content"] for d in held_out}
    assert not names[0] & names[1] and len(names[0] | names[1]) == 100
    assert train != documents[10:], "expected a shuffle"
    assert split_documents(documents, 0.1, seed=4)[1] != held_out
    assert split_documents(documents, 0.0, seed=3)[1] == []


@pytest.mark.parametrize("name", ["embedded_target", "embedded_mamba2", "smoke"])
def test_the_real_files_parse(name: str) -> None:
    if not REAL.is_dir():
        pytest.skip(f"the recipes' files are not at {REAL.relative_to(ROOT.parent)} beside the repository")
    recipe = load_recipe(ROOT / "train" / "recipes" / f"{name}.toml")
    train, held_out = load_documents(recipe, REAL)
    assert len(train) > 6000 and len(held_out) == int((len(train) + len(held_out)) * recipe.training.held_out)
    assert all(message["content"].strip() for document in held_out for message in document[:1])
    assert not any("<<" in document[-1]["content"] and "####" in document[-1]["content"] for document in train)
