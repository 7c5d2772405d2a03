"""MambaInLlama as a transformers model: Llama's layers, with Mamba-2 in the place of some attention.

The classes are called MIL because transformers takes a class with "mamba" in its name for one without attention: it
would pass the cache as ``cache_params``.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, initialization
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask, create_recurrent_attention_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaForCausalLM,
    LlamaMLP,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from specdecodes.models.mamba_in_llama.configuration import MILConfig
from specdecodes.models.mamba_in_llama.mixer import MILMixer

CACHE = "cache" if "cache" in inspect.signature(LlamaAttention.forward).parameters else "past_key_values"
"""What transformers calls a cache: the first from 5.24 on."""


class MILDecoderLayer(GradientCheckpointingLayer):
    """Llama's layer, whose first half is attention or :class:`MILMixer`; weights are named as in the checkpoints."""

    def __init__(self, config: MILConfig, layer_idx: int) -> None:
        super().__init__()
        self.attends = config.layer_types[layer_idx] == "full_attention"
        if self.attends:
            self.self_attn = LlamaAttention(config, layer_idx)
        else:
            self.mamba = MILMixer(config, layer_idx)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None, cache: Cache | None, **kwargs: Any
    ) -> Tensor:
        """[B, T, hidden] to [B, T, hidden]; ``attention_mask`` is the kind that this layer takes."""
        mixed = self.input_layernorm(hidden_states)
        if self.attends:
            mixed, _ = self.self_attn(mixed, attention_mask=attention_mask, **{CACHE: cache}, **kwargs)
        else:
            mixed = self.mamba(mixed, cache, attention_mask)
        hidden_states = hidden_states + mixed
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class MILPreTrainedModel(LlamaPreTrainedModel):
    """What transformers asks of every class of a family."""

    config_class = MILConfig
    _no_split_modules = ["MILDecoderLayer"]  # noqa: RUF012 - as transformers declares them
    _is_stateful = True
    _can_record_outputs = {"hidden_states": MILDecoderLayer, "attentions": LlamaAttention}  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MILMixer):
            initialization.ones_(module.dt_bias)
            initialization.ones_(module.D)
            initialization.copy_(module.A_log, torch.arange(1, module.num_heads + 1).log())


class MILModel(MILPreTrainedModel):
    """The layers between token ids and the last norm."""

    def __init__(self, config: MILConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList([MILDecoderLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Tensor | None] | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """As Llama's, the cache named ``CACHE``; a 4D mask goes to attention alone, a 2D one (padding) to every layer.

        Raises:
            ValueError: not exactly one of ``input_ids`` and ``inputs_embeds``.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("forward: expected one of input_ids and inputs_embeds, got both or neither")
        hidden_states: Tensor = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache: Cache | None = kwargs.pop(CACHE, None)
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        attends = "full_attention" in self.config.layer_types
        if position_ids is None:  # without attention no layer looks at positions, and no cache counts them
            past = cache.get_seq_length() if attends and cache is not None else 0
            position_ids = (torch.arange(hidden_states.shape[1], device=hidden_states.device) + past)[None]
        masks: dict[str, Any] = attention_mask if isinstance(attention_mask, dict) else {}
        if not masks:
            about: dict[str, Any] = {
                "config": self.config,
                "inputs_embeds": hidden_states,
                "attention_mask": attention_mask,
                CACHE: cache,
                "position_ids": position_ids,
            }
            masks = {"linear_attention": create_recurrent_attention_mask(**about)}
            if attends:
                masks["full_attention"] = create_causal_mask(**about)
        kwargs["position_embeddings"] = self.rotary_emb(hidden_states, position_ids=position_ids)
        for layer, kind in zip(self.layers, self.config.layer_types, strict=True):
            hidden_states = layer(hidden_states, masks[kind], cache, position_ids=position_ids, **kwargs)
        kept: dict[str, Any] = {CACHE: cache}
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), **kept)


class MILForCausalLM(MILPreTrainedModel, LlamaForCausalLM):
    """The model with Llama's head, loss and generation."""

    def __init__(self, config: MILConfig) -> None:
        MILPreTrainedModel.__init__(self, config)
        self.model = MILModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _supports_default_dynamic_cache(self) -> bool:  # type: ignore[override]  # stock judges by the class's name
        """Whether ``generate`` makes the cache. It asks its own for a length, which without attention none knows."""
        return bool(self.config.attn_layers)
