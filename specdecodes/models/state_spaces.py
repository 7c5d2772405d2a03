"""The original ``state-spaces/mamba-*`` and ``mamba2-*`` checkpoints, read as stock transformers models.

They differ from the ``-hf`` ones in the names of their configuration's fields (:func:`config_of`), in the name of one
weight (:data:`RENAMED`), and in that they bring no tokenizer: they were trained with GPT-NeoX's (:data:`TOKENIZER`).
Nothing else is converted; both layers' weights have the shapes and the meaning of transformers' own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Mamba2Config, MambaConfig

RENAMED = {r"^backbone\.embedding\.": "backbone.embeddings."}
"""Patterns of weight names and what takes their place."""

TOKENIZER = "EleutherAI/gpt-neox-20b"

END_OF_TEXT = 0
"""GPT-NeoX's ``<|endoftext|>``, which begins and pads too."""

_COMMON = {"d_state": "state_size", "d_conv": "conv_kernel", "expand": "expand", "bias": "use_bias"}
_TAKEN = {
    "Mamba1": {**_COMMON, "conv_bias": "use_conv_bias", "dt_rank": "time_step_rank"},
    "Mamba2": {
        **_COMMON,
        **{"conv_bias": "use_conv_bias", "headdim": "head_dim", "ngroups": "n_groups"},
        **{"chunk_size": "chunk_size", "dt_limit": "time_step_limit"},
    },
}
"""Settings of ``ssm_cfg`` and transformers' names for them."""
_DEFAULTS: dict[str, dict[str, Any]] = {
    "Mamba1": {"d_state": 16},
    "Mamba2": {"d_state": 128, "headdim": 64, "ngroups": 1},
}
"""Where the original layers' defaults are not transformers'."""
_FIXED: dict[str, dict[str, Any]] = {
    "Mamba1": {},
    "Mamba2": {"ngroups": 1, "D_has_hdim": False, "rmsnorm": True, "norm_before_gate": False, "activation": "swish"},
}
"""Values that stock transformers' layer cannot do without; with more groups the original norm is per group."""
_TRAINING = {
    *("dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor"),
    *("A_init_range", "conv_init", "use_fast_path", "use_mem_eff_path"),
}
"""Initial values and implementations."""


def is_original(config: Mapping[str, Any]) -> bool:
    """Whether the contents of a ``config.json`` are those of an original checkpoint."""
    return "model_type" not in config and "d_model" in config and "n_layer" in config


def config_of(config: Mapping[str, Any]) -> MambaConfig | Mamba2Config:
    """The stock configuration for the contents of an original ``config.json``.

    Raises:
        ValueError: attention layers or MLPs between the Mamba layers, or a setting that stock transformers cannot do.
    """
    ssm = dict(config.get("ssm_cfg") or {})
    layer = ssm.pop("layer", "Mamba1")
    if layer not in _TAKEN:
        raise ValueError(f"config.json: ssm_cfg.layer: expected 'Mamba1' or 'Mamba2', got {layer!r}")
    for name, expected in {"attn_layer_idx": [], "d_intermediate": 0, "rms_norm": True}.items():
        if (value := config.get(name, expected)) != expected:
            raise ValueError(
                f"config.json: {name}: expected {expected!r}, got {value!r}; "
                "of the original checkpoints only those of Mamba layers alone are read"
            )
    for name, value in ssm.items():
        if name in _FIXED[layer] and value != _FIXED[layer][name]:
            raise ValueError(f"config.json: ssm_cfg.{name}: expected {_FIXED[layer][name]!r}, got {value!r}")
        if name not in {*_TAKEN[layer], *_FIXED[layer], *_TRAINING}:
            raise ValueError(f"config.json: ssm_cfg.{name}: not known; known: {', '.join(sorted(_TAKEN[layer]))}")
    given = {**_DEFAULTS[layer], **ssm}
    fields = {other: given[name] for name, other in _TAKEN[layer].items() if name in given}
    if "time_step_limit" in fields:  # JSON may spell it with an integer, which transformers takes for another type
        fields["time_step_limit"] = tuple(map(float, fields["time_step_limit"]))
    multiple = config.get("pad_vocab_size_multiple") or 1
    common: dict[str, Any] = {
        "hidden_size": config["d_model"],
        "num_hidden_layers": config["n_layer"],
        "vocab_size": -(-config["vocab_size"] // multiple) * multiple,
        "tie_word_embeddings": config.get("tie_embeddings", True),
        "residual_in_fp32": config.get("residual_in_fp32", True),
        "bos_token_id": END_OF_TEXT,
        "eos_token_id": END_OF_TEXT,
        "pad_token_id": END_OF_TEXT,
        **fields,
    }
    if layer == "Mamba1":
        return MambaConfig(**common)
    heads = config["d_model"] * fields.get("expand", 2) // fields["head_dim"]
    return Mamba2Config(**common, num_heads=heads)
