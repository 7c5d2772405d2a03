"""Prefill through flash-attn: where it serves, what it is given, and that stock sdpa serves where it does not.

It does not run without a GPU, so that a stand-in takes its place: it checks what it is given and attends in float64.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import specdecodes.models.target as target_module
from specdecodes.kernels import installed
from specdecodes.kernels.installed import Kernel
from specdecodes.models.causal_attention import causal_attention
from specdecodes.models.target import Target

from ..kernels.stand_in import StandIn
from .configs import FAMILIES, each
from .families import gap, logits_of, prompt_of, shared, state_error, stock_prefix, stock_tree, tree_of
from .tiny import PLAIN

F32, BF16 = torch.float32, torch.bfloat16
LENGTH = 23
ATTENDING = [name for name, family in FAMILIES.items() if family.attention]
WINDOWS = {
    *("mistral-window", "qwen2-window", "gemma3", "mixtral", "cohere2", "exaone4", "ministral3", "olmo3", "phi3"),
    "starcoder2",
}
UNEQUAL_HEADS = {"deepseek_v2", "deepseek_v3", "kimi_linear"}
"""Families whose values are narrower than their keys."""


def flash(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """``flash_attn_func``: [B, T, H, D] and [B, S, Hk, D]; causal from the bottom right corner."""
    assert causal and dropout_p == 0 and window_size == (-1, -1)
    assert q.dtype == k.dtype == v.dtype and k.shape == v.shape and q.shape[3] == k.shape[3] <= 256
    assert all(given.stride(-1) == 1 for given in (q, k, v))
    kept = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril(k.shape[1] - q.shape[1])
    scale = q.shape[3] ** -0.5 if softmax_scale is None else softmax_scale
    keys, values = (given.double().repeat_interleave(q.shape[2] // k.shape[2], dim=2) for given in (k, v))
    products = torch.einsum("bthd,bshd->bhts", q.double(), keys) * scale
    weights = products.masked_fill(~kept, float("-inf")).softmax(-1)
    return torch.einsum("bhts,bshd->bthd", weights, values).to(q.dtype).contiguous()


def refuse(*_: Any, **__: Any) -> Tensor:
    raise RuntimeError("FlashAttention only supports\nAmpere GPUs or newer")


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """flash-attn as on import, but serving on any device, and float32 too, in which values can be compared."""
    made = replace(installed.ATTENTION, dtypes=(F32, *installed.ATTENTION.dtypes))
    monkeypatch.setattr(installed, "ATTENTION", made)
    decide = Kernel.decide
    monkeypatch.setattr(Kernel, "decide", lambda kernel, device, dtype: decide(kernel, "cuda", dtype))
    return made


def made_of(config: PreTrainedConfig) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=F32)


def sdpa_prefill(name: str, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Logits of a prefill for which flash-attn is not asked."""
    with monkeypatch.context() as patch:
        patch.setattr(installed.ATTENTION, "dtypes", ())
        return Target(shared(name)).prefill(prompt_of(LENGTH))


