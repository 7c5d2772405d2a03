"""A mode's numbers from records worked out by hand, and the table and markdown made of them."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from specdecodes.benchmark import table
from specdecodes.benchmark.records import Mismatch, QuestionRecord, TurnRecord
from specdecodes.benchmark.report import print_report
from specdecodes.benchmark.stats import Interval
from specdecodes.benchmark.summary import Components, ModeSummary, Summary, summarise_mode, summary_row, verdict

PLAIN = Components("none", None, "root", "Greedy", "replay", True)
TREE = Components("model", "small", "static", "Greedy", "replay", True)


def turn(mode: str, accept_lengths: list[int], decode: float, **changes: object) -> TurnRecord:
    """One answer whose prefill took 0.5 s and whose decode time is spent in verify but for 0.25 s on the host."""
    seconds = {"prefill": 0.5, "decode": decode, "propose": 0.0, "build": 0.0, "verify": decode - 0.25}
    deepest = 0 if mode == "naive" else 3
    answer = TurnRecord(
        mode=mode,
        repeat=0,
        turn=0,
        prompt_tokens=5,
        new_tokens=1 + sum(accept_lengths),
        text="text",
        accept_lengths=accept_lengths,
        seconds={**seconds, "commit": 0.0, "host": 0.25},
        drafted=deepest * len(accept_lengths),
        offered=[len(accept_lengths)] * deepest,
        accepted=[sum(length > d for length in accept_lengths) for d in range(1, deepest + 1)],
        ngrams=(6, 8),
        peak_bytes=3 << 20,
    )
    return replace(answer, **changes)  # type: ignore[arg-type]


def records(mismatch: Mismatch | None = None, speed: float = 2.0) -> list[QuestionRecord]:
    """Two answered questions and a skipped one; the mode decodes ``speed`` times as fast."""
    return [
        QuestionRecord(
            1,
            "math",
            [turn("naive", [1] * 8, 4.0), turn("tree", [4, 3, 1], 4.0 / speed, mismatch=mismatch)],
        ),
        QuestionRecord(2, "stem", [turn("naive", [1] * 4, 2.0), turn("tree", [2, 2], 2.0 / speed)]),
        QuestionRecord(3, "stem", skipped="prompt: too long"),
    ]


def summarise(mismatch: Mismatch | None = None, speed: float = 2.0) -> ModeSummary:
    return summarise_mode(records(mismatch, speed), "tree", "small-tree", TREE, greedy=True)


def whole(modes: list[ModeSummary], temperature: float = 0.0) -> Summary:
    found = records()
    settings = {
        "target": "small",
        "draft": None,
        "questions": "data/question.jsonl",
        "temperature": temperature,
        "compile": False,
        "max_new_tokens": 9,
    }
    session = {
        "command": "python -m specdecodes.benchmark.run_mtbench --questions data/question.jsonl",
        "started": "2026-01-31T12:00:00+0000",
        "commit": {"id": "0123456789abcdef", "dirty": False},
        "versions": {"torch": "2.13.0", "transformers": "5.17.0"},
        "hardware": {"cpu": "a CPU", "threads": 2},
    }
    return Summary(
        settings=settings,
        sessions=[session],
        num_questions=2,
        skipped=[{"question_id": 3, "reason": "prompt: too long"}],
        baseline_distinct_4grams=0.75,
        modes=modes,
        rows=[summary_row(record, answer) for record in found for answer in record.turns],
        dtype="float32",
        memory="resident",
        folder="runs/1",
    )


def naive() -> ModeSummary:
    return summarise_mode(records(), "naive", "small-naive", PLAIN, greedy=True)


def printed(summary: Summary) -> str:
    out = io.StringIO()
    print_report(summary, Console(file=out, width=160))
    return out.getvalue()


def test_numbers_of_a_mode() -> None:
    mode = summarise()
    assert mode.answers == 2
    assert mode.new_tokens == 14
    assert mode.tokens_per_second == pytest.approx(12 / 3.0)
    assert mode.mean_tokens_per_second == pytest.approx((8 / 2.0 + 4 / 1.0) / 2)
    assert mode.total_tokens_per_second == pytest.approx(14 / 4.0)
    assert mode.speedup == pytest.approx(2.0)
    assert mode.total_speedup == pytest.approx((14 / 4.0) / (14 / 7.0))
    assert mode.interval == Interval(pytest.approx(2.0), pytest.approx(2.0))
    assert (mode.steps, mode.drafted) == (5, 15)
    assert mode.tau == pytest.approx(12 / 5)
    assert mode.tau_drafted == pytest.approx(7 / 5)
    assert mode.acceptance == pytest.approx(7 / 15)
    assert (mode.offered, mode.accepted) == ([5, 5, 5], [4, 2, 1])
    assert mode.acceptance_by_depth == pytest.approx([0.8, 0.4, 0.2])
    assert mode.distinct_4grams == pytest.approx(0.75)
    assert mode.seconds["verify"] == pytest.approx(2.5)
    assert mode.seconds["host"] == pytest.approx(0.5)
    assert (mode.compared, mode.equal, mode.valid) == (2, 2, True)
    assert mode.verdict == "faster than plain decoding"


def test_the_baseline_is_one_and_has_no_interval() -> None:
    mode = naive()
    assert mode.speedup == pytest.approx(1.0)
    assert mode.interval is None
    assert mode.acceptance_by_depth == []
    assert mode.verdict == "plain decoding"


def test_a_mode_without_any_answer_gives_zeros() -> None:
    mode = summarise_mode(records()[2:], "tree", "small-tree", TREE, greedy=True)
    assert (mode.answers, mode.speedup, mode.tau, mode.interval) == (0, 0.0, 0.0, None)


def test_sampled_answers_are_not_compared() -> None:
    mode = summarise_mode(records(), "tree", "small-tree", TREE, greedy=False)
    assert (mode.compared, mode.equal) == (0, 0)


@pytest.mark.parametrize(
    ("speedup", "interval", "words"),
    [
        (1.5, Interval(1.2, 1.8), "faster than plain decoding"),
        (1.5, Interval(0.9, 1.8), "no clear difference from plain decoding"),
        (1.5, None, "no clear difference from plain decoding"),
        (0.9, Interval(0.8, 0.95), "slower than plain decoding"),
        (0.9, Interval(0.8, 1.1), "slower than plain decoding (the interval includes 1)"),
    ],
)
def test_verdict_in_words(speedup: float, interval: Interval | None, words: str) -> None:
    assert verdict("tree", speedup, interval, True) == words
    assert verdict("tree", speedup, interval, True, lossless=False) == f"lossy; {words}"


def test_a_lossy_mode_says_so_wherever_it_appears() -> None:
    lossy = summarise_mode(records(), "tree", "small-tree", replace(TREE, lossless=False), greedy=True)
    assert lossy.label == "tree (lossy)" and lossy.verdict == "lossy; faster than plain decoding"
    text = printed(whole([naive(), lossy]))
    assert text.count("tree (lossy)") == 2, "in the table's head and before its verdict"
    row = next(line for line in table.markdown([whole([naive(), lossy]).to_json()]).splitlines() if "`tree`" in line)
    assert row.startswith("| `tree` (lossy) |")


def test_a_tie_is_explained_and_counted() -> None:
    mode = summarise(Mismatch(2, (4, 5), 3e-5, 3e-5, 1e-4))
    assert (mode.equal, mode.valid) == (1, True)
    assert mode.mismatches == [
        {
            "question_id": 1,
            "turn": 0,
            "repeat": 0,
            "position": 2,
            "tokens": (4, 5),
            "gap": 3e-5,
            "shortfall": 3e-5,
            "tolerance": 1e-4,
            "explained": True,
        }
    ]


@pytest.mark.parametrize(
    "mismatch",
    [
        Mismatch(2, (4, 5), 0.5, 0.5, 1e-4),
        Mismatch(2, (4, 5), 3e-5, 1.5, 1e-4),  # the two best nearly tie, but the mode took neither
        Mismatch(2, (4, None), 3e-5, None, 1e-4),  # the mode stopped early
    ],
)
def test_a_real_mismatch_takes_the_speedup_away(mismatch: Mismatch) -> None:
    mode = summarise(mismatch)
    assert not mode.valid
    text = printed(whole([naive(), mode]))
    assert "NOT EQUAL to plain decoding, speed-up not valid" in text
    assert "NOT EQUAL 1/2 (50%)" in text
    assert "not valid (2.00)" in text
    assert "question 1, turn 1: differs at token 2, logit gap" in text
    assert "NOT explained by rounding" in text


def test_report_names_everything_that_was_asked_for() -> None:
    text = printed(whole([naive(), summarise()]))
    for part in ("2.00 [2.00, 2.00]", "tau", "without bonus", "at depth 3", "80.0%", "2/2 (100%)", "75%", "3 MiB"):
        assert part in text, part
    for part in ("prefill", "propose", "build", "verify", "commit", "host"):
        assert part in text, part
    assert "tree: faster than plain decoding" in text
    assert "skipped question 3: prompt: too long" in text
    assert "75% of the 4-grams in the baseline's answers are distinct." in text


def test_report_says_slower_in_words() -> None:
    assert "tree: slower than plain decoding (0.50 [0.50, 0.50] times)" in printed(
        whole([naive(), summarise(speed=0.5)])
    )


def test_report_of_a_sampled_run_names_the_declaration() -> None:
    mode = summarise_mode(records(), "tree", "small-tree", replace(TREE, lossless=False), greedy=False)
    text = printed(whole([naive(), mode], temperature=1.0))
    assert "NOT lossless" in text
    assert "temperature 1" in text


def test_markdown_from_summary_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for number, speed in enumerate((2.0, 0.5)):
        file = tmp_path / f"{number}.json"
        file.write_text(json.dumps(whole([naive(), summarise(speed=speed)]).to_json()))
        files.append(str(file))
    assert table.main(files) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| mode | drafter |")
    assert len({line.count("|") for line in lines[:6]}) == 1
    assert lines[2].startswith("| `naive` | none | question (2) [1] | eager, float32, greedy | 2.0 | 1.00 | 1.00 | - |")
    assert lines[3].startswith("| `tree` | small |")
    assert "| 2.00 [2.00, 2.00] | 2.40 | 2/2 | 75% |" in lines[3]
    assert lines[5].endswith("| slower than plain decoding |")
    assert "commit 0123456789ab, 2026-01-31" in lines[7]
    assert lines[7].startswith("[1] `python -m specdecodes.benchmark.run_mtbench")


def test_markdown_compares_with_another_mode_by_question(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "summary.json"
    file.write_text(json.dumps(whole([naive(), summarise(speed=2.0)]).to_json()))
    assert table.main([str(file), "--against", "tree"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "| speed / tree [95 %] | note |" in lines[0]
    assert "| 0.50 [0.50, 0.50] | baseline |" in lines[2]
    assert "| this one |" in lines[3]
    assert table.main([str(file), "--against", "best"]) == 0
    assert "| 0.50 [0.50, 0.50] | baseline |" in capsys.readouterr().out
    assert table.main([str(file), "--modes", "tree"]) == 0
    assert [line[:8] for line in capsys.readouterr().out.splitlines()[:3]] == ["| mode |", "| --- | ", "| `tree`"]
    assert table.main([str(file), "--modes", "tree,tee"]) == 2
    assert "--modes: expected modes of the runs (naive, tree), got 'tee'" in capsys.readouterr().err
    assert table.main([str(file), "--against", "tee"]) == 2
    assert "--against: expected 'best' or a mode of the run (naive, tree), got 'tee'" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[1]", '{"format": "else"}'])
def test_markdown_refuses_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    file = tmp_path / "summary.json"
    file.write_text(text)
    assert table.main([str(file)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "expected a summary" in captured.err


def with_log_perplexity(base: list[float], own: list[float]) -> list[QuestionRecord]:
    """The two answered questions with these log-perplexities."""
    values = {"naive": base, "tree": own}
    return [
        replace(record, turns=[replace(t, log_perplexity=values[t.mode][i]) for t in record.turns])
        for i, record in enumerate(records()[:2])
    ]


def test_log_perplexity_and_its_paired_difference() -> None:
    found = with_log_perplexity([2.0, 4.0], [2.5, 4.1])
    modes = [
        summarise_mode(found, name, f"small-{name}", PLAIN if name == "naive" else TREE, greedy=False)
        for name in ("naive", "tree")
    ]
    assert [mode.log_perplexity for mode in modes] == pytest.approx([3.0, 3.3])
    assert modes[0].log_perplexity_difference is None and modes[0].log_perplexity_interval is None
    assert modes[1].log_perplexity_difference == pytest.approx(0.3)
    assert modes[1].log_perplexity_interval == Interval(pytest.approx(0.1), pytest.approx(0.5))
    text = printed(whole(modes, temperature=1.0))
    assert "3.300" in text and "+0.300 [+0.100, +0.500]" in text
    assert "tree: the interval of the log-perplexity's difference EXCLUDES 0: its answers are less likely" in text
    assert QuestionRecord.from_json(json.loads(json.dumps(found[0].to_json()))) == found[0]


def test_markdown_has_a_column_for_log_perplexity_where_a_file_holds_it() -> None:
    found = with_log_perplexity([2.0, 4.0], [2.5, 3.5])
    measured = [summarise_mode(found, n, n, TREE, greedy=False) for n in ("naive", "tree")]
    old = whole([naive(), summarise()]).to_json()
    for mode in old["modes"]:  # a file from before there was such a field
        for name in [name for name in mode if name.startswith("log_perplexity")]:
            del mode[name]
    lines = table.markdown([old, json.loads(json.dumps(whole(measured).to_json()))]).splitlines()
    assert "| log-perplexity [95 % of difference] | note |" in lines[0]
    assert len({line.count("|") for line in lines[:6]}) == 1
    assert ["| - |" in line for line in lines[2:4]] == [True, True]
    assert "| 3.000 | baseline |" in lines[4] and "| 3.000 [-0.500, +0.500] |" in lines[5]
    assert "log-perplexity" not in table.markdown([old])


def test_records_survive_json() -> None:
    mismatch = Mismatch(2, (4, None), 3e-5, None, 1e-4)
    for record in records(mismatch):
        assert QuestionRecord.from_json(json.loads(json.dumps(record.to_json()))) == record
