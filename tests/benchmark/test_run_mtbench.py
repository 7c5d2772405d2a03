"""The command: flags, exit codes, one line for bad input, and a whole run from a folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from specdecodes.benchmark import html, run_mtbench
from specdecodes.benchmark.settings import RunSettings


@pytest.fixture(scope="session")
def folder(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def parsed(*arguments: str) -> RunSettings:
    return run_mtbench.to_settings(run_mtbench.make_parser().parse_args(list(arguments)))


def test_no_argument_is_the_main_job() -> None:
    assert parsed() == RunSettings()
    assert RunSettings().modes == ("naive", "stree")
    assert (RunSettings().target, RunSettings().questions, RunSettings().max_new_tokens) == (
        "embedded",
        "embedded",
        128,
    )


def test_flags_that_other_benchmarks_users_type() -> None:
    settings = parsed(
        *("-llm", "big", "-ssm", "small", "--mode", "sd-classic", "--temp", "0.7", "--do-sample", "--dtype", "float16"),
        *("--out-dir", "out", "--log-dir", "log", "--cg", "--seed", "999", "--max-new-tokens", "256"),
    )
    assert (settings.target, settings.draft, settings.modes) == ("big", "small", ("naive", "sd"))
    assert (settings.temperature, settings.seed, settings.max_new_tokens) == (0.7, 999, 256)
    assert (settings.dtype, settings.compile) == ("float16", True)
    assert (settings.out_dir, settings.log_dir) == (Path("out"), Path("log"))
    assert parsed("--llm-path", "big", "--ssm-path", "small").target == "big"


def test_perplexity_is_asked_for_by_a_flag() -> None:
    assert parsed("--perplexity").perplexity and not parsed().perplexity


def test_modes_categories_and_settings_may_be_given_in_one_or_several() -> None:
    settings = parsed(
        *("--modes", "naive,sd", "--mode", "stree", "--category", "math,stem", "--category", "coding"),
        *("--set", "depth=3", "--set", "stree.tree=3,2.1", "--commit-state", "copy"),
    )
    assert settings.modes == ("naive", "sd", "stree")
    assert settings.categories == ("math", "stem", "coding")
    assert settings.settings == {"depth": "3", "stree.tree": "3,2.1"}
    assert settings.commit_state == "copy"


def test_do_sample_means_temperature_one() -> None:
    assert parsed("--do-sample").temperature == 1.0
    assert parsed().temperature == 0.0


BAD = {
    "unknown flag": (["--nonsense"], "unrecognized arguments: --nonsense"),
    "no number": (["--repeat", "x"], "invalid int value: 'x'"),
    "unknown mode": (["--mode", "streee"], "did you mean 'stree'?"),
    "unknown component": (["--propose", "ngrams"], "did you mean 'ngram'?"),
    "unknown setting": (["--set", "treee=3"], "did you mean 'tree'?"),
    "setting of a mode that does not run": (["--set", "sd.depth=3"], "expected a mode of this run (stree), got 'sd'"),
    "setting without a value": (["--set", "tree"], "expected KEY=VALUE"),
    "malformed tree": (["--set", "tree=3,,2"], "tree"),
    "nothing to change": (["--mode", "naive", "--commit-state", "copy"], "the baseline always stays as it is"),
    "negative temperature": (["--temp", "-1"], "temperature: expected 0 (greedy) or 1e-10 to 1e+10, got -1"),
    "greedy sampling": (["--temp", "0", "--do-sample"], "temperature: expected above 0 with --do-sample"),
    "top-p of 0": (["--top-p", "0"], "top_p: expected a number in (0, 1], got 0"),
    "top-p above 1": (["--top-p", "1.5"], "top_p: expected a number in (0, 1], got 1.5"),
    "no new tokens": (["--max-new-tokens", "0"], "max_new_tokens: expected at least 1, got 0"),
    "no repeat": (["--repeat", "0"], "repeat: expected at least 1, got 0"),
    "no threads": (["--threads", "0"], "threads: expected at least 1, got 0"),
    "unknown dtype": (["--dtype", "float8"], "dtype: expected one of"),
    "no such device": (["--device", "tpu"], "device: expected 'cpu' or 'cuda[:N]', got 'tpu'"),
    "no such target": (["--target", "no/such/model/here"], "no/such/model/here"),
    "no mode": (["--modes", "sd,"], "--mode: expected NAME,..., got 'sd,'"),
    "no category": (["--category", ""], "--category: expected NAME,..., got ''"),
    "no folder": (["--out-dir", ""], "--out-dir: expected a folder, got ''"),
    "a mode that cannot sample, without a warm-up": (
        ["--warmup", "0", "--temperature", "1", "--verify", "rejection"],
        "mode 'stree' cannot decode at temperature 1: verifier Rejection: it judges chains only",
    ),
    "questions without a name": (["--questions", ""], "questions: expected one of embedded, mt_bench, "),
    "no such questions": (["--questions", "mt-bench"], "did you mean 'mt_bench'?"),
    "hub id of a file": (["--hub-id", "a/b"], "hub_id: expected none with the questions"),
    "unknown category": (["--category", "maths"], "categories: expected any of"),
    "nothing to resume": (["--resume", "--log-dir", "nowhere"], "expected an earlier run below nowhere, found none"),
    "too long for the model": (["--max-new-tokens", "999"], "questions: expected at least one that fits the model"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line(
    arguments: list[str],
    message: str,
    folder: Path,
    questions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    given = ["--target", str(folder), "--draft", str(folder), "--questions", str(questions), *arguments]
    assert run_mtbench.main(given) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert message in captured.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question_id": 1, "turns": ["a"]}\n{"question_id": 2\n', "line 2: expected one JSON object per line"),
        ('{"question_id": 1, "turns": ["a"]}\n' + "[" * 100_000, "line 2: expected one JSON object per line"),
        ('{"question_id": 1, "turns": ["\\ud83d"]}\n', "line 1: turns: expected a non-empty list"),
        ('{"question_id": 1}\n', "line 1: keys: expected question_id and turns"),
        ('{"question_id": 1, "turns": []}\n', "line 1: turns: expected a non-empty list"),
        ("", "expected at least one question, got none"),
    ],
)
def test_a_bad_question_file_is_one_line(
    text: str, message: str, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(text)
    out = tmp_path / "out"
    assert run_mtbench.main(["--target", str(folder), "--questions", str(file), "--out-dir", str(out)]) == 2
    captured = capfd.readouterr()
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert not out.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_without_cuda_is_one_line(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_mtbench.main(["--target", str(folder), "--device", "cuda"]) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert "no CUDA" in err


def test_a_log_level_that_does_not_exist(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LOGLEVEL", "LOUD")
    assert run_mtbench.main([]) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert "LOGLEVEL: expected one of" in err


def test_an_interrupt_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_mtbench, "run", interrupted)
    assert run_mtbench.main([]) == 130
    assert "the same command with --resume goes on" in capfd.readouterr().err


def test_a_run_from_a_folder_prints_its_table(
    folder: Path, questions: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = ["--target", str(folder), "--draft", str(folder), "--modes", "naive,sd-classic,stree,ngram"]
    given += ["--questions", str(questions), "--max-new-tokens", "6", "--out-dir", str(tmp_path / "run")]
    assert run_mtbench.main(given) == 0
    out = capfd.readouterr().out
    for part in ("naive", "sd", "stree", "ngram", "speed-up, decode", "3/3 (100%)", "greedy, float32, eager"):
        assert part in out, part
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["sessions"][0]["command"].startswith("python -m specdecodes.benchmark.run_mtbench --target")
    assert summary["settings"]["target"] == str(folder)
    report = tmp_path / "run" / "summary.html"
    written = report.read_bytes()
    report.unlink()
    assert html.main([str(tmp_path / "run")]) == 0
    assert capfd.readouterr().out == f"{report}\n"
    assert report.read_bytes() == written
    assert sorted(path.name for path in (tmp_path / "run" / "model_answer").iterdir()) == [
        "tiny-naive.jsonl",
        "tiny-ngram.jsonl",
        "tiny-sd.jsonl",
        "tiny-stree.jsonl",
    ]


@pytest.mark.slow
def test_a_killed_process_is_resumed(folder: Path, tmp_path: Path) -> None:
    records = [{"question_id": i, "category": "math", "turns": [f"What is {i} and {i}?"]} for i in range(12)]
    questions = tmp_path / "q.jsonl"
    questions.write_text("".join(json.dumps(record) + "\n" for record in records))
    command = [sys.executable, "-m", "specdecodes.benchmark.run_mtbench", "--target", str(folder), "--mode", "ngram"]
    command += ["--questions", str(questions), "--max-new-tokens", "32", "--out-dir", str(tmp_path / "run")]
    journal = tmp_path / "run" / "journal.jsonl"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") >= 2):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = journal.read_bytes().count(b"\n")
    assert 2 <= done < 12
    resumed = subprocess.run([*command, "--resume"], capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    for name in ("journal.jsonl", "model_answer/tiny-naive.jsonl", "model_answer/tiny-ngram.jsonl"):
        lines = (tmp_path / "run" / name).read_text().splitlines()
        assert [json.loads(line)["question_id"] for line in lines] == list(range(12)), name
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert len(summary["sessions"]) == 2
    assert summary["modes"][1]["equal"] == 12
