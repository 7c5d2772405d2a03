"""Answers in FastChat's format, with the fields that Spec-Bench's speed script reads."""

from __future__ import annotations

from typing import Any

import shortuuid

from specdecodes.benchmark.records import QuestionRecord, TurnRecord


def answer_line(record: QuestionRecord, mode: str, model_id: str, run_id: str, finished: float) -> dict[str, Any]:
    """One question's answers by one mode, a choice per repeat.

    ``wall_time`` (prefill and decode, seconds), ``new_tokens`` and ``decoding_steps`` have one entry per turn;
    ``accept_lengths`` is one flat list over the turns, as Spec-Bench's scripts want it. The answer's id follows from
    the run, the question and the mode, so that a file written again after a kill is the same file.

    Args:
        record: the question. mode: whose answers. model_id, run_id: names.
        finished: seconds since the epoch.
    """
    repeats: dict[int, list[TurnRecord]] = {}
    for turn in record.of(mode):
        repeats.setdefault(turn.repeat, []).append(turn)
    return {
        "question_id": record.question_id,
        "category": record.category,
        "answer_id": shortuuid.uuid(name=f"{run_id}/{model_id}/{record.question_id}"),
        "model_id": model_id,
        "choices": [_choice(index, turns) for index, turns in repeats.items()],
        "tstamp": finished,
    }


def _choice(index: int, turns: list[TurnRecord]) -> dict[str, Any]:
    return {
        "index": index,
        "turns": [turn.text for turn in turns],
        "decoding_steps": [len(turn.accept_lengths) for turn in turns],
        "new_tokens": [turn.new_tokens for turn in turns],
        "wall_time": [turn.wall_seconds for turn in turns],
        "accept_lengths": [length for turn in turns for length in turn.accept_lengths],
    }
