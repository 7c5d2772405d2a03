"""``python -m specdecodes.benchmark.kernels`` on tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specdecodes.benchmark.kernels import command, measure
from specdecodes.benchmark.kernels.command import PROG, main
from specdecodes.benchmark.kernels.ops import OPS
from specdecodes.benchmark.kernels.peers import PEERS
from specdecodes.benchmark.kernels.timing import Roofline
from specdecodes.benchmark.shapes import SHAPES

FLAT = Roofline(bandwidth=1e9, peak=1e10, launch=1e-6, source="made up")
QUICK = ["--shape", "tiny-bamba", "--tree-size", "3", "--context", "20", "--repeats", "2", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MOST_COPIES", 1)
    monkeypatch.setattr(command, "measure_roofline", lambda *_: FLAT)


def test_tables_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "kernels.json"
    assert main([*QUICK, "--shape", "tiny-mamba", "--implementation", "naive", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "tiny-bamba: tiny" in printed and "tiny-mamba: tiny" in printed and "of roofline" in printed
    assert "float32, one row, 20 committed tokens" in printed
    assert "roofline of cpu: 1.0 GB/s, 10.0 GFLOP/s, 1.00 us the smallest call (made up)" in printed
    found = json.loads(path.read_text())
    assert found["command"].startswith("python -m specdecodes.benchmark.kernels --shape tiny-bamba")
    assert {"versions", "hardware", "commit"} <= set(found)
    assert found["rooflines"] == {"cpu": {"bandwidth": 1e9, "peak": 1e10, "launch": 1e-6, "source": "made up"}}
    assert (found["dtype"], found["context"]) == ("float32", 20)
    rows = found["rows"]
    expected = {op for op in OPS if "delta" not in op}
    assert {row["op"] for row in rows} == expected and {row["form"] for row in rows} == {"naive"}
    for row in rows:
        assert row["seconds"] > 0 and row["error"] < 2e-5 and row["bytes"] > 0


def test_what_is_asked_for_is_what_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--op", "mamba2_tree", "--op", "kv_gather", "--tree-size", "5", "--dtype", "bfloat16"]) == 0
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines() if "mamba2_tree" in line or "kv_gather" in line]
    cells = [[cell for cell in line if cell != "│"][:3] for line in lines]
    assert cells == [
        ["mamba2_tree", "3", "naive"],
        ["mamba2_tree", "5", "naive"],
        *[["kv_gather", n, "naive"] for n in "34"],
    ]
    assert "bfloat16, one row" in printed


def test_a_prediction_runs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "measured", None)
    path = tmp_path / "h200.json"
    assert main(["--predict", "h200", "--op", "mamba2_tree", "--tree-size", "13", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "mamba-in-llama-8b" in printed and "of roofline" not in printed
    (line,) = (line for line in printed.splitlines() if "mamba2_tree" in line)
    # 2,631,465 bytes at 4.8 TB/s
    assert [cell for cell in line.split() if cell != "│"] == [
        "mamba2_tree",
        "13",
        "2.631",
        "16.40",
        "1",
        "bytes",
        "0.55",
    ]
    assert "roofline of h200: 4800.0 GB/s, 989400.0 GFLOP/s (https://www.nvidia.com/en-us/data-center/h200/" in printed
    (row,) = json.loads(path.read_text())["rows"]
    assert row["seconds"] is None and row["predicted_seconds"] == pytest.approx(2_631_465 / 4.8e12)


def test_a_prediction_of_every_shape(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing of the models is allocated, however large they are."""
    flags = [flag for name in SHAPES for flag in ("--shape", name)]
    assert main(["--predict", "h100", "--tree-size", "13", *flags]) == 0
    printed = capsys.readouterr().out
    assert all(op in printed for op in OPS) and all(f"{name}: " in printed for name in SHAPES)


@pytest.fixture
def peer(tmp_path: Path) -> str:
    """STree's layout, and a function that asks for a GPU."""
    file = tmp_path / "mamba_ssm/ops/triton/tree_scan.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "def tree_scan_mask_combined_fwd(x, dt, A, B, C, dA_mask, chunk_size, D=None, initial_states=None):\n"
        "    raise RuntimeError('0 active drivers')\n"
    )
    return f"stree={tmp_path}"


def test_peers_are_timed_beside_ours(peer: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--op", "mamba2_tree", "--op", "kv_gather", "--implementation", "naive", "--peer", peer]
    assert main([*QUICK, *flags]) == 0
    printed = capsys.readouterr().out
    assert printed.count("peer:stree") == 2, "a row and its note"
    assert "mamba2_tree, 3 nodes: peer:stree failed: 0 active drivers" in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shape", "llama-80b"], "--shape: expected one of bamba-9b, "),
        (["--tree-size", "0"], "--tree-size: expected at least 1, got 0"),
        (["--tree-size", "5000"], "--tree-size: expected a tree of at most 4096 nodes, got 5000; choose a smaller one"),
        (["--repeats", "0"], "--repeats: expected at least 1, got 0"),
        (["--context", "0"], "--context: expected at least 1, got 0"),
        (["--op", "mamba3_tree"], "argument --op: invalid choice: 'mamba3_tree'"),
        (["--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        (["--device", "tpu"], "device: expected 'cpu' or 'cuda[:N]', got 'tpu'"),
        (["--implementation", "cuda"], "argument --implementation: invalid choice: 'cuda'"),
        (["--peer", "vllm=x"], "--peer: expected one of flash-linear-attention, mamba-ssm, stree, got 'vllm'"),
        (["--json", "no/such/folder.json"], "--json: expected a file in a folder that exists, got "),
        (
            ["--op", "linear", "--peer", "PEER"],
            "--peer: expected one of mamba2_tree, tree_conv, mamba2_commit among the ops",
        ),
        (["--predict", "h200", "--device", "cpu"], "--device: expected none with --predict, which runs nothing"),
        (["--predict", "h200", "--peer", "stree=x"], "--peer: expected none with --predict, which runs nothing"),
        (
            ["--shape", "tiny-llama", "--op", "s6_tree"],
            "--op: expected one that tiny-llama has, got s6_tree",
        ),
        (
            ["--shape", "tiny-bamba", "--op", "mamba2_tree", "--device", "cpu", "--implementation", "triton"],
            "--implementation: expected one that an op has for float32 on cpu, got 'triton'; 'specdecodes doctor'",
        ),
    ],
)
def test_bad_input_is_one_line(flags: list[str], message: str, peer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag if flag != "PEER" else peer for flag in flags]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"{PROG}: {message}") and said.err.count("\n") == 1
    assert not said.out


def test_help_names_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    functions = [function for peers in PEERS.values() for peer in peers for function in peer.functions]
    assert all(name in printed for name in (*OPS, *SHAPES, *functions))
