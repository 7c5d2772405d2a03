"""Sizes of tiny models, and configurations that take more than a row to write down."""

from __future__ import annotations

from typing import Any

from transformers import (
    FalconH1Config,
    GraniteMoeHybridConfig,
    Mamba2Config,
    NemotronHConfig,
    Zamba2Config,
)

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


def mamba2(**settings: Any) -> Mamba2Config:
    sizes = {"num_heads": 8, "head_dim": 8, "state_size": 12, "num_hidden_layers": 2, "chunk_size": 8}
    return Mamba2Config(**{**SMALL, **sizes, **settings})


def falcon_h1(**settings: Any) -> FalconH1Config:
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


def granite(**settings: Any) -> GraniteMoeHybridConfig:
    scales = {
        "embedding_multiplier": 2.0,
        "logits_scaling": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.3,
    }
    layers = {"num_hidden_layers": 3, "layer_types": ["linear_attention", "full_attention", "linear_attention"]}
    return GraniteMoeHybridConfig(**{**PLAIN, **MAMBA, **layers, **scales, "shared_intermediate_size": 40, **settings})


def nemotron_h(*layers: str) -> NemotronHConfig:
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


def zamba2() -> Zamba2Config:
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
MIXED: dict[str, Any] = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
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
