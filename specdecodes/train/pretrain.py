"""Pretrain a small model (and its tokenizer) from a recipe with transformers' Trainer."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from specdecodes.models.loading import load_tokenizer
from specdecodes.train.blocks import render
from specdecodes.train.data import Document, load_documents
from specdecodes.train.recipe import Recipe
from specdecodes.train.session import build_model, run_trainer
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
    if tokenizer_from is not None:
        tokenizer = load_tokenizer(None, tokenizer_from)
    else:
        with arguments.main_process_first(desc="tokenizer"):
            tokenizer = _own_tokenizer(output / "tokenizer", documents[0], recipe.tokenizer.vocab_size)
    torch.manual_seed(recipe.training.seed)
    model = build_model(recipe.model, tokenizer, len(tokenizer))
    return run_trainer(RecipeTrainer, recipe, model, tokenizer, documents, arguments)


def _own_tokenizer(folder: Path, documents: Sequence[Document], vocab_size: int) -> Any:  # noqa: ANN401
    """The tokenizer in ``folder``, trained and put there when there is none."""
    if not folder.exists():
        tokenizer = train_tokenizer((render(document, "") for document in documents), vocab_size)
        partial = folder.with_name(".tokenizer.partial")
        shutil.rmtree(partial, ignore_errors=True)
        tokenizer.save_pretrained(partial)
        partial.replace(folder)
    return AutoTokenizer.from_pretrained(folder)
