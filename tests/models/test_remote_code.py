"""Code that a checkpoint or a tokenizer comes with: never run by itself, run where the user trusts it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, dynamic_module_utils

from specdecodes import load
from specdecodes.cli import main
from specdecodes.models.loading import load_tokenizer
from specdecodes.testing.toys import toy_model, toy_prompt

from ..conftest import Pair

CODE = """
import os
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
os.makedirs({proof!r}, exist_ok=True)

class OwnConfig(LlamaConfig):
    model_type = "own_llama"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
REFUSAL = r"it comes with code of its own; trust_remote_code \(--trust-remote-code\) runs it, if you trust it"


@pytest.fixture(autouse=True)
def _own_module_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """transformers copies the code to a cache and imports it from there."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


@pytest.fixture
def proof(tmp_path: Path) -> Path:
    """The folder that exists once the code has run."""
    return tmp_path / "it ran"


@pytest.fixture
def remote(tmp_path: Path, proof: Path) -> Path:
    """A Llama under a name of its own, with its code beside the weights."""
    folder = tmp_path / "remote"
    toy_model("llama").save_pretrained(folder)
    (folder / "own.py").write_text(CODE.format(proof=str(proof)))
    change(folder / "config.json", model_type="own_llama", auto_map=mapped("AutoConfig", "AutoModelForCausalLM"))
    return folder


def mapped(*classes: str) -> dict[str, str]:
    return {name: f"own.Own{name.removeprefix('Auto').removeprefix('Model')}" for name in classes}


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_it_is_not_run(remote: Path, proof: Path) -> None:
    with pytest.raises(ValueError, match=rf"^target: cannot load '{remote}': {REFUSAL}$"):
        load(str(remote), mode="naive")
    with pytest.raises(ValueError, match=rf"^draft: cannot load '{remote}': {REFUSAL}$"):
        load(toy_model("bamba"), str(remote))
    assert not proof.exists()


def test_where_it_is_trusted_it_runs(remote: Path, proof: Path) -> None:
    decoder = load(str(remote), str(remote), "stree", trust_remote_code=True)
    assert type(decoder.target.model).__name__ == "OwnForCausalLM" and proof.exists()
    prompt = toy_prompt(7)
    found = decoder.generate(prompt, max_new_tokens=12)
    stock = toy_model("llama").generate(prompt, max_new_tokens=12, do_sample=False)
    assert found.tokens[0] == stock[0, 7:].tolist() and found.tau > 2


def test_check_asks_for_trust_too(remote: Path, proof: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(remote)]) == 2
    assert re.search(rf"model: cannot load '{remote}': {REFUSAL}$", capsys.readouterr().err.strip())
    assert not proof.exists()
    assert main(["check", str(remote), "--trust-remote-code"]) == 0
    assert "family  llama (attention)" in capsys.readouterr().out and proof.exists()


def test_a_stock_family_does_without_its_code(remote: Path, proof: Path) -> None:
    """As older checkpoints of families that transformers has taken in since."""
    change(remote / "config.json", model_type="llama")
    assert type(load(str(remote), mode="naive").target.model) is LlamaForCausalLM
    assert not proof.exists()
    trusting = load(str(remote), mode="naive", trust_remote_code=True)
    assert type(trusting.target.model).__name__ == "OwnForCausalLM" and proof.exists()


def test_trust_does_not_make_a_family_supported(remote: Path, proof: Path) -> None:
    code = remote / "own.py"
    code.write_text(code.read_text().replace("Llama", "Rwkv"))
    with pytest.raises(ValueError, match="family 'own_llama' is not supported yet"):
        load(str(remote), mode="naive", trust_remote_code=True)


def test_code_of_a_tokenizer(remote: Path, proof: Path, pair: Pair) -> None:
    folder = Path(pair.draft)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (remote / name).write_bytes((folder / name).read_bytes())
    own = {"AutoTokenizer": [None, "own.OwnTokenizer"]}
    change(remote / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=own)
    with pytest.raises(ValueError, match=rf"^tokenizer: cannot load '{remote}': {REFUSAL}$"):
        load_tokenizer(str(remote), None)
    assert not proof.exists()
    assert load_tokenizer(str(remote), None, trust_remote_code=True).encode("w3") == [5]
    assert proof.exists()


COMMANDS: dict[str, tuple[list[str], str]] = {
    "generate": (["generate", "--prompt", "x"], "specdecodes.core.load.load_model"),
    "score": (["score", "--draft", "ngram"], "specdecodes.core.load.load_model"),
    "tune": (["tune", "--draft", "ngram", "--out", "recipe.json"], "specdecodes.core.load.load_model"),
    "bigrams": (
        ["bigrams", "build", "--corpus", "corpus.txt", "--out", "table.safetensors"],
        "specdecodes.cli.building.load_tokenizer",
    ),
    "corpus": (
        ["corpus", "build", "--corpus", "corpus.txt", "--out", "store.safetensors"],
        "specdecodes.cli.building.load_tokenizer",
    ),
    "run_mtbench": (["--out-dir", "out"], "specdecodes.core.load.load_model"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_asks_for_trust(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from specdecodes.benchmark.run_mtbench import main as run_mtbench

    arguments, loader = COMMANDS[command]
    run: Callable[[list[str]], int] = run_mtbench if command == "run_mtbench" else main
    seen: list[bool] = []

    def refuse(*_: Any, trust_remote_code: bool, **__: Any) -> None:
        seen.append(trust_remote_code)
        raise ValueError("seen enough")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loader, refuse)
    (tmp_path / "corpus.txt").write_text("x")
    assert run([*arguments, "--target", "nobody/nothing"]) == 2
    assert run([*arguments, "--target", "nobody/nothing", "--trust-remote-code"]) == 2
    assert seen == [False, True]
