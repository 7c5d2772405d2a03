"""Tiny random stock models, the same on every call."""

from __future__ import annotations

import math
import zlib
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, BambaConfig, LlamaConfig, Mamba2Config, PreTrainedConfig, PreTrainedModel

from specdecodes.models.target import Target
from specdecodes.plugin import Context
from specdecodes.plugins.bigrams import BigramTable

FAMILIES = ("bamba", "mamba2", "llama")
"""Hybrid, state-space, attention."""

VOCAB = 48


def toy_model(
    family: str, *, vocab_size: int = VOCAB, dtype: torch.dtype = torch.float32, seed: int = 0
) -> PreTrainedModel:
    """A small stock model of ``FAMILIES`` with random weights, whose logits have a standard deviation of 1.

    With the default initialisation every logit would be near 0, and errors would hide. The model is shared between
    callers: do not change it.
    """
    if family not in FAMILIES:
        raise ValueError(f"toy_model: expected one of {', '.join(FAMILIES)}, got {family!r}")
    return _toy_model(family, vocab_size, dtype, seed)


def toy_context(
    target: str = "bamba", draft: str = "mamba2", *, vocab_size: int = VOCAB, dtype: torch.dtype = torch.float32
) -> Context:
    """A context as a factory gets it: a toy target, a toy draft model, no tokenizer."""
    model = toy_model(target, vocab_size=vocab_size, dtype=dtype)
    return Context(Target(model), draft=toy_model(draft, vocab_size=vocab_size, dtype=dtype, seed=1))


def toy_bigrams(vocab_size: int = VOCAB, top: int = 3) -> BigramTable:
    """A bigram table in which every token has ``top`` random followers."""
    rows = [torch.randperm(vocab_size, generator=numbers("bigrams", token))[:top] for token in range(vocab_size)]
    return BigramTable(torch.stack(rows).int().numpy())


def numbers(*parts: object) -> torch.Generator:
    """A generator that depends on ``parts`` only."""
    return torch.Generator().manual_seed(zlib.crc32(repr(parts).encode()))


def toy_prompt(length: int, vocab_size: int = VOCAB, *parts: object) -> Tensor:
    """Fixed random token ids [1, length], none of them a special token."""
    return torch.randint(3, vocab_size, (1, length), generator=numbers("prompt", length, *parts))


@cache
@torch.no_grad()
def _toy_model(family: str, vocab_size: int, dtype: torch.dtype, seed: int) -> PreTrainedModel:
    config = _config(family, vocab_size)
    attention = "eager" if family == "mamba2" else "sdpa"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # some of the stock initialisation stays, step sizes for one
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)
    source = numbers(family, seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=source)
        if "embed" in name:
            weight.copy_(noise)
        elif "conv1d.weight" in name:
            weight.copy_(noise * 0.5)
        elif weight.ndim >= 2:
            weight.copy_(noise / math.sqrt(weight.shape[-1]))
        else:
            weight.add_(noise * (0.3 if name.endswith(("A_log", "dt_bias")) else 0.2))
    model.eval()
    logits = model(toy_prompt(32, vocab_size)).logits
    model.get_output_embeddings().weight.div_(logits.std())
    return model.to(dtype)


def _config(family: str, vocab_size: int) -> PreTrainedConfig:
    # No end-of-text token: a random model would stop at random.
    common: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
    }
    attention: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
    if family == "llama":
        return LlamaConfig(**common, **attention, num_hidden_layers=2, max_position_embeddings=4096)
    if family == "mamba2":
        sizes: dict[str, Any] = {"num_heads": 8, "head_dim": 8, "state_size": 12, "n_groups": 2, "num_hidden_layers": 2}
        return Mamba2Config(**common, **sizes, chunk_size=8)  # the stock scan pads to whole chunks
    mamba: dict[str, Any] = {
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_d_state": 12,
        "mamba_n_groups": 2,
        "mamba_chunk_size": 8,
    }
    layers: dict[str, Any] = {"num_hidden_layers": 3, "attn_layer_indices": [1], "max_position_embeddings": 4096}
    return BambaConfig(**common, **attention, **mamba, **layers)
