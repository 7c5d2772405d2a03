"""``specdecodes models``: the conformance run as a table, and the page that it makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from specdecodes.benchmark import conformance
from specdecodes.benchmark.conformance import families, read, shipped, write
from specdecodes.cli import main
from specdecodes.cli import models as command
from specdecodes.models.families import SUPPORTED

ROOT = Path(__file__).parents[2]


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["models", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def row(name: str, family: str, error: float, state: dict[str, float], **more: Any) -> dict[str, Any]:
    errors = {"float32": {"logits": error, "state": state}, **more.pop("errors", {})}
    return {"name": name, "family": family, "layers": "x", "errors": errors, "greedy": 40, "limits": [], **more}


def test_every_family_is_listed_with_its_errors(capsys: pytest.CaptureFixture[str]) -> None:
    lines = listed(capsys).splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(SUPPORTED)]] == list(SUPPORTED)
    assert lines[0].split()[:3] == ["family", "layers", "trees"]
    bamba = next(line for line in lines if line.startswith("bamba "))
    assert "yes" in bamba and "copy, reforward, replay" in bamba and " 40 " in bamba
    found = json.loads(listed(capsys, "--json"))
    for family in found:
        assert 0 < family["errors"]["float32"] < 5e-4, family
        assert family["errors"].get("float64", 0) < 1e-9, family
        assert family["greedy"] == 40, family
    assert all(any(run["versions"]["transformers"] in line for line in lines) for run in read(shipped()))


def test_page_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert page == listed(capsys, "--markdown"), "run: specdecodes models --markdown > docs/models.md"
    assert page.count("\n|") == 2 + len(SUPPORTED)


def test_shipped_runs_come_from_clean_checkouts_of_the_oldest_and_a_newer_transformers() -> None:
    runs = read(shipped())
    assert [run["commit"]["dirty"] for run in runs] == [False] * len(runs)
    versions = [run["versions"]["transformers"] for run in runs]
    assert versions[0] == "5.17.0" and len(versions) == 2


def test_a_family_has_the_worst_of_its_configurations_and_runs() -> None:
    one = {"rows": [row("bamba", "bamba", 1e-6, {"replay": 3e-6}, limits=["first"], greedy=40)]}
    other = {
        "rows": [
            row("bamba-x", "bamba", 2e-6, {"copy": 1e-7}, limits=["first", "second"], greedy=39),
            row("bamba-y", "bamba", 1e-9, {}, errors={"float64": {"logits": 1e-13, "state": {"copy": 2e-13}}}),
            row("tomorrow", "not-supported", 1.0, {"copy": 1.0}),
        ]
    }
    found = {family.name: family for family in families([one, other])}
    assert list(found) == list(SUPPORTED)
    bamba = found["bamba"]
    assert (bamba.backends, bamba.limits, bamba.greedy) == (["replay", "copy"], ["first", "second"], 39)
    assert bamba.errors == {"float32": 3e-6, "float64": 2e-13}
    assert command.cells(found["llama"])[2:] == ("not measured", "", "-", "-", "-", "")


def test_a_run_replaces_the_one_of_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "conformance.json"
    for version, error in (("5.24.0", 1.0), ("5.9.1", 2.0), ("5.24.0", 3.14159)):
        monkeypatch.setattr(
            conformance, "provenance", lambda command, device, version=version: {"versions": {"transformers": version}}
        )
        write(path, ["run"], [row("a", "bamba", error, {})])
    runs = read(path)
    assert [run["versions"]["transformers"] for run in runs] == ["5.9.1", "5.24.0"]
    assert [run["rows"][0]["errors"]["float32"]["logits"] for run in runs] == [2.0, 3.1]


@pytest.mark.parametrize("content", ["[]", "{", '{"format": 0}'])
def test_a_file_of_another_format(content: str, tmp_path: Path) -> None:
    path = tmp_path / "conformance.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"conformance: .*expected .*; write it with: python -m pytest"):
        read(path)
