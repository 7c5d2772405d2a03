"""The HTML report: what it says, that it loads nothing, and that text stays text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from specdecodes.benchmark import html
from specdecodes.benchmark.categories import CategorySpeed, speed_by_category
from specdecodes.benchmark.page import Axis, page
from specdecodes.benchmark.records import BASELINE
from specdecodes.benchmark.runner import run
from specdecodes.benchmark.sample import Sample, SampledStep
from specdecodes.benchmark.settings import RunSettings
from specdecodes.benchmark.stats import Interval
from specdecodes.benchmark.summary import Components, ModeSummary, Summary

RESULTS = Path(__file__).parents[2] / "benchmark" / "results"
EVIL = '</title><script>alert("x")</script>&<img src=https://example.org/x>'
VOID = {"meta", "br", "img", "link"}


class Page(HTMLParser):
    """A report read back: its elements are closed in order, and ``text`` is what people see of each section."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, list[str]] = {"": []}
        self.heading = ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.heading = data
        elif "style" not in self.open and data.strip():
            self.sections.setdefault(self.heading, []).append(data.strip())

    def says(self, section: str) -> str:
        """A section's text, white space collapsed."""
        return " ".join(" ".join(self.sections[section]).split())


def row(mode: str, question: int, category: str, tokens: int, seconds: float) -> dict[str, Any]:
    return {
        **{"question_id": question, "category": category, "mode": mode, "turn": 0, "repeat": 0},
        **{"new_tokens": tokens + 1, "seconds": {"prefill": 0.5, "decode": seconds}},
    }


def mode(name: str, tokens_per_second: float, **changes: Any) -> ModeSummary:
    seconds = {"prefill": 1.0, "decode": 10.0, "propose": 1.0, "build": 2.0, "verify": 5.0, "commit": 1.5, "host": 0.5}
    values: dict[str, Any] = {
        **{"mode": name, "model_id": f"m-{name}", "answers": 4, "new_tokens": 100, "seconds": seconds},
        **{"components": Components("ngram", None, "static", "Greedy", "replay", True), "verdict": "plain decoding"},
        **{"tokens_per_second": tokens_per_second, "mean_tokens_per_second": 1.0, "total_tokens_per_second": 1.0},
        **{"speedup": 1.0, "interval": None, "total_speedup": 1.0, "tau": 2.0, "tau_drafted": 1.0, "steps": 10},
        **{"drafted": 30, "acceptance": 0.3, "offered": [10, 8], "accepted": [6, 2]},
        **{"acceptance_by_depth": [0.6, 0.25], "compared": 4, "equal": 4, "mismatches": [], "valid": True},
        **{"distinct_4grams": 0.9, "peak_bytes": 5 << 20},
        **{"offered_by_rank": [[10, 8], [6]], "accepted_by_rank": [[5, 1], [2]]},
    }
    return ModeSummary(**{**values, **changes})


PLAIN = Components("none", None, "root", "Greedy", "replay", True)
NOTHING: dict[str, Any] = {
    **{"drafted": 0, "acceptance": 0.0, "offered": [], "accepted": [], "acceptance_by_depth": []},
    **{"offered_by_rank": [], "accepted_by_rank": []},
}


def summary(*modes: ModeSummary, **changes: Any) -> Summary:
    rows = [
        *(row(BASELINE, number, "math" if number < 3 else "stem", 10, 1.0) for number in (1, 2, 3)),
        *(
            row(m.mode, number, "math" if number < 3 else "stem", 10, seconds)
            for m in modes
            for number, seconds in ((1, 0.5), (2, 0.5), (3, 2.0))
        ),
    ]
    values: dict[str, Any] = {
        "settings": {"target": "small", "draft": None, "questions": "q.jsonl", "temperature": 0.0, "compile": False}
        | {"max_new_tokens": 9, "modes": [BASELINE], "settings": {"tree": "3,2.1"}},
        "sessions": [{"command": "bench --mode 'a b'", "started": "now", "commit": None, "versions": {"torch": "2"}}],
        "num_questions": 3,
        "skipped": [],
        "baseline_distinct_4grams": 0.9,
        "modes": [mode(BASELINE, 100.0, components=PLAIN, **NOTHING), *modes],
        "rows": rows,
        "dtype": "float32",
        "memory": "resident",
        "folder": "runs/1",
    }
    return Summary(**{**values, **changes})


