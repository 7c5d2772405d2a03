"""The tokenizer, its chat template, and text packed into blocks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from specdecodes.train.blocks import Blocks, render, text_of
from specdecodes.train.data import Document
from specdecodes.train.tokenizer import ASSISTANT, END, PAD, SYSTEM, USER, train_tokenizer

TEXTS = [
    "to be, or not to be",
    "naïve café, Übergröße, 東京, مرحبا, 🙂👩‍👩‍👧, \u2028",
    "0123456789 3.14159 1,000,000",
    "def f(x):\n\treturn x  # two  spaces\r\n\n\n",
    " leading and trailing ",
    "\x00\x7f\ufffd",
]
CHAT: Document = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  Zażółć\n\ngęślą jaźń?\t"},
    {"role": "assistant", "content": "12 + 34 = 46 🙂\n"},
]


@pytest.fixture(params=["trained", "saved"])
def ours(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> PreTrainedTokenizerFast:
    if request.param == "trained":
        return tokenizer
    tokenizer.save_pretrained(tmp_path)
    return AutoTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_the_round_trip(text: str, ours: PreTrainedTokenizerFast) -> None:
    ids = ours(text, add_special_tokens=False)["input_ids"]
    assert ours.decode(ids) == text
    assert max(ids) < len(ours)


def test_digits_are_tokens_of_their_own(ours: PreTrainedTokenizerFast) -> None:
    assert ours.tokenize("1234") == ["1", "2", "3", "4"]
    assert not [token for token in ours.get_vocab() if sum(c.isdigit() for c in token) > 1]


def test_special_tokens_have_their_roles_and_are_whole(ours: PreTrainedTokenizerFast) -> None:
    assert (ours.pad_token, ours.eos_token, ours.pad_token_id) == (PAD, END, 0)
    assert len(ours) == 300
    for token in (PAD, USER, ASSISTANT, SYSTEM, END):
        assert len(ours(token, add_special_tokens=False)["input_ids"]) == 1
    assert ours.decode(ours(f"{USER}hi{END}")["input_ids"], skip_special_tokens=True) == "hi"


def test_the_same_texts_give_the_same_tokenizer() -> None:
    texts = [f"{i} bottles of beer on the wall, take one down" for i in range(50)]
    assert train_tokenizer(texts, 320).get_vocab() == train_tokenizer(iter(texts), 320).get_vocab()


@pytest.mark.parametrize("document", [CHAT, CHAT[1:], CHAT[1:2]], ids=["system", "exchange", "question"])
def test_chat_template_renders_what_the_model_was_trained_on(document: Document, ours: PreTrainedTokenizerFast) -> None:
    trained = render(document, END)
    assert ours.apply_chat_template(document, tokenize=False) == trained
    assert text_of(document, ours) == trained
    prompt = ours.apply_chat_template(document, tokenize=False, add_generation_prompt=True)
    assert prompt == trained + ASSISTANT


def test_rendered_chat_is_spelled_out() -> None:
    assert render(CHAT[:2], END) == f"{SYSTEM}Be brief.{END}{USER}Zażółć\n\ngęślą jaźń?{END}"
    assert render([{"role": "text", "content": " To be\n\n"}], END) == f" To be\n\n{END}"


def test_no_end_of_text_follows_an_answer_that_was_cut(ours: PreTrainedTokenizerFast) -> None:
    cut: Document = [*CHAT[:2], {"role": "assistant", "content": " x = 4\nx =", "end": "cut"}]
    assert text_of(cut, ours) == text_of(CHAT[:2], ours) + f"{ASSISTANT}x = 4\nx ="
    silent: Document = [*CHAT[:2], {"role": "assistant", "content": "", "end": "cut"}]
    assert text_of(silent, ours) == text_of(CHAT[:2], ours) + ASSISTANT + END
    ours = _copy(ours)
    assert ours.chat_template is None
    assert text_of(cut[1:], ours).endswith("\t\n\n x = 4\nx =")


def test_a_foreign_tokenizer_brings_its_own_template(tokenizer: PreTrainedTokenizerFast) -> None:
    text: Document = [{"role": "text", "content": "To be"}]
    foreign = _copy(tokenizer)
    foreign.chat_template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}"
    assert text_of(CHAT[:1], foreign) == "[system] Be brief."
    assert text_of(text, foreign) == f"To be{END}"
    foreign.chat_template = None
    assert text_of(CHAT[:2], foreign) == f"Be brief.\n\n  Zażółć\n\ngęślą jaźń?\t{END}"
    foreign.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(ValueError, match=r"chat template refuses the roles system \(no system role\)"):
        text_of(CHAT[:1], foreign)


def _copy(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token=END, pad_token=PAD)


def test_blocks_hold_every_document_in_order(tokenizer: PreTrainedTokenizerFast) -> None:
    documents: list[Document] = [[{"role": "user", "content": f"question {i}"}] for i in range(1203)]
    blocks = Blocks(documents, tokenizer, 64)
    ids = tokenizer("".join(render(d, END) for d in documents), add_special_tokens=False)["input_ids"]
    assert len(blocks) == len(ids) // 64
    assert torch.cat([blocks[i]["input_ids"] for i in range(len(blocks))]).tolist() == ids[: len(blocks) * 64]
    assert blocks[3]["input_ids"].dtype == torch.int64
    assert torch.equal(blocks[3]["labels"], blocks[3]["input_ids"])


def test_too_little_for_one_block_is_said(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(
        ValueError, match=r"training.held_out: expected at least one block of 64 tokens, got \d tokens in 1"
    ):
        Blocks([[{"role": "text", "content": "hi"}]], tokenizer, 64, "training.held_out")
