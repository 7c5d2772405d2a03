"""``specdecodes plugins``: every component, for people and for programs."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from specdecodes import Mode, registry
from specdecodes.cli import main
from specdecodes.cli import plugins as command
from specdecodes.plugin import KINDS, Registry


@pytest.fixture
def listed(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str) -> str:
        assert main(["plugins", *arguments]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        return captured.out

    return run


def test_json_holds_every_component(listed: Any) -> None:
    rows = json.loads(listed("--json"))
    components = registry().components()
    assert [(row["kind"], row["name"]) for row in rows] == [(c.kind, c.name) for c in components]
    by_name = {(row["kind"], row["name"]): row for row in rows}
    assert by_name["mode", "sd"]["aliases"] == ["sd-classic"]
    assert by_name["mode", "stree"]["lossless"] is True
    assert by_name["verifier", "greedy"] == {
        "kind": "verifier",
        "name": "greedy",
        "aliases": [],
        "distribution": "specdecodes",
        "lossless": True,
        "help": registry().get("verifier", "greedy").help,
    }
    for row in rows:
        assert (row["lossless"] is None) == (row["kind"] not in ("verifier", "mode")), row
        assert row["help"] and "\n" not in row["help"], row


def test_text_is_aligned_one_line_each(listed: Any) -> None:
    lines = listed().splitlines()
    assert lines[0].split() == ["kind", "name", "distribution", "lossless", "help"]
    assert len(lines) == 1 + len(registry().components())
    starts = [lines[0].index(word) for word in ("name", "distribution", "lossless", "help")]
    for line in lines[1:]:
        assert line.split()[0] in KINDS
        for start in starts:
            assert line[start - 2 : start] == "  " and line[start : start + 1] != "", line
    row = next(line for line in lines if line.startswith("mode") and " sd " in line)
    assert re.match(r"mode\s+sd \(sd-classic\)\s+specdecodes\s+yes\s+Vanilla", row)


def test_table_on_a_terminal(listed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    out = re.sub(r"\x1b\[[\d;]*m", "", listed())
    for kind in KINDS:
        if registry().names(kind):
            assert re.search(rf"^{kind}\s*$", out, re.MULTILINE), f"{kind} has no title"
    for component in registry().components():
        assert component.name in out
        assert component.help in out


def test_kind_limits_the_list(listed: Any) -> None:
    rows = json.loads(listed("--kind", "mode", "--json"))
    assert {row["name"] for row in rows} == set(registry().names("mode"))
    assert {row["kind"] for row in rows} == {"mode"}


class Lossy:
    """Accepts everything."""

    lossless = False


def test_lossy_verifiers_and_modes_are_marked(monkeypatch: pytest.MonkeyPatch, listed: Any) -> None:
    components = Registry()
    components.add("verifier", "greedy", type("Exact", (), {"lossless": True, "__doc__": "Exact."}))
    components.add("mode", "exact", Mode("d", "t", "greedy", (), help="Exact."))
    with components.owned_by("somebody"):
        components.add("verifier", "lossy", Lossy)
        components.add("mode", "partly", Mode("d", "t", "greedy", ("lossy",), help="Lossy above 0."))
    monkeypatch.setattr(command, "registry", lambda: components)
    rows = {row["name"]: row for row in json.loads(listed("--json"))}
    assert {name: row["lossless"] for name, row in rows.items()} == {
        "greedy": True,
        "lossy": False,
        "exact": True,
        "partly": False,
    }
    assert re.search(r"mode\s+partly\s+somebody\s+no \(lossy\)\s+Lossy above 0\.", listed())


def test_mode_that_names_a_missing_verifier_does_not_hide_the_rest(
    monkeypatch: pytest.MonkeyPatch, listed: Any
) -> None:
    components = Registry()
    components.add("mode", "broken", Mode("d", "t", "nobody", (), help="Broken."))
    monkeypatch.setattr(command, "registry", lambda: components)
    assert json.loads(listed("--json"))[0]["lossless"] is None


def test_unknown_kind_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "--kind", "modes"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "invalid choice: 'modes'" in err and "specdecodes plugins --help" in err
