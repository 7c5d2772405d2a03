"""The questions of a benchmark run: our own set, a data set on the hub, or a JSONL file."""

from __future__ import annotations

import difflib
import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from specdecodes.data import EMBEDDED, QUESTIONS, SETS, HubSet, hub_records, json_lines


@dataclass(frozen=True)
class Question:
    """One conversation's user turns, in the order in which they are asked."""

    question_id: int | str
    category: str
    turns: tuple[str, ...]


HUB_SETS = {name: SETS[name] for name in ("mt_bench", "gsm8k", "humaneval")}

KNOWN_SETS = (EMBEDDED, *HUB_SETS)


@dataclass(frozen=True)
class _Format:
    """A record with these keys is of this format; ``category`` is for records that name none.

    Without an ``id_key`` the record's number is its id. The text is a list of turns, or a string where ``one_turn``.
    """

    name: str
    keys: tuple[str, ...]
    id_key: str | None
    text_key: str
    one_turn: bool
    category: str


_FORMATS = (
    _Format("FastChat", ("question_id", "turns"), "question_id", "turns", False, "general"),
    _Format("MT-Bench on the hub", ("prompt_id", "prompt"), "prompt_id", "prompt", False, "general"),
    _Format("HumanEval", ("task_id", "prompt"), "task_id", "prompt", True, "coding"),
    _Format("GSM8K", ("question", "answer"), None, "question", True, "math"),
)


@dataclass(frozen=True)
class _Source:
    """Numbered raw records; ``name`` and ``unit`` say in messages where one of them is."""

    name: str
    unit: str
    records: Iterable[tuple[int, object]]


def load_questions(
    spec: str, *, hub_id: str | None = None, categories: Sequence[str] = (), max_questions: int | None = None
) -> list[Question]:
    """Return the questions that ``spec`` names, in the order of their file.

    Args:
        spec: ``embedded`` (24 questions shipped with the package), ``mt_bench``, ``gsm8k``, ``humaneval`` (all three
            from the hub), or the path of a JSONL file in FastChat's, HumanEval's or GSM8K's format, told apart by
            their keys. A question of FastChat's format without a category gets ``general``.
        hub_id: another home on the hub for the data set that ``spec`` names.
        categories: keep only these; empty keeps all.
        max_questions: keep at most so many, drawn from the categories in turn (the first question of each category
            in order of appearance, then the second of each, ...), so that a small run still covers every category.

    Raises:
        ValueError: an unknown name or category, a file or data set that cannot be read, a record that is no question.
    """
    if max_questions is not None and max_questions < 1:
        raise ValueError(f"max_questions: expected at least 1, got {max_questions}; leave it out to ask every question")
    if isinstance(categories, str):
        raise ValueError(f"categories: expected a list of names, got the string {categories!r}; use [{categories!r}]")
    questions = _read_questions(_open_source(spec, hub_id))
    return _spread(_of_categories(questions, categories), max_questions)


def _open_source(spec: str, hub_id: str | None) -> _Source:
    if spec in HUB_SETS:
        hub_set = HUB_SETS[spec]
        return _hub_source(spec, hub_set, hub_id or hub_set.hub_id)
    if hub_id is not None:
        raise ValueError(
            f"hub_id: expected none with the questions {spec!r}, got {hub_id!r}; it goes with {', '.join(HUB_SETS)}"
        )
    if spec == EMBEDDED:
        return _file_source("embedded questions", QUESTIONS)
    return _file_source(spec, Path(spec))


def _file_source(name: str, file: Path) -> _Source:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        close = difflib.get_close_matches(name, KNOWN_SETS, n=1)
        raise ValueError(
            f"questions: expected one of {', '.join(KNOWN_SETS)} or the path of a JSONL file, "
            f"got {name!r}, which is no file; {f'did you mean {close[0]!r}?' if close else 'check the path'}"
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(
            f"questions {name!r}: expected a readable file of UTF-8 text, got {error}; check its path and encoding"
        ) from error
    # Not splitlines(): a JSON string may hold U+2028 and other characters at which splitlines() would cut it.
    return _Source(name, "line", json_lines(name, text.split("\n")))


def _hub_source(spec: str, hub_set: HubSet, hub_id: str) -> _Source:
    way_out = f"without the hub, give the path of a local file instead ({hub_set.local_file}), or use {EMBEDDED!r}"
    records = hub_records(f"questions {spec!r}", way_out, hub_id, hub_set.config, hub_set.split)
    return _Source(hub_id, "record", enumerate(records, 1))


def _read_questions(source: _Source) -> list[Question]:
    questions: list[Question] = []
    numbers: dict[int | str, int] = {}
    for number, record in source.records:
        try:
            question = _parse(record, number)
            if question.question_id in numbers:
                raise ValueError(
                    f"question_id: expected one that no other question has, got {question.question_id!r}, "
                    f"which {source.unit} {numbers[question.question_id]} has; change one of the two"
                )
        except ValueError as error:
            raise ValueError(f"{source.name}: {source.unit} {number}: {error}") from error
        numbers[question.question_id] = number
        questions.append(question)
    if not questions:
        raise ValueError(
            f"{source.name}: expected at least one question, got none; "
            'give one object such as {"question_id": 1, "turns": ["..."]} per line'
        )
    return questions


def _parse(record: object, number: int) -> Question:
    if not isinstance(record, Mapping):
        raise ValueError(
            f'expected a JSON object, got {reprlib.repr(record)}; write {{"question_id": 1, "turns": ["..."]}}'
        )
    for kind in _FORMATS:
        if all(key in record for key in kind.keys):
            question_id = number if kind.id_key is None else _question_id(kind.id_key, record[kind.id_key])
            category = record.get("category")
            read_turns = _one_turn if kind.one_turn else _turns
            turns = read_turns(kind.text_key, record[kind.text_key])
            return Question(question_id, kind.category if category is None else _text("category", category), turns)
    expected = " or ".join(f"{' and '.join(kind.keys)} ({kind.name})" for kind in _FORMATS)
    raise ValueError(f"keys: expected {expected}, got {reprlib.repr(list(record))}; add the missing key")


def _question_id(key: str, value: object) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise ValueError(f"{key}: expected an integer or a non-empty string, got {reprlib.repr(value)}; number it")
    return value


def _text(key: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(
            f"{key}: expected a non-empty string, got {reprlib.repr(value)}; fill it in or remove this record"
        )
    return value


def _one_turn(key: str, value: object) -> tuple[str, ...]:
    return (_text(key, value),)


def _turns(key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(turn, str) and turn.strip() for turn in value):
        raise ValueError(
            f"{key}: expected a non-empty list of non-empty strings, got {reprlib.repr(value)}; "
            'a question of one turn is written ["..."]'
        )
    return tuple(value)


def _of_categories(questions: Sequence[Question], categories: Sequence[str]) -> list[Question]:
    known = list(dict.fromkeys(question.category for question in questions))
    for category in categories:
        if category not in known:
            raise ValueError(f"categories: expected any of {', '.join(known)}, got {category!r}; choose from these")
    return [question for question in questions if not categories or question.category in categories]


def _spread(questions: Sequence[Question], max_questions: int | None) -> list[Question]:
    order = {category: i for i, category in enumerate(dict.fromkeys(question.category for question in questions))}
    taken: Counter[str] = Counter()
    places: list[tuple[int, int, int]] = []  # (questions of its category before it, the category's place, index)
    for index, question in enumerate(questions):
        places.append((taken[question.category], order[question.category], index))
        taken[question.category] += 1
    chosen = sorted(index for _, _, index in sorted(places)[:max_questions])
    return [questions[index] for index in chosen]
