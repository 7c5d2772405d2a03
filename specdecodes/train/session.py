"""One training from data to results: begin or go on, train, evaluate, save. Shared by pretraining and distillation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    TrainerState,
)

from specdecodes.benchmark.journal import replace_json
from specdecodes.models.families import check_supported
from specdecodes.train.blocks import Blocks
from specdecodes.train.data import Document
from specdecodes.train.recipe import Recipe
from specdecodes.train.results import STATE, RunLog, last_checkpoint, mean_loss, same_training, save_model, tokens_seen
from specdecodes.train.trainer import RecipeTrainer, is_main, processes, training_arguments


def model_config(settings: dict[str, Any], tokenizer: Any, vocab_size: int) -> PreTrainedConfig:  # noqa: ANN401
    """The configuration of a recipe's [model], whose special ids are the tokenizer's.

    Raises:
        ValueError: an unknown or unsupported family, a setting that it does not have, sizes that do not fit.
    """
    special = {"vocab_size", "pad_token_id", "bos_token_id", "eos_token_id"}
    if fixed := sorted(special & set(settings)):
        raise ValueError(f"[model]: {fixed[0]}: expected none, it follows from the tokenizer")
    try:
        known = AutoConfig.for_model(settings["model_type"])
        if unknown := sorted(set(settings) - set(known.to_dict()) - set(known.attribute_map)):
            raise ValueError(
                f"unknown setting {unknown[0]!r}; {settings['model_type']} has {', '.join(known.to_dict())}"
            )
        config = AutoConfig.for_model(
            vocab_size=vocab_size,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            **settings,
        )
        check_supported(config)
    except Exception as error:  # configurations raise errors of their own
        raise ValueError(f"[model]: {' '.join(str(error).split())}") from error
    return config


def build_model(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """A randomly initialised model."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config)


def pack(
    recipe: Recipe,
    tokenizer: Any,  # noqa: ANN401
    documents: tuple[Sequence[Document], Sequence[Document]],
) -> tuple[Blocks, Blocks | None]:
    """Training and held-out documents as blocks.

    Raises:
        ValueError: too little text, or a tokenizer that cannot end one.
    """
    if tokenizer.eos_token is None:
        raise ValueError("tokenizer: expected one with an end-of-text token, got none")
    block = recipe.training.block
    blocks = Blocks(documents[0], tokenizer, block)
    return blocks, Blocks(documents[1], tokenizer, block, "training.held_out") if recipe.training.held_out else None


def begin(recipe: Recipe, blocks: Blocks, output: Path) -> None:
    """Write down what is trained here, or refuse a folder in which something else is; the first thing to be written.

    Raises:
        ValueError: names the first difference.
    """
    same_training(output, recipe, {"data.blocks": len(blocks), "processes": processes()}, write=is_main())


def run_trainer(
    trainer_class: type[RecipeTrainer],
    recipe: Recipe,
    model: PreTrainedModel,
    tokenizer: Any,  # noqa: ANN401
    data: tuple[Blocks, Blocks | None],
    log: RunLog,
    **trainer_kwargs: Any,
) -> dict[str, Any]:
    """Train ``model`` on the first of ``data``, evaluate on the second, save into the folder of ``log``.

    Returns:
        What ``training.json`` holds.
    """
    start = last_checkpoint(log.checkpoints)
    state = TrainerState.load_from_json(str(start / STATE)) if start else TrainerState()
    done = start is not None and state.global_step >= recipe.training.steps(processes())
    if start is not None and done:
        # Nothing is left to train, and the Trainer would take one step more.
        model = AutoModelForCausalLM.from_pretrained(start, dtype=model.dtype)
    parameters = model.num_parameters()
    arguments = training_arguments(recipe.training, log.checkpoints, evaluate=data[1] is not None)
    log.runs_on(arguments.device)
    settings = {"train_dataset": data[0], "eval_dataset": data[1], "callbacks": [log], **trainer_kwargs}
    trainer = trainer_class(recipe=recipe.training, model=model, args=arguments, **settings)
    if done:
        trainer.state = state
        weights = model.state_dict()
    else:
        trainer.train(resume_from_checkpoint=str(start) if start else None)
        # In full on the first process, however they are sharded; every process takes part.
        wrapped = trainer.model_wrapped if trainer.is_deepspeed_enabled else trainer.model
        weights = trainer.accelerator.get_state_dict(wrapped)
    outcome = _outcome(recipe, trainer, log, parameters)
    if is_main():
        save_model(trainer.accelerator.unwrap_model(trainer.model), weights, tokenizer, log.output)
        replace_json(log.output / "training.json", outcome)
    trainer.accelerator.wait_for_everyone()
    return outcome


def _outcome(recipe: Recipe, trainer: RecipeTrainer, log: RunLog, parameters: int) -> dict[str, Any]:
    training, steps, world_size = recipe.training, trainer.state.global_step, trainer.args.world_size
    # Without the Trainer's closing entry, whose means leave out what came before a resume.
    history = [entry for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry]
    blocks: Any = trainer.train_dataset
    batch = (training.rows, training.accumulate, world_size)
    eval_loss = _eval_loss(trainer, history)
    log.note(steps)
    outcome = {
        "recipe": recipe.path.name,
        "task": recipe.task,
        "parameters": parameters,
        "steps": steps,
        "tokens_in_data": blocks.blocks.numel(),
        "tokens_seen": tokens_seen(steps, len(blocks), training.block, *batch),
        "processes": world_size,
        "seconds": log.seconds,
        "train_loss": mean_loss(history),
        "eval_loss": eval_loss,
        "runs": log.runs,
        "log": history,
    }
    if recipe.task == "pretrain" and eval_loss is not None:
        outcome["eval_perplexity"] = math.exp(eval_loss)
    return outcome


def _eval_loss(trainer: RecipeTrainer, history: list[dict[str, Any]]) -> float | None:
    if trainer.eval_dataset is None:
        return None
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    if sharded and trainer.optimizer is None:  # nothing was trained, and without an optimiser nothing can be sharded
        return next((entry["eval_loss"] for entry in reversed(history) if "eval_loss" in entry), None)
    return trainer.evaluate()["eval_loss"]
