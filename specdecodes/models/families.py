"""Which model families can be a target or a draft, and how their forward wants to be called."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

SUPPORTED = {
    "llama": "attention",
    "qwen2": "attention",
    "qwen3": "attention",
    "mistral": "attention",
    "mamba2": "Mamba-2",
    "bamba": "Mamba-2 and attention",
    "falcon_h1": "Mamba-2 beside attention",
    "granitemoehybrid": "Mamba-2 and attention",
    "nemotron_h": "Mamba-2 and attention",
    "zamba2": "Mamba-2 and shared attention",
}
"""model_type to what its layers are."""


@dataclass(frozen=True)
class Signature:
    """How to call a model's forward.

    Attributes:
        cache_argument: ``past_key_values`` or ``cache_params``.
        takes_positions, takes_logits_to_keep: whether the forward has these arguments.
        attention: whether any layer attends, so that a 4D mask is needed.
        recurrent: whether any layer carries a recurrent state.
        max_positions: how many positions the model allows, or None.
        window: the sliding window of its attention, or None.
    """

    cache_argument: str
    takes_positions: bool
    takes_logits_to_keep: bool
    attention: bool
    recurrent: bool
    max_positions: int | None
    window: int | None


def check_supported(config: Any) -> None:  # noqa: ANN401 - a transformers config
    """Refuse what cannot work, by name.

    Raises:
        ValueError: an encoder-decoder, a family not supported yet, a step-size limit that stock models apply
            in prefill but not in steps, an attention implementation that cannot take a tree mask.
    """
    kind = getattr(config, "model_type", "?")
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"model: expected a decoder-only causal model, got the encoder-decoder family {kind!r}")
    if kind not in SUPPORTED:
        raise ValueError(f"model: family {kind!r} is not supported yet; supported: {', '.join(sorted(SUPPORTED))}")
    limit = getattr(config, "time_step_limit", None)
    if limit is not None and tuple(limit) != (0.0, float("inf")):
        raise ValueError(
            f"model: time_step_limit {tuple(limit)} is not supported: stock {kind} clamps step sizes in a sequence "
            "but not in one-token steps, so the model disagrees with itself; expected (0.0, inf)"
        )
    attention = getattr(config, "_attn_implementation", None) or ""
    if "flash" in attention:
        raise ValueError(
            f"model: attention {attention!r} cannot take a tree mask; "
            "load the model with attn_implementation='sdpa' or 'eager'"
        )


def signature_of(model: PreTrainedModel) -> Signature:
    """Read off how ``model`` is called."""
    config = model.config
    parameters = inspect.signature(type(model).forward).parameters
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    if config.model_type == "mamba2":
        kinds = ["linear_attention"]
    attention = kinds is None or any(
        ("attention" in k and k != "linear_attention") or k in ("hybrid", "attention") for k in kinds
    )
    recurrent = SUPPORTED[config.model_type] != "attention"
    if config.model_type == "falcon_h1":
        attention = True
    return Signature(
        cache_argument="cache_params" if "cache_params" in parameters else "past_key_values",
        takes_positions="position_ids" in parameters,
        takes_logits_to_keep="logits_to_keep" in parameters,
        attention=attention,
        recurrent=recurrent,
        max_positions=getattr(config, "max_position_embeddings", None) if attention else None,
        window=_window(config),
    )


def _window(config: Any) -> int | None:  # noqa: ANN401
    if getattr(config, "use_sliding_window", True) is False:
        return None
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    return getattr(config, "sliding_window", None)
