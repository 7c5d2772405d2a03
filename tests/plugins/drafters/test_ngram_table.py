"""The static table: counts, the file, its size, and files that are none."""

from __future__ import annotations

import math
import random
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from specdecodes.plugins.drafters.ngram_counts import DISCOUNT
from specdecodes.plugins.drafters.ngram_table import KEY_BITS, NgramTable

ARRAYS = ("context_tokens", "num_extensions", "num_successors", "successors", "probabilities")


def documents(count: int, length: int, vocab_size: int, seed: int = 0) -> list[list[int]]:
    """Text-like ids: a random walk in which small ids are frequent."""
    rng = random.Random(seed)
    return [
        [min(int(rng.paretovariate(0.8)) - 1, vocab_size - 1) for _ in range(rng.randint(0, length))]
        for _ in range(count)
    ]


def entries(table: NgramTable) -> dict[tuple[int, ...], dict[int, float]]:
    """Context tokens (oldest first) to {successor: probability}, in the order of the table."""
    found = {}
    lookup = table.lookup
    for key, row in (item for rows in lookup.rows for item in rows.items()):
        context = []
        while key:
            context.insert(0, (key & (1 << KEY_BITS) - 1) - 1)
            key >>= KEY_BITS
        found[tuple(context)] = dict(lookup.successors(row))
    return found


def counted(docs: list[list[int]], orders: int) -> dict[tuple[int, ...], Counter[int]]:
    counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for doc in docs:
        for order in range(1, orders + 1):
            for i in range(order, len(doc)):
                counts[tuple(doc[i - order : i])][doc[i]] += 1
    return counts


@pytest.mark.parametrize("vocab_size", [5, 300, 70_000])
def test_build_counts_what_a_plain_loop_counts(vocab_size: int) -> None:
    docs = documents(40, 60, vocab_size)
    table = NgramTable.build(docs, vocab_size, min_counts=(1, 2, 4), max_successors=3)
    minimum = {1: 1, 2: 2, 3: 4}
    expected = {c: n for c, n in counted(docs, 3).items() if n.total() >= minimum[len(c)]}
    found = entries(table)
    assert found.keys() == expected.keys()
    for context, successors in found.items():
        counts, total = expected[context], expected[context].total()
        assert len(successors) == min(3, len(counts))
        assert sorted((counts[t] for t in successors), reverse=True) == sorted(counts.values(), reverse=True)[:3]
        assert list(successors.values()) == sorted(successors.values(), reverse=True)
        for token, probability in successors.items():
            exact = (counts[token] - DISCOUNT) / total
            assert probability == pytest.approx(max(exact, math.exp(-255 / 16)), rel=math.expm1(1 / 32))


def test_what_the_successors_leave_over_goes_to_the_shorter_suffix() -> None:
    lookup = NgramTable.build([[1, 2, 1, 2, 1, 3]], 4, min_counts=(1,)).lookup
    row = lookup.rows[1][2]  # after token 1: 2, 2, 3
    kept = sum(p for _, p in lookup.successors(row))
    assert lookup.rest[row] == pytest.approx(1 - kept)
    assert kept == pytest.approx(1.5 / 3, rel=0.05)
    assert all(0 < rest <= 1 for rest in lookup.rest)


def test_no_context_crosses_documents() -> None:
    assert set(entries(NgramTable.build([[1, 2], [3, 4], [], [5]], 6, min_counts=(1, 1, 1)))) == {(1,), (3,)}


@pytest.mark.parametrize("vocab_size", [5, 4096, 70_000])
def test_save_and_load_give_the_same_table(vocab_size: int, tmp_path: Path) -> None:
    table = NgramTable.build(documents(30, 80, vocab_size), vocab_size)
    table.save(tmp_path / "table.safetensors")
    loaded = NgramTable.load(tmp_path / "table.safetensors", vocab_size)
    assert (loaded.vocab_size, loaded.orders) == (table.vocab_size, table.orders)
    for name in ARRAYS:
        assert np.array_equal(getattr(loaded, name), getattr(table, name))
    assert loaded.lookup == table.lookup