@pytest.mark.parametrize("name", each(ATTENDING))
def test_a_prefill_in_chunks(name: str, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """As stock decoding, through flash-attn in every layer of those families that attend plainly and in no other."""
    monkeypatch.setattr(target_module, "PREFILL_CHUNK", 9)
    stand_in = StandIn(kernel, flash, monkeypatch)
    target, expected = Target(shared(name)), stock_prefix(name, F32, LENGTH)
    target.prefill(prompt_of(30, "something else"))  # must be gone
    stand_in.calls = 0
    assert gap(target.prefill(prompt_of(LENGTH))[0], expected.logits) < FAMILIES[name].float32
    assert state_error(target, expected) < FAMILIES[name].float32
    stock = FAMILIES[name].attention_kind != "sdpa" or name in WINDOWS | UNEQUAL_HEADS
    assert stand_in.calls == (0 if stock else 3 * len(target.cache.attention))
    assert kernel.refused is None


@pytest.mark.parametrize("chunk", [1024, 1])
@pytest.mark.parametrize("max_length", [None, 40])
@pytest.mark.parametrize("name", ["llama", "bamba"])
def test_a_prefill_and_a_tree_behind_it(
    name: str, max_length: int | None, chunk: int, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target_module, "PREFILL_CHUNK", chunk)
    stand_in = StandIn(kernel, flash, monkeypatch)
    target, expected = Target(shared(name), max_length=max_length), stock_prefix(name, F32, LENGTH)
    assert gap(target.prefill(prompt_of(LENGTH))[0], expected.logits) < 1e-4
    calls = stand_in.calls
    assert calls == len(target.cache.attention) * -(-LENGTH // chunk)
    tree = tree_of("six", "flash")
    assert gap(target.score(tree), logits_of(stock_tree(target.model, expected, tree))) < 1e-4
    assert stand_in.calls == calls, "a tree is not causal"


def test_one_that_refuses_leaves_it_to_sdpa(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = sdpa_prefill("llama", monkeypatch)
    stand_in = StandIn(kernel, refuse, monkeypatch)
    with caplog.at_level(logging.INFO, "specdecodes"):
        assert torch.equal(Target(shared("llama")).prefill(prompt_of(LENGTH)), expected)
    assert stand_in.calls == 1, "it is not asked again"
    why = "flash-attn refused: RuntimeError: FlashAttention only supports Ampere GPUs or newer"
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [("INFO", why)]
    assert kernel.decide("cuda", BF16) == ("naive", f"transformers' sdpa or eager: {why}")


def test_versions_that_align_the_mask_at_the_top_left_refuse(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def before_windows(
        q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: Any = None, causal: bool = False
    ) -> Tensor:
        raise AssertionError("its values would be wrong")

    StandIn(kernel, before_windows, monkeypatch)
    assert torch.equal(Target(shared("llama")).prefill(prompt_of(LENGTH)), sdpa_prefill("llama", monkeypatch))
    assert kernel.refused is not None and "window_size" in kernel.refused


@pytest.mark.parametrize("cap", [50.0, None])
def test_a_soft_cap_is_left_to_sdpa(cap: float | None, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = ["full_attention"] * PLAIN["num_hidden_layers"]
    config = Gemma2Config(**PLAIN, head_dim=8, query_pre_attn_scalar=8, layer_types=layers, attn_logit_softcapping=cap)
    stand_in = StandIn(kernel, flash, monkeypatch)
    Target(made_of(config)).prefill(prompt_of(LENGTH))
    assert stand_in.calls == (len(layers) if cap is None else 0)


@pytest.mark.parametrize("dim", [256, 264])
def test_wide_heads_are_left_to_sdpa(dim: int, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = StandIn(kernel, flash, monkeypatch)
    Target(made_of(LlamaConfig(**PLAIN, head_dim=dim))).prefill(prompt_of(LENGTH))
    assert stand_in.calls == (PLAIN["num_hidden_layers"] if dim == 256 else 0)
    assert kernel.refused is None


class Attention(nn.Module):
    """What stock sdpa asks a module for."""

    num_key_value_groups = 3


@pytest.mark.parametrize(
    ("more", "calls"),
    [
        ({}, 1),
        ({"scaling": 0.3}, 1),
        ({"sliding_window": None, "position_ids": torch.arange(4)}, 1),
        ({"sliding_window": 4}, 0),
        ({"softcap": 30.0}, 0),
        ({"s_aux": torch.ones(6)}, 0),
        ({"position_bias": torch.randn(1, 6, 4, 9)}, 0),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
@torch.no_grad()
def test_arguments_of_a_layer(
    more: dict[str, Any], calls: int, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grouped queries of the last 4 of 9 positions, the keys from a longer cache."""
    stand_in = StandIn(kernel, flash, monkeypatch)
    q, cached = torch.randn(1, 6, 4, 8), torch.randn(2, 1, 2, 32, 8)
    mask = torch.full((4, 9), float("-inf")).triu(6)[None, None]
    k, v = cached[:, :, :, :9]
    found, weights = causal_attention(Attention(), q, k, v, mask, **more)
    expected, _ = sdpa_attention_forward(Attention(), q, k, v, mask, **more)
    assert weights is None and stand_in.calls == calls
    torch.testing.assert_close(found, expected)


def test_where_a_gradient_is_wanted_sdpa_serves(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = StandIn(kernel, flash, monkeypatch)
    q, k, v = (torch.randn(1, heads, 5, 8, requires_grad=True) for heads in (6, 2, 2))
    with torch.enable_grad():
        y, _ = causal_attention(Attention(), q, k, v, torch.zeros(1, 1, 5, 5))
    assert y.requires_grad and stand_in.calls == 0


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_cpu_has_none_of_it(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    made = replace(installed.ATTENTION)
    monkeypatch.setattr(installed, "ATTENTION", made)
    stand_in = StandIn(made, flash, monkeypatch)
    Target(shared("llama", dtype)).prefill(prompt_of(LENGTH))
    assert stand_in.calls == 0
    assert made.decide("cuda", BF16) == ("flash-attn", "flash_attn.flash_attn_func")
    assert made.decide("cuda", F32).why == "transformers' sdpa or eager; flash-attn is less exact in float32"
