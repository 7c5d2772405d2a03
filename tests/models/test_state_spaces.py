"""The original state-spaces checkpoints: the same model as transformers', from their own files and configuration."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Mamba2Config, MambaConfig, PreTrainedModel

from specdecodes import load
from specdecodes.core.settings import SettingWarning
from specdecodes.models import state_spaces
from specdecodes.models.loading import load_model, load_tokenizer
from specdecodes.models.state_spaces import config_of

from ..conftest import tokenizer_of
from .checkpoint_files import FORMS, write_weights
from .families import numbers, prompt_of

WORDS = 45
"""Tokens of the vocabulary; its embeddings are padded to a multiple of 8, of 16 for Mamba-2."""
CPU = torch.device("cpu")

PUBLISHED: dict[str, dict[str, Any]] = {
    "mamba": {
        "d_model": 32,
        "n_layer": 2,
        "vocab_size": WORDS,
        "ssm_cfg": {},
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 8,
    },
    "mamba2": {
        "d_model": 32,
        "d_intermediate": 0,
        "n_layer": 2,
        "vocab_size": WORDS,
        "ssm_cfg": {"layer": "Mamba2", "headdim": 16, "d_state": 12, "chunk_size": 8},
        "attn_layer_idx": [],
        "attn_cfg": {},
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 16,
        "tie_embeddings": True,
    },
}
"""``config.json`` as the published checkpoints have it, small."""


@torch.no_grad()
def stock(kind: str) -> PreTrainedModel:
    """transformers' own model of the same sizes, its configuration spelled out."""
    ends: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "tie_word_embeddings": True}
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, **ends}
    if kind == "mamba":
        config = MambaConfig(**sizes, vocab_size=48, state_size=16, conv_kernel=4, expand=2)
    else:
        heads: dict[str, Any] = {"num_heads": 4, "head_dim": 16, "state_size": 12, "n_groups": 1, "chunk_size": 8}
        config = Mamba2Config(**sizes, **heads, vocab_size=48)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    source = numbers("state-spaces", kind)
    for weight in model.parameters():
        weight.add_(0.2 * torch.randn(weight.shape, generator=source))
    return model


def write_original(folder: Path, model: PreTrainedModel, form: str = FORMS[2], **changes: Any) -> Path:
    """A published checkpoint of ``model``: weight names as in the original code; ``changes`` are to its config.json."""
    weights = {n.replace("backbone.embeddings.", "backbone.embedding."): w for n, w in model.state_dict().items()}
    assert {"backbone.embedding.weight", "lm_head.weight", "backbone.layers.1.mixer.A_log"} <= set(weights)
    write_weights(folder, weights, form)
    (folder / "config.json").write_text(json.dumps({**PUBLISHED[model.config.model_type], **changes}))
    return folder


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", PUBLISHED)
def test_published_files(kind: str, form: str, tmp_path: Path) -> None:
    model, ids = stock(kind), prompt_of(9) % WORDS
    found = load_model(str(write_original(tmp_path / kind, model, form)), "target", CPU, torch.float32)
    assert type(found) is type(model)
    with torch.no_grad():
        expected = model(ids).logits
        assert float(expected.std()) > 0.1
        torch.testing.assert_close(found(ids).logits, expected)
    assert found.lm_head.weight is found.backbone.embeddings.weight


@pytest.mark.parametrize("kind", PUBLISHED)
def test_what_is_saved_is_a_stock_checkpoint(kind: str, tmp_path: Path) -> None:
    model, ids = stock(kind), prompt_of(9) % WORDS
    load_model(str(write_original(tmp_path / kind, model)), "target", CPU, torch.float32).save_pretrained(
        tmp_path / "x"
    )
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "x").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits)


PUBLISHED_SIZES = {
    ("mamba", 768, 24, 8): (MambaConfig, {"vocab_size": 50280, "intermediate_size": 1536, "time_step_rank": 48}),
    ("mamba", 2560, 64, 8): (MambaConfig, {"vocab_size": 50280, "intermediate_size": 5120, "time_step_rank": 160}),
    ("mamba2", 768, 24, 16): (Mamba2Config, {"vocab_size": 50288, "num_heads": 24, "head_dim": 64, "state_size": 128}),
    ("mamba2", 2560, 64, 16): (Mamba2Config, {"vocab_size": 50288, "num_heads": 80, "n_groups": 1}),
}
"""130m and 2.8b (2.7b)."""


