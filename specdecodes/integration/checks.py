"""What ``generate`` may be asked for that a decoder of ours cannot do, refused in one line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.logits_process import (
    SynthIDTextWatermarkLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from specdecodes.models.families import CACHE_ARGUMENTS

STATEFUL = {
    UnbatchedClassifierFreeGuidanceLogitsProcessor: "guidance_scale",
    SynthIDTextWatermarkLogitsProcessor: "watermarking_config of the kind SynthID",
}
"""Processors that remember the tokens of their last call, and the argument that adds each; a tree has many branches."""

WITHOUT_EFFECT = ("use_cache", "logits_to_keep", "output_attentions", "output_hidden_states")
"""Arguments of a model's forward that ``generate`` hands over and that say nothing about the tokens."""


def check_config(config: GenerationConfig) -> None:
    """Refuse what no mode can do.

    Raises:
        ValueError: beams, several answers, contrastive, assisted or other search, outputs that we do not have.
    """
    for name in ("num_beams", "num_return_sequences"):
        if (value := getattr(config, name, None)) not in (None, 1):
            raise ValueError(
                f"{name}: expected 1 with specdecodes.custom_generate, got {value}; call it once an answer"
            )
    if (search := config.get_generation_mode()) not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise ValueError(
            f"generate: expected greedy search or sampling with specdecodes.custom_generate, got {search.value}; leave "
            "out what asks for it (prompt_lookup_num_tokens, penalty_alpha, dola_layers, ...)"
        )
    for name in ("output_attentions", "output_hidden_states"):
        if config.return_dict_in_generate and getattr(config, name, False):
            raise ValueError(f"{name}: specdecodes.custom_generate has only sequences, scores and logits; leave it out")


def check_processors(processors: Iterable[Any]) -> None:
    """Refuse processors that remember what they saw.

    Raises:
        ValueError: one of :data:`STATEFUL`.
    """
    for processor in processors:
        for kind, argument in STATEFUL.items():
            if isinstance(processor, kind):
                raise ValueError(
                    f"{argument}: {kind.__name__} keeps a state from token to token, which the branches of a tree "
                    "would mix up; leave it out with specdecodes.custom_generate"
                )


def check_inputs(input_ids: Tensor, model_kwargs: Mapping[str, Any]) -> None:
    """Refuse inputs that the decoder would not see.

    Raises:
        ValueError: several rows, no ids, padding, the caller's own positions, a cache that holds tokens, other inputs.
    """
    if model_kwargs.get("inputs_embeds") is not None:
        raise ValueError("inputs_embeds: specdecodes.custom_generate needs input_ids [1, L]; pass those")
    if input_ids.shape[0] != 1:
        raise ValueError(
            f"input_ids: expected one row with specdecodes.custom_generate, got {input_ids.shape[0]}; "
            "generate the rows one by one"
        )
    mask = model_kwargs.get("attention_mask")
    if mask is not None and not bool((mask == 1).all()):
        raise ValueError(
            "attention_mask: expected all ones with specdecodes.custom_generate (one row needs no padding), got zeros; "
            "stock takes the padding token inside a prompt for padding unless it is given a mask"
        )
    positions = model_kwargs.get("position_ids")
    if positions is not None and not torch.equal(positions.cpu(), torch.arange(input_ids.shape[1])[None]):
        raise ValueError("position_ids: expected none with specdecodes.custom_generate, which counts from 0")
    for name in CACHE_ARGUMENTS:
        if (cache := model_kwargs.get(name)) is not None and _holds_tokens(cache):
            raise ValueError(
                f"{name}: expected an empty cache with specdecodes.custom_generate, which keeps its own; leave it out"
            )
    known = {"attention_mask", "position_ids", *CACHE_ARGUMENTS, *WITHOUT_EFFECT}
    for name, value in model_kwargs.items():
        if name not in known and value is not None:
            raise ValueError(f"{name}: specdecodes.custom_generate takes token ids alone; leave it out")


def _holds_tokens(cache: Any) -> bool:  # noqa: ANN401 - any transformers cache
    for layer in cache.layers:
        states = getattr(layer, "has_previous_state", None)
        if states is not None and any(states.values()):
            return True
        if hasattr(layer, "get_seq_length") and int(layer.get_seq_length()) > 0:
            return True
    return False