def read(found: Summary) -> Page:
    return Page(page(found))


FAST = mode("tree", 150.0, speedup=1.5, interval=Interval(1.25, 1.75), verdict="faster than plain decoding")


# What it says


def test_speedups_by_category_have_intervals_and_marks_where_they_belong() -> None:
    found = read(summary(FAST))
    said = found.says("Speed-up by category")
    assert "all questions (3 questions) tree 1.50 [1.25, 1.75]" in said
    assert "math (2 questions) tree 2.00 [2.00, 2.00]" in said
    assert "stem (1 question) tree 0.50" in said
    # The scale reaches from 0.25 to 2.25: a percent is 0.02.
    styles = [attributes["style"] for tag, attributes in found.tags if tag == "i" and attributes.get("class")]
    assert styles[:3] == ["left:37.5%", "left:50.0%;width:25.0%", "left:62.5%"]


def test_speed_by_category_by_hand() -> None:
    assert speed_by_category(summary(FAST).rows, "tree") == [
        CategorySpeed("math", 2, pytest.approx(2.0), Interval(pytest.approx(2.0), pytest.approx(2.0))),
        CategorySpeed("stem", 1, pytest.approx(0.5), None),
    ]
    rows = [row(BASELINE, 1, "a", 10, 1.0), row(BASELINE, 1, "a", 30, 1.0), row("tree", 1, "a", 10, 0.25)]
    assert speed_by_category(rows, "tree")[0].speedup == pytest.approx(40 / 20), "turns of a question together"


@pytest.mark.parametrize("high", [1.01, 1.3, 3.0, 7.9, 30.0, 400.0])
def test_scale_holds_every_interval_and_1(high: float) -> None:
    shown = mode("tree", 1.0, speedup=1.0, interval=Interval(0.6, high))
    axis = Axis.over([(shown, CategorySpeed("all", 2, 1.0, shown.interval))])
    assert 0 < axis.place(0.6) < axis.place(1) < axis.place(high) < 100
    places = [place for place, _ in axis.ticks]
    assert places == sorted(places) and places[0] >= 0 and places[-1] <= 100
    assert (axis.place(1), "1") in axis.ticks
    assert 2 <= len(axis.ticks) <= 9


def test_scale_does_not_go_below_nothing() -> None:
    shown = mode("tree", 1.0, speedup=0.09, interval=Interval(0.05, 1.2))
    axis = Axis.over([(shown, CategorySpeed("all", 2, 0.09, shown.interval))])
    assert axis.ticks[0] == (0.0, "0") and 0 < axis.place(0.05) < axis.place(1) < 100


def test_log_perplexities_have_a_table_where_they_were_measured() -> None:
    judged = mode("tree", 50.0, log_perplexity=2.5, log_perplexity_difference=0.25)
    judged = replace(judged, log_perplexity_interval=Interval(-0.125, 0.5))
    section = "Log-perplexity of the answers"
    assert read(summary(judged)).says(section).endswith("baseline's naive - - tree 2.500 +0.250 [-0.125, +0.500]")
    assert section not in read(summary(FAST)).sections


def test_acceptance_by_depth_and_by_rank() -> None:
    found = read(summary(FAST))
    assert "tree depth 1 60.0% (6/10) depth 2 25.0% (2/8)" in found.says("Acceptance by depth")
    said = found.says("Acceptance by rank")
    assert said.endswith("depth rank 1 rank 2 1 50.0% 5/10 12.5% 1/8 2 33.3% 2/6 - all 43.8% 7/16 12.5% 1/8")


