"""The suffix automaton against a naive search of the text for every suffix."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specdecodes.plugins.drafters.suffix_automaton import SEPARATOR, SuffixAutomaton

short = st.lists(st.integers(0, 2), max_size=4)
texts = st.one_of(
    st.lists(st.integers(0, 2), max_size=40),
    st.lists(st.integers(0, 1), max_size=40),
    st.builds(lambda start, unit, times, end: [*start, *unit * times, *end], short, short, st.integers(1, 9), short),
)


def ends(text: Sequence[int], word: Sequence[int]) -> frozenset[int]:
    """Where ``word`` ends in ``text``."""
    size = len(word)
    return frozenset(i + size for i in range(len(text) - size + 1) if list(text[i : i + size]) == list(word))


def naive(text: Sequence[int], match: Sequence[int], max_context: int) -> list[tuple[int, Counter[int]]]:
    """(length, continuations) of the suffixes of ``match`` that were followed, one per set of ends, longest first."""
    found, seen = [], set()
    for size in range(len(match), 0, -1):
        places = ends(text, match[-size:])
        counts = Counter(text[place] for place in places if place < len(text))
        if places in seen or not counts:
            seen.add(places)
            continue
        seen.add(places)
        shortest = min(s for s in range(1, size + 1) if ends(text, match[-s:]) == places)
        found.append((size, counts if shortest <= max_context else Counter(counts.keys())))
    return found


def longest(text: Sequence[int], word: Sequence[int]) -> list[int]:
    """The longest suffix of ``word`` that occurs in ``text``."""
    return next(list(word[start:]) for start in range(len(word) + 1) if start == len(word) or ends(text, word[start:]))


def contexts(automaton: SuffixAutomaton, state: int, length: int) -> list[tuple[int, dict[int, int]]]:
    return [(size, automaton.continuations(found)) for size, found in automaton.suffixes(state, length)]


@given(text=texts, words=st.lists(st.lists(st.integers(0, 3), max_size=8), max_size=4), max_context=st.integers(1, 6))
@settings(max_examples=300, deadline=None)
def test_matches_and_counts_equal_a_naive_search(text, words, max_context):
    automaton = SuffixAutomaton(max_context)
    own: list[int] = []
    for end, token in enumerate(text, 1):
        automaton.extend([token])
        assert automaton.size == end
        so_far = text[:end]
        own = longest(so_far[:-1], so_far)
        state, length = automaton.root
        assert length == len(own)
        assert contexts(automaton, state, length) == naive(so_far, own, max_context)
    for word in words:
        (state, length), matched = automaton.root, own
        for token in word:
            state, length = automaton.step(state, length, token)
            matched = longest(text, [*matched, token])
            assert length == len(matched)
            assert contexts(automaton, state, length) == naive(text, matched, max_context)


@given(text=texts, more=texts, word=st.lists(st.integers(0, 2), max_size=6))
@settings(max_examples=200, deadline=None)
def test_a_match_outlives_the_growth_of_the_text(text, more, word):
    automaton = SuffixAutomaton(4)
    automaton.extend(text)
    match, matched = (0, 0), []
    for token in word:
        match, matched = automaton.step(*match, token), longest(text, [*matched, token])
    automaton.extend(more)
    state, length = automaton.settle(*match)
    assert length == len(matched)
    assert contexts(automaton, state, length) == naive([*text, *more], matched, 4)


def test_nothing_is_matched_across_a_separator():
    automaton = SuffixAutomaton()
    automaton.extend([1, 2, SEPARATOR, 3, 1, SEPARATOR])
    state, length = automaton.step(0, 0, 2)
    assert (length, automaton.continuations(state)) == (1, {SEPARATOR: 1})
    state, length = automaton.step(state, length, 3)
    assert length == 1, "2 and 3 stand in different documents"
    assert automaton.step(0, 0, -1) == (0, 0), "the token of a missing candidate is no separator"


@pytest.mark.parametrize("unit", [[1], [1, 2], list(range(7))])
def test_a_token_costs_the_same_however_long_the_text(unit):
    """Loops are the worst case of walking along the links; measured: 2 us a token at the start and at the end."""
    automaton = SuffixAutomaton()
    seconds = []
    for _ in range(20):
        text = unit * (1400 // len(unit))
        began = time.perf_counter()
        automaton.extend(text)
        seconds.append(time.perf_counter() - began)
    assert min(seconds[-10:]) < 4 * min(seconds[:10])
    state, length = automaton.root
    assert length == automaton.size - len(unit)
    assert list(automaton.continuations(state)) == [unit[0]]
