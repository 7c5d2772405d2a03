"""Pretrain a small model (and its tokenizer) from a recipe with transformers' Trainer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from specdecodes.models.loading import load_tokenizer
from specdecodes.train.blocks import render
from specdecodes.train.data import load_documents
from specdecodes.train.recipe import Recipe
from specdecodes.train.results import RunLog
from specdecodes.train.session import begin, build_model, model_config, pack, run_trainer
from specdecodes.train.tokenizer import train_tokenizer
from specdecodes.train.trainer import RecipeTrainer, check_launch, is_main


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
    log = RunLog(output, write=is_main())
    documents = load_documents(recipe, data)
    own = output / "tokenizer"
    with PartialState(cpu=not torch.cuda.is_available()).main_process_first():
        if tokenizer_from is not None:
            tokenizer = load_tokenizer(None, tokenizer_from)
        elif own.exists():
            tokenizer = load_tokenizer(None, str(own))
        else:
            texts = (render(document, "") for document in documents[0])
            tokenizer = train_tokenizer(texts, recipe.tokenizer.vocab_size)
        blocks = pack(recipe, tokenizer, documents)
        config = model_config(recipe.model, tokenizer, len(tokenizer))
        begin(recipe, blocks[0], output)
        if tokenizer_from is None and not own.exists():
            _save_whole(tokenizer, own)
    model = build_model(config, recipe.training.seed)
    return run_trainer(RecipeTrainer, recipe, model, tokenizer, blocks, log)


def _save_whole(tokenizer: Any, folder: Path) -> None:  # noqa: ANN401
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    tokenizer.save_pretrained(partial)
    partial.replace(folder)
