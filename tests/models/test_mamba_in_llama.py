"""MambaInLlama: the maths written out from a checkpoint's weights, its files, stock generation, and decoding with it.

Trees, commits and steps against stock one-token decoding: test_conformance.py, families ``mamba_in_llama*``.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from specdecodes import load
from specdecodes.models.loading import load_model
from specdecodes.models.mamba_in_llama import MILConfig, MILForCausalLM
from specdecodes.models.mamba_in_llama.configuration import MAMBA_FILE, merged

from .checkpoint_files import FORMS, write_weights
from .families import make, prompt_of, shared

HYBRID, DRAFT = "mamba_in_llama", "mamba_in_llama-draft"
CPU = torch.device("cpu")


def original_files(model: PreTrainedModel) -> tuple[dict[str, Any], dict[str, Any]]:
    """``config.json`` and ``mamba_config.json`` as the published checkpoints have them."""
    c = model.config
    rope = c.rope_parameters
    llama = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads,
        "rms_norm_eps": c.rms_norm_eps,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None,
        "vocab_size": c.vocab_size,
        "bos_token_id": c.bos_token_id,
        "eos_token_id": c.eos_token_id,
        "tie_word_embeddings": False,
        "max_position_embeddings": c.max_position_embeddings,
        "torch_dtype": "float32",
    }
    ssm = {"expand": 1, "ngroups": c.ngroups, "d_state": c.d_state, "d_conv": c.d_conv, "conv_bias": c.conv_bias}
    ssm |= {"repeat_kv_before_conv": c.repeat_kv_before_conv, "D_has_hdim": c.D_has_hdim}
    mamba = {
        "d_model": c.hidden_size,
        "ssm_cfg": ssm,
        "rms_norm_eps": c.rms_norm_eps,
        "vocab_size": None,
        "d_inner": c.d_inner,
        "d_xb": c.d_xb,
        "intermediate_size": c.intermediate_size,
        "hidden_act": "silu",
        "n_layer": c.num_hidden_layers,
        "attn_layers": list(c.attn_layers),
    }
    return llama, mamba


def write_original(folder: Path, model: PreTrainedModel, form: str = FORMS[0], **changes: Any) -> Path:
    """A published checkpoint; ``changes`` are to ``mamba_config.json``."""
    write_weights(folder, model.state_dict(), form)
    llama, mamba = original_files(model)
    (folder / "config.json").write_text(json.dumps(llama))
    (folder / MAMBA_FILE).write_text(json.dumps({**mamba, **changes}))
    return folder


# -- the maths --------------------------------------------------------------------------------------------------------


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def mamba_layer(w: dict[str, Tensor], c: MILConfig, h: Tensor) -> Tensor:
    """One layer token by token and head by head, as the facts about the checkpoints say it: [T, hidden]."""
    heads, size, inner, xb = c.ngroups, c.d_state, c.d_inner, c.d_xb
    rows = (h @ w["in_proj.weight"].T).split([inner, xb, xb, inner, heads], dim=-1)
    z, x, B, C, dt = rows
    per = inner // xb

    def per_head(part: Tensor) -> Tensor:
        groups = [part[:, g * size : (g + 1) * size] for g in range(xb // size)]
        return torch.cat([groups[head // per] for head in range(heads)], dim=-1)

    if c.repeat_kv_before_conv:
        x, B = per_head(x), per_head(B)
    raw = torch.cat([x, B, C], dim=-1)
    width, bias = c.d_conv, w.get("conv1d.bias", torch.zeros(raw.shape[1]))
    past = torch.cat([torch.zeros(width - 1, raw.shape[1], dtype=h.dtype), raw])
    taps = w["conv1d.weight"][:, 0]
    mixed = F.silu(torch.stack([(past[t : t + width] * taps.T).sum(0) + bias for t in range(len(raw))]))
    x, B, C = mixed.split([x.shape[1], B.shape[1], inner], dim=-1)
    if not c.repeat_kv_before_conv:
        x, B = per_head(x), per_head(B)
    dt = torch.log1p(torch.exp(dt + w["dt_bias"]))
    D = w["D"] if c.D_has_hdim else w["D"].repeat_interleave(size)
    y = torch.zeros_like(C)
    for head in range(heads):
        own, state = slice(head * size, (head + 1) * size), torch.zeros(size, size, dtype=h.dtype)
        for t in range(len(h)):
            decay = torch.exp(-torch.exp(w["A_log"][head]) * dt[t, head])
            state = decay * state + dt[t, head] * torch.outer(x[t, own], B[t, own])
            y[t, own] = state @ C[t, own] + D[own] * x[t, own]
    gated = (y * F.silu(z)).unflatten(-1, (heads, size))
    normed = rms(gated, torch.ones((), dtype=h.dtype), 1e-5).flatten(-2) * w["norm.weight"]
    return normed @ w["out_proj.weight"].T


def attention_layer(w: dict[str, Tensor], c: MILConfig, h: Tensor) -> Tensor:
    """Grouped-query attention with rotary positions: [T, hidden]."""
    size, count = c.head_dim, len(h)
    angle = torch.outer(
        torch.arange(count, dtype=h.dtype),
        c.rope_parameters["rope_theta"] ** -(torch.arange(0, size, 2, dtype=h.dtype) / size),
    )

    def turn(v: Tensor) -> Tensor:
        a, b = v.chunk(2, dim=-1)
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)

    q, k, v = ((h @ w[f"{n}_proj.weight"].T).unflatten(-1, (-1, size)) for n in "qkv")
    per = q.shape[1] // k.shape[1]
    mask = torch.full((count, count), -math.inf, dtype=h.dtype).triu(1)
    outputs = []
    for head in range(q.shape[1]):
        scores = turn(q[:, head]) @ turn(k[:, head // per]).T / math.sqrt(size) + mask
        outputs.append(scores.softmax(-1) @ v[:, head // per])
    return torch.cat(outputs, dim=-1) @ w["o_proj.weight"].T


def written_out(weights: dict[str, Tensor], c: MILConfig, ids: list[int]) -> Tensor:
    """Logits [T, V] from the tensors of a checkpoint, in float64."""
    weights = {name: weight.double() for name, weight in weights.items()}
    h = weights["model.embed_tokens.weight"][ids]
    for i in range(c.num_hidden_layers):
        prefix = f"model.layers.{i}."
        own = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
        kind, layer = ("self_attn.", attention_layer) if i in c.attn_layers else ("mamba.", mamba_layer)
        inner = {n.removeprefix(kind): w for n, w in own.items() if n.startswith(kind)}
        h = h + layer(inner, c, rms(h, own["input_layernorm.weight"], c.rms_norm_eps))
        m = rms(h, own["post_attention_layernorm.weight"], c.rms_norm_eps)
        up = F.silu(m @ own["mlp.gate_proj.weight"].T) * (m @ own["mlp.up_proj.weight"].T)
        h = h + up @ own["mlp.down_proj.weight"].T
    return rms(h, weights["model.norm.weight"], c.rms_norm_eps) @ weights["lm_head.weight"].T


@pytest.mark.parametrize("name", [HYBRID, DRAFT])
def test_the_maths_written_out(name: str) -> None:
    model, ids = shared(name), prompt_of(11, name)
    with torch.no_grad():
        logits = model(ids).logits[0].double()
    expected = written_out(model.state_dict(), model.config, ids[0].tolist())
    assert float(expected.std()) > 0.5
    torch.testing.assert_close(logits, expected, rtol=0, atol=3e-5)


def test_the_shapes_of_the_published_targets() -> None:
    """The 8B's: 4 heads share x and B, so that the convolution has 6,144 channels, and replay keeps 12,352 bytes."""
    config = MILConfig(
        hidden_size=4096, num_attention_heads=32, num_key_value_heads=8, num_hidden_layers=1, vocab_size=8
    )
    with torch.device("meta"):
        mixer = MILForCausalLM(config).model.layers[0].mamba
    assert (config.d_inner, config.d_xb, config.ngroups, config.d_state) == (4096, 1024, 32, 128)
    assert mixer.conv1d.weight.shape == (6144, 1, 4)
    assert (
        mixer.conv_dim + mixer.num_heads
    ) * torch.bfloat16.itemsize == 12352  # per node and layer, see test_bytes.py
    assert mixer.in_proj.weight.shape == (4096 + 6144 + 32, 4096)


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", [HYBRID, DRAFT])
def test_published_files(name: str, form: str, tmp_path: Path) -> None:
    model, ids = shared(name), prompt_of(9)
    folder = write_original(tmp_path / "published", model, form)
    found = load_model(str(folder), "target", CPU, torch.float32)
    assert isinstance(found, MILForCausalLM) and found.config.layer_types == model.config.layer_types
    assert {n: w.sum() for n, w in found.state_dict().items()} == {n: w.sum() for n, w in model.state_dict().items()}
    with torch.no_grad():
        torch.testing.assert_close(found(ids).logits, model(ids).logits)


