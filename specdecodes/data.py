"""Texts by name or path: data sets on the hub, text files, JSON files, folders of text files."""

from __future__ import annotations

import gzip
import reprlib
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from specdecodes.benchmark.journal import parse_json
from specdecodes.plugin import nearest


@dataclass(frozen=True)
class HubSet:
    """Where a data set lives on the hub.

    Attributes:
        field: the field of a record that is its text. local_file: what holds the same for a machine without the hub.
    """

    hub_id: str
    config: str | None
    split: str
    field: str
    local_file: str


EMBEDDED = "embedded"
QUESTIONS = Path(__file__).parent / "benchmark" / "questions.jsonl"
"""What :data:`EMBEDDED` names."""

SETS = {
    "openwebtext": HubSet("Skylion007/openwebtext", None, "train", "text", "one of its text or JSONL files"),
    "c4": HubSet("allenai/c4", "en", "validation", "text", "one of its .json.gz files"),
    "cnn": HubSet("abisee/cnn_dailymail", "3.0.0", "test", "article", "a JSONL file with the field article"),
    "gsm8k": HubSet("openai/gsm8k", "main", "test", "question", "GSM8K's test.jsonl"),
    "humaneval": HubSet("openai/openai_humaneval", None, "test", "prompt", "HumanEval.jsonl"),
    "mt_bench": HubSet("HuggingFaceH4/mt_bench_prompts", None, "train", "prompt", "FastChat's question.jsonl"),
}

KNOWN = (EMBEDDED, *SETS)

FIELDS = ("text", "content", "article", "turns", "messages", "question", "prompt", "instruction")
"""Where a file's records may have their text, the first that a record has counting."""


