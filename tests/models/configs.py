"""Tiny configurations, a row per family: how to make one, and what is known about its stock model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import (
    BambaConfig,
    DeepseekV3Config,
    FalconH1Config,
    FalconMambaConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    GraniteMoeHybridConfig,
    JambaConfig,
    KimiLinearConfig,
    Lfm2Config,
    Lfm2MoeConfig,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    NemotronHConfig,
    OlmoHybridConfig,
    OPTConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    Zamba2Config,
    ZambaConfig,
)

from specdecodes.models.mamba_in_llama import MILConfig

VOCAB = 97
HIDDEN = 32
ENDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}
SMALL: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "initializer_range": 0.1, **ENDS}
HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
PLAIN: dict[str, Any] = {
    **SMALL,
    **HEADS,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "max_position_embeddings": 1024,
}
MAMBA: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 12,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}


def _mamba2(**settings: Any) -> Mamba2Config:
    sizes = {"num_heads": 8, "head_dim": 8, "state_size": 12, "num_hidden_layers": 2, "chunk_size": 8}
    return Mamba2Config(**{**SMALL, **sizes, **settings})


def _falcon_h1(**settings: Any) -> FalconH1Config:
    multipliers = {
        "lm_head_multiplier": 0.5,
        "embedding_multiplier": 1.7,
        "mlp_multipliers": [0.8, 1.3],
        "key_multiplier": 0.6,
        "attention_in_multiplier": 1.2,
        "attention_out_multiplier": 0.7,
        "ssm_multipliers": [0.5, 1.4, 0.8, 1.2, 0.9],
        "ssm_in_multiplier": 1.1,
        "ssm_out_multiplier": 0.6,
    }
    return FalconH1Config(**{**PLAIN, **MAMBA, "mamba_d_ssm": 64, "mamba_n_groups": 2, **multipliers, **settings})


def _granite(**settings: Any) -> GraniteMoeHybridConfig:
    scales = {
        "embedding_multiplier": 2.0,
        "logits_scaling": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.3,
    }
    layers = {"num_hidden_layers": 3, "layer_types": ["linear_attention", "full_attention", "linear_attention"]}
    return GraniteMoeHybridConfig(**{**PLAIN, **MAMBA, **layers, **scales, "shared_intermediate_size": 40, **settings})


def _nemotron_h(*layers: str) -> NemotronHConfig:
    sizes = {
        "ssm_state_size": 12,
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "n_groups": 2,
        "chunk_size": 8,
        "head_dim": 8,
    }
    experts = {"n_routed_experts": 4, "moe_intermediate_size": 24, "moe_shared_expert_intermediate_size": 24}
    sizes = {**SMALL, **HEADS, **sizes, **experts, "intermediate_size": 48, "max_position_embeddings": 1024}
    return NemotronHConfig(**sizes, layers_block_type=list(layers))


def _zamba2() -> Zamba2Config:
    return Zamba2Config(
        **{**PLAIN, "num_key_value_heads": 4, "num_hidden_layers": 4},  # the stock adapters cannot group queries
        layers_block_type=["linear_attention", "hybrid", "linear_attention", "hybrid"],
        mamba_d_state=12,
        n_mamba_heads=8,
        mamba_ngroups=2,
        chunk_size=8,
        num_mem_blocks=2,
        use_mem_rope=True,
        use_shared_attention_adapter=True,
        adapter_rank=4,
    )


S6: dict[str, Any] = {"state_size": 12, "time_step_rank": 4, "num_hidden_layers": 2}
JAMBA: dict[str, Any] = {"mamba_d_state": 12, "mamba_dt_rank": 4, "use_mamba_kernels": False}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
MLA: dict[str, Any] = {
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 10,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 24,
    "num_experts_per_tok": 2,
    "num_key_value_heads": 4,
}
WINDOW = 6
"""Less than every prompt that is not tiny, and less than the deepest path."""
DELTA: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
}
HYBRID: dict[str, Any] = {
    **PLAIN,
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}


@dataclass(frozen=True)
class Family:
    """One row: how to make a configuration, and what is known about its stock model.

    Attributes:
        recurrence: ``mamba2``, ``s6``, ``delta`` (a gated one), ``conv`` (alone) or empty. attention: whether any layer
            attends.
        lifts: False where the stock model cannot run in float64 at all.
        float32: largest difference of logits with a standard deviation of 1 in float32.
        clamps: stock prefill bounds step sizes from below and stock steps do not, so that the two disagree; then the
            reference prefills in one forward, as ``generate`` does. Everywhere else it takes one token at a time.
    """

    config: Callable[[], PreTrainedConfig]
    recurrence: str = "mamba2"
    attention: bool = True
    lifts: bool = True
    clamps: bool = False
    float32: float = 1e-4
    attention_kind: str = "sdpa"


FAMILIES: dict[str, Family] = {
    "mamba2": Family(lambda: _mamba2(n_groups=1), attention=False, attention_kind="eager"),
    # Width 3 instead of 4 and no conv bias: nothing may take either for granted.
    "mamba2-groups": Family(
        lambda: _mamba2(n_groups=2, conv_kernel=3, use_conv_bias=False, use_bias=True),
        attention=False,
        attention_kind="eager",
    ),
    "bamba": Family(
        lambda: BambaConfig(**{**PLAIN, **MAMBA, "num_hidden_layers": 3}, mamba_n_groups=2, attn_layer_indices=[1])
    ),
    "falcon_h1": Family(_falcon_h1),
    "falcon_h1-norm": Family(lambda: _falcon_h1(mamba_rms_norm=True, mamba_norm_before_gate=False)),
    "granitemoehybrid": Family(lambda: _granite(num_local_experts=4, num_experts_per_tok=2)),
    "granitemoehybrid-dense": Family(
        lambda: _granite(num_local_experts=0, num_experts_per_tok=0, position_embedding_type="rope")
    ),
    "nemotron_h": Family(
        lambda: _nemotron_h("linear_attention", "mlp", "full_attention", "linear_attention"), clamps=True
    ),
    "nemotron_h-experts": Family(
        lambda: _nemotron_h("linear_attention", "moe", "full_attention", "linear_attention"), lifts=False, clamps=True
    ),
    "zamba2": Family(_zamba2, clamps=True),
    "mamba_in_llama": Family(
        lambda: MILConfig(**{**PLAIN, "num_hidden_layers": 3}, attn_layers=[1], d_conv=3, chunk_size=8)
    ),
    # A draft: no attention at all, and the other way round in all that a checkpoint may choose.
    "mamba_in_llama-draft": Family(
        lambda: MILConfig(**PLAIN, repeat_kv_before_conv=True, D_has_hdim=True, conv_bias=False, chunk_size=8),
        attention=False,
    ),
    "mamba": Family(lambda: MambaConfig(**SMALL, **S6), recurrence="s6", attention=False, attention_kind="eager"),
    "falcon_mamba": Family(
        lambda: FalconMambaConfig(**SMALL, **S6, conv_kernel=3, use_bias=True, use_conv_bias=False),
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
        recurrence="s6",
    ),
    "zamba": Family(
        lambda: ZambaConfig(
            **{**PLAIN, **JAMBA, "num_key_value_heads": 4, "num_hidden_layers": 3},
            layers_block_type=["linear_attention", "hybrid", "linear_attention"],
            n_mamba_heads=2,
        ),
        recurrence="s6",
    ),
    "qwen3_next": Family(
        lambda: Qwen3NextConfig(**HYBRID, **DELTA, **EXPERTS, head_dim=16, shared_expert_intermediate_size=24),
        recurrence="delta",
        float32=5e-4,
    ),
    "qwen3_5": Family(
        lambda: Qwen3_5TextConfig(**HYBRID, **DELTA, head_dim=16, linear_conv_kernel_dim=3), recurrence="delta"
    ),
    "qwen3_5_moe": Family(
        lambda: Qwen3_5MoeTextConfig(
            **{**HYBRID, **DELTA, **EXPERTS, "linear_num_key_heads": 4, "linear_key_head_dim": 16},
            head_dim=16,
            shared_expert_intermediate_size=24,
        ),
        recurrence="delta",
    ),
    "olmo_hybrid": Family(lambda: OlmoHybridConfig(**HYBRID, **DELTA), recurrence="delta"),
    "llama": Family(lambda: LlamaConfig(**PLAIN), recurrence=""),
    "qwen2": Family(lambda: Qwen2Config(**PLAIN), recurrence=""),
    "qwen3": Family(lambda: Qwen3Config(**PLAIN, head_dim=8), recurrence="", attention_kind="eager"),
    "mistral": Family(lambda: MistralConfig(**PLAIN, sliding_window=None), recurrence=""),
    "lfm2": Family(
        lambda: Lfm2Config(**{**HYBRID, "layer_types": ["conv", "full_attention", "conv"]}, block_multiple_of=16),
        recurrence="conv",
    ),
    "lfm2_moe": Family(
        lambda: Lfm2MoeConfig(
            **{**HYBRID, **EXPERTS, "layer_types": ["conv", "full_attention", "conv"]},
            conv_bias=True,
            conv_L_cache=4,
            num_dense_layers=1,
        ),
        recurrence="conv",
    ),
    "kimi_linear": Family(
        lambda: KimiLinearConfig(
            **{**HYBRID, **MLA}, num_experts=4, linear_head_dim=8, linear_num_heads=4, q_lora_rank=None
        ),
        recurrence="delta",
    ),
    "mistral-window": Family(lambda: MistralConfig(**PLAIN, sliding_window=WINDOW), recurrence=""),
    "qwen2-window": Family(
        lambda: Qwen2Config(**PLAIN, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1), recurrence=""
    ),
    "gemma2": Family(
        lambda: Gemma2Config(**PLAIN, head_dim=8, sliding_window=WINDOW, query_pre_attn_scalar=8),
        recurrence="",
        attention_kind="eager",
    ),
    "gemma3": Family(
        lambda: Gemma3TextConfig(**PLAIN, head_dim=8, sliding_window=WINDOW, sliding_window_pattern=2), recurrence=""
    ),
    "gpt_oss": Family(
        lambda: GptOssConfig(**PLAIN, head_dim=8, sliding_window=WINDOW, num_local_experts=4, num_experts_per_tok=2),
        recurrence="",
        attention_kind="eager",
    ),
    "gpt2": Family(
        lambda: GPT2Config(vocab_size=VOCAB, n_embd=HIDDEN, n_layer=2, n_head=4, n_positions=1024, **ENDS),
        recurrence="",
    ),
    "opt": Family(
        lambda: OPTConfig(
            **{**PLAIN, "num_hidden_layers": 2}, ffn_dim=48, word_embed_proj_dim=24, do_layer_norm_before=True
        ),
        recurrence="",
    ),
    "mixtral": Family(
        lambda: MixtralConfig(**PLAIN, num_local_experts=4, num_experts_per_tok=2, sliding_window=WINDOW), recurrence=""
    ),
    "qwen3_moe": Family(lambda: Qwen3MoeConfig(**PLAIN, **EXPERTS, head_dim=8), recurrence=""),
    "deepseek_v3": Family(
        lambda: DeepseekV3Config(**{**PLAIN, **MLA}, n_routed_experts=4, q_lora_rank=24, first_k_dense_replace=1),
        recurrence="",
    ),
}
"""Every family that ``specdecodes.models.families.SUPPORTED`` names, some in two configurations."""

RECURRENT = [name for name, family in FAMILIES.items() if family.recurrence]
LIFTED = [name for name, family in FAMILIES.items() if family.lifts]
