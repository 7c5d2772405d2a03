"""The models whose sizes the benchmarks measure: a configuration each, no weights, and what one layer of it takes.

Sizes are those of the published configurations; where a model is too large for one GPU, ``about`` says what was left
out. Nothing is downloaded.

Letters: H heads, P head dim, G groups, N state dim, K key dim, V value dim, C channels, W conv width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BambaConfig,
    KimiLinearConfig,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3NextConfig,
)

from specdecodes.assets import folder
from specdecodes.models.mamba_in_llama import MILConfig

LLAMA3 = dict(vocab_size=128256, num_key_value_heads=8, head_dim=128, rms_norm_eps=1e-5, max_position_embeddings=131072)
LLAMA_3B = dict(hidden_size=3072, intermediate_size=8192, num_hidden_layers=28, num_attention_heads=24)
LLAMA_8B = dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32)


@dataclass(frozen=True)
class Mamba2Sizes:
    """A Mamba-2 mixer. ``shared``: heads, and groups, that read the same channels of x, and of B."""

    heads: int
    head_dim: int
    groups: int
    state_dim: int
    taps: int
    layers: int
    shared: int = 1

    @property
    def channels(self) -> int:
        """C, of the convolution: x, B and C."""
        read = self.groups * self.state_dim
        return (self.heads * self.head_dim + read) // self.shared + read


@dataclass(frozen=True)
class DeltaSizes:
    """A mixer of the gated delta rule, or of Kimi delta attention (``per_channel``: a decay per key channel)."""

    heads: int
    key_dim: int
    value_dim: int
    channels: int
    taps: int
    layers: int
    per_channel: bool = False

    @property
    def decays(self) -> int:
        """Decays of a head."""
        return self.key_dim if self.per_channel else 1


@dataclass(frozen=True)
class S6Sizes:
    """A Mamba-1 mixer."""

    channels: int
    state_dim: int
    taps: int
    layers: int


@dataclass(frozen=True)
class AttentionSizes:
    """An attention layer; queries share keys and values in groups of ``heads / kv_heads``."""

    heads: int
    kv_heads: int
    head_dim: int
    layers: int


Sizes = Mamba2Sizes | DeltaSizes | S6Sizes | AttentionSizes
Product = tuple[int, int]
"""Output and input features of a weight."""


@dataclass(frozen=True)
class Shape:
    """One model: what it is and what was left out, what makes its configuration, and the settings of that."""

    about: str
    kind: Callable[..., PreTrainedConfig]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def config(self) -> PreTrainedConfig:
        """A fresh configuration of the whole model."""
        return self.kind(**self.settings)

    @cached_property
    def skeleton(self) -> PreTrainedModel:
        """The model without storage (on the device ``meta``); seconds for the largest."""
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(self.config())
        return model

    @property
    def parameters(self) -> int:
        """Numbers that the model holds."""
        return sum(each.numel() for each in self.skeleton.parameters())

    @cached_property
    def products(self) -> list[Product]:
        """The dense weights of the first layer, in order; experts, which are no linear layers, are left out."""
        first = self.skeleton.get_submodule(f"{self.skeleton.base_model_prefix}.layers.0")
        return [(each.out_features, each.in_features) for each in first.modules() if isinstance(each, nn.Linear)]

    @cached_property
    def head(self) -> Product:
        """The weight that makes logits."""
        out, features = self.skeleton.get_output_embeddings().weight.shape
        return out, features

    @cached_property
    def sizes(self) -> dict[type, Sizes]:
        """What a layer of each kind that the model has takes, by the class that describes it."""
        config = self.config()
        return {type(each): each for each in READERS[config.model_type](config) if each.layers}


def _llama(config: PreTrainedConfig) -> list[Sizes]:
    return [_attention(config, config.num_hidden_layers)]


def _attention(config: PreTrainedConfig, layers: int) -> AttentionSizes:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return AttentionSizes(config.num_attention_heads, config.num_key_value_heads, head_dim, layers)


def _mamba_in_llama(config: PreTrainedConfig) -> list[Sizes]:
    attends = len(config.attn_layers)
    shared = 1 if config.repeat_kv_before_conv else config.d_inner // config.d_xb
    heads, dim = config.ngroups, config.d_state
    rest = config.num_hidden_layers - attends
    return [Mamba2Sizes(heads, dim, heads, dim, config.d_conv, rest, shared), _attention(config, attends)]


def _mamba2(config: PreTrainedConfig) -> list[Sizes]:
    heads = (config.num_heads, config.head_dim, config.n_groups, config.state_size)
    return [Mamba2Sizes(*heads, config.conv_kernel, config.num_hidden_layers)]


def _bamba(config: PreTrainedConfig) -> list[Sizes]:
    attends = len(config.attn_layer_indices or ())
    heads = (config.mamba_n_heads, config.mamba_d_head, config.mamba_n_groups, config.mamba_d_state)
    mixer = Mamba2Sizes(*heads, config.mamba_d_conv, config.num_hidden_layers - attends)
    return [mixer, _attention(config, attends)]


def _mamba(config: PreTrainedConfig) -> list[Sizes]:
    return [S6Sizes(config.intermediate_size, config.state_size, config.conv_kernel, config.num_hidden_layers)]


def _qwen3_next(config: PreTrainedConfig) -> list[Sizes]:
    attends = config.layer_types.count("full_attention")
    heads, keys, values = config.linear_num_value_heads, config.linear_key_head_dim, config.linear_value_head_dim
    channels = 2 * config.linear_num_key_heads * keys + heads * values
    rest = config.num_hidden_layers - attends
    return [DeltaSizes(heads, keys, values, channels, config.linear_conv_kernel_dim, rest), _attention(config, attends)]


def _kimi_linear(config: PreTrainedConfig) -> list[Sizes]:
    """Its latent attention is left out: what it caches depends on how stock attention expands it."""
    heads, dim = config.linear_num_heads, config.linear_head_dim
    layers = config.layer_types.count("linear_attention")
    return [DeltaSizes(heads, dim, dim, 3 * heads * dim, config.linear_conv_kernel_dim, layers, per_channel=True)]


READERS: dict[str, Callable[[PreTrainedConfig], list[Sizes]]] = {
    "bamba": _bamba,
    "kimi_linear": _kimi_linear,
    "llama": _llama,
    "mamba": _mamba,
    "mamba2": _mamba2,
    "mamba_in_llama": _mamba_in_llama,
    "qwen3_next": _qwen3_next,
}
"""From a configuration's ``model_type`` to what its layers take."""

