"""``specdecodes check``: a good model, one that is refused, one that cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Mamba2Config, RwkvConfig

from specdecodes.cli import main
from specdecodes.models.recurrences.mamba2 import Mamba2Stack
from specdecodes.plugin import registry
from specdecodes.testing.toys import toy_model

from ..conftest import Pair


@pytest.fixture
def checked(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run the command; its exit code and output, with nothing on stderr."""

    def run(*arguments: str) -> tuple[int, str]:
        code = main(["check", *arguments])
        captured = capsys.readouterr()
        assert captured.err == ""
        return code, captured.out

    return run


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_good_model(dtype: str, pair: Pair, checked: Callable[..., tuple[int, str]]) -> None:
    code, out = checked(pair.target, "--dtype", dtype, "--json", "--device", "cpu")
    found = json.loads(out)
    assert code == 0
    assert {name: found[name] for name in ("model", "family", "layers", "dtype", "device", "refused")} == {
        "model": pair.target,
        "family": "bamba",
        "layers": "Mamba-2 and attention",
        "dtype": dtype,
        "device": "cpu",
        "refused": None,
    }
    assert [each["name"] for each in found["backends"]] == registry().names("state")
    for each in found["backends"]:
        assert 0 < each["error"] < each["tolerance"] and each["refused"] is None and each["seconds"] > 0
    assert found["backends"][0]["tolerance"] < 1e-2 if dtype == "float32" else found["backends"][0]["tolerance"] > 1e-2


def test_report_for_people(pair: Pair, checked: Callable[..., tuple[int, str]]) -> None:
    code, out = checked(pair.draft)
    assert code == 0
    lines = out.splitlines()
    assert lines[:2] == [f"model   {pair.draft}", "family  mamba2 (Mamba-2)"]
    assert lines[2].startswith("dtype   float32 on ")
    assert lines[4].split() == ["state", "back-end", "error", "allowed", "time"]
    assert [line.split()[0] for line in lines[5:]] == registry().names("state")
    assert all(line.endswith("agrees with stock") for line in lines[5:])


def _save(folder: Path, change: str) -> str:
    if change == "family":
        RwkvConfig().save_pretrained(folder)
        return "family 'rwkv' is not supported"
    if change == "limit":
        toy_model("mamba2").save_pretrained(folder)
        config: Any = Mamba2Config.from_pretrained(folder)
        config.time_step_limit = (0.01, 0.1)
        config.save_pretrained(folder)
        return "time_step_limit (0.01, 0.1) is not supported"
    model = toy_model("llama")
    state = {name: torch.full_like(weight, torch.nan) for name, weight in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=state)
    return "its own logits are not finite"


@pytest.mark.parametrize("change", ["family", "limit", "weights"])
def test_a_refused_model(change: str, tmp_path: Path, checked: Callable[..., tuple[int, str]]) -> None:
    reason = _save(tmp_path, change)
    code, out = checked(str(tmp_path))
    assert code == 1
    assert reason in out
    code, out = checked(str(tmp_path), "--json")
    found = json.loads(out)
    assert code == 1
    assert reason in (found["refused"] or found["backends"][0]["refused"])


def test_a_back_end_that_disagrees(
    pair: Pair, checked: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Mamba2Stack, "jump", lambda *_: None)
    code, out = checked(pair.target)
    assert code == 1
    ends = {line.split()[0]: line for line in out.splitlines() if " s " in line}
    assert "is refused: tree after a commit, node 0 differs" in ends["replay"]
    assert ends["copy"].endswith("agrees with stock") and ends["reforward"].endswith("agrees with stock")


def test_bad_input(refused: Callable[..., str], pair: Pair, tmp_path: Path) -> None:
    assert "no such folder" in refused("check", str(tmp_path / "nothing"))
    assert "no config.json" in refused("check", str(tmp_path))
    for name in ("nobody/nothing", "nothing"):
        assert refused("check", name).startswith(f"specdecodes check: model: cannot load {name!r}: ")
    assert refused("check", "embeded").endswith("; did you mean 'embedded'?")
    (tmp_path / "config.json").write_text((Path(pair.target) / "config.json").read_text())
    assert "it holds no weights" in refused("check", str(tmp_path))
    assert "dtype: expected one of" in refused("check", pair.target, "--dtype", "int4")
    assert "device: expected" in refused("check", pair.target, "--device", "tpu")
    assert "PATH_OR_ID" in refused("check")
