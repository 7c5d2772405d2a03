"""``specdecodes score``: the table, the files, one line for bad input."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from specdecodes.benchmark.score import ScoreSettings
from specdecodes.cli import main
from specdecodes.cli.score import SAME, parser
from tests.conftest import Pair


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"turns": ["w3 w4 w5", "w6"]}\n{"prompt": "w7 w8 w7 w8"}\n')
    return str(path)


def test_flags_stand_for_the_settings_defaults() -> None:
    args = parser().parse_args([])
    assert ScoreSettings(**{name: getattr(args, name) for name in SAME}) == ScoreSettings()


def test_table_files_and_provenance(
    pair: Pair, prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as if it were not installed
    out = tmp_path / "out"
    arguments = ["score", "--target", pair.target, "--draft", pair.draft, "--draft", "ngram", "--dataset", prompts]
    arguments += ["--max-tokens", "12", "--depth", "2", "--ranks", "3", "--out-dir", str(out), "--measure"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "22 tokens of 2 answers to" in printed and "Measured along the answers of the target itself." in printed
    assert "ngram: without probabilities KL and overlap are not defined" in printed
    assert "no plot: matplotlib is not installed (pip install 'specdecodes[pictures]')" in printed
    assert sorted(path.name for path in out.iterdir()) == ["score.csv", "score.json"]
    written = json.loads((out / "score.json").read_text())
    assert written["session"]["command"].startswith("specdecodes score --target ")
    assert written["session"]["versions"].keys() >= {"torch", "transformers"}
    assert {draft["draft"] for draft in written["drafts"]} == {"draft", "ngram"}
    assert all(draft["measured_tau"] >= 1 for draft in written["drafts"])
    assert written["settings"]["max_tokens"] == 12 and written["settings"]["on"] == "answers"


def test_text_and_greedy_are_said(pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("w3 w4 w5 w6")
    arguments = ["score", "--target", pair.target, "--draft", pair.draft, "--dataset", str(tmp_path / "a.txt")]
    arguments += ["--on", "text", "--temperature", "0", "--plot", "none", "--out-dir", str(tmp_path / "out")]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "2 tokens of 1 texts of" in printed and ", greedy, float32" in printed
    assert "KL and overlap are those at temperature 1." in printed
    assert "Measured along the texts: tokens/step is an estimate" in " ".join(printed.split())


def test_runs_are_named_after_the_time(
    pair: Pair, prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["score", "--target", pair.target, "--draft", "ngram", "--dataset", prompts, "--max-tokens", "4"]
    assert main([*arguments, "--plot", "none"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "score.json").exists() and str(folder.relative_to(tmp_path)) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "0"], "limit: expected at least 1, got 0"),
        (["--on", "text", "--measure"], "measure: expected on='answers'"),
        (["--temperature", "-1"], "temperature: expected 0 (greedy) or 1e-10 to 1e+10, got -1.0"),
        (["--dataset", "gsm8"], "did you mean 'gsm8k'?"),
        (["--dataset", "embedded", "--split", "train"], "split: expected none with 'embedded'"),
        (["--draft", "no such"], "draft: expected a folder, a hub id"),
        (["--on", "nothing"], "argument --on: invalid choice: 'nothing'"),
    ],
)
def test_bad_input_is_refused(pair: Pair, refused: Callable[..., str], arguments: list[str], message: str) -> None:
    line = refused("score", "--target", pair.target, "--draft", pair.draft, *arguments)
    assert line.startswith("specdecodes score: ") and message in line


def test_a_file_where_the_folder_should_be_is_refused(pair: Pair, refused: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for place in (file, file / "below"):
        line = refused("score", "--target", pair.target, "--draft", "ngram", "--out-dir", str(place))
        assert line.startswith(f"specdecodes score: out_dir: expected a folder, got '{place}', where a file is")


def test_no_drafter_for_another_target_is_refused(pair: Pair, refused: Callable[..., str]) -> None:
    assert "draft: expected at least one drafter to score, got none" in refused("score", "--target", pair.target)


def test_plot_without_matplotlib_is_refused_at_once(
    pair: Pair, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    line = refused("score", "--target", "nowhere", "--draft", "ngram", "--plot", "png")
    assert "expected matplotlib to draw 'png' with, got none installed" in line


def test_a_set_out_of_reach_says_how_to_pass_a_file(
    pair: Pair, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    line = refused("score", "--target", pair.target, "--draft", "ngram", "--dataset", "openwebtext")
    assert "Skylion007/openwebtext" in line and "give the path of a local file instead" in line