def test_time_is_split_per_token() -> None:
    said = read(summary(FAST)).says("Time split")
    assert "naive 10.00 ms per token, 250 ms prefill per answer" in said
    assert "tree 6.67 ms per token" in said
    assert said.endswith("propose 0.67 build 1.33 verify 3.33 commit 1.00 host 0.33")


def test_modes_that_lose_are_said_to() -> None:
    slow = mode("tree", 50.0, speedup=0.5, interval=Interval(0.4, 0.6), verdict="slower than plain decoding")
    found = read(summary(slow))
    assert "tree : slower than plain decoding , 0.50 [0.40, 0.60] times" in found.says("")
    assert ("strong", {"class": "slow"}) in found.tags


def test_a_corrupted_mode_has_no_speedup() -> None:
    wrong = {"question_id": 3, "turn": 0, "repeat": 0, "position": 2, "gap": 0.5, "tolerance": 1e-4}
    bad = replace(FAST, valid=False, equal=3, mismatches=[{**wrong, "explained": False}], verdict="NOT EQUAL to it")
    found = read(summary(bad))
    assert "tree : NOT EQUAL to it mode" in found.says(""), "no number behind it"
    assert "NOT EQUAL 3/4 (75%)" in found.says("") and "NOT explained by rounding" in found.says("")
    assert found.says("Speed-up by category").count("not valid (") == 3
    assert not [1 for tag, attributes in found.tags if tag == "i" and attributes.get("class") in ("dot", "range")]


def test_lossy_modes_are_marked_wherever_they_appear() -> None:
    lossy = replace(FAST, mode="loose", components=replace(FAST.components, lossless=False))
    for section, text in read(summary(FAST, lossy)).sections.items():
        for place, word in enumerate(text):
            assert (word == "lossy") == (place > 0 and text[place - 1] == "loose"), section


def test_settings_and_provenance() -> None:
    said = read(summary(FAST)).says("Settings and provenance")
    for part in ("bench --mode 'a b'", "started now", "commit -", "versions torch 2", "draft -", "settings tree=3,2.1"):
        assert part in said, part
    assert "compile no" in said and "runs/1" not in page(summary(FAST))


def test_plain_decoding_alone() -> None:
    found = read(summary())
    assert "Plain decoding alone" in found.says("")
    assert list(found.sections) == ["", "Time split", "Settings and provenance"]


# The sampled answer

STEPS = [
    SampledStep(["A", "␣b", "c", "<d>"], [-1, 0, 0, 1], ["root", "accepted", "rejected", "bonus"]),
    SampledStep(["<d>", "x" * 40, "y"], [-1, 0, 1], ["root", "accepted", "cut"]),
]
SAMPLE = Sample("tree", 7, "math", "What?", "the answer", STEPS)


def test_trees_of_the_sampled_answer() -> None:
    source = page(summary(FAST, samples=[SAMPLE]))
    legend, first, second = re.findall(r"<svg.*?</svg>", source, re.DOTALL)
    for text, step in zip((first, second), STEPS, strict=True):
        svg = ElementTree.fromstring(text)
        nodes = list(svg.iter("g"))
        assert [g.attrib["class"].split()[1] for g in nodes] == step.kinds
        assert [g.findtext("title") for g in nodes] == [
            f"{text} ({kind})" for text, kind in zip(step.texts, step.kinds, strict=True)
        ]
        assert len(list(svg.iter("path"))) == len(nodes) - 1
    assert [g.findtext("text") for g in ElementTree.fromstring(first).iter("g")] == STEPS[0].texts
    assert ElementTree.fromstring(second).findall("g")[1].findtext("text") == "x" * 15 + "…"
    assert all(kind in legend for kind in ("root", "accepted", "rejected", "bonus", "cut"))
    said = Page(source).says("Trees of one answer")
    assert "Question 7 (math) What?" in said and "tree 2 steps the answer" in said
    assert "step 1: 1 of 2 drafted tokens accepted, 2 emitted" in said
    assert "step 2: 1 of 2 drafted tokens accepted, 1 emitted" in said


