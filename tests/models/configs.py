"""A row per family: a tiny configuration, and what is known about its stock model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    BambaConfig,
    DeepseekV3Config,
    FalconMambaConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    JambaConfig,
    KimiLinearConfig,
    Lfm2Config,
    Lfm2MoeConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    OlmoHybridConfig,
    OPTConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    ZambaConfig,
)

from specdecodes.models.mamba_in_llama import MILConfig

from .tiny import (
    DELTA,
    ENDS,
    EXPERTS,
    HIDDEN,
    HYBRID,
    JAMBA,
    MAMBA,
    MIXED,
    MLA,
    PLAIN,
    S6,
    SMALL,
    VOCAB,
    WINDOW,
    falcon_h1,
    granite,
    mamba2,
    nemotron_h,
    zamba2,
)


@dataclass(frozen=True)
class Family:
    """One row: how to make a configuration, and what is known about its stock model.

    Attributes:
        recurrence: ``mamba2``, ``s6``, ``delta`` (a gated one), ``conv`` (alone) or empty. attention: whether any layer
            attends.
        lifts: False where the stock model cannot run in float64 at all.
        quick: dtypes whose conformance the short run of the tests covers; the self-test at load covers all rows there.
        float32: largest difference of logits with a standard deviation of 1 in float32.
        clamps: stock prefill bounds step sizes from below and stock steps do not, so that the two disagree; then the
            reference prefills in one forward, as ``generate`` does. Everywhere else it takes one token at a time.
    """

    config: Callable[[], PreTrainedConfig]
    recurrence: str = "mamba2"
    attention: bool = True
    lifts: bool = True
    clamps: bool = False
    quick: tuple[torch.dtype, ...] = (torch.float32,)
    float32: float = 1e-4
    attention_kind: str = "sdpa"

    def marks(self, dtype: torch.dtype = torch.float32) -> list[pytest.MarkDecorator]:
        """For a test of this row."""
        return [] if dtype in self.quick else [pytest.mark.slow]


ATTENTION: dict[str, Any] = {"recurrence": "", "quick": ()}
MORE: dict[str, dict[str, Any]] = {
    "cohere": {},
    "cohere2": MIXED,
    "deepseek_v2": {**MLA, "n_routed_experts": 4, "q_lora_rank": 24, "first_k_dense_replace": 1},
    "exaone4": MIXED,
    "gemma": {"head_dim": 8},
    "glm4": {"head_dim": 8},
    "glm4_moe": {**EXPERTS, "head_dim": 8, "n_routed_experts": 4, "first_k_dense_replace": 1},
    "gpt_neox": {},
    "granite": {"attention_multiplier": 0.3, "logits_scaling": 2.0},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "ministral3": {"sliding_window": WINDOW},
    "olmo": {},
    "olmo2": {},
    "olmo3": MIXED,
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "phi": {},
    "phi3": {"sliding_window": WINDOW},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 24},
    "smollm3": {"no_rope_layers": [1, 0]},
    "stablelm": {},
    "starcoder2": {"sliding_window": WINDOW},
}
"""More families of attention layers, and what sets them apart."""

FAMILIES: dict[str, Family] = {
    "mamba2": Family(lambda: mamba2(n_groups=1), attention=False, attention_kind="eager"),
    # Width 3 instead of 4 and no conv bias: nothing may take either for granted.
    "mamba2-groups": Family(
        lambda: mamba2(n_groups=2, conv_kernel=3, use_conv_bias=False, use_bias=True),
        attention=False,
        attention_kind="eager",
    ),
    "bamba": Family(
        lambda: BambaConfig(**{**PLAIN, **MAMBA, "num_hidden_layers": 3}, mamba_n_groups=2, attn_layer_indices=[1])
    ),
    "falcon_h1": Family(falcon_h1),
    "falcon_h1-norm": Family(lambda: falcon_h1(mamba_rms_norm=True, mamba_norm_before_gate=False), quick=()),
    "granitemoehybrid": Family(lambda: granite(num_local_experts=4, num_experts_per_tok=2)),
    "granitemoehybrid-dense": Family(
        lambda: granite(num_local_experts=0, num_experts_per_tok=0, position_embedding_type="rope"), quick=()
    ),
    "nemotron_h": Family(
        lambda: nemotron_h("linear_attention", "mlp", "full_attention", "linear_attention"), clamps=True
    ),
    "nemotron_h-experts": Family(
        lambda: nemotron_h("linear_attention", "moe", "full_attention", "linear_attention"),
        quick=(),
        lifts=False,
        clamps=True,
    ),
    "zamba2": Family(zamba2, clamps=True),
    "mamba": Family(
        lambda: MambaConfig(**SMALL, **S6),
        recurrence="s6",
        attention=False,
        attention_kind="eager",
    ),
    "mamba_in_llama": Family(
        lambda: MILConfig(**{**PLAIN, "num_hidden_layers": 3}, attn_layers=[1], d_conv=3, chunk_size=8)
    ),
    # A draft: no attention at all, and the other way round in all that a checkpoint may choose.
    "mamba_in_llama-draft": Family(
        lambda: MILConfig(**PLAIN, repeat_kv_before_conv=True, D_has_hdim=True, conv_bias=False, chunk_size=8),
        quick=(),
        attention=False,
    ),
    "falcon_mamba": Family(
        lambda: FalconMambaConfig(**SMALL, **S6, conv_kernel=3, use_bias=True, use_conv_bias=False),
        quick=(),
        recurrence="s6",
        attention=False,
        attention_kind="eager",
    ),
    "jamba": Family(
        lambda: JambaConfig(
            **{**PLAIN, **JAMBA, "num_hidden_layers": 3},
            attn_layer_period=3,
            attn_layer_offset=1,
            num_experts=4,
            num_experts_per_tok=2,
        ),
        quick=(),
        recurrence="s6",
    ),
    "zamba": Family(
        lambda: ZambaConfig(
            **{**PLAIN, **JAMBA, "num_key_value_heads": 4, "num_hidden_layers": 3},
            layers_block_type=["linear_attention", "hybrid", "linear_attention"],
            n_mamba_heads=2,
        ),
        quick=(),
        recurrence="s6",
    ),
    "qwen3_next": Family(
        lambda: Qwen3NextConfig(**HYBRID, **DELTA, **EXPERTS, head_dim=16, shared_expert_intermediate_size=24),
        quick=(),
        recurrence="delta",
        float32=5e-4,
    ),
    "qwen3_5": Family(
        lambda: Qwen3_5TextConfig(**HYBRID, **DELTA, head_dim=16, linear_conv_kernel_dim=3),
        recurrence="delta",
    ),
    "qwen3_5_moe": Family(
        lambda: Qwen3_5MoeTextConfig(
            **{**HYBRID, **DELTA, **EXPERTS, "linear_num_key_heads": 4, "linear_key_head_dim": 16},
            head_dim=16,
            shared_expert_intermediate_size=24,
        ),
        quick=(),
        recurrence="delta",
    ),
    "olmo_hybrid": Family(lambda: OlmoHybridConfig(**HYBRID, **DELTA), recurrence="delta", quick=()),
    "llama": Family(lambda: LlamaConfig(**PLAIN), recurrence=""),
    "qwen2": Family(lambda: Qwen2Config(**PLAIN), recurrence="", quick=()),
    "qwen3": Family(lambda: Qwen3Config(**PLAIN, head_dim=8), recurrence="", attention_kind="eager"),
    "mistral": Family(lambda: MistralConfig(**PLAIN, sliding_window=None), recurrence="", quick=()),
    "lfm2": Family(
        lambda: Lfm2Config(**{**HYBRID, "layer_types": ["conv", "full_attention", "conv"]}, block_multiple_of=16),
        quick=(),
        recurrence="conv",
    ),
    "lfm2_moe": Family(
        lambda: Lfm2MoeConfig(
            **{**HYBRID, **EXPERTS, "layer_types": ["conv", "full_attention", "conv"]},
            conv_bias=True,
            conv_L_cache=4,
            num_dense_layers=1,
        ),
        quick=(),
        recurrence="conv",
    ),
    "kimi_linear": Family(
        lambda: KimiLinearConfig(
            **{**HYBRID, **MLA}, num_experts=4, linear_head_dim=8, linear_num_heads=4, q_lora_rank=None
        ),
        quick=(),
        recurrence="delta",
    ),
    "mistral-window": Family(lambda: MistralConfig(**PLAIN, sliding_window=WINDOW), **ATTENTION),
    "qwen2-window": Family(
        lambda: Qwen2Config(**PLAIN, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
        quick=(),
        recurrence="",
    ),
    "gemma2": Family(
        lambda: Gemma2Config(**PLAIN, head_dim=8, sliding_window=WINDOW, query_pre_attn_scalar=8),
        recurrence="",
        attention_kind="eager",
    ),
    "gemma3": Family(
        lambda: Gemma3TextConfig(**PLAIN, head_dim=8, sliding_window=WINDOW, sliding_window_pattern=2),
        quick=(),
        recurrence="",
    ),
    "gpt_oss": Family(
        lambda: GptOssConfig(**PLAIN, head_dim=8, sliding_window=WINDOW, num_local_experts=4, num_experts_per_tok=2),
        quick=(),
        recurrence="",
        attention_kind="eager",
    ),
    "gpt2": Family(
        lambda: GPT2Config(vocab_size=VOCAB, n_embd=HIDDEN, n_layer=2, n_head=4, n_positions=1024, **ENDS),
        quick=(),
        recurrence="",
    ),
    "opt": Family(
        lambda: OPTConfig(
            **{**PLAIN, "num_hidden_layers": 2}, ffn_dim=48, word_embed_proj_dim=24, do_layer_norm_before=True
        ),
        quick=(),
        recurrence="",
    ),
    "mixtral": Family(
        lambda: MixtralConfig(**PLAIN, num_local_experts=4, num_experts_per_tok=2, sliding_window=WINDOW),
        quick=(),
        recurrence="",
    ),
    "qwen3_moe": Family(lambda: Qwen3MoeConfig(**PLAIN, **EXPERTS, head_dim=8), **ATTENTION),
    "deepseek_v3": Family(
        lambda: DeepseekV3Config(**{**PLAIN, **MLA}, n_routed_experts=4, q_lora_rank=24, first_k_dense_replace=1),
        quick=(),
        recurrence="",
    ),
    **{
        kind: Family(partial(AutoConfig.for_model, kind, **{**PLAIN, **settings}), **ATTENTION)
        for kind, settings in MORE.items()
    },
}
"""Every family that ``specdecodes.models.families.SUPPORTED`` names, some in two configurations."""


def each(names: Iterable[str]) -> list[Any]:
    """Parameters of tests in float32."""
    return [pytest.param(name, marks=FAMILIES[name].marks()) for name in names]


RECURRENT = [name for name, family in FAMILIES.items() if family.recurrence]
LIFTED = [name for name, family in FAMILIES.items() if family.lifts]