@pytest.mark.parametrize("max_bytes", [2048, 5_000, 20_000, 60_000])
@pytest.mark.parametrize("vocab_size", [4096, 70_000])
def test_budget_is_kept(max_bytes: int, vocab_size: int, tmp_path: Path) -> None:
    docs = documents(200, 300, vocab_size)
    table = NgramTable.build(docs, vocab_size, min_counts=(1, 1, 1), max_bytes=max_bytes)
    table.save(tmp_path / "table.safetensors")
    size = (tmp_path / "table.safetensors").stat().st_size
    assert (58_900 if max_bytes == 60_000 else 0) < size <= max_bytes
    # Rarest first: whatever was dropped is at most as frequent as whatever stayed.
    counts, kept = counted(docs, 3), entries(table)
    rarest = min(counts[c][t] for c, successors in kept.items() for t in successors)
    for context, successors in counts.items():
        best = sorted(successors.items(), key=lambda item: -item[1])[:8]
        have = Counter(successors[t] for t in kept.get(context, {}))
        assert all(have[n] >= sum(m == n for _, m in best) for _, n in best if n > rarest)
    assert all(context[1:] in kept for context in kept if len(context) > 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocab_size": 0}, "vocab_size: expected 1 to"),
        ({"vocab_size": 2**21}, "vocab_size: expected 1 to"),
        ({"vocab_size": 3}, "documents: expected token ids 0 to 2, got 0 to 3"),
        ({"min_counts": ()}, "min_counts"),
        ({"min_counts": (1, 1, 1, 1)}, "min_counts"),
        ({"min_counts": (2, 1)}, "min_counts: .* ascending"),
        ({"max_successors": 0}, "max_successors: expected 1 to 255, got 0"),
        ({"max_bytes": 100}, "max_bytes: expected at least"),
        ({"documents": []}, "at least one of two tokens"),
        ({"documents": [[1], [2]]}, "at least one of two tokens"),
        ({"documents": [[1, -1]]}, "expected token ids"),
    ],
)
def test_build_refuses(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NgramTable.build(**{"documents": [[0, 1, 2, 3]], "vocab_size": 4} | settings)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "table.safetensors"
    NgramTable.build(documents(30, 80, 50), 50).save(path)
    return path


def test_load_refuses_other_files(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a file, got"):
        NgramTable.load(tmp_path / "missing.safetensors")
    with pytest.raises(ValueError, match="expected a file, got"):
        NgramTable.load(tmp_path)
    other = tmp_path / "other.safetensors"
    other.write_text("hello")
    with pytest.raises(ValueError, match="expected a safetensors file"):
        NgramTable.load(other)
    other.write_bytes(saved.read_bytes()[:-7])
    with pytest.raises(ValueError, match="expected a safetensors file"):
        NgramTable.load(other)
    save_file({"weight": np.zeros(3, dtype=np.float32)}, other)
    with pytest.raises(ValueError, match=r"expected format 'specdecodes.ngram_table', version '1', got format None"):
        NgramTable.load(other)
    with pytest.raises(ValueError, match=r"expected a vocabulary of 51 \(the target's\), got 50"):
        NgramTable.load(saved, 51)


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("damage", ["missing", "shorter", "larger", "float", "matrix"])
def test_load_refuses_damaged_tables(saved: Path, name: str, damage: str) -> None:
    if (name, damage) == ("probabilities", "larger"):
        pytest.skip("every byte is a probability")
    arrays = load_file(saved)
    changed = {
        "shorter": lambda a: a[:-1],
        "larger": lambda a: a.astype(np.uint16) + 60,
        "float": lambda a: a.astype(np.float32),
        "matrix": lambda a: a[None],
    }
    if damage == "missing":
        del arrays[name]
    else:
        arrays[name] = changed[damage](arrays[name])
    orders = ",".join(str(n) for n in NgramTable.load(saved).orders)
    metadata = {"format": "specdecodes.ngram_table", "version": "1", "vocab_size": "50", "orders": orders}
    save_file(arrays, saved, metadata)
    with pytest.raises(ValueError, match="damaged"):
        NgramTable.load(saved)


@pytest.mark.parametrize(
    "metadata", [{}, {"orders": "1,x"}, {"orders": "1", "vocab_size": "many"}, {"orders": "-1,1", "vocab_size": "5"}]
)
def test_load_refuses_damaged_metadata(saved: Path, metadata: dict) -> None:
    save_file(load_file(saved), saved, {"format": "specdecodes.ngram_table", "version": "1"} | metadata)
    with pytest.raises(ValueError, match="damaged"):
        NgramTable.load(saved)


def test_a_megabyte_loads_quickly(tmp_path: Path) -> None:
    """About 0.05 s of CPU time on an idle core; six times that is the bound."""
    rng = np.random.default_rng(0)
    docs = [np.minimum(rng.zipf(1.3, 400_000) - 1, 4095)]
    NgramTable.build(docs, 4096, min_counts=(1, 1, 1)).save(tmp_path / "table.safetensors")
    assert (tmp_path / "table.safetensors").stat().st_size > 900_000
    times = []
    for _ in range(3):
        before = time.process_time()
        assert NgramTable.load(tmp_path / "table.safetensors").lookup.rows
        times.append(time.process_time() - before)
    assert min(times) < 0.3