SHAPES: dict[str, Shape] = {
    "embedded": Shape(
        "the target that ships with the package: Bamba's layers, 12M",
        partial(AutoConfig.from_pretrained, folder("embedded")),
    ),
    "hybrid-50m": Shape(
        "Bamba's layers with 48M parameters",
        BambaConfig,
        {
            **dict(vocab_size=16384, hidden_size=512, intermediate_size=1536, num_hidden_layers=10),
            **dict(num_attention_heads=8, num_key_value_heads=8, attn_layer_indices=[3, 7]),
            **dict(mamba_n_heads=16, mamba_d_state=128, tie_word_embeddings=True),
        },
    ),
    "llama-8b": Shape("Llama 3.1 8B: attention alone", LlamaConfig, {**LLAMA3, **LLAMA_8B}),
    "mamba-in-llama-3b": Shape(
        "Llama 3.2 3B with every second layer Mamba-2, by MambaInLlama's recipe",
        MILConfig,
        {**LLAMA3, **LLAMA_3B, "tie_word_embeddings": True, "attn_layers": list(range(1, 28, 2))},
    ),
    "mamba-in-llama-8b": Shape(
        "Llama 3.1 8B with every second layer Mamba-2, by MambaInLlama's recipe",
        MILConfig,
        {**LLAMA3, **LLAMA_8B, "attn_layers": list(range(1, 32, 2))},
    ),
    "mamba2-2.7b": Shape(
        "Mamba-2 2.7B: state-space layers alone",
        Mamba2Config,
        {
            **dict(vocab_size=50288, hidden_size=2560, num_hidden_layers=64, tie_word_embeddings=True),
            **dict(num_heads=80, head_dim=64, state_size=128, n_groups=1),
        },
    ),
    "bamba-9b": Shape(
        "Bamba 9B: Mamba-2, and attention in three of 32 layers",
        BambaConfig,
        {
            **LLAMA_8B,
            **dict(vocab_size=128256, num_key_value_heads=8, attn_layer_indices=[9, 18, 27]),
            **dict(mamba_n_heads=128, mamba_d_state=128),
        },
    ),
    "mamba-2.8b": Shape(
        "Mamba 2.8B: S6 layers alone",
        MambaConfig,
        dict(vocab_size=50280, hidden_size=2560, num_hidden_layers=64, state_size=16),
    ),
    "qwen3-next": Shape(
        "Qwen3-Next 80B-A3B's layers with all their experts, 12 of its 48: gated delta rule, every fourth attends",
        Qwen3NextConfig,
        {"num_hidden_layers": 12},
    ),
    "kimi-linear": Shape(
        "Kimi-Linear 48B-A3B's layers with all their experts, 8 of its 27: Kimi delta attention and latent attention",
        KimiLinearConfig,
        {"num_hidden_layers": 8},
    ),
}
"""By the name that ``--shape`` takes."""


def shape_named(name: str) -> Shape:
    """A shape of :data:`SHAPES`.

    Raises:
        ValueError: none of that name.
    """
    if name not in SHAPES:
        raise ValueError(f"--shape: expected one of {', '.join(sorted(SHAPES))}, got {name!r}")
    return SHAPES[name]