@pytest.mark.parametrize("sizes", PUBLISHED_SIZES)
def test_published_sizes(sizes: tuple[str, int, int, int]) -> None:
    kind, width, layers, multiple = sizes
    layer = {"ssm_cfg": {"layer": "Mamba2"} if kind == "mamba2" else {}, "pad_vocab_size_multiple": multiple}
    found = config_of({**PUBLISHED[kind], "d_model": width, "n_layer": layers, "vocab_size": 50277, **layer})
    expected, fields = PUBLISHED_SIZES[sizes]
    assert type(found) is expected
    assert {name: getattr(found, name) for name in fields} == fields
    assert (found.eos_token_id, found.bos_token_id, found.pad_token_id) == (0, 0, 0)


def test_limits_on_step_sizes_are_read_as_numbers() -> None:
    layer = {**PUBLISHED["mamba2"]["ssm_cfg"], "dt_limit": [0, math.inf]}
    assert config_of({**PUBLISHED["mamba2"], "ssm_cfg": layer}).time_step_limit == (0.0, math.inf)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "hybrids": ({"attn_layer_idx": [1]}, r"attn_layer_idx: expected \[\], got \[1\]; of the original checkpoints only"),
    "MLPs": ({"d_intermediate": 64}, "d_intermediate: expected 0, got 64"),
    "layer norms": ({"rms_norm": False}, "rms_norm: expected True, got False"),
    "another layer": ({"ssm_cfg": {"layer": "Mamba3"}}, "ssm_cfg.layer: expected 'Mamba1' or 'Mamba2', got 'Mamba3'"),
    "groups": ({"ssm_cfg": {"layer": "Mamba2", "ngroups": 2}}, "ssm_cfg.ngroups: expected 1, got 2"),
    "limited steps": (
        {"ssm_cfg": {"layer": "Mamba2", "dt_limit": [0, 0.1]}},
        r"time_step_limit \(0\.0, 0\.1\) is not supported",
    ),
    "the unknown": ({"ssm_cfg": {"layer": "Mamba2", "mimo": 1}}, "ssm_cfg.mimo: not known; known: bias, chunk_size, "),
    "another vocabulary": ({"vocab_size": 70}, r"backbone\.embedding\.weight: expected \(80, 32\), got \(48, 32\)"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_stock_transformers_cannot_do(what: str, tmp_path: Path) -> None:
    changes, message = REFUSED[what]
    folder = write_original(tmp_path / "x", stock("mamba2"), **changes)
    with pytest.raises(ValueError, match=rf"^target: .*{message}") as refusal:
        load_model(str(folder), "target", CPU, torch.float32)
    assert "\n" not in str(refusal.value)


# -- the tokenizer ----------------------------------------------------------------------------------------------------


@pytest.fixture
def neox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """GPT-NeoX's tokenizer as the hub would give it, with few words."""
    folder = tmp_path / "gpt-neox-20b"
    tokenizer_of([f"w{i}" for i in range(WORDS)]).save_pretrained(folder)
    monkeypatch.setattr(state_spaces, "TOKENIZER", str(folder))
    return folder


@pytest.mark.parametrize("kind", PUBLISHED)
def test_the_tokenizer_is_gpt_neox(kind: str, neox: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(write_original(tmp_path / kind, stock(kind))), None)
    assert tokenizer.encode("w7 w3") == [7, 3]


def test_a_tokenizer_beside_the_files_comes_first(neox: Path, tmp_path: Path) -> None:
    folder = write_original(tmp_path / "own", stock("mamba2"))
    tokenizer_of([f"v{i}" for i in range(WORDS)]).save_pretrained(folder)
    assert load_tokenizer(str(folder), None).encode("v7 v3") == [7, 3]


@pytest.mark.parametrize("kind", PUBLISHED)
def test_offline_it_is_named_as_a_folder(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the hub the model can be used with token ids, and a line says how to come to texts."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = write_original(tmp_path / kind, stock(kind))
    tokenizer_of([f"w{i}" for i in range(WORDS)]).save_pretrained(tmp_path / "neox")
    line = (
        rf"^tokenizer: '{folder}' comes without one, and 'EleutherAI/gpt-neox-20b', which it was trained with, "
        r"cannot be loaded \(.*\); name a folder that holds it as tokenizer \(--tokenizer\)$"
    )
    with pytest.warns(SettingWarning, match=line):
        plain = load(str(folder), mode="naive")
    tokens = plain.generate(torch.tensor([[7, 3]]), max_new_tokens=6, ignore_eos=True).tokens
    decoder = load(str(folder), str(folder), "stree", tokenizer=str(tmp_path / "neox"))
    assert decoder.generate("w7 w3", max_new_tokens=6, ignore_eos=True).tokens == tokens
