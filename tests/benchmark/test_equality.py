"""Which differences between two answers rounding explains."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from specdecodes.benchmark.equality import compare, tolerance
from specdecodes.core.sampling import SamplingParams

PROMPT = torch.tensor([[0, 3]])


class Scripted:
    """A target with the same logits after every prefix; remembers the prefix."""

    device = torch.device("cpu")

    def __init__(self, logits: list[float], dtype: torch.dtype = torch.float32) -> None:
        self.logits = torch.tensor([logits], dtype=dtype)
        self.dtype = dtype
        self.prefix: list[int] = []

    def prefill(self, ids: torch.Tensor) -> torch.Tensor:
        self.prefix = ids[0].tolist()
        return self.logits


def found(target: Any, baseline: list[int], answer: list[int], **params: Any) -> Any:
    return compare(target, SamplingParams(**params), PROMPT, baseline, answer)


def test_equal_answers_need_no_prefill() -> None:
    target = Scripted([0.0, 1.0])
    assert found(target, [1, 0], [1, 0]) is None
    assert target.prefix == []


def test_the_gap_is_taken_after_the_common_prefix() -> None:
    target = Scripted([0.0, 3.0, 1.0, 2.5])
    mismatch = found(target, [3, 1, 0], [3, 3, 0])
    assert target.prefix == [0, 3, 3]
    assert (mismatch.position, mismatch.tokens) == (1, (1, 3))
    assert mismatch.gap == pytest.approx(0.5)
    assert mismatch.shortfall == pytest.approx(0.5)
    assert not mismatch.explained


def test_a_near_tie_is_explained_only_between_the_tied_tokens() -> None:
    target = Scripted([0.0, 3.0, 3.00005, 1.0])
    assert found(target, [1], [2]).explained
    assert not found(target, [1], [3]).explained
    assert found(target, [1], [3]).gap < 1e-4


def test_an_answer_that_stops_early_is_never_explained() -> None:
    mismatch = found(Scripted([0.0, 3.0, 3.0]), [1, 2], [1])
    assert (mismatch.position, mismatch.tokens) == (1, (2, None))
    assert not mismatch.explained


def test_scores_are_processed_as_in_decoding() -> None:
    # Token 1 stands in the common prefix: the penalty takes its 3.0 down to 1.5, next to 1.5 of token 2.
    target = Scripted([0.0, 3.0, 1.5, 0.0])
    assert found(target, [1, 1], [1, 2], repetition_penalty=2.0).explained
    assert not found(target, [1, 1], [1, 2]).explained


def test_half_precision_is_measured_in_its_own_units() -> None:
    assert tolerance(torch.float32, 20.0) == tolerance(torch.float64, 20.0) == 1e-4
    assert tolerance(torch.bfloat16, 16.0) == 0.5
    assert found(Scripted([0.0, 16.0, 15.75], torch.bfloat16), [1], [2]).explained
    assert not found(Scripted([0.0, 16.0, 15.0], torch.bfloat16), [1], [2]).explained
