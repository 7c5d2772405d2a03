"""Muon and AdamW behind one optimiser: who gets what, resuming, and the schedule."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Mamba2Config, Mamba2ForCausalLM, get_scheduler

from specdecodes.train.optim import MuonAdamW
from specdecodes.train.recipe import Training
from specdecodes.train.trainer import training_arguments
from tests.train.conftest import MAMBA2


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    settings = {key: value for key, value in MAMBA2.items() if key != "model_type"}
    return Mamba2ForCausalLM(Mamba2Config(vocab_size=20, tie_word_embeddings=False, **settings))


def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
    """Steps on made-up gradients, the same for the same seeds."""
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def names_of(model: nn.Module, group: dict[str, object]) -> set[str]:
    ids = {id(parameter) for parameter in group["params"]}  # type: ignore[attr-defined]
    return {name for name, parameter in model.named_parameters() if id(parameter) in ids}


def test_every_parameter_has_one_optimiser_by_its_kind(model: nn.Module) -> None:
    frozen = dict(model.named_parameters())["backbone.layers.0.mixer.D"].requires_grad_(False)
    optimizer = MuonAdamW(model, 0.1, 0.01, 0.2)
    matrices, decayed, plain = optimizer.param_groups
    assert names_of(model, matrices) == {f"backbone.layers.0.mixer.{name}_proj.weight" for name in ("in", "out")}
    assert names_of(model, decayed) == {
        "backbone.embeddings.weight",
        "lm_head.weight",
        "backbone.layers.0.mixer.conv1d.weight",
    }
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters())) - 1
    assert not any(parameter is frozen for parameter in plain["params"])
    assert all(parameter.ndim == 1 for parameter in plain["params"])
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.01, 0.01]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0.2, 0.0]


def test_state_survives_a_round_trip_through_a_file(model: nn.Module, tmp_path: Path) -> None:
    twin = copy.deepcopy(model)
    whole = MuonAdamW(model, 0.1, 0.01, 0.2)
    take_steps(model, whole, range(6))
    first = MuonAdamW(twin, 0.1, 0.01, 0.2)
    take_steps(twin, first, range(3))
    torch.save(first.state_dict(), tmp_path / "optimizer.pt")
    second = MuonAdamW(twin, 0.5, 0.5, 0.0)
    second.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    assert [group["lr"] for group in second.param_groups] == [0.1, 0.01, 0.01]
    take_steps(twin, second, range(3, 6))
    for (name, expected), got in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(got, expected), name
    fresh = copy.deepcopy(twin)
    take_steps(fresh, MuonAdamW(fresh, 0.1, 0.01, 0.2), range(6, 7))
    take_steps(twin, second, range(6, 7))
    assert not torch.equal(next(fresh.parameters()), next(twin.parameters())), "expected the moments to matter"


@pytest.mark.parametrize("reload", [False, True], ids=["straight", "after loading its state"])
def test_learning_rate_reaches_both_parts(reload: bool, model: nn.Module) -> None:
    optimizer = MuonAdamW(model, 0.1, 0.01, 0.0)
    schedule = LambdaLR(optimizer, lambda step: 0.0 if step == 1 else 1.0)
    take_steps(model, optimizer, range(1))
    if reload:  # what accelerate does when it wraps an optimiser
        optimizer.load_state_dict(optimizer.state_dict())
    schedule.step()
    before = copy.deepcopy(model.state_dict())
    take_steps(model, optimizer, range(1, 2))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "lr is 0"
    schedule.step()
    take_steps(model, optimizer, range(2, 3))
    unmoved = [name for name, value in model.state_dict().items() if torch.equal(value, before[name])]
    assert not unmoved


def test_closure_is_evaluated_with_gradients(model: nn.Module) -> None:
    optimizer = MuonAdamW(model, 0.1, 0.01, 0.0)

    def closure() -> float:
        optimizer.zero_grad()
        loss = sum(parameter.square().sum() for parameter in model.parameters())
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        return loss.item()

    first = optimizer.step(closure)
    for _ in range(5):
        last = optimizer.step(closure)
    assert 0 < last < first


def rates(training: Training, folder: Path) -> list[float]:
    """The learning rates of all steps, as transformers schedules them from our arguments."""
    arguments = training_arguments(training, folder, evaluate=False)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=arguments.learning_rate)
    schedule = get_scheduler(
        arguments.lr_scheduler_type,
        optimizer,
        num_warmup_steps=arguments.get_warmup_steps(arguments.max_steps),
        num_training_steps=arguments.max_steps,
        scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
    )
    found = []
    for _ in range(arguments.max_steps + 1):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


def test_wsd_warms_up_stays_and_decays_to_nothing(tmp_path: Path) -> None:
    training = Training(tokens=100, block=1, rows=1, lr=1.0, schedule="wsd", warmup=0.1, decay=0.4)
    found = rates(training, tmp_path)
    assert found[:10] == pytest.approx([i / 10 for i in range(10)])
    assert found[10:61] == pytest.approx([1.0] * 51)
    assert found[60:] == pytest.approx([1 - i / 40 for i in range(41)])


def test_cosine_warms_up_and_ends_at_nothing(tmp_path: Path) -> None:
    training = Training(tokens=100, block=1, rows=1, lr=2e-5, schedule="cosine", warmup=0.01)
    found = rates(training, tmp_path)
    assert found[0] == 0 and found[1] == max(found) == 2e-5 and found[100] == pytest.approx(0, abs=1e-12)
    assert found[50] == pytest.approx(1e-5, rel=0.05)


@pytest.mark.parametrize("tokens", [1, 2, 3])
@pytest.mark.parametrize("schedule", ["wsd", "cosine"])
def test_schedules_of_very_few_steps_exist(tokens: int, schedule: str, tmp_path: Path) -> None:
    found = rates(Training(tokens=tokens, block=1, rows=1, lr=1.0, schedule=schedule), tmp_path)
    assert len(found) == tokens + 1 and all(0 <= rate <= 1 for rate in found)
