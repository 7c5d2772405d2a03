"""A training that is killed goes on where it was, and what it leaves behind is whole."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, TrainerControl, TrainerState, TrainingArguments

from specdecodes.train.pretrain import pretrain
from specdecodes.train.recipe import load_recipe
from specdecodes.train.results import RunLog, last_checkpoint, mean_loss, save_model, tokens_seen
from specdecodes.train.trainer import RecipeTrainer
from tests.train.conftest import BAMBA, SOURCE, write_toml

Make = Callable[..., Path]
STEPS = 6


class Killed(BaseException):
    """Stands for a signal."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """What four steps at a high rate have left behind, recipe included; a test that writes to it takes a copy."""
    folder = tmp_path_factory.mktemp("trained")
    training = {"tokens": 128, "block": 16, "rows": 2, "lr": 0.1, "held_out": 0.1}
    tables = {"task": "pretrain", "model": BAMBA, "data": [SOURCE], "training": training}
    recipe = write_toml(folder / "recipe.toml", {**tables, "tokenizer": {"vocab_size": 270}})
    pretrain(load_recipe(recipe), folder / "out", data)
    return folder


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copied"))


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Tensor]]:
    """(step, ids) of every batch that is trained on."""
    found: list[tuple[int, Tensor]] = []
    stock = RecipeTrainer.training_step

    def training_step(self: RecipeTrainer, model: Any, inputs: dict[str, Tensor], *rest: Any) -> Tensor:
        # Noise, so that a generator that is not restored shows in the weights.
        found.append((self.state.global_step, inputs["input_ids"].clone()))
        loss = stock(self, model, inputs, *rest)
        for parameter in model.parameters():
            parameter.grad += 1e-2 * torch.randn_like(parameter)
        return loss

    monkeypatch.setattr(RecipeTrainer, "training_step", training_step)
    return found


def kill_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def on_step_end(
        self: RunLog, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step == step:
            raise Killed

    monkeypatch.setattr(RunLog, "on_step_end", on_step_end)


def same(a: Any, b: Any) -> bool:
    """Equal nested values, tensors bit for bit."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "killed"), [("muon", 3), ("adamw", 5)], ids=["muon, inside an epoch", "adamw, after an epoch"]
)
def test_killed_run_goes_on_to_the_very_same_weights(
    optimizer: str,
    killed: int,
    make_recipe: Make,
    data: Path,
    tmp_path: Path,
    batches: list[tuple[int, Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # 4 steps an epoch: the checkpoint of step 2 lies inside the first, that of step 4 at its end.
    recipe = load_recipe(make_recipe(training={"optimizer": optimizer, "save_steps": 2, "eval_steps": 2}))
    whole = pretrain(recipe, tmp_path / "whole", data)
    expected = list(batches)
    assert whole["steps"] == STEPS
    batches.clear()
    with monkeypatch.context() as patch:
        kill_at(killed, patch)
        with pytest.raises(Killed):
            pretrain(recipe, tmp_path / "parts", data)
    assert not (tmp_path / "parts" / "config.json").exists() and not (tmp_path / "parts" / "training.json").exists()
    saved = killed // 2 * 2
    batches[:] = [(step, ids) for step, ids in batches if step < saved]
    parts = pretrain(recipe, tmp_path / "parts", data)

    assert [step for step, _ in batches] == [step for step, _ in expected]
    assert same([ids for _, ids in batches], [ids for _, ids in expected]), "expected the data in the same order"
    last = Path("checkpoints") / f"checkpoint-{STEPS}"
    for file in ("model.safetensors", last / "model.safetensors"):
        assert same(load_file(tmp_path / "parts" / file), load_file(tmp_path / "whole" / file)), file
    for file in ("optimizer.pt", "scheduler.pt"):
        ends = [torch.load(tmp_path / part / last / file, weights_only=True) for part in ("parts", "whole")]
        assert same(*ends), file
    for name in ("steps", "tokens_seen", "tokens_in_data", "train_loss", "eval_loss", "parameters"):
        assert parts[name] == whole[name], name
    assert [run["from_step"] for run in parts["runs"]] == [0, saved]
    assert [run["to_step"] for run in parts["runs"]] == [killed - 1, STEPS]


@pytest.mark.slow
def test_seconds_count_all_runs_and_a_finished_training_stays_as_it_is(
    make_recipe: Make, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(make_recipe())
    with monkeypatch.context() as patch:
        kill_at(4, patch)
        with pytest.raises(Killed):
            pretrain(recipe, tmp_path, data)
    runs = json.loads((tmp_path / "checkpoints" / "runs.json").read_text(encoding="utf-8"))["runs"]
    assert len(runs) == 1 and runs[0]["to_step"] == 3
    runs[0]["seconds"] = 1000.0  # as if it had been long; its work is lost, its time is not
    (tmp_path / "checkpoints" / "runs.json").write_text(json.dumps({"runs": runs}), encoding="utf-8")
    first = pretrain(recipe, tmp_path, data)
    assert first["seconds"] == pytest.approx(1000 + first["runs"][1]["seconds"], abs=0.11)
    weights = (tmp_path / "model.safetensors").read_bytes()

    monkeypatch.setattr(RecipeTrainer, "training_step", None)  # not a step more
    (tmp_path / "config.json").unlink()  # a kill while the results were written
    second = pretrain(recipe, tmp_path, data)
    assert (tmp_path / "model.safetensors").read_bytes() == weights
    assert len(second["runs"]) == 3 and second["runs"][2]["from_step"] == second["runs"][2]["to_step"] == STEPS
    for name in ("steps", "tokens_seen", "train_loss", "eval_loss", "log"):
        assert second[name] == first[name], name
    assert json.loads((tmp_path / "training.json").read_text(encoding="utf-8")) == second


def test_training_json_says_where_it_comes_from(trained: Path) -> None:
    text = (trained / "out" / "training.json").read_text(encoding="utf-8")
    found = json.loads(text)
    assert found["tokens_seen"] == 128 and found["steps"] == 4 and found["processes"] == 1
    assert found["recipe"] == "recipe.toml" and found["task"] == "pretrain"
    assert 0 < found["train_loss"] < 10 and found["eval_perplexity"] == pytest.approx(math.exp(found["eval_loss"]))
    run = found["runs"][0]
    assert run["versions"]["transformers"] and run["hardware"]["cores"] >= 1 and "commit" in run
    assert [entry["step"] for entry in found["log"] if "loss" in entry] == [1, 2, 3, 4]
    assert str(trained) not in text, "expected no path of the machine it ran on"
    assert not list(trained.glob("**/*.tmp")) and not list(trained.glob("**/.*partial"))


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ("lr = 0.1", "lr = 0.2", r"training\.lr: expected 0\.1, got 0\.2"),
        ('"bamba"\nhidden_size = 16', '"bamba"\nhidden_size = 32', r"model\.hidden_size: expected 16, got 32"),
        ("block = 16", "block = 8", r"data\.blocks: expected \d+, got \d+"),
    ],
    ids=["rate", "model", "data"],
)
def test_folder_of_another_training_is_refused(before: str, after: str, named: str, copied: Path, data: Path) -> None:
    recipe = copied / "recipe.toml"
    changed = recipe.read_text(encoding="utf-8").replace(before, after)
    assert after in changed
    recipe.write_text(changed.replace("mamba_expand = 2", f"mamba_expand = {1 if '= 32' in after else 2}"))
    files = {p: p.read_bytes() for p in (copied / "out").rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match=f"--output: .* holds checkpoints of another training: {named}"):
        pretrain(load_recipe(recipe), copied / "out", data)
    assert {p: p.read_bytes() for p in (copied / "out").rglob("*") if p.is_file()} == files


def test_how_often_to_save_may_change(copied: Path, data: Path) -> None:
    recipe = copied / "recipe.toml"
    changed = recipe.read_text(encoding="utf-8").replace("lr = 0.1", "lr = 0.1\nsave_steps = 7\neval_steps = 7")
    recipe.write_text(changed, encoding="utf-8")
    assert load_recipe(recipe).training.save_steps == 7
    assert pretrain(load_recipe(recipe), copied / "out", data)["steps"] == 4


def test_torn_checkpoint_is_passed_over(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "none") is None
    for step, state in ((2, "{}"), (10, "{}"), (12, '{"global_step": '), (14, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state, encoding="utf-8")
    (tmp_path / "checkpoint-best").mkdir()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


@pytest.mark.parametrize(("steps", "accumulate"), [(1, 2), (5, 2), (10, 1)])
def test_tokens_seen_are_the_tokens_trained_on(
    steps: int, accumulate: int, make_recipe: Make, data: Path, tmp_path: Path, batches: list[tuple[int, Tensor]]
) -> None:
    settings = {"tokens": steps * 32 * accumulate, "accumulate": accumulate, "held_out": 0.0}
    outcome = pretrain(load_recipe(make_recipe(training=settings)), tmp_path / "out", data)
    assert outcome["steps"] == steps and outcome["eval_loss"] is None
    assert outcome["tokens_seen"] == sum(ids.numel() for _, ids in batches)


def test_tokens_seen_by_several_processes() -> None:
    # 10 blocks of 8 tokens, 2 processes of 3 rows: an epoch is filled up to 12 blocks, in two steps.
    assert [tokens_seen(n, 10, 8, 3, 1, 2) for n in range(5)] == [0, 48, 96, 144, 192]


def test_loss_is_the_mean_of_the_last_logged_ones() -> None:
    history = [{"loss": 9.0}, {"eval_loss": 1.0}, {"loss": 4.0}, {"loss": 2.0}]
    assert mean_loss(history, last=2) == 3.0 and mean_loss(history) == 5.0 and mean_loss([]) is None


def test_saved_weights_are_bfloat16_matrices_and_float32_vectors(trained: Path) -> None:
    folder = trained / "out"
    stored = load_file(folder / "model.safetensors")
    exact = load_file(folder / "checkpoints" / "checkpoint-4" / "model.safetensors")
    assert stored.keys() == exact.keys() and "lm_head.weight" not in stored, "expected tied weights once"
    for name, tensor in stored.items():
        if tensor.ndim == 1:
            assert torch.equal(tensor, exact[name]) and tensor.dtype == torch.float32, name
        else:
            assert torch.equal(tensor, exact[name].bfloat16()) and tensor.dtype == torch.bfloat16, name
    assert any(not torch.equal(t, t.bfloat16().float()) for t in stored.values() if t.ndim == 1)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, stored[name].float()), name
    config = AutoConfig.from_pretrained(folder)
    assert config.dtype == torch.bfloat16 and config.use_cache
    halves = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert {parameter.dtype for parameter in halves.parameters()} == {torch.bfloat16}


def test_kill_while_the_model_is_written_leaves_nothing_that_loads(
    copied: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied / "out"
    model = AutoModelForCausalLM.from_pretrained(folder)
    stock = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if self.name == "model.safetensors":
            raise Killed
        return stock(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(Killed):
        save_model(model, model.state_dict(), tokenizer, folder)
    with pytest.raises((OSError, ValueError)):
        AutoModelForCausalLM.from_pretrained(folder)
    monkeypatch.setattr(Path, "replace", stock)
    save_model(model, model.state_dict(), tokenizer, folder)
    again = AutoModelForCausalLM.from_pretrained(folder)
    assert same(again.state_dict(), model.state_dict())
    assert not (folder / ".partial").exists()
