"""Texts from files, folders and a hub that is not there."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from specdecodes.data import KNOWN, SETS, passages, texts

LINE_SEPARATOR = "\u2028"  # a line break for str.splitlines, a character like any other in JSON


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()
    monkeypatch.setattr(datasets, "load_dataset", made)
    return made


class Hub:
    """In the place of ``load_dataset``: gives out ``records``, of which one may be an error; keeps its calls."""

    def __init__(self) -> None:
        self.records: list[Any] = [AssertionError("this test should not reach for the hub")]
        self.calls: list[tuple[Any, ...]] = []
        self.read = 0

    def __call__(self, path: str, config: str | None, *, split: str, streaming: bool) -> Iterator[Any]:
        self.calls.append((path, config, split, streaming))
        return self._give()

    def _give(self) -> Iterator[Any]:
        for record in self.records:
            self.read += 1
            if isinstance(record, Exception):
                raise record
            yield record


def fails(source: object, **settings: Any) -> str:
    with pytest.raises(ValueError, match="expected") as caught:
        list(texts(str(source), **settings))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(path: Path, *records: Any) -> str:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return str(path)


# Files


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.json.gz"])
@pytest.mark.parametrize("layout", ["lines", "list", "indented list"])
def test_records_from_any_json_file(tmp_path: Path, name: str, layout: str) -> None:
    records = [{"id": 1, "text": f"one{LINE_SEPARATOR}more"}, {"text": " "}, {"text": "two"}]
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    text = {
        "lines": "\ufeff" + "\r\n\n".join(lines),
        "list": f"[{','.join(lines)}]",
        "indented list": "\n" + json.dumps(records, ensure_ascii=False, indent=1),
    }[layout]
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert list(texts(str(tmp_path / name))) == [f"one{LINE_SEPARATOR}more", "two"]
    assert list(texts(str(tmp_path / name), limit=1)) == [f"one{LINE_SEPARATOR}more"]


def test_a_range_counts_the_texts_that_are_no_blanks(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", "zero", " ", "one", "two", "three")
    assert list(texts(source, start=1)) == ["one", "two", "three"]
    assert list(texts(source, start=1, end=3)) == ["one", "two"]
    assert list(texts(source, start=1, end=3, limit=1)) == ["one"]
    assert list(texts(source, end=9)) == ["zero", "one", "two", "three"]
    assert fails(source, start=4) == (
        f"dataset {source!r}: expected at least one text after the first 4, got none; start earlier"
    )
    assert fails(source, start=-1).startswith("start: expected 0 or more, got -1")
    assert fails(source, start=2, end=2).startswith("end: expected more than start (2), got 2")


def test_nothing_is_read_beyond_the_end(hub: Hub) -> None:
    hub.records = [{"text": "a"}, {"text": "b"}, {"text": "c"}, ConnectionError("read on")]
    assert list(texts("openwebtext", start=1, end=3)) == ["b", "c"]
    assert hub.read == 3


def test_field_by_name_or_the_first_known_one(tmp_path: Path) -> None:
    source = write(
        tmp_path / "a.jsonl", {"title": "T", "content": "C", "question": "Q"}, {"question": "Q2", "title": "T2"}
    )
    assert list(texts(source)) == ["C", "Q2"]
    assert list(texts(source, field="title")) == ["T", "T2"]


def test_turns_and_messages_are_joined_or_the_first_is_taken(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    source = write(tmp_path / "a.jsonl", {"turns": ["One?", "Two?"]}, {"messages": messages}, "plain")
    assert list(texts(source)) == ["One?\n\nTwo?", "Why?\n\nSo.", "plain"]
    assert list(texts(source, first_turn=True)) == ["One?", "Why?", "plain"]


def test_embedded_questions() -> None:
    assert len(list(texts("embedded"))) == 24
    assert all("\n\n" in both for both in texts("embedded", limit=3))
    for both, first in zip(texts("embedded"), texts("embedded", first_turn=True), strict=True):
        assert both.startswith(first + "\n\n")


def test_text_files_come_in_passages_and_folders_in_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "z.txt").write_text("last")
    (tmp_path / "a.txt").write_text("x" * 2001 + "\n\nsecond")
    (tmp_path / "a.md").write_text("other")
    assert [text.strip() for text in texts(str(tmp_path))] == ["x" * 2001, "second", "last"]
    assert [text.strip() for text in texts(str(tmp_path / "a.md"))] == ["other"]


def test_passages_break_at_lines_where_there_is_no_blank_one() -> None:
    lines = [f"{i} " * 300 for i in range(10)]
    cut = list(passages("\n".join(lines)))
    assert "".join(cut) == "\n".join(lines) + "\n" and len(cut) == 3
    assert list(passages("a\nb\n\nc", size=1)) == ["a\nb\n\n", "c\n\n"]


@pytest.mark.parametrize(
    ("record", "parts"),
    [
        ({"title": "x", "id": 3}, ["line 3", "got the fields title, id", "name the one that holds the text"]),
        ({}, ["line 3", "got the fields none"]),
        ({"text": 5}, ["line 3", "text: expected text or a list of turns, got 5"]),
        ({"text": ["a", 5]}, ["line 3", "text: expected text or a list of turns, got ['a', 5]"]),
        ([1], ["line 3", "expected a JSON object or string, got [1]"]),
    ],
)
def test_bad_record_is_named_by_its_line(tmp_path: Path, record: Any, parts: list[str]) -> None:
    message = fails(write(tmp_path / "a.jsonl", {"text": "a"}, {"text": "b"}, record))
    assert all(part in message for part in parts), message


def test_broken_line_is_named_after_the_good_ones_were_given_out(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n\n{"text": \n')
    found = texts(str(tmp_path / "a.jsonl"))
    assert next(found) == "a"
    with pytest.raises(ValueError, match=r"a\.jsonl: line 3: expected one JSON object per line"):
        next(found)
    assert list(texts(str(tmp_path / "a.jsonl"), limit=1)) == ["a"]


def test_missing_field_says_which_there_are(tmp_path: Path) -> None:
    message = fails(write(tmp_path / "a.jsonl", {"text": "a", "title": "b"}), field="body")
    assert "expected the field 'body', got the fields text, title" in message


@pytest.mark.parametrize(("name", "data"), [("a.txt", b""), ("a.jsonl", b"\n\n"), ("a.json", b"[]"), ("b.txt", b" \n")])
def test_empty_source_is_refused(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match="expected at least one text, got none"):
        texts(str(tmp_path / name))  # at the call


def test_unreadable_sources_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "a.jsonl.gz").write_bytes(b"not packed")
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"text" * 1000)[:-9])
    (tmp_path / "broken.json").write_text("[1,\n2")
    for name in ("latin.txt", "a.jsonl.gz", "cut.txt.gz"):
        assert fails(tmp_path / name).startswith(f"dataset {str(tmp_path / name)!r}: expected a readable file")
    assert "broken.json: expected a JSON list" in fails(tmp_path / "broken.json")
    (tmp_path / "folder").mkdir()
    assert "folder that holds .txt files" in fails(tmp_path / "folder")


@pytest.mark.parametrize(("name", "meant"), [("mt-bench", "mt_bench"), ("openwebtex", "openwebtext"), ("cn", "cnn")])
def test_unknown_name_lists_the_known_ones(name: str, meant: str) -> None:
    message = fails(name)
    assert message.endswith(f"did you mean {meant!r}?") and all(known in message for known in KNOWN)
    assert fails("").endswith("check the path")


def test_settings_that_would_be_ignored_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    assert fails(tmp_path / "a.txt", split="train").startswith("split: expected none with")
    assert fails(tmp_path / "a.txt", field="text").startswith("field: expected none with the text")
    assert fails(tmp_path, field="text").startswith("field: expected none with the text")
    assert fails("embedded", limit=0).startswith("limit: expected at least 1 text, got 0")


# The hub


@pytest.mark.parametrize("name", sorted(SETS))
def test_named_sets_are_streamed_from_the_hub(hub: Hub, name: str) -> None:
    known = SETS[name]
    hub.records = [{known.field: "a", "other": "x"}, {known.field: ["b", "c"]}, AssertionError("read ahead")]
    assert list(texts(name, limit=2)) == ["a", "b\n\nc"]
    assert hub.calls == [(known.hub_id, known.config, known.split, True)]
    assert hub.read == 2
    assert next(texts(name, field="other", split="train[:9]")) == "x"
    assert hub.calls[1][2] == "train[:9]"


@pytest.mark.parametrize("name", sorted(SETS))
def test_set_out_of_reach_says_how_to_pass_a_file(
    hub: Hub, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.records = [ConnectionError("no\nroute")]  # while it is read
    while_reading = fails(name)

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    for message in (while_reading, fails(name)):
        assert f"dataset {name!r}: expected the data set {SETS[name].hub_id}" in message
        assert "ConnectionError: no route" in message and "give the path of a local file instead" in message


def test_bad_record_of_a_set_is_named_by_its_number(hub: Hub) -> None:
    hub.records = [{"text": "a"}, {"body": "b"}]
    assert fails("c4").startswith("c4: record 2: expected the field 'text', got the fields body")