def test_what_is_saved_is_a_checkpoint_like_any_other(tmp_path: Path) -> None:
    model, ids = shared(HYBRID), prompt_of(9)
    read = MILForCausalLM.from_pretrained(write_original(tmp_path / "published", model)).eval()
    read.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / MAMBA_FILE).exists()
    config = AutoConfig.from_pretrained(tmp_path / "saved")
    assert type(config) is MILConfig
    assert config.to_diff_dict() == read.config.to_diff_dict()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits)


def test_a_tied_head_need_not_be_stored(tmp_path: Path) -> None:
    model = shared(DRAFT)
    folder = write_original(tmp_path / "tied", model)
    weights = {name: weight for name, weight in model.state_dict().items() if name != "lm_head.weight"}
    write_weights(folder, weights, FORMS[0])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    found = load_model(str(folder), "draft", CPU, torch.float32)
    assert torch.equal(found.lm_head.weight, model.model.embed_tokens.weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layer": 4}, r"mamba_config\.json: n_layer: expected config\.json's num_hidden_layers, 3, got 4"),
        ({"d_inner": 40}, r"d_inner: expected ngroups \* d_state = 4 \* 8, got 40"),
        ({"d_xb": 24}, r"d_xb: expected a multiple of d_state 8 that divides d_inner 32, got 24"),
        ({"attn_layers": [3]}, r"attn_layers: expected 0 to 2, got 3"),
        ({"ssm_cfg": {"norm_before_gate": True}}, r"ssm_cfg\.norm_before_gate: expected False, got True"),
        ({"ssm_cfg": {"use_rope": True}}, r"ssm_cfg\.use_rope: not known; known: D_has_hdim, "),
        ({"attn_layers": [0]}, r"lacks 12 weights .*: model\.layers\.0\.self_attn\.k_proj\.weight, "),
    ],
)
def test_files_that_do_not_fit(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = write_original(tmp_path / "published", shared(HYBRID), **changes)
    with pytest.raises(ValueError, match=r"^target: .*" + message) as refusal:
        load_model(str(folder), "target", CPU, torch.float32)
    assert "\n" not in str(refusal.value)


def test_it_lies_beside_a_llama_alone() -> None:
    _, mamba = original_files(shared(HYBRID))
    with pytest.raises(ValueError, match=r"expected it beside a config\.json of model_type 'llama', got 'mistral'"):
        merged({"model_type": "mistral"}, mamba)


# -- stock generation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [HYBRID, DRAFT])
def test_steps_sequences_and_continuations_agree(name: str) -> None:
    model, ids = shared(name), prompt_of(12, name)
    with torch.no_grad():
        whole = model(ids).logits[0]
        for sizes in ([1] * 12, [2, 10], [7, 1, 4]):
            cache, rows, start = None, [], 0
            for part in ids.split(sizes, dim=1):
                out = model(part, past_key_values=cache, use_cache=True)  # positions are counted by the cache
                cache, start = out.past_key_values, start + part.shape[1]
                rows.append(out.logits[0])
            torch.testing.assert_close(torch.cat(rows), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", [HYBRID, DRAFT])
def test_a_padded_batch_generates_what_its_rows_do(name: str, cache: str) -> None:
    model = shared(name)
    rows = [prompt_of(9, name)[0].tolist(), prompt_of(5, name, 2)[0].tolist()]
    settings: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    settings |= {"cache_implementation": "static"} if cache == "static" else {}
    alone = [model.generate(torch.tensor([row]), **settings)[0, len(row) :] for row in rows]
    padded = torch.tensor([rows[0], [0] * 4 + rows[1]])
    together = model.generate(padded, attention_mask=(torch.arange(9) >= torch.tensor([[0], [4]])).long(), **settings)
    assert torch.equal(together[:, 9:], torch.stack(alone))


def test_it_can_be_trained() -> None:
    model = make(HYBRID).train()
    ids = prompt_of(9)
    loss = model(ids, labels=ids).loss
    loss.backward()
    still = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not still


# -- decoding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["stree", "sd"])
def test_a_hybrid_with_its_draft_decodes_as_stock_does(mode: str, tmp_path: Path) -> None:
    """STree's own pair of families, from their files."""
    target = write_original(tmp_path / "target", shared(HYBRID), FORMS[3])
    draft = write_original(tmp_path / "draft", shared(DRAFT), FORMS[2])
    decoder = load(str(target), str(draft), mode, dtype="float64")
    model, prompt = decoder.target.model, prompt_of(10)
    found = decoder.generate(prompt, max_new_tokens=24, ignore_eos=True)
    stock = model.generate(prompt, max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert found.tokens[0] == stock[0, 10:].tolist()
    same = load(str(target), str(target), mode, dtype="float64").generate(prompt, max_new_tokens=24, ignore_eos=True)
    assert same.tokens == found.tokens and same.tau > 3, "a draft that is the target is always right"
