"""The folder of one run: what it was asked, what is done, the answers, the summary."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import shortuuid

from specdecodes.benchmark.answers import answer_line
from specdecodes.benchmark.journal import Journal, replace, replace_json, to_line
from specdecodes.benchmark.records import QuestionRecord
from specdecodes.benchmark.settings import RunSettings

DEFAULT_PARENT = Path("runs")
RUN_FILE = "run.json"
_LINE_BY_LINE = ("rows", "samples")


@dataclass
class RunFolder:
    """``run.json`` (settings, where it ran), ``journal.jsonl`` (the truth), ``model_answer/<model id>.jsonl``.

    The answer files follow from the first two: they are appended to as questions finish and written anew on resume.

    Attributes:
        path: the folder. summary_path: where the summary goes.
        model_ids: mode to the name in its answer file.
        records: the questions that are done.
    """

    path: Path
    summary_path: Path
    run_id: str
    model_ids: Mapping[str, str]
    sessions: list[dict[str, Any]]
    records: list[QuestionRecord] = field(default_factory=list)

    def add(self, record: QuestionRecord) -> None:
        """Keep one finished question: the journal first, then every mode's answer file."""
        finished = time.time()
        Journal(self.path / "journal.jsonl").append({**record.to_json(), "finished": finished})
        self.records.append(record)
        if record.skipped is None:
            for mode, model_id in self.model_ids.items():
                line = answer_line(record, mode, model_id, self.run_id, finished)
                Journal(self.answer_file(mode)).append(line)

    def answer_file(self, mode: str) -> Path:
        """Where the answers of ``mode`` are."""
        return self.path / "model_answer" / f"{self.model_ids[mode]}.jsonl"

    def write_summary(self, values: Mapping[str, Any]) -> None:
        """Write the summary, replacing an earlier one of this run: indented, but one line per row and sample."""
        head = {name: value for name, value in values.items() if name not in _LINE_BY_LINE}
        text = json.dumps(head, ensure_ascii=False, indent=1).removesuffix("\n}")
        for name in _LINE_BY_LINE:
            lines = ",\n  ".join(json.dumps(line, ensure_ascii=False) for line in values[name])
            text += f',\n "{name}": [\n  {lines}\n ]'
        replace(self.summary_path, [f"{text}\n}}\n".encode()])

    def _recover(self) -> None:
        """Read the journal and make the answer files agree with it."""
        lines = Journal(self.path / "journal.jsonl").recover()
        finished = [line.pop("finished") for line in lines]
        self.records = [QuestionRecord.from_json(line) for line in lines]
        for mode, model_id in self.model_ids.items():
            done = [(r, t) for r, t in zip(self.records, finished, strict=True) if r.skipped is None]
            answers = (to_line(answer_line(r, mode, model_id, self.run_id, t)) for r, t in done)
            replace(self.answer_file(mode), answers)


def check_folder(name: str, path: Path | None) -> None:
    """Refuse a ``path`` (setting ``name``) that is something else than a folder or nothing yet.

    Raises:
        ValueError: it is a file, or lies in one.
    """
    for place in () if path is None else (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise ValueError(f"{name}: expected a folder, got {str(path)!r}, where a file is; choose another name")


def check_place(settings: RunSettings, fingerprint: Mapping[str, Any]) -> Path | None:
    """The folder to go on with, or None for a new one. Reads only, so that bad input is refused before any work.

    Raises:
        ValueError: nothing to resume, a run made with other settings, or a folder that holds a run already.
    """
    for name in ("out_dir", "log_dir"):
        check_folder(name, getattr(settings, name))
    if not settings.resume:
        for place in (settings.out_dir, settings.log_dir if settings.out_dir else None):
            for name in (RUN_FILE, "model_answer", "summary.json"):
                if place is not None and (place / name).exists():
                    raise ValueError(
                        f"out_dir: expected a folder without a run, got {place}, which holds {name}; "
                        "go on with that run by --resume, or choose another folder"
                    )
        return None
    folder = settings.out_dir or _latest(settings.log_dir or DEFAULT_PARENT)
    if not (folder / RUN_FILE).exists():
        if (folder / "model_answer").exists():
            raise ValueError(
                f"resume: expected a run in {folder}, got answers without a {RUN_FILE}; choose another folder"
            )
        return None  # killed before anything was written, or a first run
    _check_same(folder, _read_run(folder)["fingerprint"], fingerprint)
    return folder


def open_folder(
    settings: RunSettings, fingerprint: Mapping[str, Any], session: Mapping[str, Any], earlier: Path | None
) -> RunFolder:
    """Make the folder of a new run, or open ``earlier`` (what :func:`check_place` returned) to go on with it."""
    path = earlier or settings.out_dir or new_folder(settings.log_dir or DEFAULT_PARENT)
    summary = settings.log_dir if settings.log_dir and settings.out_dir else path
    new: dict[str, Any] = {"run_id": shortuuid.uuid(), "fingerprint": dict(fingerprint), "sessions": []}
    values = _read_run(path) if earlier else new
    values["sessions"] = [*values["sessions"], dict(session)]
    (path / "model_answer").mkdir(parents=True, exist_ok=True)
    summary.mkdir(parents=True, exist_ok=True)
    replace_json(path / RUN_FILE, values)
    model_ids = {mode: settings.model_id(mode) for mode in settings.modes}
    folder = RunFolder(path, summary / "summary.json", values["run_id"], model_ids, values["sessions"])
    folder._recover()
    return folder


def _read_run(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        if not values.keys() >= {"run_id", "fingerprint", "sessions"}:
            raise ValueError("a key is missing")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"resume: cannot read {folder / RUN_FILE} ({error}); choose another folder") from error
    return dict(values)


def _check_same(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name in (*now, *(set(before) - set(now))):
        if before.get(name) != now.get(name):
            raise ValueError(
                f"resume: the answers in {folder} come from other settings: expected {name} = {before.get(name)!r}, "
                f"got {now.get(name)!r}; repeat the first command with --resume, or choose another folder"
            )


def _latest(parent: Path) -> Path:
    runs: Sequence[Path] = sorted(path.parent for path in parent.glob(f"*/{RUN_FILE}"))
    if not runs:
        raise ValueError(f"resume: expected an earlier run below {parent}, found none; name its folder with --out-dir")
    return runs[-1]


def new_folder(parent: Path) -> Path:
    """Make a folder named after the time.

    Raises:
        ValueError: there is no name left.
    """
    name = time.strftime("%Y%m%d-%H%M%S")
    for number in range(1, 1000):
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
    raise ValueError(f"log_dir: expected room for a new folder in {parent}, found none")
