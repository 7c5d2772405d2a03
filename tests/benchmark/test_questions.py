"""The questions of a benchmark run, from our own set, from files and from a hub that is not there."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

import datasets
import pytest

from specdecodes.benchmark.questions import Question, load_questions

MT_BENCH_FILE = Path(__file__).parents[3] / "shared" / "data" / "mt_bench" / "question.jsonl"
CATEGORIES = ["writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"]

needs_mt_bench = pytest.mark.skipif(not MT_BENCH_FILE.exists(), reason=f"no MT-Bench file at {MT_BENCH_FILE}")


def write(path: Path, *records: Any) -> str:
    """Write one line per record (a string as it is, anything else as JSON) and return the path to load."""
    lines = (record if isinstance(record, str) else json.dumps(record) for record in records)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


def question(question_id: Any, category: str = "math", *turns: str) -> dict[str, Any]:
    return {"question_id": question_id, "category": category, "turns": list(turns) or [f"What is {question_id}?"]}


class Hub:
    """Stands in for ``datasets.load_dataset``: answers with ``records`` (an exception is raised), keeps the calls."""

    def __init__(self, records: list[dict[str, Any]] | Exception) -> None:
        self.records = records
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, path: str, name: str | None = None, *, split: str) -> list[dict[str, Any]]:
        self.calls.append((path, name, split))
        if isinstance(self.records, Exception):
            raise self.records
        return self.records


def use_hub(monkeypatch: pytest.MonkeyPatch, records: list[dict[str, Any]] | Exception) -> Hub:
    hub = Hub(records)
    monkeypatch.setattr(datasets, "load_dataset", hub)
    return hub


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(monkeypatch, AssertionError("this test should not reach for the hub"))


def fails(spec: str, **settings: Any) -> str:
    """Return the message with which ``load_questions`` refuses, after checking that it is one line."""
    with pytest.raises(ValueError, match="expected") as caught:
        load_questions(spec, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert "expected" in message and "got" in message
    return message


# The embedded set


def test_embedded_set_has_three_two_turn_questions_in_each_category() -> None:
    questions = load_questions("embedded")
    assert [q.question_id for q in questions] == list(range(1001, 1025))
    assert [q.category for q in questions] == [category for category in CATEGORIES for _ in range(3)]
    assert {len(q.turns) for q in questions} == {2}


def test_embedded_turns_are_distinct_short_and_tidy() -> None:
    turns = [turn for q in load_questions("embedded") for turn in q.turns]
    assert len(set(turns)) == len(turns)
    for turn in turns:
        assert 5 <= len(turn.split()) <= 70, turn
        assert turn == turn.strip() and "  " not in turn, turn
        assert turn.isascii(), turn


def test_embedded_references_belong_to_their_turns() -> None:
    lines = files("specdecodes.benchmark").joinpath("questions.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        assert record.keys() <= {"question_id", "category", "turns", "reference"}
        assert len(record.get("reference", record["turns"])) == len(record["turns"]), record["question_id"]
    for category in ("reasoning", "math", "extraction"):
        assert all("reference" in record for record in records if record["category"] == category)


@needs_mt_bench
def test_embedded_set_does_not_overlap_with_mt_bench() -> None:
    def phrases(questions: list[Question], size: int = 5) -> set[tuple[str, ...]]:
        words = [re.findall(r"\w+", turn.lower()) for q in questions for turn in q.turns]
        return {tuple(turn[i : i + size]) for turn in words for i in range(len(turn) - size + 1)}

    ours, theirs = load_questions("embedded"), load_questions(str(MT_BENCH_FILE))
    assert not {q.question_id for q in ours} & {q.question_id for q in theirs}
    shared = phrases(ours) & phrases(theirs)
    assert not shared


# Files


@needs_mt_bench
def test_fastchat_file_gives_the_eighty_questions() -> None:
    questions = load_questions(str(MT_BENCH_FILE))
    assert [q.question_id for q in questions] == list(range(81, 161))
    assert Counter(q.category for q in questions) == dict.fromkeys(CATEGORIES, 10)
    assert {len(q.turns) for q in questions} == {2}
    assert questions[0].turns[1] == "Rewrite your previous response. Start every sentence with the letter A."


def test_fastchat_file_ignores_extra_keys_and_defaults_the_category(tmp_path: Path) -> None:
    spec = write(
        tmp_path / "q.jsonl",
        {"question_id": 7, "category": "math", "turns": ["One?", "Two?"], "reference": ["1", "2"]},
        {"question_id": "x", "turns": ["Three?"]},
        {"question_id": 8, "category": None, "turns": ["Four?"]},
    )
    assert load_questions(spec) == [
        Question(7, "math", ("One?", "Two?")),
        Question("x", "general", ("Three?",)),
        Question(8, "general", ("Four?",)),
    ]


def test_humaneval_and_gsm8k_files_are_recognised_by_their_keys(tmp_path: Path) -> None:
    prompt = "\n\ndef add(a, b):\n"
    humaneval = write(tmp_path / "h.jsonl", {"task_id": "HumanEval/0", "prompt": prompt, "entry_point": "add"})
    assert load_questions(humaneval) == [Question("HumanEval/0", "coding", (prompt,))]
    gsm8k = write(tmp_path / "g.jsonl", {"question": "1 + 1?", "answer": "2"}, {"question": "2 + 2?", "answer": "4"})
    assert load_questions(gsm8k) == [Question(1, "math", ("1 + 1?",)), Question(2, "math", ("2 + 2?",))]


def test_blank_lines_byte_order_mark_and_line_separators_are_harmless(tmp_path: Path) -> None:
    text = "\ufeff" + '{"question_id": 1, "turns": ["a\u2028b\u0085c"]}\r\n\r\n{"question_id": 2, "turns": ["d"]}'
    (tmp_path / "q.jsonl").write_bytes(text.encode())
    assert [q.turns for q in load_questions(str(tmp_path / "q.jsonl"))] == [("a\u2028b\u0085c",), ("d",)]


# Choosing among the questions


def test_max_questions_draws_from_the_categories_in_turn_and_keeps_file_order(tmp_path: Path) -> None:
    categories = ["a", "a", "a", "b", "c", "b", "a"]
    spec = write(tmp_path / "q.jsonl", *(question(i, category) for i, category in enumerate(categories)))
    chosen = {n: [q.question_id for q in load_questions(spec, max_questions=n)] for n in range(1, 9)}
    assert chosen == {
        1: [0],
        2: [0, 3],
        3: [0, 3, 4],
        4: [0, 1, 3, 4],
        5: [0, 1, 3, 4, 5],
        6: [0, 1, 2, 3, 4, 5],
        7: [0, 1, 2, 3, 4, 5, 6],
        8: [0, 1, 2, 3, 4, 5, 6],
    }


def test_a_later_round_follows_the_order_in_which_categories_appeared(tmp_path: Path) -> None:
    spec = write(tmp_path / "q.jsonl", *(question(i, category) for i, category in enumerate("abba")))
    assert [q.question_id for q in load_questions(spec, max_questions=3)] == [0, 1, 3]


def test_eight_embedded_questions_cover_the_eight_categories() -> None:
    assert [q.category for q in load_questions("embedded", max_questions=8)] == CATEGORIES


def test_categories_filter_keeps_file_order_and_comes_before_max_questions() -> None:
    questions = load_questions("embedded", categories=["stem", "math"], max_questions=4)
    assert [q.question_id for q in questions] == [1010, 1011, 1019, 1020]


@pytest.mark.parametrize("number", [0, -3])
def test_max_questions_below_one_is_refused(number: int) -> None:
    assert fails("embedded", max_questions=number).startswith(f"max_questions: expected at least 1, got {number};")


def test_unknown_category_is_refused_with_the_known_ones() -> None:
    message = fails("embedded", categories=["math", "maths"])
    assert "'maths'" in message
    assert ", ".join(CATEGORIES) in message


def test_one_string_is_not_a_list_of_categories() -> None:
    assert "use ['math']" in fails("embedded", categories="math")


def test_a_range_counts_in_the_order_of_the_file_and_comes_first(tmp_path: Path) -> None:
    spec = write(tmp_path / "q.jsonl", *(question(i, category) for i, category in enumerate("abab")))
    chosen = {
        "start": load_questions(spec, start=2),
        "both": load_questions(spec, start=1, end=3),
        "beyond": load_questions(spec, end=99),
        "and a category": load_questions(spec, start=1, categories=["a"]),
        "and a number": load_questions(spec, start=1, max_questions=2),
    }
    assert {name: [q.question_id for q in found] for name, found in chosen.items()} == {
        **{"start": [2, 3], "both": [1, 2], "beyond": [0, 1, 2, 3], "and a category": [2], "and a number": [1, 2]}
    }
    assert fails(spec, start=4).startswith("start: expected below 4, the number of questions in ")
    assert fails(spec, start=-1).startswith("start: expected 0 or more, got -1")
    assert fails(spec, start=1, end=1).startswith("end: expected more than start (1), got 1")


# Texts


def test_text_files_and_folders_are_texts_to_continue(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one " * 600 + "\n\ntwo")
    (tmp_path / "b.txt").write_text("three")
    found = load_questions(str(tmp_path), start=1, prompt_tokens=9)
    assert [(q.question_id, q.category, q.turns[0].strip(), q.prompt_tokens) for q in found] == [
        (1, "text", "two", 9),
        (2, "text", "three", 9),
    ]
    assert [q.prompt_tokens for q in load_questions(str(tmp_path / "b.txt"))] == [128]


@pytest.mark.parametrize("name", ["openwebtext", "c4", "cnn"])
def test_texts_of_the_hub_are_read_as_far_as_asked(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    read = []

    def load_dataset(path: str, config: str | None, *, split: str, streaming: bool) -> Any:
        assert streaming
        for number in range(1000):
            read.append(number)
            yield {"text": f"text {number}", "article": f"text {number}"}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert [q.turns for q in load_questions(name, start=2, end=4)] == [("text 2",), ("text 3",)]
    assert len(read) == 4
    assert [q.question_id for q in load_questions(name, start=2, max_questions=1)] == [2]
    assert "expected a number of texts to take, got none; give --end or --max-questions" in fails(name, start=2)
    assert "hub_id: expected none with texts" in fails(name, end=1, hub_id="a/b")


def test_raw_takes_questions_and_any_json_as_texts(tmp_path: Path) -> None:
    spec = write(tmp_path / "q.jsonl", question(7, "math", "One?", "Two?"), {"article": "Long."}, {"text": "Short."})
    found = load_questions(spec, raw=True)
    assert found == [Question(number, "text", (text,), 128) for number, text in enumerate(["One?", "Long.", "Short."])]
    assert "or give --raw where these are texts" in fails(spec)
    assert fails(spec, prompt_tokens=5).startswith(f"prompt_tokens: expected none with the questions {spec!r}")
    assert fails(spec, raw=True, prompt_tokens=0).startswith("prompt_tokens: expected at least 1, got 0")


# Bad files


BAD_RECORDS = {
    "broken JSON": ('{"question_id": 1, "turns": ["a"]', ["one JSON object per line", "remove it"]),
    "JSON list": ([1, 2], ["expected a JSON object", "[1, 2]"]),
    "no turns": (
        {"question_id": 5, "category": "math"},
        ["question_id and turns (FastChat)", "got ['question_id', 'category']"],
    ),
    "no id": ({"turns": ["a"]}, ["question_id and turns", "got ['turns']", "add the missing key"]),
    "no keys": ({}, ["keys: expected", "got []"]),
    "turns a string": ({"question_id": 5, "turns": "Why?"}, ["turns: expected a non-empty list", "got 'Why?'"]),
    "turns null": ({"question_id": 5, "turns": None}, ["turns: expected a non-empty list", "got None"]),
    "no turn": ({"question_id": 5, "turns": []}, ["turns: expected a non-empty list", "got []"]),
    "empty turn": ({"question_id": 5, "turns": ["a", " "]}, ["turns: expected", "non-empty strings", "got ['a', ' ']"]),
    "turn a number": ({"question_id": 5, "turns": ["a", 3]}, ["turns: expected", "non-empty strings", "got ['a', 3]"]),
    "id a float": ({"question_id": 1.5, "turns": ["a"]}, ["question_id: expected an integer", "got 1.5"]),
    "id a bool": ({"question_id": True, "turns": ["a"]}, ["question_id: expected an integer", "got True"]),
    "id empty": ({"question_id": "", "turns": ["a"]}, ["question_id: expected an integer", "got ''"]),
    "category empty": ({"question_id": 5, "category": "", "turns": ["a"]}, ["category: expected a non-empty string"]),
    "category a list": ({"question_id": 5, "category": ["a"], "turns": ["a"]}, ["category: expected", "got ['a']"]),
    "prompt empty": ({"task_id": "T/1", "prompt": ""}, ["prompt: expected a non-empty string", "got ''"]),
    "prompt no list": ({"prompt_id": 1, "prompt": "a"}, ["prompt: expected a non-empty list", "got 'a'"]),
    "question null": ({"question": None, "answer": "4"}, ["question: expected a non-empty string", "got None"]),
    "id taken": (question(900), ["question_id: expected one that no other question has", "got 900", "line 1 has"]),
}


@pytest.mark.parametrize(("record", "parts"), BAD_RECORDS.values(), ids=BAD_RECORDS.keys())
def test_bad_record_is_refused_with_file_and_line(tmp_path: Path, record: object, parts: list[str]) -> None:
    path = tmp_path / "q.jsonl"
    message = fails(write(path, question(900), "", question(901), record, question(902)))
    assert message.startswith(f"{path}: line 4: ")
    for part in parts:
        assert part in message


def test_long_values_are_shortened_in_messages(tmp_path: Path) -> None:
    assert len(fails(write(tmp_path / "q.jsonl", {"question_id": 1, "turns": "word " * 1000}))) < 400


@pytest.mark.parametrize("indent", [None, 2])
def test_one_json_list_is_a_file_of_records_too(indent: int | None, tmp_path: Path) -> None:
    path, records = tmp_path / "q.json", [question(900), question(901, "math")]
    path.write_text(json.dumps(records, indent=indent))
    assert load_questions(str(path)) == load_questions(write(tmp_path / "q.jsonl", *records))
    path.write_text(json.dumps([*records, {"turns": ["a"]}], indent=indent))
    assert fails(str(path)).startswith(f"{path}: record 3: keys: expected question_id and turns")
    path.write_text(json.dumps(records, indent=indent)[:-1])
    assert re.match(rf"{path}: expected a JSON list of records, got .+; .* one object a line$", fails(str(path)))


@pytest.mark.parametrize("text", ["", "\n \n\n"])
def test_empty_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(text)
    assert fails(str(path)).startswith(f"{path}: expected at least one question, got none;")


def test_missing_file_is_refused_with_the_known_names() -> None:
    message = fails("no/such/file.jsonl")
    assert "'no/such/file.jsonl'" in message
    assert "embedded, mt_bench, gsm8k, humaneval, openwebtext, c4, cnn" in message


@pytest.mark.parametrize(("spec", "meant"), [("mt-bench", "mt_bench"), ("embeded", "embedded"), ("gsm8", "gsm8k")])
def test_misspelt_name_is_refused_with_a_suggestion(spec: str, meant: str) -> None:
    assert fails(spec).endswith(f"did you mean {meant!r}?")


def test_unreadable_file_is_refused(tmp_path: Path) -> None:
    binary = tmp_path / "q.jsonl"
    binary.write_bytes(b'{"question_id": 1, "turns": ["\xff"]}')
    for spec in (str(binary), "a\0b"):
        assert fails(spec).startswith(f"questions {spec!r}: expected a readable file of UTF-8 text")


# The hub


def test_mt_bench_comes_from_the_hub_in_its_own_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"category": "writing", "prompt": ["One?", "Two?"], "prompt_id": 81, "reference": []}]
    hub = use_hub(monkeypatch, rows)
    assert load_questions("mt_bench") == [Question(81, "writing", ("One?", "Two?"))]
    assert hub.calls == [("HuggingFaceH4/mt_bench_prompts", None, "train")]


def test_mt_bench_from_another_home_may_have_fastchats_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = use_hub(monkeypatch, [question(81, "writing", "One?", "Two?")])
    assert load_questions("mt_bench", hub_id="someone/mt-bench") == [Question(81, "writing", ("One?", "Two?"))]
    assert hub.calls == [("someone/mt-bench", None, "train")]


def test_gsm8k_and_humaneval_come_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = use_hub(monkeypatch, [{"question": "1 + 1?", "answer": "2"}])
    assert load_questions("gsm8k") == [Question(1, "math", ("1 + 1?",))]
    assert hub.calls == [("openai/gsm8k", "main", "test")]
    hub = use_hub(monkeypatch, [{"task_id": "HumanEval/0", "prompt": "def f():\n", "test": "pass"}])
    assert load_questions("humaneval") == [Question("HumanEval/0", "coding", ("def f():\n",))]
    assert hub.calls == [("openai/openai_humaneval", None, "test")]


@pytest.mark.parametrize("spec", ["mt_bench", "gsm8k", "humaneval"])
@pytest.mark.parametrize(
    "error", [ConnectionError("no\nroute"), RuntimeError("no\nscripts"), ImportError("no\nmodule")]
)
def test_hub_out_of_reach_is_refused_with_a_local_way_out(
    monkeypatch: pytest.MonkeyPatch, spec: str, error: Exception
) -> None:
    use_hub(monkeypatch, error)
    message = fails(spec)
    assert f"questions {spec!r}" in message
    assert f"{type(error).__name__}: no " in message
    assert "path of a local file" in message and ".jsonl" in message and "'embedded'" in message


def test_missing_datasets_package_is_refused_with_a_local_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "path of a local file" in fails("mt_bench")


def test_bad_hub_record_is_refused_with_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(monkeypatch, [question(81), {"prompt_id": 82, "prompt": []}])
    assert fails("mt_bench").startswith("HuggingFaceH4/mt_bench_prompts: record 2: prompt: expected a non-empty list")


def test_hub_id_is_refused_where_it_would_be_ignored() -> None:
    assert fails("embedded", hub_id="someone/mt-bench").startswith(
        "hub_id: expected none with the questions 'embedded'"
    )
