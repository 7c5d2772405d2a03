"""A tiny random hybrid and its tokenizer, and a run on two short questions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BambaConfig, PreTrainedModel, PreTrainedTokenizerFast

from specdecodes.benchmark.questions import load_questions
from specdecodes.benchmark.settings import RunSettings
from specdecodes.train.tokenizer import train_tokenizer

VOCAB = 320


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([turn for q in load_questions("embedded") for turn in q.turns], VOCAB)


@pytest.fixture(scope="session")
def model() -> PreTrainedModel:
    """Bamba with one attention layer between two Mamba-2 layers; weights spread so that no two logits nearly tie."""
    torch.manual_seed(0)
    config = BambaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        attn_layer_indices=[1],
        num_attention_heads=4,
        num_key_value_heads=2,
        mamba_n_heads=8,
        mamba_d_head=8,
        mamba_d_state=12,
        mamba_expand=2,
        mamba_chunk_size=8,
        initializer_range=0.2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        eos_token_id=3,
        pad_token_id=0,
        bos_token_id=1,
    )
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Two questions in FastChat's format, the second of one turn."""
    records = [
        {"question_id": 7, "category": "math", "turns": ["What is two and two?", "And three more?"]},
        {"question_id": "b", "category": "stem", "turns": ["Name a gas."]},
    ]
    path = tmp_path / "question.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture
def make_settings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, questions: Path, tmp_path: Path
) -> Callable[..., RunSettings]:
    """Settings of a small run into ``tmp_path/run``: eight new tokens, the target drafting for itself."""

    def make(**changes: Any) -> RunSettings:
        values: dict[str, Any] = {
            "target": model,
            "draft": model,
            "tokenizer": tokenizer,
            "modes": ("stree",),
            "questions": str(questions),
            "max_new_tokens": 8,
            "warmup": 0,
            "out_dir": tmp_path / "run",
        }
        return RunSettings(**{**values, **changes})

    return make
