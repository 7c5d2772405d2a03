"""What a tree costs in plain steps: the arithmetic, and a run on three layers; the figures themselves are no test."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from specdecodes.benchmark import step, step_device, step_rounds
from specdecodes.benchmark.shapes import SHAPES
from specdecodes.benchmark.step_predict import predict
from specdecodes.benchmark.step_ways import Way, build_model, cut, heap, weight_count
from specdecodes.testing.toys import toy_model


def test_heap_and_its_leftmost_path() -> None:
    tree, path = heap(13, 50, torch.device("cpu"))
    assert tree.parents.tolist() == [[-1, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]]
    assert path.tolist() == [[0, 1, 3, 7]]
    assert heap(1, 50, torch.device("cpu"))[1].tolist() == [[0]]


@pytest.mark.parametrize("name", ["bamba-9b", "mamba-in-llama-3b", "qwen3-next", "llama-8b", "mamba2-2.7b"])
def test_cut_keeps_the_first_layers(name: str) -> None:
    config = SHAPES[name].config()
    cut(config, 4)
    assert config.num_hidden_layers == 4
    for key in ("attn_layers", "attn_layer_indices"):
        assert all(index < 4 for index in getattr(config, key, None) or [])
    assert len(getattr(config, "layer_types", None) or [0] * 4) == 4


def test_a_way_measures_from_the_same_context_every_round() -> None:
    way = Way("eager", toy_model("bamba", seed=0), [1, 7], 5)
    way.restart()
    assert way.plain() > 0 and way.target.length == 6
    assert min(way.tree(7)) > 0 and way.target.length == 9
    assert not way.target.step_in_place
    way.restart()
    assert way.target.length == 5
    layers = sum(len(stack.layers) for stack in way.target.stacks)
    assert way.kept_bytes(7) == way.target.backend.bytes_per_node(way.target) / layers


def test_weights_leave_an_untied_input_embedding_out() -> None:
    model = toy_model("bamba", seed=0)
    everything = sum(each.numel() for each in model.parameters())
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert weight_count(model)[0] == (everything if inputs is outputs else everything - inputs.numel())
    untied = SHAPES["llama-8b"]
    assert weight_count(untied.skeleton) == (untied.parameters - 128256 * 4096, 32 * 7 + 1)


def test_a_prediction_counts_weights_once_and_everything_else_per_node() -> None:
    shape, found = SHAPES["mamba2-2.7b"], {}
    for nodes in (1, 13, 64):
        found[nodes] = predict(shape, nodes, "h200", torch.bfloat16, 256)
    weights = weight_count(shape.skeleton)[0]
    states = 64 * 80 * 64 * 128 * 4
    assert found[1].bytes == pytest.approx(2 * weights + 2 * states, rel=0.01)
    assert found[1].milliseconds == pytest.approx(found[1].bytes / 4.8e9, rel=1e-6), "one token is bound by bytes"
    assert found[1].plain_steps == 1
    assert 1 < found[13].plain_steps < found[64].plain_steps < 1.3
    assert found[64].flops == pytest.approx(64 * 2 * weights, rel=0.2)
    with pytest.raises(ValueError, match="without experts"):
        predict(SHAPES["qwen3-next"], 13, "h200", torch.bfloat16, 256)


def test_predictions_are_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "predicted.json"
    arguments = ["--predict", "h200", "--shape", "mamba2-2.7b", "--nodes", "1", "--nodes", "13", "--json", str(path)]
    assert step.main(arguments) == 0
    assert "nothing was run" in capsys.readouterr().out
    found = json.loads(path.read_text())
    assert [row["nodes"] for row in found["predicted"]["mamba2-2.7b"]] == [1, 13]


def test_what_the_profiler_saw_is_summed() -> None:
    def event(name: str, us: float, device: DeviceType = DeviceType.CPU) -> SimpleNamespace:
        return SimpleNamespace(name=name, device_type=device, time_range=SimpleNamespace(elapsed_us=lambda: us))

    on_gpu = [event("kernel", 30.0, DeviceType.CUDA), event("Memcpy DtoH", 2.5, DeviceType.CUDA)]
    on_host = [event("cudaStreamSynchronize", 9.0), event("cudaMemcpyAsync", 1.0), event("aten::add", 50.0)]
    assert step_device.summed([*on_gpu, *on_host]) == (32.5, 1)


def test_ratios_are_taken_within_a_round() -> None:
    row = step_rounds._row("eager", 4, [(1.0, 1.0), (3.0, 1.0), (5.0, 1.0)], plain=[1.0, 2.0, 2.0], own=[2.0, 4.0, 4.0])
    assert (row.score_ms, row.commit_ms) == (3000.0, 1000.0)
    assert (row.plain_steps, row.own_plain_steps) == (2.0, 1.0)


class Fixed:
    """A way, or stock, whose every step takes so many seconds."""

    def __init__(self, name: str, plain: float, score: float = 0.0, commit: float = 0.0) -> None:
        self.name, self.times, self.asked = name, (plain, score, commit), []

    def restart(self) -> None:
        self.asked.append("restart")

    def plain(self) -> float:
        return self.times[0]

    def tree(self, nodes: int) -> tuple[float, float]:
        self.asked.append(nodes)
        return nodes * self.times[1], self.times[2]


def test_rounds_keep_what_belongs_together() -> None:
    settings = step_rounds.Settings(nodes=(1, 4), rounds=2)
    way, stock = Fixed("eager", 1.0, score=2.0, commit=0.5), Fixed("stock", 3.0)
    plain, trees = step_rounds._rounds([way], stock, settings, lambda line: None)
    assert plain == {"stock": [3.0, 3.0], "eager": [1.0, 1.0]}
    assert trees == {("eager", 1): [(2.0, 0.5)] * 2, ("eager", 4): [(8.0, 0.5)] * 2}
    assert way.asked == ["restart", 1, 4] * 3, "from the same context every round, the first for warming up"


def test_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "step.json"
    sizes = ["--nodes", "1", "--nodes", "4", "--context", "8", "--rounds", "2", "--layers", "3"]
    assert step.main([*sizes, "--device", "cpu", "--json", str(path)]) == 0
    out = capsys.readouterr().out
    assert "a plain step is the fastest" in out and "kB per node and recurrent layer" in out
    found = json.loads(path.read_text())["shapes"][0]
    assert f"{found['copied'] / 1e9:.1f} GB/s of a copy" in out and found["gpu"] == {}
    assert found["floor_ms"] == pytest.approx(found["weight_bytes"] / found["copied"] * 1e3)
    assert set(found["plain_ms"]) == {"stock", "eager"}
    assert [row["nodes"] for row in found["rows"]] == [1, 4]
    assert found["plain_ms"][found["plain"]] == min(found["plain_ms"].values())
    assert set(found["decode"]["eager"]) == {"draft", "verify", "commit", "host", "tau"}


def test_random_weights_are_those_of_the_shape() -> None:
    model = build_model("embedded", 1, torch.device("cpu"), torch.float32)
    assert model.config.num_hidden_layers == 1 and model.dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "bamba"], "--shape: expected one of"),
        (["--nodes", "0"], "--nodes: expected tree sizes of at least 1, got [0]"),
        (["--rounds", "0"], "--rounds: expected at least 1, got 0"),
        (["--layers", "0"], "--layers: expected at least 1, got 0"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert step.main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
