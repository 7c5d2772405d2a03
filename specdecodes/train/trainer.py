"""transformers' Trainer as a recipe wants it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from torch import nn
from transformers import Trainer, TrainingArguments

from specdecodes.models.dense import DensePass
from specdecodes.models.interpose import install, serving
from specdecodes.train.optim import MuonAdamW
from specdecodes.train.recipe import Training


class RecipeTrainer(Trainer):
    """transformers' Trainer with the recipe's optimiser, and our ops under the recurrent mixers.

    The stock CPU chunk scan is up to 280 times slower than the einsum form and pads to 256.
    """

    def __init__(self, recipe: Training, model: nn.Module, **kwargs: Any) -> None:
        self.recipe = recipe
        self._pass = DensePass()
        # By name: FSDP flattens parameters before the optimiser is made.
        self._vectors = {name for name, parameter in model.named_parameters() if parameter.ndim < 2}
        super().__init__(model=model, **kwargs)
        install(model)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Muon needs parameters sorted by kind; AdamW is the Trainer's own."""
        trained = model or self.model
        if self.optimizer is None and self.recipe.optimizer == "muon" and trained is not None:
            adamw_lr = self.recipe.adamw_lr or self.recipe.lr
            self.optimizer = MuonAdamW(trained, self.recipe.lr, adamw_lr, self.recipe.weight_decay)
        return super().create_optimizer(model)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Matrices only: decay would pull A_log, D and the norms' scales to a value that means something."""
        return [name for name in super().get_decay_parameter_names(model) if name not in self._vectors]

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One forward and backward with our ops."""
        with serving(self._pass):
            return super().training_step(*args, **kwargs)

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """One evaluation forward with our ops."""
        with serving(self._pass):
            return super().prediction_step(*args, **kwargs)


def check_launch(training: Training) -> None:
    """Refuse a way of running that this recipe cannot work with, before anything is loaded.

    Raises:
        ValueError: several GPUs but one process; Muon on sharded parameters; FSDP that leaves the weights of most
            processes empty.
    """
    if processes() == 1 and torch.cuda.device_count() > 1:
        raise ValueError(
            f"this process sees {torch.cuda.device_count()} GPUs; start one process for each with 'accelerate launch' "
            "(train/README.md), or show it one with CUDA_VISIBLE_DEVICES=0"
        )
    sharded = "DeepSpeed" if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED") else None
    sharded = "FSDP" if parse_flag_from_env("ACCELERATE_USE_FSDP") else sharded
    if sharded and training.optimizer == "muon":
        raise ValueError(
            f"training.optimizer: Muon needs whole matrices and {sharded} shards them; "
            "set optimizer = 'adamw' (and a learning rate for it), or launch without sharding (accelerate's MULTI_GPU)"
        )
    if sharded == "FSDP" and parse_flag_from_env("FSDP_CPU_RAM_EFFICIENT_LOADING"):
        raise ValueError(
            "fsdp_cpu_ram_efficient_loading: expected false, got true: only the first process would have the weights "
            "of a target, which FSDP does not wrap"
        )


def processes() -> int:
    """How many processes train together, as the launcher says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the process that writes files and says what came out."""
    return os.environ.get("RANK", "0") == "0"


def training_arguments(training: Training, checkpoints: Path, evaluate: bool) -> TrainingArguments:
    """Translate a recipe's [training] table.

    Make or load every model before: once arguments exist under DeepSpeed's ZeRO-3, transformers shards each new model.
    A trained one is sharded later all the same; a distillation's target, which no engine serves, must stay whole.
    """
    steps = training.steps(processes())
    return TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=steps,
        per_device_train_batch_size=training.rows,
        per_device_eval_batch_size=min(training.rows, 8),
        gradient_accumulation_steps=training.accumulate,
        learning_rate=training.lr,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        bf16=training.bf16,
        torch_compile=training.compile,
        use_cpu=not torch.cuda.is_available(),
        eval_strategy="steps" if evaluate else "no",
        eval_steps=training.eval_steps,
        save_steps=training.save_steps,
        save_total_limit=2,
        logging_steps=max(1, min(10, steps // 10)),
        report_to="none",
        disable_tqdm=False,  # progress is shown even where libraries were told to keep quiet
        seed=training.seed,
        dataloader_pin_memory=torch.cuda.is_available(),
        **_schedule(training, steps),
    )


def _schedule(training: Training, steps: int) -> dict[str, Any]:
    warmup = max(1, round(steps * training.warmup))
    if training.schedule == "cosine":
        return {"warmup_steps": warmup, "lr_scheduler_type": "cosine"}
    decay = min(round(steps * training.decay), steps - warmup)
    return {
        "warmup_steps": warmup,
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": {"num_decay_steps": decay, "decay_type": "linear"},
    }
