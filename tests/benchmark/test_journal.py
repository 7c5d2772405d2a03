"""Files that survive a kill at any moment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specdecodes.benchmark.journal import Journal, replace, replace_json


def test_lines_come_back_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.jsonl")
    assert journal.recover() == []
    records = [{"text": "one\ntwo\u2028three"}, {"text": "ünï"}]
    for record in records:
        journal.append(record)
    assert journal.recover() == records


@pytest.mark.parametrize("kept", [1, 5, -1])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, kept: int) -> None:
    journal = Journal(tmp_path / "a.jsonl")
    journal.append({"n": 1})
    whole = journal.path.read_bytes()
    journal.append({"n": 22222222})
    torn = journal.path.read_bytes()[len(whole) :][:kept]
    journal.path.write_bytes(whole + torn)
    assert journal.recover() == [{"n": 1}]
    assert journal.path.read_bytes() == whole
    journal.append({"n": 3})
    assert journal.recover() == [{"n": 1}, {"n": 3}]


def test_a_file_that_is_one_torn_line_becomes_empty(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.jsonl")
    journal.path.write_bytes(b'{"n"')
    assert journal.recover() == []
    assert journal.path.read_bytes() == b""


def test_a_damaged_line_before_the_last_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.jsonl")
    journal.path.write_bytes(b'{"n": 1}\n{"n"\n{"n": 3}\n')
    with pytest.raises(ValueError, match="line 2: expected one JSON object per line"):
        journal.recover()


def test_replace_leaves_the_old_file_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    replace_json(path, {"n": 1})

    def parts():
        yield b"half"
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace(path, parts())
    assert json.loads(path.read_text()) == {"n": 1}