def texts(
    source: str,
    *,
    split: str | None = None,
    field: str | None = None,
    start: int = 0,
    end: int | None = None,
    limit: int | None = None,
    first_turn: bool = False,
) -> Iterator[str]:
    """The texts of a data set, one after the other; nothing is read ahead, and the hub's sets are streamed.

    Args:
        source: ``embedded`` (the questions shipped with the package), a name in :data:`SETS` (from the hub), or a
            path: a ``.jsonl`` or ``.json`` file (one record a line, or a JSON list of records), any other file as
            UTF-8 text, cut at blank lines into passages (see :func:`passages`), a folder for all its ``.txt`` files
            (subfolders included, in order of their names). ``.gz`` is unpacked.
        split: of a set on the hub (None: the table's).
        field: the field of a record that is its text (None: the table's for a set, else the first of :data:`FIELDS`
            that the record has). A list of turns or of chat messages is joined by empty lines.
        start, end: those with these numbers, counted from 0, ``end`` excluded. limit: so many of them at most. Texts
            without any visible character do not count and are left out.
        first_turn: of a list of turns only the first, which stands by itself; for prompts.

    Raises:
        ValueError: a name or path that does not exist, a set out of reach, no text at all (all of these at the call);
            a broken line or a record without text in that field, with its number (when it is read).
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit: expected at least 1 text, got {limit}; leave it out to take all")
    check_range(start, end)
    every = _texts(source, split, field, first_turn)
    found = islice(islice((text for text in every if text.strip()), start, end), limit)
    first = next(found, None)
    if first is None:
        after = f" after the first {start}" if start else ""
        way_out = "start earlier" if start else "give a source that holds text"
        raise ValueError(f"dataset {source!r}: expected at least one text{after}, got none; {way_out}")
    return chain([first], found)


def check_range(start: int, end: int | None) -> None:
    """Refuse a range that holds nothing.

    Raises:
        ValueError: as said.
    """
    if start < 0:
        raise ValueError(f"start: expected 0 or more, got {start}")
    if end is not None and end <= start:
        raise ValueError(f"end: expected more than start ({start}), got {end}; it is excluded itself")


def _texts(source: str, split: str | None, field: str | None, first_turn: bool) -> Iterator[str]:
    if source in SETS:
        hub_set = SETS[source]
        way_out = f"without the hub, give the path of a local file instead ({hub_set.local_file})"
        records = hub_records(
            f"dataset {source!r}", way_out, hub_set.hub_id, hub_set.config, split or hub_set.split, streaming=True
        )
        return _of_records(((f"record {i}", r) for i, r in enumerate(records, 1)), source, field, hub_set, first_turn)
    if split is not None:
        raise ValueError(f"split: expected none with {source!r}, got {split!r}; it goes with {', '.join(SETS)}")
    path = QUESTIONS if source == EMBEDDED else Path(source)
    if not source or not path.exists():
        near = nearest(source, KNOWN)
        raise ValueError(
            f"dataset: expected one of {', '.join(KNOWN)}, or the path of a text or JSONL file or of a folder, "
            f"got {source!r}, which is none; {'check the path' if near is None else f'did you mean {near!r}?'}"
        )
    kind = Path(path.stem if path.suffix == ".gz" else path.name).suffix
    if kind in (".json", ".jsonl"):
        return _of_records(_of_json_file(path), source, field, None, first_turn)
    if field is not None:
        raise ValueError(f"field: expected none with the text {source!r}, got {field!r}; it goes with JSON files")
    return chain.from_iterable(map(_of_text_file, _text_files(path) if path.is_dir() else [path]))


def _of_records(
    records: Iterable[tuple[str, object]], source: str, field: str | None, hub_set: HubSet | None, first_turn: bool
) -> Iterator[str]:
    for where, record in records:
        try:
            yield _text_of(record, field or (hub_set.field if hub_set else None), first_turn)
        except ValueError as error:
            raise ValueError(f"{source}: {where}: {error}") from error


def _text_of(record: object, field: str | None, first_turn: bool) -> str:
    if isinstance(record, str):
        return record
    if not isinstance(record, Mapping):
        raise ValueError(f'expected a JSON object or string, got {reprlib.repr(record)}; write {{"text": "..."}}')
    name = field or next((known for known in FIELDS if known in record), None)
    if name is None or name not in record:
        wanted = f"the field {field!r}" if field else f"one of the fields {', '.join(FIELDS)}"
        there = ", ".join(map(str, record)) or "none"
        raise ValueError(f"expected {wanted}, got the fields {there}; name the one that holds the text")
    value = record[name]
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, Sequence) or not all(isinstance(_content(part), str) for part in parts):
        raise ValueError(f"{name}: expected text or a list of turns, got {reprlib.repr(value)}; name another field")
    return "\n\n".join(str(_content(part)) for part in (parts[:1] if first_turn else parts))


def _content(turn: object) -> object:
    return turn.get("content") if isinstance(turn, Mapping) else turn


# Files


def _text_files(folder: Path) -> list[Path]:
    files = sorted(folder.rglob("*.txt"))
    if not files:
        raise ValueError(f"dataset: expected a folder that holds .txt files, got {str(folder)!r}, which holds none")
    return files


def _of_text_file(path: Path) -> Iterator[str]:
    with _opened(path) as file:
        text = file.read()
    yield from passages(text)


def _of_json_file(path: Path) -> Iterator[tuple[str, object]]:
    """Where and what every record is: a line each, or the members of one list."""
    with _opened(path) as file:
        lines = iter(file)
        first = next((line for line in lines if line.strip()), "")
        # What begins with a list is one list of records, on however many lines.
        if not first.lstrip().startswith("["):
            file.seek(0)
            yield from ((f"line {number}", record) for number, record in json_lines(str(path), file))
            return
        text = first + file.read()
    yield from ((f"record {number}", record) for number, record in json_list(str(path), text))


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    """The text of ``path``, unpacked where it is packed; what goes wrong while it is read becomes one line."""
    # Only \n ends a line: a JSON string may hold U+2028 and its like.
    settings: dict[str, Any] = {"mode": "rt", "encoding": "utf-8-sig", "newline": "\n"}
    try:
        with gzip.open(path, **settings) if path.suffix == ".gz" else path.open(**settings) as file:
            yield file
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise ValueError(
            f"dataset {str(path)!r}: expected a readable file of UTF-8 text, got {error}; check its path and encoding"
        ) from error


def json_list(name: str, text: str) -> Iterator[tuple[int, object]]:
    """The members of ``text``, one JSON list on however many lines, with their numbers from 1.

    Raises:
        ValueError: it is no such list, at the call; the message names the file (``name``).
    """
    try:
        records = parse_json(text)
    except ValueError as error:
        raise ValueError(
            f"{name}: expected a JSON list of records, got {error}; correct the file, or write one object a line"
        ) from error
    return enumerate(records, 1)


def json_lines(name: str, lines: Iterable[str]) -> Iterator[tuple[int, object]]:
    """The JSON values of ``lines``, one each, with their numbers from 1; blank lines are skipped.

    Raises:
        ValueError: a line that is not JSON; the message names the file (``name``) and the line's number.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except ValueError as error:
            raise ValueError(
                f"{name}: line {number}: expected one JSON object per line, got {reprlib.repr(line)} ({error}); "
                "correct this line or remove it"
            ) from error
        yield number, record


def passages(text: str, size: int = 2000) -> Iterator[str]:
    """Cut a long text at blank lines (at line breaks where there is no blank line) into passages.

    Args:
        text: any text. size: a passage ends with the paragraph that takes it beyond so many characters.
    """
    separator = "\n\n" if "\n\n" in text else "\n"
    passage = ""
    for paragraph in text.split(separator):
        passage += paragraph + separator
        if len(passage) > size:
            yield passage
            passage = ""
    if passage.strip():
        yield passage


# The hub


def hub_records(
    who: str, way_out: str, path: str, config: str | None, split: str | None, **settings: Any
) -> Iterator[Any]:
    """The records of a data set, as ``datasets.load_dataset`` gives them out; loaded at the call.

    Args:
        who: begins the message. way_out: ends it.
        path, config, split, settings: for ``load_dataset``; with ``streaming=True`` only what is read is fetched.

    Raises:
        ValueError: the set cannot be loaded (at the call) or read on (when it is).
    """

    @contextmanager
    def one_line() -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the hub client fails with the errors of several libraries
            reason = " ".join(str(error).split())
            named = f"{settings.get('data_files') or path}" + (f", config {config!r}" if config else "")
            raise ValueError(
                f"{who}: expected the data set {named}, split {split!r} from the hub, "
                f"got {type(error).__name__}: {reason}; {way_out}"
            ) from error

    with one_line():
        import datasets

        records = iter(datasets.load_dataset(path, config, split=split, **settings))

    def read() -> Iterator[Any]:
        while True:
            with one_line():
                record = next(records, _END)
            if record is _END:
                return
            yield record

    return read()


_END = object()
