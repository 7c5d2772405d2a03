"""What several folders of tests share: one thread, and a tiny pair of models on disk as a user would name them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from specdecodes.cli import main
from specdecodes.testing.toys import VOCAB, toy_model
from specdecodes.tuning.recipe import Recipe

DESELECTED = pytest.StashKey[int]()
"""How many tests ``-m`` left out. Processes that pytest-xdist starts collect on their own and say nothing of it."""


def pytest_deselected(items: list[pytest.Item]) -> None:
    stash = items[0].config.stash
    stash[DESELECTED] = stash.get(DESELECTED, 0) + len(items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["deselected"] = session.config.stash.get(DESELECTED, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[DESELECTED] = getattr(node, "workeroutput", {}).get("deselected", 0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if (count := config.stash.get(DESELECTED, 0)) and config.pluginmanager.has_plugin("dsession"):
        terminalreporter.write_line(f"{count} deselected")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """The models are so small that threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Pair:
    """Folders of a hybrid target (with a chat template) and of a Mamba-2 draft with the same tokenizer."""

    target: str
    draft: str


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folders = tmp_path_factory.mktemp("pair")
    words = ["<pad>", "<s>", *(f"w{i}" for i in range(VOCAB - 2))]
    for name, family, seed in (("target", "bamba", 0), ("draft", "mamba2", 1)):
        toy_model(family, seed=seed).save_pretrained(folders / name)
        tokenizer_of(words).save_pretrained(folders / name)
    return Pair(str(folders / "target"), str(folders / "draft"))


def tokenizer_of(words: list[str]) -> PreTrainedTokenizerFast:
    """One token per word, no end-of-text token (a random model would stop at random)."""
    plain = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=words[0]))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token=words[0], pad_token=words[0])
    made.chat_template = "{% for message in messages %}w1 {{ message['content'] }} w2{% endfor %}"
    return made


@pytest.fixture
def refused(
    pair: Pair, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Run ``specdecodes``, which must refuse in one line and leave no file behind; returns the line."""
    place = tmp_path / "cwd"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def run(*arguments: str) -> str:
        code = main(arguments)
        captured = capsys.readouterr()
        assert (code, captured.out) == (2, "")
        assert captured.err.count("\n") == 1 and captured.err.endswith("\n"), captured.err
        assert not list(place.iterdir())
        return captured.err.rstrip("\n")

    return run


@pytest.fixture
def generate_refused(pair: Pair, refused: Callable[..., str]) -> Callable[..., str]:
    """The same for ``generate`` on the tiny pair; the line without its prefix."""

    def run(*arguments: str) -> str:
        before = ["--target", pair.target, "--draft", pair.draft, "--prompt", "w1 w2"]
        line = refused("generate", *before, *arguments)
        assert line.startswith("specdecodes generate: "), line
        return line.removeprefix("specdecodes generate: ")

    return run


@pytest.fixture(scope="session")
def mode_settings(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """``mode_settings(mode)``: what a mode cannot do without on a target that is not the embedded one."""
    path = tmp_path_factory.mktemp("recipe") / "recipe.json"
    Recipe({}, "stree", None, {"tree": "2,1,1,1"}, 1.5, 2.0, "float32", compile=False, sentence="for tests").write(path)
    return lambda mode: {"recipe": str(path)} if mode == "auto" else {}
