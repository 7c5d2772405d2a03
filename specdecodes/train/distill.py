"""Distil a draft model from a target: KL(target || draft) per unpadded token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from specdecodes.models.interpose import install
from specdecodes.models.loading import load_model, load_tokenizer
from specdecodes.train.data import Document, load_documents
from specdecodes.train.recipe import Distillation, Recipe
from specdecodes.train.results import RunLog
from specdecodes.train.session import begin, build_model, model_config, pack, run_trainer
from specdecodes.train.trainer import RecipeTrainer, check_launch, is_main


def distillation_loss(
    student: Tensor, teacher: Tensor, labels: Tensor | None, mask: Tensor, kl_weight: float, ce_weight: float
) -> Tensor:
    """``kl_weight * KL(teacher || student) + ce_weight * CE``, each a mean over the tokens that count.

    STree's loss (arXiv 2505.14969), except that padding is left out and the mean is per token: its
    ``batchmean`` over [B, T, V] divides by B only, so that the loss grows with the length.

    Args:
        student, teacher: logits [B, T, V] (the teacher's without gradient).
        labels: int64 [B, T], -100 where nothing is to be predicted; used by the CE term, shifted inside.
        mask: bool [B, T], which positions are not padding.
    """
    loss = student.new_zeros((), dtype=torch.float32)
    if kl_weight:
        log_student = F.log_softmax(student.float(), dim=-1)
        log_teacher = F.log_softmax(teacher.float(), dim=-1)
        kl = (log_teacher.exp() * (log_teacher - log_student)).sum(-1)
        loss = loss + kl_weight * kl.masked_fill(~mask, 0.0).sum() / mask.sum()
    if ce_weight:
        assert labels is not None
        targets = labels.masked_fill(~mask, -100)[:, 1:]
        loss = loss + ce_weight * F.cross_entropy(student[:, :-1].flatten(0, 1).float(), targets.flatten())
    return loss


class DistillTrainer(RecipeTrainer):
    """The recipe's trainer with a frozen teacher beside the student."""

    def __init__(self, teacher: PreTrainedModel, distillation: Distillation, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        install(teacher)
        teacher.requires_grad_(False).eval()
        teacher.to(self.args.device)  # type: ignore[arg-type]
        self.teacher: Callable[..., Any] = teacher
        self.distillation = distillation
        self._loss: Callable[..., Tensor] = distillation_loss
        if self.args.torch_compile:  # the Trainer compiles the student only; these two are half of a step
            self.teacher = torch.compile(teacher)
            self._loss = torch.compile(distillation_loss)
        # The Trainer's own mean over accumulated batches is right: every batch is full, but for an epoch's last.
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:  # noqa: ANN401 - a loss, or a pair, as in stock
        """See :func:`distillation_loss`."""
        labels = inputs.get("labels")
        mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
        forward = {key: value for key, value in inputs.items() if key != "labels"}
        outputs = model(**forward, use_cache=False)
        with torch.no_grad():
            teacher = self.teacher(**forward, use_cache=False).logits
        weights = (self.distillation.kl_weight, self.distillation.ce_weight)
        loss = self._loss(outputs.logits, teacher, labels, mask, *weights)
        return (loss, outputs) if return_outputs else loss


def principal_embeddings(weight: Tensor, width: int) -> Tensor:
    """The ``width`` coordinates of ``weight`` [V, D] that keep most of its inner products: [V, width].

    With the singular vectors V of the weight, E V[:, :width]: by Eckart and Young the best approximation of E E^T by
    a matrix of that rank. A draft whose embeddings begin so knows from the start which tokens are alike.
    """
    _, vectors = torch.linalg.eigh(weight.double().T @ weight.double())  # ascending
    return (weight.double() @ vectors.flip(1)[:, :width]).to(weight.dtype)


def _begin_like(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    own, theirs = (cast("nn.Embedding", model.get_input_embeddings()).weight for model in (student, teacher))
    if own.shape[1] > theirs.shape[1]:
        raise ValueError(
            f"distillation.embeddings: 'principal' expects [model] hidden_size of at most the target's "
            f"({theirs.shape[1]}), got {own.shape[1]}; take 'random'"
        )
    with torch.no_grad():
        start = principal_embeddings(theirs.detach(), own.shape[1])
        own.copy_(start * (own.std() / start.std()))  # as loud as the family's own initialisation


def distill(
    recipe: Recipe,
    output: Path,
    data: Path | None = None,
    target: str | None = None,
    answers: list[Document] | None = None,
    answer_weight: int = 1,
) -> dict[str, Any]:
    """Train the recipe's draft against its target into ``output``; resumes from its last checkpoint.

    Args:
        recipe: see :class:`Recipe`.
        output: as in :func:`specdecodes.train.pretrain.pretrain`.
        data: a folder with the sources' files; None loads them from the hub.
        target: a folder or hub id instead of the recipe's.
        answers: the target's own answers, mixed in with the recipe's data (see :mod:`specdecodes.train.answers`).
        answer_weight: take every answer so many times.

    Raises:
        ValueError, FileNotFoundError: what a user can mend, in one line.
    """
    assert recipe.distillation is not None
    check_launch(recipe.training)
    log = RunLog(output, write=is_main())
    documents, held_out = load_documents(recipe, data)
    source = target or recipe.distillation.target
    # On the CPU: every process keeps one, and the Trainer knows which device is whose.
    dtype = "auto" if torch.cuda.is_available() else torch.float32
    teacher = load_model(source, "target", torch.device("cpu"), dtype)
    tokenizer = load_tokenizer(source, source)
    blocks = pack(recipe, tokenizer, ([*documents, *(answers or []) * answer_weight], held_out))
    # The target's own size: it may be padded beyond the tokenizer's.
    config = model_config(recipe.model, tokenizer, teacher.get_output_embeddings().out_features)
    begin(recipe, blocks[0], output)
    model = build_model(config, recipe.training.seed)
    if recipe.distillation.embeddings == "principal":
        _begin_like(model, teacher)
    extras = {"teacher": teacher, "distillation": recipe.distillation}
    return run_trainer(DistillTrainer, recipe, model, tokenizer, blocks, log, **extras)
