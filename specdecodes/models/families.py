"""Which model families can be a target or a draft, and how their forward wants to be called."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

from specdecodes.kernels import choice

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
    "mamba": "S6",
    "falcon_mamba": "S6",
    "jamba": "S6 and attention",
    "zamba": "S6 and shared attention",
    "qwen3_next": "gated delta rule and attention",
    "qwen3_5_text": "gated delta rule and attention",
    "qwen3_5_moe_text": "gated delta rule and attention",
    "olmo_hybrid": "gated delta rule and attention",
    "kimi_linear": "Kimi delta attention and latent attention",
    "lfm2": "short convolutions and attention",
    "lfm2_moe": "short convolutions and attention",
    "gemma2": "attention",
    "gemma3_text": "attention",
    "gpt_oss": "attention",
    "mixtral": "attention",
    "qwen3_moe": "attention",
    "gpt2": "attention",
    "opt": "attention",
    **dict.fromkeys(
        (
            *("cohere", "cohere2", "exaone4", "gemma", "glm4", "glm4_moe", "gpt_neox", "granite", "granitemoe"),
            *("ministral3", "olmo", "olmo2", "olmo3", "olmoe", "phi", "phi3", "qwen2_moe", "smollm3"),
            *("stablelm", "starcoder2"),
        ),
        "attention",
    ),
    "deepseek_v2": "latent attention",
    "deepseek_v3": "latent attention",
    "mamba_in_llama": "Mamba-2 and attention",
}
"""model_type to what its layers are."""

OWN_CACHES = {
    "minimax": "lightning attention",
    "recurrent_gemma": "RG-LRU",
    "rwkv": "WKV",
    "xlstm": "xLSTM",
    "deepseek_v4": "compressed attention",
    "zaya": "compressed attention",
}
"""Families whose recurrence or cache transformers keeps inside the modeling file, where no op can be served."""


FULL, SLIDING = "full_attention", "sliding_attention"
"""Kinds of attention layers, as configurations name them."""

CACHE_ARGUMENTS = ("cache", "cache_params", "past_key_values")
"""What forwards call their cache: transformers 5.24 and later the first, before that one of the others."""


class RefusedError(ValueError):
    """A model that is complete and readable, and that no tree can be scored on with certainty."""


@dataclass(frozen=True)
class Signature:
    """How to call a model's forward.

    Attributes:
        cache_argument: the first of ``CACHE_ARGUMENTS`` that the forward has.
        takes_positions, takes_logits_to_keep: whether the forward has these arguments.
        attention: whether any layer attends, so that a 4D mask is needed.
        max_positions: how many positions the model allows, or None.
        learned_positions: rows of the table in which positions are looked up, or None where they are computed.
        turns: numbers of positions beyond which a forward encodes all of its positions in another way.
        windows: from kinds of attention layers to sliding windows, None where they see everything; a forward takes
            one mask per kind where there are several.
    """

    cache_argument: str
    takes_positions: bool
    takes_logits_to_keep: bool
    attention: bool
    max_positions: int | None
    learned_positions: int | None = None
    turns: tuple[int, ...] = ()
    windows: Mapping[str, int | None] = field(default_factory=lambda: {FULL: None})

    @property
    def slides(self) -> bool:
        """Whether any layer has a window."""
        return any(self.windows.values())

    def check_room(self, prompt: int, new: int, limits: Mapping[str, int | None]) -> None:
        """Refuse an answer of ``new`` tokens to ``prompt`` tokens that has no room.

        Args:
            limits: positions at most, by who sets the limit; None: no limit.

        Raises:
            ValueError: more positions than a limit, or an answer that would cross a turn.
        """
        for name, limit in limits.items():
            if limit is not None and prompt + new > limit:
                raise ValueError(
                    f"prompt: {prompt} tokens and max_new_tokens {new} make {prompt + new}, "
                    f"but {name} {limit} positions; shorten the prompt or lower max_new_tokens"
                )
        for turn in self.turns:
            if prompt <= turn < prompt + new - 1:  # the last token is never run
                raise ValueError(
                    f"max_new_tokens: expected at most {turn + 1 - prompt} after {prompt} tokens, got {new}; beyond "
                    f"{turn} positions the model encodes all of them in another way (longrope), those before included"
                )


def family_of(config: Any) -> str:  # noqa: ANN401 - a transformers config
    """The model_type that ``SUPPORTED`` knows ``config`` under: its own, or that of the stock class it derives from."""
    names = [getattr(kind, "model_type", "") for kind in type(config).__mro__]
    return next((name for name in names if name in SUPPORTED), getattr(config, "model_type", "?"))


def unsupported(kind: str, why: str = "") -> RefusedError:
    """The refusal of a family by name, with those that work."""
    because = f" ({why})" if why else ""
    return RefusedError(
        f"model: family {kind!r} is not supported yet{because}; supported: {', '.join(sorted(SUPPORTED))}"
    )


def check_supported(config: Any) -> None:  # noqa: ANN401 - a transformers config
    """Refuse what cannot work, by name.

    Raises:
        RefusedError: an encoder-decoder, a family not supported yet, a step-size limit that stock models apply
            in prefill but not in steps, attention in both directions, an attention implementation that cannot take
            a tree mask.
    """
    kind = family_of(config)
    if getattr(config, "is_encoder_decoder", False):
        raise RefusedError(f"model: expected a decoder-only causal model, got the encoder-decoder family {kind!r}")
    if kind not in SUPPORTED:
        raise unsupported(kind, f"its {OWN_CACHES[kind]} calls no op that can be served" if kind in OWN_CACHES else "")
    limit = getattr(config, "time_step_limit", None)
    if limit is not None and tuple(limit) != (0.0, float("inf")):
        raise RefusedError(
            f"model: time_step_limit {tuple(limit)} is not supported: stock {kind} clamps step sizes in a sequence "
            "but not in one-token steps, so the model disagrees with itself; expected (0.0, inf)"
        )
    if getattr(config, "use_bidirectional_attention", False):
        raise RefusedError(
            "model: use_bidirectional_attention: expected a causal model, got attention in both directions"
        )
    attention = getattr(config, "_attn_implementation", None) or ""
    if "flash" in attention:
        raise RefusedError(
            f"model: attention {attention!r} cannot take a tree mask; "
            "load the model with attn_implementation='sdpa' or 'eager'"
        )


def causal_config(config: Any) -> Any:  # noqa: ANN401
    """The configuration of the model that ``AutoModelForCausalLM`` makes of a checkpoint with ``config``.

    Of some models of text and images it loads the text part.
    """
    known: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    text = config.get_text_config()
    return text if known is not None and known.config_class is type(text) else config


def attends_plainly(model: PreTrainedModel, signature: Signature) -> bool:
    """Whether the layers that attend all ask transformers for sdpa and see everything before them, and nothing else."""
    config = model.config
    attention = [type(module) for module in model.modules() if type(module).__name__.endswith("Attention")]
    return (
        signature.attention
        and not signature.slides
        and getattr(config, "_attn_implementation", None) == "sdpa"
        and all(hasattr(sys.modules[kind.__module__], "ALL_ATTENTION_FUNCTIONS") for kind in attention)
        and getattr(config, "attn_logit_softcapping", None) is None
    )


def splits_attention(model: PreTrainedModel, signature: Signature) -> bool:
    """Whether trees are scored by ``kernels/tree_attention`` instead of stock attention under a mask.

    Where its Triton form serves, in models that attend plainly.
    """
    return choice.serves("triton", model.device.type, model.dtype) and attends_plainly(model, signature)


def signature_of(model: PreTrainedModel) -> Signature:
    """Read off how ``model`` is called."""
    config = model.config
    parameters = inspect.signature(type(model).forward).parameters
    attention = _attends(config)
    most = getattr(config, "max_position_embeddings", None) if attention else None
    inputs = model.get_input_embeddings()
    learns = any(isinstance(each, nn.Embedding) and each is not inputs for each in model.modules())
    return Signature(
        cache_argument=next(name for name in CACHE_ARGUMENTS if name in parameters),
        takes_positions="position_ids" in parameters,
        takes_logits_to_keep="logits_to_keep" in parameters,
        attention=attention,
        max_positions=most,
        learned_positions=most if learns else None,
        turns=_turns(config, most) if attention else (),
        windows=_windows(config),
    )


def _turns(config: Any, most: int | None) -> tuple[int, ...]:  # noqa: ANN401
    """See :class:`Signature`: where ``dynamic`` rotary frequencies grow, and where ``longrope`` changes them."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(each for each in rope.values() if isinstance(each, dict))]  # some have them by kind of layer
    found = [each["original_max_position_embeddings"] for each in kinds if each.get("rope_type") == "longrope"]
    if most is not None and any("dynamic" in str(each.get("rope_type")) for each in kinds):
        found.append(most)
    return tuple(found)


def _attends(config: Any) -> bool:  # noqa: ANN401
    """Whether any layer of this very configuration attends."""
    layers = SUPPORTED[family_of(config)]
    if "attention" not in layers:
        return False
    if "beside" in layers:
        return True
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    return kinds is None or any(k in ("attention", "hybrid", FULL, SLIDING) for k in kinds)


def _windows(config: Any) -> dict[str, int | None]:  # noqa: ANN401
    """Kinds of attention layers and their windows; without ``layer_types``, all layers are of one kind."""
    width = getattr(config, "sliding_window", None)
    if width is None or getattr(config, "use_sliding_window", True) is False:
        return {FULL: None}
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return {SLIDING: width}
    return {kind: width if kind == SLIDING else None for kind in (FULL, SLIDING) if kind in kinds} or {FULL: None}
