"""The n-gram drafter against brute force: its index, its ranking, its slots, and that generations do not meet."""

from __future__ import annotations

import gc
import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from specdecodes import assets
from specdecodes.plugins.drafters.ngram import ContextIndex, Ngram
from specdecodes.plugins.drafters.ngram_table import KEY_BITS, NgramTable
from specdecodes.testing import check_drafter

from .histories import check_best, context, grow, slots_of, state_of

VOCAB = 6


def sequence(length: int, seed: int, vocab_size: int = VOCAB) -> list[int]:
    return random.Random(seed).choices(range(vocab_size), [2**-i for i in range(vocab_size)], k=length)


def following(history: Sequence[int], suffix: Sequence[int]) -> Counter[int]:
    """What followed every occurrence of ``suffix`` in ``history``."""
    size = len(suffix)
    return Counter(history[i + size] for i in range(len(history) - size) if list(history[i : i + size]) == list(suffix))


def expected(
    history: Sequence[int], path: Sequence[int], max_order: int = 5, prior: float = 3.0, table: NgramTable | None = None
) -> dict[int, float]:
    """The documented formula, from the shortest context up, every context searched for in ``history``."""
    tokens = [*history, *path]
    p: dict[int, float] = {}
    for order in range(1, min(3, len(tokens)) + 1) if table else ():
        key = 0
        for token in tokens[-order:]:
            key = key << KEY_BITS | token + 1
        row = table.lookup.rows[order].get(key)
        if row is not None:
            found = dict(table.lookup.successors(row))
            p = {t: found.get(t, 0.0) + table.lookup.rest[row] * p.get(t, 0.0) for t in {*p, *found}}
    for order in range(1, min(max_order, len(tokens)) + 1):
        if counts := following(history, tokens[-order:]):
            weight = prior * len(counts)
            p = {t: (counts[t] + weight * p.get(t, 0.0)) / (counts.total() + weight) for t in {*p, *counts}}
    return p


@pytest.mark.parametrize("seed", range(4))
def test_index_equals_brute_force_suffix_search(seed: int) -> None:
    history = sequence(120, seed)
    index = ContextIndex(4)
    index.extend(history)
    for order in range(1, 5):
        runs = {tuple(history[i : i + order]) for i in range(len(history) - order)}
        brute = {}
        for run in runs:
            key = 0
            for token in run:
                key = key << KEY_BITS | token + 1
            brute[key] = dict(following(history, run))
        assert index.successors[order] == brute


def test_growing_equals_rebuilding() -> None:
    history, rng = sequence(200, 7), random.Random(0)
    rebuilt, grown = ContextIndex(5), ContextIndex(5)
    rebuilt.extend(history)
    while grown.length < len(history):
        grown.extend(history[grown.length : grown.length + rng.randint(0, 6)])
    assert (grown.successors, grown.key, grown.length) == (rebuilt.successors, rebuilt.key, rebuilt.length)


@pytest.mark.parametrize("max_order", [1, 2, 5, 9])
@pytest.mark.parametrize("with_table", [False, True])
def test_answers_follow_the_formula_along_every_path(max_order: int, with_table: bool) -> None:
    table = NgramTable.build([sequence(80, 1)], VOCAB, min_counts=(1, 2, 2), max_successors=3) if with_table else ""
    drafter = Ngram(context(VOCAB), max_order=max_order, table=table, prior=2.0)
    rng = random.Random(max_order)
    for length in (1, 2, 3, 40):
        history = sequence(length, length)
        proposal = drafter.propose(state_of(history))
        paths: list[list[int]] = [[]]
        for _ in range(4):
            slots = slots_of(*(rng.randrange(len(paths)) for _ in range(3)))
            children = torch.tensor([[rng.randrange(VOCAB) for _ in range(3)]])
            new = proposal.expand(slots, children)
            assert new.tolist() == [list(range(len(paths), len(paths) + 3))]
            paths += [
                [*paths[slot], token] for slot, token in zip(slots[0].tolist(), children[0].tolist(), strict=True)
            ]
        for k in (1, 3, VOCAB + 2):
            tokens, logq = proposal.topk(torch.arange(len(paths))[None], k)
            assert tokens.dtype == torch.long and logq.dtype == torch.float32
            assert tokens.shape == logq.shape == (1, len(paths), k)
            for slot, path in enumerate(paths):
                p = expected(history, path, max_order, 2.0, table or None)
                check_best((tokens, logq), p, place=slot)


def test_a_single_long_match_beats_the_table_and_a_spread_out_one_does_not() -> None:
    table = NgramTable.build([[1, 2] * 50], VOCAB)
    seen_once = Ngram(context(VOCAB), table=table).propose(state_of([3, 4, 5, 1, 0, 3, 4, 5, 1]))
    assert seen_once.topk(slots_of(0), 2)[0].tolist() == [[[0, 2]]]
    spread = Ngram(context(VOCAB), table=table).propose(state_of([1, 0, 1, 3, 1, 4, 1]))
    assert spread.topk(slots_of(0), 1)[0].tolist() == [[[2]]]


def test_token_0_is_not_the_start_of_the_text() -> None:
    drafter = Ngram(context(VOCAB), table=NgramTable.build([[0, 1, 2]] * 9, VOCAB, min_counts=(9, 9)))
    tokens, logq = drafter.propose(state_of([1])).topk(slots_of(0), 2)
    assert tokens.tolist() == [[[2, -1]]]
    assert logq[0, 0, 0] == pytest.approx(math.log(8.25 / 9), abs=1 / 32)  # not raised by the context (0, 1)


