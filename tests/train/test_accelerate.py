"""Several processes: the shipped configs as accelerate reads them, what is refused, and a run on two."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file
from torch.distributed.fsdp import StateDictType

from specdecodes.train.recipe import Training, load_recipe
from specdecodes.train.trainer import check_launch, processes
from tests.train.conftest import BAMBA, ROOT

CONFIGS = sorted((ROOT / "train" / "accelerate").glob("*.yaml"))
ADAMW = Training(tokens=1)
MUON = Training(tokens=1, optimizer="muon")


def launched(path: Path) -> Any:
    """What ``accelerate launch --config_file PATH`` makes of the file."""
    parser = launch_command_parser()
    return _validate_launch_command(parser.parse_args(["--config_file", str(path), "-m", "specdecodes.train"]))[0]


def test_both_ways_of_sharding_are_shipped() -> None:
    assert [path.stem for path in CONFIGS] == ["deepspeed_zero3", "fsdp"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_read_by_accelerate_and_every_key_means_something(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    assert (config.num_processes, config.mixed_precision, config.use_cpu) == (4, "bf16", False)
    known = set(vars(launch_command_parser().parse_args(["x.py"])))
    inner = {**config.deepspeed_config, **config.fsdp_config}
    assert inner and inner.keys() <= known
    top = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert top.keys() <= known | set(ClusterConfig.__dataclass_fields__)


def test_deepspeed_config_is_strees_and_leaves_models_whole_until_they_are_wrapped() -> None:
    args = launched(CONFIGS[0])
    assert args.use_deepspeed and not args.use_fsdp
    assert (args.zero_stage, args.num_processes, args.mixed_precision) == (3, 4, "bf16")
    assert args.zero3_save_16bit_model is True, "without it nothing can be saved"
    assert args.zero3_init_flag is False
    assert (args.gradient_accumulation_steps, args.gradient_clipping) == ("auto", "auto"), "the recipe's"


def test_fsdp_config_makes_the_plugin_that_we_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    args = launched(CONFIGS[1])
    assert args.use_fsdp and not args.use_deepspeed
    for name, value in prepare_multi_gpu_env(args).items():
        if "FSDP" in name:
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.state_dict_type == StateDictType.FULL_STATE_DICT
    assert not plugin.cpu_ram_efficient_loading
    check_launch(ADAMW)
    assert load_config_from_file(str(CONFIGS[1])).distributed_type == DistributedType.FSDP


@pytest.mark.parametrize(
    ("variable", "name"), [("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"), ("ACCELERATE_USE_FSDP", "FSDP")]
)
def test_muon_is_refused_where_matrices_are_sharded(variable: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_launch(MUON)
    monkeypatch.setenv(variable, "true")
    check_launch(ADAMW)
    with pytest.raises(ValueError, match=rf"Muon needs whole matrices and {name} shards them; set optimizer = 'adamw'"):
        check_launch(MUON)


def test_fsdp_that_would_empty_the_target_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    with pytest.raises(ValueError, match="fsdp_cpu_ram_efficient_loading: expected false, got true"):
        check_launch(ADAMW)


def test_every_recipe_for_sharding_avoids_muon() -> None:
    recipe = load_recipe(ROOT / "train" / "recipes" / "stree_mamba2_draft.toml")
    assert recipe.training.optimizer == "adamw"


def test_number_of_processes_is_the_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert processes() == 1
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert processes() == 4


def launch(count: int, *arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """``accelerate launch`` on this many CPU processes, as a user would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = {
        "compute_environment": "LOCAL_MACHINE",
        # With MULTI_CPU, accelerate starts one process and leaves the others to mpirun.
        "distributed_type": "MULTI_GPU" if count > 1 else "NO",
        "main_process_port": port,
        "mixed_precision": "no",
        "num_machines": 1,
        "num_processes": count,
        "use_cpu": True,
        "debug": False,
    }
    (folder / "cpu.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(folder / "cpu.yaml")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*command, "-m", "specdecodes.train", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=900,
        cwd=folder,
    )


@pytest.mark.slow
def test_two_processes_train_what_one_does(make_recipe: Callable[..., Path], data: Path, tmp_path: Path) -> None:
    """The same blocks a step, so the same weights but for the order of sums, and the same tokens seen."""
    settings = {"optimizer": "muon", "accumulate": 1, "bf16": False, "lr": 1e-3, "tokens": 192, "held_out": 0.1}
    outcomes, weights = [], []
    for count in (1, 2):
        recipe = make_recipe(training=settings | {"rows": 4 // count})
        out = tmp_path / f"by-{count}"
        done = launch(count, "pretrain", "--recipe", recipe, "--output", out, "--data", data, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("tokens_seen: 192") == 1, "expected the outcome once"
        outcomes.append(json.loads((out / "training.json").read_text(encoding="utf-8")))
        weights.append(load_file(out / "checkpoints" / "checkpoint-3" / "model.safetensors"))
    assert [outcome["processes"] for outcome in outcomes] == [1, 2]
    assert outcomes[0]["tokens_seen"] == outcomes[1]["tokens_seen"] == 192
    assert outcomes[0]["steps"] == outcomes[1]["steps"] == 3
    assert outcomes[0]["eval_loss"] == pytest.approx(outcomes[1]["eval_loss"], rel=1e-4)
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
def test_two_processes_refuse_bad_input_without_hanging(
    make_recipe: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    recipe = make_recipe(model=BAMBA | {"layers": 3})
    done = launch(2, "pretrain", "--recipe", recipe, "--output", tmp_path / "out", "--data", data, folder=tmp_path)
    assert done.returncode != 0
    assert "specdecodes.train: [model]: unknown setting 'layers'" in done.stderr
    assert not (tmp_path / "out").exists()
