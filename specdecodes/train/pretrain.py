"""Pretrain a small model (and its tokenizer) from a recipe with transformers' Trainer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from specdecodes.models.loading import load_tokenizer
from specdecodes.train.blocks import render
from specdecodes.train.data import load_documents
from specdecodes.train.recipe import Recipe
from specdecodes.train.session import begin, build_model, pack, run_trainer
from specdecodes.train.tokenizer import train_tokenizer
from specdecodes.train.trainer import RecipeTrainer, check_launch, training_arguments


def pretrain(
    recipe: Recipe, output: Path, data: Path | None = None, tokenizer_from: str | None = None
) -> dict[str, Any]:
    """Train from scratch into ``output`` (a folder ``AutoModelForCausalLM`` loads); resumes from its last checkpoint.

    Args:
        recipe: see :class:`Recipe`.
        output: gets the model, the tokenizer, ``training.json`` (what came out) and ``checkpoints/``.
        data: a folder with the sources' files; None loads them from the hub.
        tokenizer_from: use this tokenizer (a folder or hub id) instead of training one.

    Raises:
        ValueError, FileNotFoundError: what a user can mend, in one line.
    """
    check_launch(recipe.training)
    documents = load_documents(recipe, data)
    arguments = training_arguments(recipe.training, output, evaluate=recipe.training.held_out > 0)
    own = output / "tokenizer"
    with arguments.main_process_first(desc="tokenizer"):
        if tokenizer_from is not None:
            tokenizer = load_tokenizer(None, tokenizer_from)
        elif own.exists():
            tokenizer = load_tokenizer(None, str(own))
        else:
            texts = (render(document, "") for document in documents[0])
            tokenizer = train_tokenizer(texts, recipe.tokenizer.vocab_size)
        blocks = pack(recipe, tokenizer, documents)
        torch.manual_seed(recipe.training.seed)
        model = build_model(recipe.model, tokenizer, len(tokenizer))
        begin(recipe, blocks[0], arguments)
        if tokenizer_from is None and not own.exists():
            _save_whole(tokenizer, own)
    return run_trainer(RecipeTrainer, recipe, model, tokenizer, blocks, arguments)


def _save_whole(tokenizer: Any, folder: Path) -> None:  # noqa: ANN401
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    tokenizer.save_pretrained(partial)
    partial.replace(folder)
