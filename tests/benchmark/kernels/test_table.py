"""What is printed below a table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from specdecodes.benchmark.kernels.measure import Row
from specdecodes.benchmark.kernels.table import together


def rows(form: str, scan: float, conv: float, replay: float, nodes: int = 13) -> list[Row]:
    """Of the 8B shape with its 16 layers, in CUDA graphs; times in microseconds."""
    like = Row("mamba-in-llama-8b", "", nodes, form, 1, 1, 1, 1e-9, "bytes", captured=True)
    times = {"mamba2_tree": scan, "tree_conv": conv, "mamba2_commit": replay}
    return [replace(like, op=op, seconds=time * 1e-6) for op, time in times.items()]


def test_scan_and_conv_count_once_a_layer() -> None:
    """16 * (2 + 1) + 32 = 80 and 16 * (12 + 3) + 80 = 320."""
    assert list(together([*rows("triton", 2, 1, 32), *rows("peer:stree", 12, 3, 80)])) == [
        "scan + conv + replay of 16 layers, 13 nodes: triton 80.00 us, peer:stree 320.00 us: "
        "4.00 times as fast (goal: 4), all in CUDA graphs"
    ]


def test_every_form_of_ours_against_every_peer_at_its_own_size() -> None:
    found = [*rows("naive", 4, 4, 4), *rows("triton", 2, 2, 2), *rows("peer:stree", 8, 8, 8)]
    found += [*rows("triton", 3, 3, 3, nodes=64), *rows("peer:stree", 9, 9, 9, nodes=64), *rows("triton", 1, 1, 1, 32)]
    said = [line.partition(" layers, ")[2] for line in together(found)]
    assert said == [
        "13 nodes: naive 132.00 us, peer:stree 264.00 us: 2.00 times as fast (goal: 4), all in CUDA graphs",
        "13 nodes: triton 66.00 us, peer:stree 264.00 us: 4.00 times as fast (goal: 4), all in CUDA graphs",
        "64 nodes: triton 99.00 us, peer:stree 297.00 us: 3.00 times as fast (goal: 2), all in CUDA graphs",
    ]


def test_a_replay_that_is_part_of_the_others_is_a_line_of_its_own() -> None:
    fused = {"mamba2_tree": "mamba2_replay_tree", "tree_conv": "replay_conv", "mamba2_commit": "mamba2_defer"}
    ours = [replace(row, op=fused[row.op]) for row in rows("triton", 2, 1, 16)]
    said = list(together([*rows("triton", 2, 1, 32), *ours, *rows("peer:stree", 12, 3, 80)]))
    assert [line.partition(" of 16")[0] for line in said] == ["scan + conv + replay", "replay in scan and conv"]
    assert "triton 64.00 us, peer:stree 320.00 us: 5.00 times as fast (goal: 4)" in said[1]


@pytest.mark.parametrize("index", range(6))
def test_one_that_is_missing_or_failed(index: int) -> None:
    """A sum of two is no sum of three."""
    both = [*rows("triton", 2, 1, 32), *rows("peer:stree", 12, 3, 80)]
    assert not list(together(both[:index] + both[index + 1 :]))
    both[index] = replace(both[index], seconds=None, note="failed")
    assert not list(together(both))


@pytest.mark.parametrize("index", range(6))
def test_one_that_no_graph_held(index: int) -> None:
    both = [*rows("triton", 2, 1, 32, nodes=32), *rows("peer:stree", 12, 3, 80, nodes=32)]
    both[index] = replace(both[index], captured=False)
    (line,) = together(both)
    assert line.endswith("320.00 us: 4.00 times as fast, not all in CUDA graphs")
