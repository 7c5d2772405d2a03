"""Checkpoints that cannot be loaded: one clear line on stderr, exit code 2, no code run, nothing written."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, T5Config

from specdecodes import custom_generate, load
from specdecodes.testing.toys import VOCAB, toy_model

from .conftest import Pair, tokenizer_of
from .models.checkpoint_files import FORMS, write_weights

CONFIG = LlamaConfig(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder with a configuration and nothing else."""
    made = tmp_path / "model"
    CONFIG.save_pretrained(made)
    return made


@pytest.mark.parametrize("role", ["target", "draft"])
def test_folder_without_weights(role: str, folder: Path, generate_refused: Callable[..., str]) -> None:
    assert generate_refused(f"--{role}", str(folder)) == (
        f"{role}: cannot load '{folder}': it holds no weights; "
        "expected model.safetensors, or its shards, beside config.json"
    )


def test_folder_without_a_configuration(tmp_path: Path, generate_refused: Callable[..., str]) -> None:
    assert generate_refused("--target", str(tmp_path)) == (
        f"target: the folder '{tmp_path}' has no config.json; expected a Hugging Face model folder"
    )


@pytest.mark.parametrize("name", ["/no/such/folder", "./no/such", "", "a b"])
def test_no_such_folder(name: str, generate_refused: Callable[..., str]) -> None:
    assert generate_refused("--target", name) == (
        f"target: expected a folder, a hub id or 'embedded', got {name!r}; no such folder"
    )


def test_hub_id_that_is_not_at_hand(generate_refused: Callable[..., str]) -> None:
    assert generate_refused("--target", "nobody/nothing").startswith("target: cannot load 'nobody/nothing': ")


@pytest.mark.parametrize(("role", "name", "near"), [("target", "embeded", "embedded"), ("draft", "ngrm", "ngram")])
def test_a_name_that_is_nearly_one_of_ours(
    role: str, name: str, near: str, generate_refused: Callable[..., str]
) -> None:
    line = generate_refused(f"--{role}", name)
    assert line.startswith(f"{role}: cannot load {name!r}: ") and line.endswith(f"; did you mean {near!r}?")


