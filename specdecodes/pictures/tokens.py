"""Tokens as people can read them, one by one."""

from __future__ import annotations

from typing import Any

from rich.cells import cell_len

_SHOWN = {" ": "\u2423", "\n": "\u21b5", "\t": "\u21e5"}
"""Whitespace as an open box, a return arrow, a tab arrow."""


def token_text(tokenizer: Any, token: int) -> str:  # noqa: ANN401 - tokenizers have no common base
    """What ``token`` adds to a text, made visible; ``#id`` without a tokenizer or for a token without text.

    A piece of a character that only several tokens make up is U+FFFD.
    """
    if tokenizer is None:
        return f"#{token}"
    # A tokenizer that marks the beginnings of words drops the space before a text's first token: ask for the second.
    twice, once = (
        tokenizer.decode([token] * count, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        for count in (2, 1)
    )
    return visible(twice[len(once) :]) or f"#{token}"


def visible(text: str) -> str:
    """``text`` with whitespace and everything that does not print shown as characters that do."""
    return "".join(_SHOWN.get(c, c if c.isprintable() else ascii(c)[1:-1]) for c in text)


def shorten(text: str, cells: int) -> str:
    """``text`` in at most so many terminal cells, an ellipsis in the place of what is cut off."""
    if cell_len(text) <= cells:
        return text
    while cell_len(text) > cells - 1:
        text = text[:-1]
    return f"{text}\u2026"
