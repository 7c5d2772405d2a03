"""The overhead benchmark runs, and its numbers stay within a multiple of their limits on a busy machine too."""

from __future__ import annotations

import json

import pytest

from specdecodes.benchmark import overhead

SLACK = 5
"""The limits hold on an idle machine (the command checks them); tests share theirs."""


def test_hooks_cost_microseconds():
    found = overhead.hook_overhead(repeats=50)
    assert 0.5 < found["hooks_us"] < SLACK * overhead.HOOKS_LIMIT_US
    assert found["hooks_and_timing_us"] > found["hooks_us"]


@pytest.mark.parametrize("draft", ["literal", "ngram", "model"])
def test_the_host_part_of_a_step_is_short(draft):
    found = overhead.host_overhead(draft, repeats=60)
    assert 0.01 < found["host_ms"] < SLACK * overhead.HOST_LIMIT_MS
    phases = sum(found[f"{phase}_ms"] for phase in ("propose", "build", "verify", "commit"))
    assert phases < found["host_median_ms"] * 1.05
    assert found["commit_ms"] < 0.2 * found["host_ms"], "commits are left out"


@pytest.mark.parametrize(("mode", "graphs"), [("naive", 1), ("stree", 4), ("dynamic", 4), ("ngram", 2)])
def test_a_captured_step_is_few_graphs_and_few_launches(mode: str, graphs: int) -> None:
    """Score and acceptance, commit, the draft with its tree, the draft's commit; what goes in and out of each."""
    found = overhead.captured_overhead(mode, repeats=20)
    assert found["graphs"] == graphs
    assert 3 <= found["launches"] <= 5 * graphs
    assert 10 < found["waits_us"] < 3 * found["host_us"] < 60_000  # on a busy machine the two medians scatter


@pytest.mark.parametrize("name", overhead.INDICES)
def test_an_index_answers_in_microseconds(name):
    found = overhead.drafter_overhead(name, repeats=5)
    assert 3 < found["answers_us"] < SLACK * overhead.DRAFTER_LIMIT_US
    assert found["answers_us"] < found["tensors_us"] < SLACK * overhead.DRAFTER_LIMIT_US
    assert 0 <= found["learns_us"] < 10 * overhead.DRAFTER_LIMIT_US


def test_the_command_prints_and_writes(tmp_path, capsys):
    path = tmp_path / "overhead.json"
    code = overhead.main(["--repeats", "5", "--threads", "1", "--json", str(path)])
    printed = capsys.readouterr().out
    assert code in (0, 1)
    assert printed.startswith("hooks: ") and "us a step (limit 10)" in printed and "host, draft ngram: " in printed
    found = json.loads(path.read_text())
    assert found["command"].endswith("specdecodes.benchmark.overhead --repeats 5 --threads 1 --json " + str(path))
    assert {"versions", "hardware", "commit", "limits", "hooks", "host"} <= set(found)
    assert set(found["host"]) == {"literal", "ngram", "model"}
    assert set(found["drafters"]) == set(overhead.INDICES)
    for mode, of_mode in found["captured"].items():
        assert f"captured, mode {mode}: {of_mode['graphs']:.1f} graphs and " in printed
    for name in overhead.INDICES:
        assert f"drafter {name}: {found['drafters'][name]['answers_us']:.1f} us a step (limit 50)" in printed


def test_a_wrong_option_is_one_line(capsys):
    assert overhead.main(["--repeats", "0"]) == 2
    assert capsys.readouterr().err == f"{overhead.PROG}: --repeats: expected at least 1, got 0\n"
