"""The distillation loss against sums written out, and the trainer that applies it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, BambaConfig, Mamba2Config, PreTrainedModel, TrainingArguments

from specdecodes.models.dense import DensePass
from specdecodes.models.interpose import install, serving
from specdecodes.train.distill import DistillTrainer, distillation_loss, principal_embeddings
from specdecodes.train.recipe import Distillation, Training
from tests.train.conftest import BAMBA, MAMBA2

B, T, V = 2, 5, 7


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student = 2 * torch.randn(B, T, V, generator=generator, dtype=torch.float64)
    teacher = 2 * torch.randn(B, T, V, generator=generator, dtype=torch.float64)
    return student, teacher


@pytest.fixture
def mask() -> Tensor:
    return torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()


LABELS = torch.tensor([[3, 1, 4, 1, 5], [2, 6, 5, 3, 5]])


def softmax(row: Tensor) -> list[float]:
    weights = [math.exp(value) for value in row.tolist()]
    return [weight / sum(weights) for weight in weights]


def kl_by_hand(student: Tensor, teacher: Tensor, mask: Tensor) -> float:
    terms = []
    for b in range(B):
        for t in range(T):
            if mask[b, t]:
                p, q = softmax(teacher[b, t]), softmax(student[b, t])
                terms.append(sum(p[v] * math.log(p[v] / q[v]) for v in range(V)))
    return sum(terms) / len(terms)


def ce_by_hand(student: Tensor, mask: Tensor, labels: Tensor) -> float:
    terms = []
    for b in range(B):
        for t in range(T - 1):
            if mask[b, t + 1] and labels[b, t + 1] != -100:
                terms.append(-math.log(softmax(student[b, t])[int(labels[b, t + 1])]))
    return sum(terms) / len(terms)


@pytest.mark.parametrize(("kl_weight", "ce_weight"), [(1.0, 0.0), (0.0, 1.0), (0.5, 2.0)])
@pytest.mark.parametrize("padded", [False, True])
def test_loss_is_the_weighted_sum_of_means_over_unpadded_tokens(
    kl_weight: float, ce_weight: float, padded: bool, logits: tuple[Tensor, Tensor], mask: Tensor
) -> None:
    mask = mask if padded else torch.ones_like(mask)
    labels = LABELS.masked_fill(torch.tensor([[0, 0, 1, 0, 0], [0] * 5]).bool(), -100)
    expected = kl_weight * kl_by_hand(*logits, mask) + ce_weight * ce_by_hand(logits[0], mask, labels)
    loss = distillation_loss(*logits, labels, mask, kl_weight, ce_weight)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_what_is_padding_does_not_matter(logits: tuple[Tensor, Tensor], mask: Tensor) -> None:
    student, teacher = logits
    loss = distillation_loss(student, teacher, LABELS, mask, 1.0, 1.0)
    for changed in (student, teacher):
        changed[~mask] = 1e4
    assert distillation_loss(student, teacher, LABELS.masked_fill(~mask, 0), mask, 1.0, 1.0) == loss


def test_zero_for_the_target_itself_with_no_gradient_there(logits: tuple[Tensor, Tensor], mask: Tensor) -> None:
    teacher = logits[1]
    student = teacher.clone().requires_grad_()
    loss = distillation_loss(student, teacher, None, mask, 1.0, 0.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-7)
    assert student.grad is not None and student.grad.abs().max() < 1e-6


def test_gradient_of_the_kl_is_the_difference_of_probabilities(logits: tuple[Tensor, Tensor], mask: Tensor) -> None:
    student, teacher = logits
    student.requires_grad_()
    distillation_loss(student, teacher, None, mask, 1.0, 0.0).backward()
    expected = (student.softmax(-1) - teacher.softmax(-1)) * mask[..., None] / mask.sum()
    torch.testing.assert_close(student.grad, expected.detach(), rtol=0, atol=1e-6)


# The trainer


@pytest.fixture
def models() -> tuple[PreTrainedModel, PreTrainedModel]:
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    drop = {"model_type"}
    target = BambaConfig(**{k: v for k, v in BAMBA.items() if k not in drop}, **sizes)
    draft = Mamba2Config(**{k: v for k, v in MAMBA2.items() if k not in drop}, **sizes)
    return AutoModelForCausalLM.from_config(target), AutoModelForCausalLM.from_config(draft)


def make_trainer(models: tuple[PreTrainedModel, PreTrainedModel], folder: Path) -> DistillTrainer:
    arguments = TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none")
    settings = Distillation("x", kl_weight=0.5, ce_weight=2.0)
    return DistillTrainer(
        recipe=Training(tokens=1), model=models[1], args=arguments, teacher=models[0], distillation=settings
    )


def test_trainer_gives_both_models_the_same_tokens_and_trains_one(
    models: tuple[PreTrainedModel, PreTrainedModel], tmp_path: Path
) -> None:
    target, draft = models
    trainer = make_trainer(models, tmp_path)
    ids = torch.arange(12).view(2, 6) + 1
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    with serving(DensePass()):
        loss = trainer.compute_loss(draft, {"input_ids": ids, "labels": ids, "attention_mask": mask})
        student = draft(input_ids=ids, attention_mask=mask).logits
        teacher = target.eval()(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(loss, distillation_loss(student, teacher, ids, mask.bool(), 0.5, 2.0))
    loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in target.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in draft.parameters())


def test_weight_decay_of_adamw_spares_vectors(models: tuple[PreTrainedModel, PreTrainedModel], tmp_path: Path) -> None:
    trainer = make_trainer(models, tmp_path)
    decayed = set(trainer.get_decay_parameter_names(models[1]))
    assert decayed == {name for name, p in models[1].named_parameters() if p.ndim > 1}
    assert not any(name.rsplit(".", 1)[-1] in ("A_log", "D", "dt_bias", "bias") or "norm" in name for name in decayed)


@pytest.mark.parametrize("family", [0, 1], ids=["bamba", "mamba2"])
def test_training_with_our_ops_has_the_stock_gradients(
    family: int, models: tuple[PreTrainedModel, PreTrainedModel]
) -> None:
    model = models[family].train()
    ids = torch.randint(2, 20, (2, 21), generator=torch.Generator().manual_seed(1))
    gradients = []
    for ours in (False, True):
        model.zero_grad()
        if ours:
            install(model)
            with serving(DensePass()):
                model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        else:
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() == dict(model.named_parameters()).keys()
    for name, stock in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], stock, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_principal_embeddings_keep_most_of_the_inner_products() -> None:
    """No projection to as few coordinates keeps more (Eckart and Young); all of them keep everything."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 12, generator=generator) * torch.linspace(3, 0.1, 12)
    gram = weight @ weight.T
    error = [float((start @ start.T - gram).norm()) for start in (principal_embeddings(weight, n) for n in (3, 6, 12))]
    assert error[0] > error[1] > error[2] and error[2] < 1e-4 * float(gram.norm())
    for _ in range(20):
        basis = torch.linalg.qr(torch.randn(12, 6, generator=generator)).Q
        assert float(((weight @ basis) @ (weight @ basis).T - gram).norm()) > error[1]
