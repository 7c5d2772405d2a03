"""Single tokens as text, with tokenizers of several kinds."""

from __future__ import annotations

import pytest
from rich.cells import cell_len
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from specdecodes.models.loading import load_tokenizer
from specdecodes.pictures.tokens import shorten, token_text, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" the", "␣the"),
        ("\n\n", "↵↵"),
        ("a\tb", "a⇥b"),
        ("é漢🙂", "é漢🙂"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\u200b\u202e", "\\u200b\\u202e"),
        ("\ufffd", "\ufffd"),
        ("", ""),
    ],
)
def test_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_byte_level_tokens_keep_their_spaces() -> None:
    tokenizer = load_tokenizer("embedded", None)
    ids = tokenizer.encode("The sky\nis", add_special_tokens=False)
    assert "".join(token_text(tokenizer, token) for token in ids) == "The␣sky↵is"
    assert token_text(tokenizer, tokenizer.convert_tokens_to_ids("<|end|>")) == "<|end|>"


def test_half_a_character_is_visible() -> None:
    tokenizer = load_tokenizer("embedded", None)
    pieces = [token_text(tokenizer, token) for token in tokenizer.encode("漢", add_special_tokens=False)]
    assert pieces and all("\ufffd" in piece for piece in pieces)


def test_a_tokenizer_that_drops_the_first_space_is_asked_for_the_second() -> None:
    plain = Tokenizer(models.WordLevel({"<unk>": 0, "▁sky": 1, "blue": 2}, unk_token="<unk>"))
    plain.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain)
    assert tokenizer.decode([1]) == "sky"
    assert [token_text(tokenizer, token) for token in (1, 2)] == ["␣sky", "blue"]


def test_ids_stand_for_what_has_no_text() -> None:
    assert token_text(None, 7) == "#7"
    tokenizer = load_tokenizer("embedded", None)
    beyond = len(tokenizer) + 5
    assert token_text(tokenizer, beyond) == f"#{beyond}"


@pytest.mark.parametrize(("text", "short"), [("abcdef", "abcdef"), ("abcdefg", "abcde…"), ("漢字漢字", "漢字…")])
def test_shorten(text: str, short: str) -> None:
    assert shorten(text, 6) == short
    assert cell_len(short) <= 6
