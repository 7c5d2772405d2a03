"""One answer step by step, with its tokens' text: what the report draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specdecodes.benchmark.questions import Question
from specdecodes.core.decoder import Generation
from specdecodes.pictures.tokens import token_text
from specdecodes.plugins.observers.trace import Step


@dataclass(frozen=True)
class SampledStep:
    """A :class:`specdecodes.plugins.observers.trace.Step` with the text of its tokens instead of their ids."""

    texts: list[str]
    parents: list[int]
    kinds: list[str]


@dataclass(frozen=True)
class Sample:
    """What one mode did with one prompt.

    Attributes:
        question_id, category, prompt: what was asked. text: the answer. steps: how it came about.
    """

    mode: str
    question_id: int | str
    category: str
    prompt: str
    text: str
    steps: list[SampledStep]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Sample:
        """From what ``dataclasses.asdict`` made of it.

        Raises:
            KeyError, TypeError: the values are not those of a sample.
        """
        return cls(**{**values, "steps": [SampledStep(**step) for step in values["steps"]]})


def sample_of(mode: str, question: Question, asked: str, generation: Generation, tokenizer: Any) -> Sample:  # noqa: ANN401
    """The sample of an answer to the question's first turn, as ``asked``, that ``Trace`` has watched."""
    traced: Sequence[Step] = generation.extras["steps"]
    texts = {token: token_text(tokenizer, token) for step in traced for token in step.tokens}
    steps = [SampledStep([texts[token] for token in step.tokens], step.parents, step.kinds) for step in traced]
    return Sample(mode, question.question_id, question.category, asked, generation.text, steps)
