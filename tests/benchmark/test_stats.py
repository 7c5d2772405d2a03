"""The arithmetic of the benchmark on numbers worked out by hand."""

from __future__ import annotations

import pytest

from specdecodes.benchmark.stats import (
    Pair,
    acceptance_by_depth,
    add_by_depth,
    add_by_rank,
    bootstrap_difference,
    bootstrap_ratio,
    distinct_ngrams,
    first_mismatch,
    mean_difference,
    rate,
    speed_ratio,
)


def test_rate_is_tokens_per_second_and_zero_without_time() -> None:
    assert rate(30, 1.5) == 20
    assert rate(0, 0.0) == 0


def test_speed_ratio_weighs_questions_by_their_length() -> None:
    # 10 tokens in 1 s and 90 in 9 s: 10 tokens/s; the mode needs 0.5 s and 9 s: 100 / 9.5.
    pairs = [Pair(10, 1.0, 10, 0.5), Pair(90, 9.0, 90, 9.0)]
    assert speed_ratio(pairs) == pytest.approx(10 / 9.5)
    assert speed_ratio([]) == 0


def test_bootstrap_of_equal_questions_has_no_width() -> None:
    interval = bootstrap_ratio([Pair(10, 2.0, 10, 1.0)] * 3, resamples=200)
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((2.0, 2.0))


def test_bootstrap_of_two_questions_reaches_both_extremes() -> None:
    # Of two questions, a resample holds one of them twice with probability 1/4 each: far above 2.5 %.
    interval = bootstrap_ratio([Pair(10, 1.0, 10, 1.0), Pair(10, 1.0, 10, 0.25)])
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((1.0, 4.0))


def test_bootstrap_keeps_the_two_sides_of_a_question_together() -> None:
    # The machine was ten times slower during the second question, for both sides alike.
    interval = bootstrap_ratio([Pair(10, 1.0, 10, 0.5), Pair(10, 10.0, 10, 5.0)] * 4)
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((2.0, 2.0))


def test_bootstrap_is_reproducible_and_needs_two_questions() -> None:
    pairs = [Pair(10, 1.0, 10, 0.1 * (i + 3)) for i in range(7)]
    assert bootstrap_ratio(pairs) == bootstrap_ratio(pairs)
    assert bootstrap_ratio(pairs[:1]) is None
    assert bootstrap_ratio([Pair(0, 0.0, 0, 0.0)] * 3) is None


def test_difference_weighs_answers_alike_and_draws_whole_questions() -> None:
    groups = [[1.0, 1.0, 1.0], [5.0]]
    assert mean_difference(groups) == 2.0
    # Of two questions a resample holds one twice with probability 1/4 each; an answer drawn alone would never matter.
    interval = bootstrap_difference(groups)
    assert interval is not None and (interval.low, interval.high) == (1.0, 5.0)
    assert bootstrap_difference(groups) == interval
    assert bootstrap_difference([[1.0, 2.0]]) is None


def test_distinct_ngrams_of_a_loop() -> None:
    # abcabcab: abca bcab cabc abca bcab, three of the five distinct
    assert distinct_ngrams([1, 2, 3, 1, 2, 3, 1, 2]) == (3, 5)
    assert distinct_ngrams([5, 5, 5, 5, 5]) == (1, 2)
    assert distinct_ngrams([1, 2, 3]) == (0, 0)


def test_first_mismatch() -> None:
    assert first_mismatch([1, 2, 3], [1, 2, 3]) is None
    assert first_mismatch([1, 2, 3], [1, 9, 3]) == 1
    assert first_mismatch([1, 2, 3], [1, 2]) == 2
    assert first_mismatch([], [4]) == 0


def test_acceptance_by_depth() -> None:
    assert add_by_depth([[4, 4, 2], [3, 1]]) == [7, 5, 2]
    assert add_by_depth([]) == []
    assert acceptance_by_depth([8, 4, 0], [6, 1, 0]) == [0.75, 0.25, 0.0]


def test_counts_by_rank_add_up_where_lists_end_early() -> None:
    assert add_by_rank([[[1, 2], [3]], [[10], [20, 30], [40]], []]) == [[11, 2], [23, 30], [40]]
    assert add_by_rank([]) == []