# A file of its own, in which text stays text


def test_nothing_is_loaded_and_nothing_runs() -> None:
    source = page(summary(FAST, samples=[SAMPLE]))
    tags = Page(source).tags
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe", "img", "object", "base", "form"}
    names = {name for _, attributes in tags for name in attributes}
    assert not names & {"src", "href", "srcset", "action", "xlink:href"}
    assert not [name for name in names if name.startswith("on")]
    assert not re.search(r"url\(|@import|https?://", source)
    policies = [attributes["content"] for _, attributes in tags if "http-equiv" in attributes]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert "prefers-color-scheme:dark" in source and 'name="viewport"' in source


def test_prompts_answers_and_names_stay_text() -> None:
    steps = [SampledStep([EVIL, EVIL], [-1, 0], ["root", "bonus"])]
    sample = Sample("tree", EVIL, EVIL, EVIL, EVIL, steps)
    evil = replace(FAST, verdict=EVIL, components=replace(FAST.components, draft=EVIL))
    found = summary(evil, samples=[sample], skipped=[{"question_id": EVIL, "reason": EVIL}])
    rows = [{**row, "category": EVIL} for row in found.rows]
    sessions = [{"command": EVIL, "versions": {EVIL: EVIL}}]
    found = replace(found, rows=rows, sessions=sessions, settings={**found.settings, "target": EVIL, EVIL: EVIL})
    source = page(found)
    assert "<script" not in source and "<img" not in source
    tags = {tag for tag, _ in Page(source).tags}
    assert tags == {tag for tag, _ in read(summary(FAST, samples=[SAMPLE])).tags}
    said = Page(source).says("Trees of one answer")
    assert said.count(EVIL) == 6, "question, category, prompt, answer, and the tokens' titles"


# From a run and from files


def test_a_run_writes_it_beside_its_summary(make_settings: Callable[..., RunSettings], tmp_path: Path) -> None:
    summary = run(make_settings(modes=("stree", "ngram"), log_dir=tmp_path / "log"))
    assert not (tmp_path / "run" / "summary.html").exists()
    assert sorted(path.name for path in (tmp_path / "log").iterdir()) == ["summary.html", "summary.json"]
    source = (tmp_path / "log" / "summary.html").read_text(encoding="utf-8")
    assert source == page(summary)
    assert source.count("<svg") == 1 + sum(len(sample.steps) for sample in summary.samples)
    said = Page(source).says("Trees of one answer")
    assert said.count("step 1: ") == 2 and "What is two and two?" in said


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(RESULTS.glob("*mt_bench*.json")), ids=lambda path: path.stem)
def test_earlier_summaries_are_read_too(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / file.name
    copy.write_bytes(file.read_bytes())
    assert html.main([str(copy)]) == 0
    assert capsys.readouterr().out == f"{copy.with_suffix('.html')}\n"
    found = Page(copy.with_suffix(".html").read_text(encoding="utf-8"))
    values = json.loads(file.read_text())
    assert "This run did not count it." in found.says("Acceptance by rank") or values["modes"][1]["offered_by_rank"]
    assert "This run kept no answer step by step." in found.says("Trees of one answer") or values["samples"]
    for category in {row["category"] for row in values["rows"]}:
        assert f" {category} (" in found.says("Speed-up by category")
    assert sorted(tmp_path.iterdir()) == sorted([copy, copy.with_suffix(".html")])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected a summary JSON file"),
        ('{"format": "else"}', "expected a summary of format"),
        ('{"format": "specdecodes.benchmark/1"}', "expected the values of a summary, got KeyError"),
        ('{"format": "specdecodes.benchmark/1", "modes": [], "more": 1}', "expected the values of a summary"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    (tmp_path / "summary.json").write_text(text)
    assert html.main([str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert message in captured.err
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_a_folder_without_a_summary_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert html.main([str(tmp_path)]) == 2
    assert "expected a summary JSON file" in capsys.readouterr().err