def test_no_candidates_below_a_missing_token_and_after_news() -> None:
    proposal = Ngram(context(VOCAB)).propose(state_of([0, 0, 0, 1]))
    assert proposal.topk(slots_of(0), 2)[0].tolist() == [[[-1, -1]]]
    below = proposal.expand(slots_of(0, 0), torch.tensor([[-1, 0]]))
    tokens, logq = proposal.topk(below, 2)
    assert tokens[0, 0].tolist() == [-1, -1] and logq[0, 0].tolist() == [-math.inf] * 2
    assert tokens[0, 1].tolist() == [0, 1]


def test_no_slots_no_answers() -> None:
    proposal = Ngram(context(VOCAB)).propose(state_of([0, 0]))
    none = torch.zeros(1, 0, dtype=torch.long)
    assert proposal.expand(none, none).shape == (1, 0)
    assert [t.shape for t in proposal.topk(none, 3)] == [(1, 0, 3)] * 2


def test_rows_have_their_own_context() -> None:
    rows = [sequence(30, 1), sequence(17, 2)]
    proposal = Ngram(context(VOCAB)).propose(state_of(*rows))
    new = proposal.expand(torch.zeros(2, 1, dtype=torch.long), torch.tensor([[1], [0]]))
    tokens, logq = proposal.topk(torch.cat([torch.zeros_like(new), new], 1), 3)
    for row, history in enumerate(rows):
        for place, path in enumerate(([], [[1], [0]][row])):
            check_best((tokens, logq), expected(history, path), row, place)


def test_each_step_takes_in_what_was_emitted() -> None:
    drafter, history = Ngram(context(VOCAB)), sequence(60, 3)
    state = state_of(history[:5])
    drafter.generation_started(state)
    place = 5
    while place < 60:
        proposal = drafter.propose(state)
        check_best(proposal.topk(slots_of(0), 4), expected(history[:place], []))
        grow(state, 0, history[place : place + place % 4])
        place += max(place % 4, 1)
        grow(state, 0, history[len(state.history[0]) : place])


def test_generations_do_not_leak_into_each_other() -> None:
    drafter = Ngram(context(VOCAB))
    first, second = state_of([1, 2, 3, 1]), state_of([1, 4, 5, 1])
    drafter.generation_started(first)
    drafter.generation_started(second)
    for _ in range(2):  # two streams in turn, then the next generation
        assert drafter.propose(first).topk(slots_of(0), 3)[0].tolist() == [[[2, -1, -1]]]
        assert drafter.propose(second).topk(slots_of(0), 3)[0].tolist() == [[[4, -1, -1]]]
    third = state_of([2, 2])
    drafter.generation_started(third)
    assert drafter.propose(third).topk(slots_of(0), 3)[0].tolist() == [[[2, -1, -1]]]
    del first, second
    gc.collect()
    assert len(drafter._indices) == 1


def test_there_is_no_distribution() -> None:
    proposal = Ngram(context(VOCAB)).propose(state_of([1, 1]))
    assert proposal.marginals is None and not Ngram.has_probs
    with pytest.raises(ValueError, match="no distribution over the vocabulary"):
        proposal.logq(slots_of(0))


def test_the_table_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.safetensors"
    table = NgramTable.build([[1, 2, 3]], VOCAB)
    table.save(path)
    monkeypatch.setattr(assets, "ngram_table", lambda: path)
    assert Ngram(context(VOCAB)).table is None
    assert Ngram(context(VOCAB, is_embedded=False)).table is None
    assert Ngram(context(VOCAB, is_embedded=True), table="").table is None
    assert Ngram(context(VOCAB), table=table).table is table
    for made in (
        Ngram(context(VOCAB, is_embedded=True)),
        Ngram(context(VOCAB), table="embedded"),
        Ngram(context(VOCAB), table=str(path)),
        Ngram(context(VOCAB), table=path),
    ):
        assert made.table is not None
        assert made.propose(state_of([1])).topk(slots_of(0), 1)[0].tolist() == [[[2]]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_order": 0}, "max_order: expected 1 to 64 tokens, got 0"),
        ({"max_order": 65}, "max_order: expected 1 to 64 tokens, got 65"),
        ({"prior": 0.0}, "prior: expected a number above 0, got 0"),
        ({"prior": math.nan}, "prior: expected a number above 0, got nan"),
        ({"table": "missing.safetensors"}, "expected a file, got 'missing.safetensors'"),
        ({"table": NgramTable.build([[1, 2]], VOCAB + 1)}, f"expected a vocabulary of {VOCAB} .*, got {VOCAB + 1}"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ngram(context(VOCAB), **settings)


def test_large_vocabularies_have_keys_of_their_own() -> None:
    top = 2**KEY_BITS - 2
    drafter = Ngram(context(top + 1), table=NgramTable.build([[top, top, 7, top, top, 7]], top + 1))
    assert drafter.propose(state_of([top, top])).topk(slots_of(0), 2)[0].tolist() == [[[7, top]]]
    with pytest.raises(ValueError, match="expected a vocabulary of at most"):
        Ngram(context(top + 2))


def test_the_contract() -> None:
    check_drafter(Ngram)


def test_a_step_of_eight_nodes_is_fast() -> None:
    """Under 0.1 ms on an idle core (0.045 ms measured); the bound leaves room for a loaded one."""
    vocab_size = 4096
    table = NgramTable.build([sequence(20_000, 1, 30)], vocab_size)
    drafter, state = Ngram(context(vocab_size), table=table), state_of(sequence(400, 2, 30))
    root, levels = slots_of(0), (3, 2, 1, 1)
    best = math.inf
    with torch.inference_mode():
        for _ in range(200):
            started = time.perf_counter()
            proposal, slots = drafter.propose(state), root
            for width in levels:
                tokens, _ = proposal.topk(slots, width)
                slots = proposal.expand(slots, tokens[..., 0])
            best = min(best, time.perf_counter() - started)
    assert best < 1e-3
