"""The configuration of MambaInLlama models, and how the published checkpoints' two files become one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from transformers import LlamaConfig
from transformers.utils import cached_file

MAMBA_FILE = "mamba_config.json"
"""What lies beside ``config.json`` in the published checkpoints."""

_SAME = {
    "d_model": "hidden_size",
    "n_layer": "num_hidden_layers",
    "vocab_size": "vocab_size",
    "intermediate_size": "intermediate_size",
    "hidden_act": "hidden_act",
    "rms_norm_eps": "rms_norm_eps",
}
"""What both files say, under which names; they must agree."""
_TAKEN = ("d_state", "d_conv", "ngroups", "bias", "conv_bias", "chunk_size", "repeat_kv_before_conv", "D_has_hdim")
"""Settings of ``ssm_cfg`` that become fields of the same name."""
_FIXED = {"rmsnorm": True, "norm_before_gate": False, "activation": "silu", "layer": "Mamba2"}
"""Settings of ``ssm_cfg`` that change the layer's maths and that the family has only one value of."""
_TRAINING = {"expand", "headdim", "dt_min", "dt_max", "dt_init_floor", "A_init_range", "conv_init", "use_mem_eff_path"}
"""Settings of ``ssm_cfg`` that say nothing new: shapes that follow from others, initial values, implementations."""


class MILConfig(LlamaConfig):
    """Llama's configuration and that of the Mamba-2 layers in the places of attention.

    Attributes:
        attn_layers: indices of the layers that attend; the others are Mamba-2.
        d_inner: channels of z, C and the output. d_xb: channels of x and of B, which ``d_inner / d_xb`` heads share
            as queries share keys. d_state: state dim, and head dim too. ngroups: heads, each a group of its own.
        d_conv: width of the causal convolution. conv_bias, bias: whether it and the projections have one.
        repeat_kv_before_conv: the heads share x and B before the convolution only. D_has_hdim: D per channel, not head.
        chunk_size: of stock transformers' scan; changes the cost, not the result.
    """

    model_type = "mamba_in_llama"
    base_model_tp_plan: ClassVar[dict[str, Any]] = {}  # Llama's shards attention in every layer
    base_model_pp_plan: ClassVar[dict[str, Any]] = {}

    attn_layers: list[int] | tuple[int, ...] = ()
    d_inner: int | None = None
    d_xb: int | None = None
    d_state: int | None = None
    ngroups: int | None = None
    d_conv: int = 4
    conv_bias: bool = True
    bias: bool = False
    repeat_kv_before_conv: bool = False
    D_has_hdim: bool = False
    chunk_size: int = 256

    def __post_init__(self, **kwargs: Any) -> None:
        """Sizes that are not given are those that take over from Llama's attention: heads, key heads, head dim.

        Raises:
            ValueError: sizes that do not fit each other, or a layer that attends and does not exist.
        """
        super().__post_init__(**kwargs)
        assert self.num_key_value_heads is not None and self.head_dim is not None  # Llama's own has set them
        self.attn_layers = [int(index) for index in self.attn_layers]
        self.ngroups = self.ngroups or self.num_attention_heads
        self.d_state = self.d_state or self.head_dim
        self.d_inner = self.d_inner or self.ngroups * self.d_state
        self.d_xb = self.d_xb or self.num_key_value_heads * self.d_state
        inner, xb = self.d_inner, self.d_xb
        if inner != self.ngroups * self.d_state:
            raise ValueError(f"d_inner: expected ngroups * d_state = {self.ngroups} * {self.d_state}, got {inner}")
        if xb % self.d_state or inner % xb:
            raise ValueError(
                f"d_xb: expected a multiple of d_state {self.d_state} that divides d_inner {inner}, got {xb}"
            )
        if beyond := [index for index in self.attn_layers if not 0 <= index < self.num_hidden_layers]:
            raise ValueError(f"attn_layers: expected 0 to {self.num_hidden_layers - 1}, got {beyond[0]}")

    @property
    def layer_types(self) -> list[str]:
        """Per layer, in transformers' words."""
        attends = set(self.attn_layers)
        return ["full_attention" if index in attends else "linear_attention" for index in range(self.num_hidden_layers)]

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """``config.json`` as a dict, with ``mamba_config.json`` merged into it where one lies beside it.

        Raises:
            ValueError: the two disagree, or the layers are none that this class has.
        """
        found, rest = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if found.get("model_type") == cls.model_type:
            return found, rest
        beside = mamba_file(pretrained_model_name_or_path)
        return (found if beside is None else merged(found, json.loads(beside.read_text("utf-8")))), rest


def mamba_file(source: str | os.PathLike[str]) -> Path | None:
    """``mamba_config.json`` in a folder or a hub repository, if there is one."""
    if Path(source).is_dir():
        return path if (path := Path(source, MAMBA_FILE)).is_file() else None
    found = cached_file(
        source,
        MAMBA_FILE,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


def merged(config: Mapping[str, Any], mamba: Mapping[str, Any]) -> dict[str, Any]:
    """What :class:`MILConfig` is made of, from the contents of ``config.json`` and ``mamba_config.json``.

    Raises:
        ValueError: a Llama that is none, two files that disagree, or a setting that changes the maths in a way
            that the family does not know.
    """
    if config.get("model_type") != "llama":
        raise ValueError(
            f"{MAMBA_FILE}: expected it beside a config.json of model_type 'llama', got {config.get('model_type')!r}"
        )
    for name, other in _SAME.items():
        if mamba.get(name) is not None and other in config and mamba[name] != config[other]:
            raise ValueError(
                f"{MAMBA_FILE}: {name}: expected config.json's {other}, {config[other]!r}, got {mamba[name]!r}"
            )
    ssm = dict(mamba.get("ssm_cfg") or {})
    for name, value in ssm.items():
        if name in _FIXED and value != _FIXED[name]:
            raise ValueError(f"{MAMBA_FILE}: ssm_cfg.{name}: expected {_FIXED[name]!r}, got {value!r}")
        if name not in {*_TAKEN, *_FIXED, *_TRAINING}:
            raise ValueError(f"{MAMBA_FILE}: ssm_cfg.{name}: not known; known: {', '.join(sorted(_TAKEN))}")
    own = {name: ssm[name] for name in _TAKEN if ssm.get(name) is not None}
    own |= {name: mamba[name] for name in ("d_inner", "d_xb") if mamba.get(name) is not None}
    llama = {name: value for name, value in config.items() if name not in ("architectures", "auto_map")}
    return {**llama, **own, "model_type": MILConfig.model_type, "attn_layers": list(mamba.get("attn_layers") or ())}