CONFIGS = {
    "broken": "{",
    "a list": "[]",
    "a number": "3",
    "nested": "[" * 100_000,
    "no heads": json.dumps({**CONFIG.to_dict(), "num_attention_heads": 0}),
    "a negative size": json.dumps({**CONFIG.to_dict(), "hidden_size": -4}),
    "a size in words": json.dumps({**CONFIG.to_dict(), "hidden_size": "large"}),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_damaged_configuration(case: str, folder: Path, generate_refused: Callable[..., str]) -> None:
    save_file({"unused": torch.zeros(1)}, folder / "model.safetensors")
    (folder / "config.json").write_text(CONFIGS[case])
    assert generate_refused("--target", str(folder)).startswith(f"target: cannot load '{folder}': ")


def _list_of_two() -> bytes:
    buffer = io.BytesIO()
    torch.save([1, 2], buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("data", [b"", b"hello"], ids=["empty", "junk"])
def test_a_file_that_is_no_pickle(data: bytes, folder: Path, generate_refused: Callable[..., str]) -> None:
    file = folder / "pytorch_model.bin"
    file.write_bytes(data)
    line = generate_refused("--target", str(folder))
    assert line == f"target: '{file}' is damaged: neither an archive nor a pickle; fetch or save it again"


def test_a_pickle_that_is_no_checkpoint(folder: Path, generate_refused: Callable[..., str]) -> None:
    (folder / "pytorch_model.bin").write_bytes(_list_of_two())
    assert re.match(
        f"target: cannot load '{folder}': config.json or another of its files is damaged \\([A-Za-z]+Error: .*\\)",
        generate_refused("--target", str(folder)),
    )


def test_encoder_decoder(tmp_path: Path, generate_refused: Callable[..., str]) -> None:
    T5Config().save_pretrained(tmp_path / "t5")
    assert generate_refused("--target", str(tmp_path / "t5")) == (
        f"target: cannot load '{tmp_path}/t5': "
        "expected a decoder-only causal model, got the encoder-decoder family 't5'"
    )


class Malicious:
    """A pickle that runs code when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["torch", "pickle", "shard"])
def test_pickle_that_runs_code_is_refused_and_not_run(
    form: str, folder: Path, tmp_path: Path, generate_refused: Callable[..., str]
) -> None:
    proof = tmp_path / "it ran"
    weights = folder / "pytorch_model.bin"
    if form == "shard":
        whole = {**toy_model("llama").state_dict()}
        weights = write_weights(folder, whole, FORMS[3])[1]
        held = torch.load(weights, weights_only=True)
        torch.save({**held, next(iter(held)): Malicious(proof)}, weights)
    elif form == "torch":
        torch.save({"model.embed_tokens.weight": Malicious(proof)}, weights)
    else:
        weights.write_bytes(pickle.dumps(Malicious(proof)))
    assert generate_refused("--target", str(folder)) == (
        f"target: '{folder}' holds a pickle checkpoint that would run code when loaded; convert it to safetensors"
    )
    assert not proof.exists()
    pickle.loads(pickle.dumps(Malicious(proof)))
    assert proof.exists(), "the checkpoint of this test is harmless and shows nothing"


def test_code_beside_the_weights_is_refused_and_not_run(tmp_path: Path, generate_refused: Callable[..., str]) -> None:
    proof = tmp_path / "it ran"
    code = tmp_path / "remote"
    code.mkdir()
    (code / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}))
    (code / "own.py").write_text(f"import os\nos.mkdir({str(proof)!r})\nclass Own: ...\n")
    (code / "model.safetensors").touch()
    assert generate_refused("--target", str(code)) == (
        f"target: cannot load '{code}': it comes with code of its own; "
        "trust_remote_code (--trust-remote-code) runs it, if you trust it"
    )
    assert not proof.exists()


def test_damaged_weights(pair: Pair, tmp_path: Path, generate_refused: Callable[..., str]) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(pair.target, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    line = generate_refused("--target", str(broken))
    assert re.fullmatch(rf"target: '{weights}' is damaged: .+; fetch or save it again", line)


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"
"""What lies in the place of a large file where git has cloned without LFS."""


@pytest.mark.parametrize("damage", ["cut off", "empty", "a pointer"])
@pytest.mark.parametrize("form", FORMS)
def test_the_damaged_file_is_named(
    form: str, damage: str, tmp_path: Path, generate_refused: Callable[..., str]
) -> None:
    model, folder = toy_model("llama"), tmp_path / "broken"
    files = write_weights(folder, model.state_dict(), form)
    model.config.save_pretrained(folder)
    broken = files[len(files) // 2]
    whole = broken.read_bytes()
    broken.write_bytes({"cut off": whole[:-100], "empty": b"", "a pointer": LFS_POINTER}[damage])
    line = generate_refused("--target", str(folder))
    assert re.fullmatch(rf"target: '{broken}' is damaged: .+; fetch or save it again", line)


def test_a_damaged_index_is_named(tmp_path: Path, generate_refused: Callable[..., str]) -> None:
    model, folder = toy_model("llama"), tmp_path / "broken"
    write_weights(folder, model.state_dict(), FORMS[1])
    model.config.save_pretrained(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text()[:-20])
    assert generate_refused("--target", str(folder)).startswith(f"target: '{index}' is damaged: ")


@pytest.mark.parametrize("form", [FORMS[1], FORMS[3]])
def test_a_missing_shard_is_named(form: str, tmp_path: Path, generate_refused: Callable[..., str]) -> None:
    model, folder = toy_model("llama"), tmp_path / "broken"
    missing = write_weights(folder, model.state_dict(), form)[1]
    model.config.save_pretrained(folder)
    missing.unlink()
    line = generate_refused("--target", str(folder))
    assert re.fullmatch(rf"target: cannot load '{folder}': .*No such file or directory: '?{missing}'?", line)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        (
            "num_hidden_layers",
            4,
            r"lacks 13 weights that its config.json asks for: model\.layers\.3\.\S+, .+ and 9 more",
        ),
        ("num_hidden_layers", 2, r"holds 13 weights that its config.json has no place for: model\.layers\.2\.\S+, "),
        ("intermediate_size", 40, r"do not fit its config.json: \S+: expected \(32, 40\), got \(32, 48\)"),
    ],
)
def test_weights_of_another_configuration(
    field: str, value: int, reason: str, pair: Pair, tmp_path: Path, generate_refused: Callable[..., str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(pair.target, other)
    config = json.loads((other / "config.json").read_text())
    config[field] = value
    if field == "num_hidden_layers" and "layer_types" in config:
        config["layer_types"] = [*config["layer_types"], "linear_attention"][:value]
    (other / "config.json").write_text(json.dumps(config))
    assert re.search(reason, generate_refused("--target", str(other)))


def test_draft_with_another_tokenizer(pair: Pair, tmp_path: Path, generate_refused: Callable[..., str]) -> None:
    other = tmp_path / "other"
    shutil.copytree(pair.draft, other)
    words = ["<pad>", "<s>", *(f"w{i}" for i in range(VOCAB - 2))]
    tokenizer_of([*words[:7], words[8], words[7], *words[9:]]).save_pretrained(other)
    assert generate_refused("--draft", str(other)) == (
        "draft: its tokenizer differs from the target's: id 7 is 'w6', expected 'w5'; use a draft of the same tokenizer"
    )


def test_a_loaded_draft_with_another_tokenizer(pair: Pair, tmp_path: Path) -> None:
    """Models say which folders they came from."""
    other = tmp_path / "other"
    shutil.copytree(pair.draft, other)
    tokenizer_of(["<pad>", "<s>", "other", *(f"w{i}" for i in range(1, VOCAB - 2))]).save_pretrained(other)
    target, draft, own = (AutoModelForCausalLM.from_pretrained(name) for name in (pair.target, other, pair.draft))
    for model in (target, pair.target):
        with pytest.raises(ValueError, match=r"^draft: its tokenizer differs .*: id 2 is 'other', expected 'w0'; use"):
            load(model, draft)
        load(model, own)
    with pytest.raises(ValueError, match=r"^draft: .* id 2 is 'other', expected 'w0'"):
        target.generate(torch.ones(1, 3, dtype=torch.long), custom_generate=custom_generate(draft_model=draft))


def test_a_draft_on_another_device(pair: Pair) -> None:
    draft = AutoModelForCausalLM.from_pretrained(pair.draft).to("meta")
    with pytest.raises(ValueError, match=r"^draft: expected it on the target's device 'cpu', got 'meta'$"):
        load(pair.target, draft)


@pytest.mark.parametrize(("setting", "value", "own"), [("dtype", "bf16", "float32"), ("device", "cuda", "cpu")])
def test_a_loaded_target_stays_as_it_is(setting: str, value: str, own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=f"^{setting}: expected '{own}', .* loaded target.* got .*leave it out$"):
        load(toy_model("llama"), mode="naive", **{setting: value})
    load(toy_model("llama"), mode="naive", **{setting: own})


def test_a_family_that_transformers_does_not_know(folder: Path, generate_refused: Callable[..., str]) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "rwkv7"}))
    assert re.fullmatch(
        rf"target: cannot load '{folder}': family 'rwkv7' is not supported yet "
        r"\(transformers [\d.]+ does not know it\); supported: bamba, .*, zamba2",
        generate_refused("--target", str(folder)),
    )


def test_damaged_tokenizer(pair: Pair, tmp_path: Path, generate_refused: Callable[..., str]) -> None:
    other = tmp_path / "other"
    shutil.copytree(pair.target, other)
    (other / "tokenizer.json").write_text("{")
    assert generate_refused("--target", str(other)).startswith(f"tokenizer: cannot load '{other}': ")


def test_target_without_a_tokenizer(pair: Pair, tmp_path: Path, generate_refused: Callable[..., str]) -> None:
    other = tmp_path / "other"
    shutil.copytree(pair.target, other, ignore=shutil.ignore_patterns("*token*", "*.jinja"))
    assert generate_refused("--target", str(other)) == (
        f"tokenizer: expected one beside the target '{other}', got none; name one by --tokenizer"
    )


def test_a_tokenizer_that_is_none(tmp_path: Path, generate_refused: Callable[..., str]) -> None:
    assert generate_refused("--tokenizer", str(tmp_path)) == (
        f"tokenizer: the folder '{tmp_path}' holds none; expected tokenizer.json or its like"
    )
    for name in ("/no/such", ""):
        assert generate_refused("--tokenizer", name) == (
            f"tokenizer: expected a folder, a hub id or 'embedded', got {name!r}; no such folder"
        )


@pytest.mark.parametrize("template", ["{% for x in %}", "{{ raise_exception('no') }}"], ids=["broken", "refusing"])
def test_a_chat_template_that_fails(
    template: str, pair: Pair, tmp_path: Path, generate_refused: Callable[..., str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(pair.target, other)
    (other / "chat_template.jinja").write_text(template)
    line = generate_refused("--target", str(other))
    assert re.fullmatch(
        r"prompt: the tokenizer's chat template refuses these messages \(.+\); pass a string instead", line
    )


@pytest.mark.parametrize("temperature", ["0", "1"])
def test_a_draft_with_broken_weights(
    temperature: str, pair: Pair, tmp_path: Path, generate_refused: Callable[..., str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(pair.draft, other)
    model = AutoModelForCausalLM.from_pretrained(other)
    model.backbone.norm_f.weight.data.fill_(float("nan"))
    model.save_pretrained(other)
    line = generate_refused("--draft", str(other), "--temperature", temperature)
    assert line == "draft: its logits are not finite; are its weights intact?"


def test_mode_that_needs_a_draft(pair: Pair, refused: Callable[..., str]) -> None:
    line = refused("generate", "--target", pair.target, "--prompt", "w1")
    assert line.endswith(
        "draft: this mode drafts with a model; name one (a folder or hub id), or a drafter such as 'ngram'"
    )


def test_draft_of_the_embedded_pair_for_another_target(generate_refused: Callable[..., str]) -> None:
    assert generate_refused("--draft", "mamba2") == (
        "draft: 'mamba2' was trained for the embedded target only; name a draft model of your target"
    )
