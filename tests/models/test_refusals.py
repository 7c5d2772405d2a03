"""What cannot work is refused in one line, before anything is run."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BambaConfig,
    BloomConfig,
    Gemma3Config,
    LlamaConfig,
    Mamba2Config,
    MiniMaxConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    RecurrentGemmaConfig,
    RwkvConfig,
    T5Config,
    T5ForConditionalGeneration,
    xLSTMConfig,
)

from specdecodes.core.tree import Tree
from specdecodes.models.families import SUPPORTED, causal_config, check_supported
from specdecodes.models.interpose import install
from specdecodes.models.loading import load_model
from specdecodes.models.target import Target

from .configs import FAMILIES
from .families import prompt_of, shared
from .tiny import MAMBA, PLAIN

TINY: dict[str, Any] = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1}


def test_every_supported_family_is_tested() -> None:
    assert {family.config().model_type for family in FAMILIES.values()} == set(SUPPORTED)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (RwkvConfig(**TINY, attention_hidden_size=16), r" \(its WKV calls no op that can be served\)"),
        (xLSTMConfig(**TINY), r" \(its xLSTM calls no op that can be served\)"),
        (MiniMaxConfig(**TINY), r" \(its lightning attention calls no op that can be served\)"),
        (RecurrentGemmaConfig(**TINY), r" \(its RG-LRU calls no op that can be served\)"),
        (BloomConfig(**TINY), ""),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_other_families_by_name(config: PreTrainedConfig, why: str) -> None:
    message = rf"family '{config.model_type}' is not supported yet{why}; supported: bamba, .*zamba2$"
    with pytest.raises(ValueError, match=message):
        check_supported(config)


def test_a_model_of_another_family() -> None:
    model = AutoModelForCausalLM.from_config(BloomConfig(**TINY))
    with pytest.raises(ValueError, match="family 'bloom' is not supported yet"):
        Target(model)


def test_encoder_decoder() -> None:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    model = T5ForConditionalGeneration(T5Config(vocab_size=50, **sizes))
    with pytest.raises(ValueError, match="expected a decoder-only causal model, got the encoder-decoder family 't5'"):
        Target(model)


@pytest.mark.parametrize("kind", ["flash_attention_2", "flash_attention_3"])
def test_attention_that_takes_no_tree_mask(kind: str) -> None:
    config = LlamaConfig(**PLAIN)
    config._attn_implementation = kind
    with pytest.raises(ValueError, match=rf"attention '{kind}' cannot take a tree mask; .*'sdpa' or 'eager'"):
        check_supported(config)


@pytest.mark.parametrize(
    "config",
    [
        Mamba2Config(num_heads=4, head_dim=8, hidden_size=16, time_step_limit=(0.01, 0.1)),
        BambaConfig(**{**PLAIN, **MAMBA}, time_step_limit=(0.0, 0.1)),
    ],
    ids=lambda config: config.model_type,
)
def test_limits_on_step_sizes(config: PreTrainedConfig) -> None:
    with pytest.raises(ValueError, match=r"time_step_limit \(0\.0.*, 0\.1\) is not supported.*expected \(0\.0, inf\)"):
        check_supported(config)


@pytest.mark.parametrize("name", ["mamba2", "llama"])
def test_prompts(name: str) -> None:
    target = Target(shared(name))
    with pytest.raises(ValueError, match=r"expected one row \(B = 1\), got 2; batches are not supported yet"):
        target.prefill(torch.ones(2, 5, dtype=torch.long))
    for ids, got in (
        (torch.ones(1, 0, dtype=torch.long), r"torch.int64 of shape \(1, 0\)"),
        (torch.ones(5, dtype=torch.long), r"torch.int64 of shape \(5,\)"),
        (torch.ones(1, 5), r"torch.float32 of shape \(1, 5\)"),
    ):
        with pytest.raises(ValueError, match=rf"expected integer token ids \[B, L\] with L >= 1, got {got}"):
            target.prefill(ids)
    with pytest.raises(ValueError, match="attention_mask: expected all ones"):
        target.prefill(prompt_of(3), attention_mask=torch.tensor([[0, 1, 1]]))
    assert target.length == 0
    logits = target.prefill(prompt_of(3), attention_mask=torch.ones(1, 3, dtype=torch.long))
    assert torch.equal(logits, target.prefill(prompt_of(3)))


@pytest.mark.parametrize("name", ["mamba2", "llama"])
def test_trees_and_paths(name: str) -> None:
    target = Target(shared(name))
    tree = Tree(torch.tensor([[1, 2, 3]]), torch.tensor([[-1, 0, 0]]))
    with pytest.raises(RuntimeError, match="score: no prompt has been prefilled"):
        target.score(tree)
    target.prefill(torch.ones(1, 5, dtype=torch.long))
    with pytest.raises(ValueError, match=r"score: expected one row \(B = 1\), got 2; batches are not supported yet"):
        target.score(Tree(tree.tokens.repeat(2, 1), tree.parents.repeat(2, 1)))
    target.score(tree)
    with pytest.raises(ValueError, match=r"commit: expected a path .* one row \(B = 1\), got shape \(2, 1\)"):
        target.commit(torch.zeros(2, 1, dtype=torch.long))
    for path in ([1], [-1], [0, 3]):
        with pytest.raises(ValueError, match=r"commit: expected nodes of the tree from the root \(0\) on, got "):
            target.commit(torch.tensor([path]))
    target.commit(torch.tensor([[0, 2]]))
    assert target.length == 7


def _small(config: type[PreTrainedConfig], **settings: Any) -> Target:
    torch.manual_seed(0)
    return Target(AutoModelForCausalLM.from_config(config(**{**PLAIN, **settings})).eval())


def test_more_tokens_than_the_model_allows() -> None:
    target = _small(LlamaConfig, max_position_embeddings=32)
    message = "33 tokens and max_new_tokens 0 make 33, but the model allows 32 positions; shorten the prompt"
    with pytest.raises(ValueError, match=message):
        target.prefill(prompt_of(33))
    with pytest.raises(ValueError, match="20 tokens and max_new_tokens 13 make 33, but the model allows 32"):
        target.check_room(1, 20, 13)
    target.check_room(1, 20, 12)
    target.prefill(prompt_of(32))


def test_a_recurrent_model_has_no_last_position() -> None:
    Target(shared("mamba2")).check_room(1, 10**9, 10**9)


def test_more_tokens_than_a_static_cache_holds() -> None:
    target = Target(shared("llama"), max_length=16)
    with pytest.raises(ValueError, match=r"17 tokens .* but the static cache holds 16 positions"):
        target.prefill(prompt_of(17))
    target.prefill(prompt_of(16))


def test_a_sliding_window_that_is_switched_off() -> None:
    _small(Qwen2Config, sliding_window=24, use_sliding_window=False).prefill(prompt_of(40))


def _modeling_file(name: str, **ops: Any) -> nn.Module:
    """A model whose modeling file holds ``ops``."""
    module = ModuleType(name)
    for key, op in ops.items():
        setattr(module, key, op)
    sys.modules[name] = module
    return type("Mixer", (nn.Module,), {"__module__": name})()


def test_an_op_whose_signature_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def mamba2_chunk_scan(hidden_states: Any, dt: Any, A: Any, B: Any, C: Any, chunk_size: int, D: Any, z: Any) -> None:
        raise AssertionError

    monkeypatch.setitem(sys.modules, "modeling_of_tomorrow", None)  # type: ignore[arg-type]  # removed afterwards
    model = _modeling_file("modeling_of_tomorrow", mamba2_chunk_scan=mamba2_chunk_scan)
    with pytest.raises(ValueError, match=r"modeling_of_tomorrow\.mamba2_chunk_scan: expected parameters") as refusal:
        install(model)
    notes = r"\(no dt_bias, .*, return_final_states; unknown z\); this transformers version is not supported"
    assert re.search(notes, str(refusal.value))
    assert sys.modules["modeling_of_tomorrow"].mamba2_chunk_scan is mamba2_chunk_scan


@pytest.mark.parametrize(
    ("signature", "note"),
    [
        ("hidden_states, weight, bias, activation, seq_idx=None", "unknown seq_idx"),
        ("weight, hidden_states, bias, activation", "another order"),
    ],
)
def test_an_op_with_a_parameter_more_or_another_order(
    signature: str, note: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "modeling_of_tomorrow", None)  # type: ignore[arg-type]  # removed afterwards
    op = eval(f"lambda {signature}, **kwargs: 0")
    with pytest.raises(ValueError, match=rf"modeling_of_tomorrow\.causal_conv1d_fn: .* \({note}\); this transformers"):
        install(_modeling_file("modeling_of_tomorrow", causal_conv1d_fn=op))


def test_a_mixer_that_calls_none_of_our_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modeling_of_yesterday", None)  # type: ignore[arg-type]  # removed afterwards
    model = _modeling_file("modeling_of_yesterday", causal_conv1d_fn=lambda hidden_states, weight, bias, activation: 0)
    assert install(model) == {"causal_conv1d_fn"}
    model.A_log = torch.zeros(2)
    with pytest.raises(ValueError, match=r"modeling_of_yesterday: expected a scan that Mixer calls \(.*\), got none"):
        install(model)


def test_messages_are_one_line() -> None:
    for config in (BloomConfig(), RwkvConfig(), T5Config()):
        with pytest.raises(ValueError, match=r"^model: ") as refusal:
            check_supported(config)
        assert "\n" not in str(refusal.value)


def test_of_a_model_of_text_and_images_the_text_part_is_loaded(tmp_path: Path) -> None:
    """As ``AutoModelForCausalLM`` does, for Qwen3.5 (but not for Gemma 3, of which it loads the whole)."""
    text = FAMILIES["qwen3_5"].config()
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 32}
    config = Qwen3_5Config(text_config=text.to_dict(), vision_config=vision)
    Qwen3_5ForConditionalGeneration(config).save_pretrained(tmp_path)
    model = load_model(str(tmp_path), "target", torch.device("cpu"), torch.float32)
    assert model.config.model_type == "qwen3_5_text"
    assert Target(model).prefill(prompt_of(5)).isfinite().all()
    with pytest.raises(ValueError, match="family 'qwen3_5' is not supported yet"):
        Target(Qwen3_5ForConditionalGeneration(config))
    assert causal_config(Gemma3Config()).model_type == "gemma3"


def test_the_readme_names_what_is_supported() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    table = text[text.index("| family | layers |") : text.index("Models are stock: no modeling file")]
    named = [name for row in table.splitlines()[2:] if row for name in row.split("|")[1].strip().split(", ")]
    assert sorted(named) == sorted(SUPPORTED)
