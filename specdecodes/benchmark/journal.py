"""An append-only JSONL file that survives a kill at any moment."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


class Journal:
    """One JSON object per line; a line counts once its line break is on the disk.

    Args:
        path: the file; made at the first :meth:`append`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, values: Mapping[str, Any]) -> None:
        """Write one line and wait until it is on the disk."""
        with self.path.open("ab") as file:
            file.write(to_line(values))
            file.flush()
            os.fsync(file.fileno())

    def recover(self) -> list[dict[str, Any]]:
        """Read all lines; a last one that a kill has torn is cut off the file.

        Raises:
            ValueError: a damaged line that is not the last.
        """
        if not self.path.exists():
            return []
        whole, _, torn = self.path.read_bytes().rpartition(b"\n")
        lines = whole.split(b"\n") if whole else []
        records = []
        for number, line in enumerate(lines, 1):
            try:
                records.append(json.loads(line))
            except ValueError as error:
                raise ValueError(
                    f"{self.path}: line {number}: expected one JSON object per line, got a damaged line; "
                    "restore the file or start a new run"
                ) from error
        if torn:
            replace(self.path, [to_line(record) for record in records])
        return records


def to_line(values: Mapping[str, Any]) -> bytes:
    """One line of JSON, line break included."""
    return json.dumps(values, ensure_ascii=False).encode() + b"\n"


def replace(path: Path, parts: Iterable[bytes]) -> None:
    """Write a file so that at every moment either the old or the new one is there in full."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def parse_json(text: str | bytes) -> Any:  # noqa: ANN401 - whatever it holds
    """The JSON value in ``text``.

    Raises:
        ValueError: not JSON, or nested so deeply that Python gives up, which it reports as a RecursionError.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("brackets that are nested too deeply") from error


def read_json(path: Path, name: str, way_out: str) -> Any:  # noqa: ANN401 - whatever it holds
    """The JSON value in a file; messages call it ``name`` and end with ``way_out``.

    Raises:
        ValueError: a file that cannot be read, or that is not JSON.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{name}: cannot read {path}: {error.strerror}; {way_out}") from error
    except ValueError as error:
        raise ValueError(f"{name}: {path}: expected JSON, got {error}; {way_out}") from error


def replace_json(path: Path, values: Mapping[str, Any]) -> None:
    """:func:`replace` with one indented JSON object."""
    replace(path, [json.dumps(values, ensure_ascii=False, indent=1).encode(), b"\n"])
