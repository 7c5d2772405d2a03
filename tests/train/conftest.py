"""Tiny data on disk, tiny recipes, and what a training of one gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from specdecodes.train.tokenizer import train_tokenizer

ROOT = Path(__file__).parents[2]

SOURCE = {"name": "sums", "file": "sums.jsonl", "format": "gsm8k"}
BAMBA = {
    "model_type": "bamba",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "attn_layer_indices": [1],
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
    "tie_word_embeddings": True,
}
MAMBA2 = {
    "model_type": "mamba2",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_heads": 4,
    "head_dim": 8,
    "state_size": 8,
    "n_groups": 1,
    "expand": 2,
    "chunk_size": 16,
}


def write_toml(path: Path, tables: dict[str, Any]) -> Path:
    """The few forms that a recipe needs; JSON's values are TOML's."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in tables.items() if not isinstance(value, dict | list)]
    for name, table in tables.items():
        for entry in table if isinstance(table, list) else [table] if isinstance(table, dict) else []:
            lines.append(f"[[{name}]]" if isinstance(table, list) else f"[{name}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in entry.items()]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def make_recipe(tmp_path: Path) -> Callable[..., Path]:
    """Write a recipe of a few steps; keyword arguments replace tables, ``training`` adds to its settings."""

    def make(task: str = "pretrain", name: str = "recipe.toml", training: Any = None, **tables: Any) -> Path:
        settings = {"tokens": 384, "block": 16, "rows": 2, "accumulate": 2, "lr": 1e-2, "held_out": 0.1}
        every: dict[str, Any] = {
            "task": task,
            "model": BAMBA if task == "pretrain" else MAMBA2,
            "data": [SOURCE],
            "training": {**settings, **(training or {})},
        }
        every |= {"tokenizer": {"vocab_size": 270}} if task == "pretrain" else {"distillation": {"target": "embedded"}}
        return write_toml(tmp_path / name, {k: v for k, v in {**every, **tables}.items() if v is not None})

    return make


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 30 exchanges in GSM8K's form: about 17 blocks of 16 tokens for training."""
    folder = tmp_path_factory.mktemp("data")
    records = [{"question": f"{i}+1?", "answer": f"<<{i}+1={i + 1}>>{i + 1}"} for i in range(30)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    text = "to be, or not to be: that is the question, 1234 times over, whether it is nobler in the mind to suffer"
    return train_tokenizer([text] * 4, 300)
