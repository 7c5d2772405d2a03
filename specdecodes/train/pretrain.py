"""Pretrain a small model (and its tokenizer) from a recipe with transformers' Trainer."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from specdecodes.models.dense import DensePass
from specdecodes.models.interpose import install, serving
from specdecodes.train.data import Blocks, Document, read_source, render, split_documents
from specdecodes.train.optim import MuonAdamW
from specdecodes.train.recipe import Recipe, Training
from specdecodes.train.tokenizer import train_tokenizer


class RecipeTrainer(Trainer):
    """transformers' Trainer with the recipe's optimiser, and our ops under the recurrent mixers.

    The stock CPU chunk scan is up to 280 times slower than the einsum form and pads to 256.
    """

    def __init__(self, recipe: Training, **kwargs: Any) -> None:
        self.recipe = recipe
        self._pass = DensePass()
        super().__init__(**kwargs)
        install(self.model)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Muon needs parameters sorted by kind; AdamW is the Trainer's own."""
        if self.optimizer is None and self.recipe.optimizer == "muon":
            adamw_lr = self.recipe.adamw_lr or self.recipe.lr
            self.optimizer = MuonAdamW(model or self.model, self.recipe.lr, adamw_lr, self.recipe.weight_decay)
        return super().create_optimizer(model)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One forward and backward with our ops."""
        with serving(self._pass):
            return super().training_step(*args, **kwargs)

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """One evaluation forward with our ops."""
        with serving(self._pass):
            return super().prediction_step(*args, **kwargs)


def training_arguments(training: Training, output: Path, eval_rows: int) -> TrainingArguments:
    """Translate a recipe's [training] table."""
    steps = training.steps
    warmup = max(1, round(steps * training.warmup))
    wsd = training.schedule == "wsd"
    decay = round(steps * training.decay)
    return TrainingArguments(
        output_dir=str(output / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=training.rows,
        per_device_eval_batch_size=eval_rows,
        gradient_accumulation_steps=training.accumulate,
        learning_rate=training.lr,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        warmup_steps=warmup,
        lr_scheduler_type="warmup_stable_decay" if wsd else "cosine",
        lr_scheduler_kwargs={
            "num_decay_steps": decay,
            "num_stable_steps": max(0, steps - warmup - decay),
            "decay_type": "linear",
        }
        if wsd
        else {},
        bf16=training.bf16,
        torch_compile=training.compile,
        use_cpu=not torch.cuda.is_available(),
        eval_strategy="steps" if training.held_out else "no",
        eval_steps=training.eval_steps,
        save_steps=training.save_steps,
        save_total_limit=2,
        logging_steps=10,
        report_to="none",
        seed=training.seed,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def load_documents(recipe: Recipe, folder: Path | None) -> tuple[list[Document], list[Document]]:
    """Training and held-out documents of all sources of the recipe."""
    documents = [document for source in recipe.data for document in read_source(source, folder)]
    return split_documents(documents, recipe.training.held_out, recipe.training.seed)


def pretrain(
    recipe: Recipe, output: Path, data: Path | None = None, tokenizer_from: str | None = None
) -> dict[str, Any]:
    """Train from scratch into ``output`` (a folder ``AutoModelForCausalLM`` loads); resumes from its last checkpoint.

    Args:
        recipe: see :class:`Recipe`.
        output: gets the model, the tokenizer, ``training.json`` (what came out) and ``checkpoints/``.
        data: a folder with the sources' files; None loads them from the hub.
        tokenizer_from: use this tokenizer instead of training one.
    """
    train_documents, held_out = load_documents(recipe, data)
    tokenizer_folder = output / "tokenizer"
    if tokenizer_from is not None:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_from)
    elif tokenizer_folder.exists():
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    else:
        tokenizer = train_tokenizer((render(d, "") for d in train_documents), recipe.vocab_size)
        tokenizer.save_pretrained(tokenizer_folder)
    torch.manual_seed(recipe.training.seed)
    model = build_model(recipe.model, tokenizer)
    return run_trainer(RecipeTrainer, recipe, model, tokenizer, train_documents, held_out, output)


def build_model(settings: dict[str, Any], tokenizer: Any) -> PreTrainedModel:  # noqa: ANN401
    """A randomly initialised model whose special ids are the tokenizer's."""
    config = AutoConfig.for_model(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        **settings,
    )
    return AutoModelForCausalLM.from_config(config)


def run_trainer(
    trainer_class: type[RecipeTrainer],
    recipe: Recipe,
    model: PreTrainedModel,
    tokenizer: Any,  # noqa: ANN401
    train_documents: Sequence[Document],
    held_out: Sequence[Document],
    output: Path,
    **trainer_kwargs: Any,
) -> dict[str, Any]:
    """Train, save the result and what is known about it; shared by pretraining and distillation."""
    training = recipe.training
    blocks = Blocks(train_documents, tokenizer, training.block)
    eval_blocks = Blocks(held_out, tokenizer, training.block) if held_out else None
    trainer = trainer_class(
        recipe=training,
        model=model,
        args=training_arguments(training, output, min(training.rows, 8)),
        train_dataset=blocks,
        eval_dataset=eval_blocks,
        **trainer_kwargs,
    )
    result = trainer.train(
        resume_from_checkpoint=get_last_checkpoint(str(output / "checkpoints"))
        if (output / "checkpoints").exists()
        else None
    )
    metrics = trainer.evaluate() if eval_blocks is not None else {}
    model.to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)
    outcome = {
        "recipe": recipe.path.name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_in_data": blocks.blocks.numel(),
        "tokens_seen": trainer.state.global_step
        * training.rows
        * training.block
        * training.accumulate
        * trainer.args.world_size,
        "seconds_last_run": round(result.metrics["train_runtime"], 1),
        "train_loss": result.metrics["train_loss"],
        "eval_loss": metrics.get("eval_loss"),
        "eval_perplexity": math.exp(metrics["eval_loss"]) if "eval_loss" in metrics else None,
        "log": trainer.state.log_history,
    }
    (output / "training.json").write_text(json.dumps(outcome, indent=1), encoding="utf-8")
    return outcome
