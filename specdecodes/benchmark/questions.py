"""The questions of a benchmark run: our own set, a data set on the hub, a JSONL file, or plain texts to continue."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from specdecodes.data import EMBEDDED, QUESTIONS, SETS, HubSet, check_range, hub_records, json_lines, json_list, texts
from specdecodes.plugin import nearest


@dataclass(frozen=True)
class Question:
    """One conversation's user turns, in the order in which they are asked.

    Attributes:
        prompt_tokens: None for a question; a number for a text: its first so many tokens are the prompt, as they are.
    """

    question_id: int | str
    category: str
    turns: tuple[str, ...]
    prompt_tokens: int | None = None


HUB_SETS = {name: SETS[name] for name in ("mt_bench", "gsm8k", "humaneval")}

TEXT_SETS = tuple(name for name in SETS if name not in HUB_SETS)

KNOWN_SETS = (EMBEDDED, *HUB_SETS, *TEXT_SETS)

PROMPT_TOKENS = 128
"""Of a text; what Sequoia's experiments take (Chen et al., arXiv 2402.12374)."""


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
    spec: str,
    *,
    hub_id: str | None = None,
    raw: bool = False,
    prompt_tokens: int | None = None,
    start: int = 0,
    end: int | None = None,
    categories: Sequence[str] = (),
    max_questions: int | None = None,
) -> list[Question]:
    """Return the questions that ``spec`` names, in the order of their file.

    Args:
        spec: ``embedded`` (24 questions shipped with the package), ``mt_bench``, ``gsm8k``, ``humaneval`` (all three
            from the hub), or the path of a .jsonl or .json file of one record per line, or of one JSON list of them, in
            FastChat's, HumanEval's or GSM8K's format, told apart by their keys. A question of FastChat's format without
            a category gets ``general``. Or texts (category ``text``, numbered from 0): ``openwebtext``, ``c4``,
            ``cnn``, any other file, a folder.
        hub_id: another home on the hub for the questions that ``spec`` names.
        raw: take whatever ``spec`` names as texts (see :func:`specdecodes.data.texts`; of a conversation the first
            turn).
        prompt_tokens: of a text; the rest is cut off (None: 128).
        start, end: keep those with these numbers, counted from 0 in the order of the file, ``end`` excluded.
        categories: keep only these; empty keeps all.
        max_questions: keep at most so many, drawn from the categories in turn (the first question of each category
            in order of appearance, then the second of each, ...), so that a small run still covers every category.

    Raises:
        ValueError: an unknown name or category, a file or data set that cannot be read, a record that is no question,
            a text data set on the hub without a bound.
    """
    if max_questions is not None and max_questions < 1:
        raise ValueError(f"max_questions: expected at least 1, got {max_questions}; leave it out to ask every question")
    if isinstance(categories, str):
        raise ValueError(f"categories: expected a list of names, got the string {categories!r}; use [{categories!r}]")
    check_range(start, end)
    if raw or _holds_texts(spec):
        if hub_id is not None:
            raise ValueError(f"hub_id: expected none with texts, got {hub_id!r}; it goes with {', '.join(HUB_SETS)}")
        tokens = PROMPT_TOKENS if prompt_tokens is None else prompt_tokens
        questions = _read_texts(spec, tokens, start, end, max_questions)
    elif prompt_tokens is not None:
        raise ValueError(
            f"prompt_tokens: expected none with the questions {spec!r}, which are asked as they are, "
            f"got {prompt_tokens}; it goes with texts, or with --raw"
        )
    else:
        every = _read_questions(_open_source(spec, hub_id))
        questions = every[start:end]
        if not questions:
            raise ValueError(
                f"start: expected below {len(every)}, the number of questions in {spec!r}, got {start}; start earlier"
            )
    return _spread(_of_categories(questions, categories), max_questions)


def _holds_texts(spec: str) -> bool:
    """Whether ``spec`` names texts, not questions, by the name alone."""
    path = Path(spec)
    return spec in TEXT_SETS or (spec != "" and path.exists() and path.suffix not in (".jsonl", ".json"))


def _read_texts(spec: str, prompt_tokens: int, start: int, end: int | None, limit: int | None) -> list[Question]:
    if prompt_tokens < 1:
        raise ValueError(f"prompt_tokens: expected at least 1, got {prompt_tokens}")
    if spec in TEXT_SETS and end is None and limit is None:
        raise ValueError(
            f"questions {spec!r}: expected a number of texts to take, got none; give --end or --max-questions"
        )
    found = texts(spec, start=start, end=end, limit=limit, first_turn=True)
    return [Question(number, "text", (text,), prompt_tokens) for number, text in enumerate(found, start)]


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
        if not name:
            raise FileNotFoundError
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        near = nearest(name, KNOWN_SETS)
        raise ValueError(
            f"questions: expected one of {', '.join(KNOWN_SETS)}, or the path of a JSONL or text file or of a folder, "
            f"got {name!r}, which is no file; {'check the path' if near is None else f'did you mean {near!r}?'}"
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(
            f"questions {name!r}: expected a readable file of UTF-8 text, got {error}; check its path and encoding"
        ) from error
    if text.lstrip().startswith("["):
        return _Source(name, "record", json_list(name, text))
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
    raise ValueError(
        f"keys: expected {expected}, got {reprlib.repr(list(record))}; add the missing key, "
        "or give --raw where these are texts to continue"
    )


def _question_id(key: str, value: object) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise ValueError(f"{key}: expected an integer or a non-empty string, got {reprlib.repr(value)}; number it")
    return value


def _is_text(value: object) -> bool:
    """Whether ``value`` says something and can be encoded: JSON lets half a surrogate pair through."""
    return isinstance(value, str) and bool(value.strip()) and not any("\ud800" <= c <= "\udfff" for c in value)


def _text(key: str, value: object) -> str:
    if not isinstance(value, str) or not _is_text(value):
        raise ValueError(
            f"{key}: expected a non-empty string of valid Unicode, got {reprlib.repr(value)}; "
            "fill it in or remove this record"
        )
    return value


def _one_turn(key: str, value: object) -> tuple[str, ...]:
    return (_text(key, value),)


def _turns(key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(map(_is_text, value)):
        raise ValueError(
            f"{key}: expected a non-empty list of non-empty strings of valid Unicode, got {reprlib.repr(value)}; "
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
