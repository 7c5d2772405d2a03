"""What several folders of tests share: one thread, and a tiny pair of models on disk as a user would name them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from specdecodes.testing.toys import VOCAB, toy_model


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
