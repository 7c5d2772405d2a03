"""Recipes: what is shipped parses and builds, and every mistake is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from specdecodes.models.families import SUPPORTED
from specdecodes.train.data import FORMATS
from specdecodes.train.recipe import Recipe, Training, load_recipe
from specdecodes.train.session import build_model, model_config
from tests.train.conftest import BAMBA, MAMBA2, ROOT, SOURCE

SHIPPED = sorted((ROOT / "train" / "recipes").glob("*.toml"))

Make = Callable[..., Path]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_recipe_parses_builds_its_model_and_names_public_data(
    path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    recipe = load_recipe(path)
    assert recipe.path == path
    assert all(source.format in FORMATS and source.hub and source.file for source in recipe.data)
    with torch.device("meta"):
        model = build_model(model_config(recipe.model, tokenizer, 512), seed=0)
    assert model.config.vocab_size == 512 and model.config.eos_token_id == tokenizer.eos_token_id


def test_the_recipes_of_the_issue_are_shipped() -> None:
    names = {path.stem for path in SHIPPED}
    assert names >= {"embedded_target", "embedded_mamba2", "smoke", "smoke_draft", "stree_mamba2_draft"}


def test_stree_recipe_is_what_stree_trained_with() -> None:
    recipe = load_recipe(ROOT / "train" / "recipes" / "stree_mamba2_draft.toml")
    training, distillation = recipe.training, recipe.distillation
    assert distillation is not None
    assert (distillation.kl_weight, distillation.ce_weight) == (1.0, 0.0)
    assert (training.lr, training.schedule, training.warmup, training.block) == (2e-5, "cosine", 0.01, 2048)
    assert training.tokens_per_step(4) == 32 * 2048
    assert training.optimizer == "adamw"
    assert "not run" in recipe.path.read_text(encoding="utf-8")


def load(path: Path) -> Recipe:
    return load_recipe(path)


def test_values_arrive(make_recipe: Make) -> None:
    recipe = load(make_recipe(training={"lr": 1, "adamw_lr": 0.5, "compile": True}))
    assert (recipe.task, recipe.model, recipe.tokenizer.vocab_size) == ("pretrain", BAMBA, 270)
    assert recipe.training.lr == 1 and recipe.training.adamw_lr == 0.5 and recipe.training.compile
    assert [source.file for source in recipe.data] == ["sums.jsonl"] and recipe.distillation is None
    draft = load(make_recipe("distill", distillation={"target": "x", "ce_weight": 0.5})).distillation
    assert draft is not None and (draft.target, draft.kl_weight, draft.ce_weight) == ("x", 1.0, 0.5)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"task": "train"}, "task: expected 'pretrain' or 'distill', got 'train'"),
    ({"optimiser": {}}, "unknown table 'optimiser'; known: task, model, data, training, tokenizer, distillation"),
    ({"model": {"hidden_size": 3}}, "[model] needs model_type"),
    ({"model": None}, "[model] needs model_type"),
    ({"data": None}, "expected at least one [[data]] table"),
    ({"data": SOURCE}, "expected at least one [[data]] table"),
    ({"data": [{"name": "x", "file": "x"}]}, "[[data]]: missing setting 'format'"),
    ({"data": [SOURCE | {"url": "x"}]}, "[[data]]: unknown setting 'url'; known: config, data_files, file"),
    ({"data": [SOURCE | {"split": 3}]}, "[[data]]: split: expected str, got 3"),
    ({"training": {"learning_rate": 1}}, "[training]: unknown setting 'learning_rate'; known: accumulate"),
    ({"training": {"tokens": "1M"}}, "[training]: tokens: expected int, got '1M'"),
    ({"training": {"tokens": 1.5}}, "[training]: tokens: expected int, got 1.5"),
    ({"training": {"tokens": True}}, "[training]: tokens: expected int, got True"),
    ({"training": {"lr": False}}, "[training]: lr: expected float, got False"),
    ({"training": {"adamw_lr": "x"}}, "[training]: adamw_lr: expected float, got 'x'"),
    ({"training": {"bf16": 1}}, "[training]: bf16: expected bool, got 1"),
    ({"training": {"tokens": 0}}, "training.tokens: expected at least 1, got 0"),
    ({"training": {"save_steps": -1}}, "training.save_steps: expected at least 1, got -1"),
    ({"training": {"lr": 0.0}}, "training.lr: expected a number above 0, got 0.0"),
    ({"training": {"adamw_lr": -1}}, "training.adamw_lr: expected a number above 0, got -1"),
    ({"training": {"weight_decay": -0.1}}, "training.weight_decay: expected at least 0, got -0.1"),
    ({"training": {"optimizer": "sgd"}}, "training.optimizer: expected 'muon' or 'adamw', got 'sgd'"),
    ({"training": {"schedule": "linear"}}, "training.schedule: expected 'wsd' or 'cosine', got 'linear'"),
    ({"training": {"held_out": 1.0}}, "training.held_out: expected a share in [0, 1), got 1.0"),
    ({"training": {"warmup": 1.0}}, "training.warmup: expected a share in [0, 1), got 1.0"),
    ({"training": {"warmup": 0.6, "decay": 0.5}}, "training.decay: expected a share in (0, 1], at most 1 - warmup"),
    ({"tokenizer": {"vocab_size": 100}}, "tokenizer.vocab_size: expected at least 261, got 100"),
    ({"tokenizer": {"size": 300}}, "[tokenizer]: unknown setting 'size'; known: vocab_size"),
    ({"distillation": {"target": "x"}}, "[distillation]: expected none in a pretrain recipe; set task = 'distill'"),
]
BAD_DISTILLATION: list[tuple[dict[str, Any], str]] = [
    ({"distillation": None}, "a distill recipe needs a [distillation] table with target = FOLDER or hub id"),
    ({"distillation": {"kl_weight": 1.0}}, "[distillation]: missing setting 'target'"),
    ({"distillation": {"target": "x", "kl_weight": -1}}, "distillation.kl_weight: expected at least 0, got -1"),
    ({"distillation": {"target": "x", "kl_weight": 0}}, "distillation: expected kl_weight or ce_weight above 0"),
    ({"tokenizer": {"vocab_size": 300}}, "[tokenizer]: expected none in a distill recipe, which takes the target's"),
]


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [("pretrain", *case) for case in BAD] + [("distill", *case) for case in BAD_DISTILLATION],
    ids=lambda value: None if isinstance(value, dict) else str(value)[:50],
)
def test_mistake_is_named_in_one_line(task: str, change: dict[str, Any], message: str, make_recipe: Make) -> None:
    path = make_recipe(**({"task": task} | change))
    with pytest.raises(ValueError, match="recipe") as caught:
        load(path)
    assert str(caught.value).startswith(f"recipe {path}: {message}")
    assert "\n" not in str(caught.value)


def test_file_that_is_none_or_no_toml(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"--recipe: expected a TOML file, got .*absent\.toml; no such file"):
        load_recipe(tmp_path / "absent.toml")
    with pytest.raises(FileNotFoundError, match="expected a TOML file"):
        load_recipe(tmp_path)
    broken = tmp_path / "broken.toml"
    broken.write_text("task = pretrain", encoding="utf-8")
    with pytest.raises(ValueError, match=r"broken\.toml: expected TOML, got"):
        load_recipe(broken)
    broken.write_bytes(b"task = '\xff'")
    with pytest.raises(ValueError, match=r"broken\.toml: expected UTF-8 text"):
        load_recipe(broken)


def test_steps_cover_the_tokens_whatever_the_number_of_processes() -> None:
    training = Training(tokens=1000, block=10, rows=3, accumulate=2)
    assert [training.steps(n) for n in (1, 2, 4)] == [17, 9, 5]
    assert [training.tokens_per_step(n) for n in (1, 2, 4)] == [60, 120, 240]


def test_embeddings_begin_in_one_of_two_ways(make_recipe: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r"distillation.embeddings: expected 'random' or 'principal', got 'svd'"):
        load_recipe(make_recipe("distill", distillation={"target": "x", "embeddings": "svd"}))


@pytest.mark.parametrize("family", sorted(SUPPORTED))
def test_settings_of_every_supported_family_are_known(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(
        ValueError, match=rf"\[model\]: unknown setting 'hidden_sizes'; {family} has .*(hidden_size|n_embd),"
    ):
        model_config({"model_type": family, "hidden_sizes": 8}, tokenizer, 300)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "mambo"}, "Unrecognized model identifier: mambo"),
        ({"model_type": "bloom"}, "family 'bloom' is not supported yet; supported: bamba"),
        ({"model_type": "t5"}, "expected a decoder-only causal model, got the encoder-decoder family 't5'"),
        (MAMBA2 | {"hidden_size": 17}, "must equal num_heads"),
        (MAMBA2 | {"hidden_size": "16"}, "hidden_size.* expected int, got str"),
        (MAMBA2 | {"vocab_size": 10}, "vocab_size: expected none, it follows from the tokenizer"),
    ],
    ids=["unknown", "unsupported", "encoder-decoder", "sizes", "type", "vocabulary"],
)
def test_model_that_cannot_be_built(settings: dict[str, Any], message: str, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match=rf"^\[model\]: .*{message}") as caught:
        model_config(settings, tokenizer, 300)
    assert "\n" not in str(caught.value)
