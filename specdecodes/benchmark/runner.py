"""One benchmark run: load, warm up, ask, write files as questions finish, summarise."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from specdecodes.benchmark.arms import Load, load_arms
from specdecodes.benchmark.bench import Bench
from specdecodes.benchmark.folder import RunFolder, check_place, open_folder
from specdecodes.benchmark.html import write_html
from specdecodes.benchmark.provenance import provenance
from specdecodes.benchmark.questions import Question, load_questions
from specdecodes.benchmark.settings import RunSettings
from specdecodes.benchmark.summary import Summary
from specdecodes.benchmark.watcher import Watcher
from specdecodes.core.load import load


def run(
    settings: RunSettings,
    *,
    watcher: Watcher | None = None,
    load: Load = load,
    command: Sequence[str] | None = None,
) -> Summary:
    """Compare the modes of ``settings`` with plain decoding.

    Args:
        settings: what to run. watcher: gets told of every answer.
        load: makes decoders, as :func:`specdecodes.load` does.
        command: goes into the files as the command that made them (None: this process's).

    Raises:
        ValueError: bad input; nothing has been written then.
    """
    questions = load_questions(
        settings.questions,
        hub_id=settings.hub_id,
        raw=settings.raw,
        prompt_tokens=settings.prompt_tokens,
        start=settings.start,
        end=settings.end,
        categories=settings.categories,
        max_questions=settings.max_questions,
    )
    fingerprint = settings.fingerprint(questions)
    earlier = check_place(settings, fingerprint)
    with _threads(settings.threads):
        bench = Bench(settings, load_arms(settings, load), watcher or Watcher())
        bench.warm_up(questions)
        folder = open_folder(settings, fingerprint, provenance(command or sys.argv, bench.device), earlier)
        _ask_all(bench, questions, folder)
        samples = bench.sample(questions, folder.records)
    summary = bench.summarise(folder, samples)
    folder.write_summary(summary.to_json())
    write_html(folder.summary_path, summary)
    return summary


def _ask_all(bench: Bench, questions: Sequence[Question], folder: RunFolder) -> None:
    """Ask what is not in ``folder`` yet; each question is on the disk before the next begins."""
    done = {record.question_id for record in folder.records}
    bench.watcher.begun(folder.records, len(questions))
    try:
        for index, question in enumerate(questions):
            if question.question_id not in done:
                record = bench.ask(index, question)
                folder.add(record)
                bench.watcher.finished(record)
    finally:
        bench.watcher.ended()


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Run with so many of torch's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
