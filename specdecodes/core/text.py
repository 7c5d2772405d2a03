"""From tokens to text while they come: stop strings and a stream that never takes anything back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class StopRule(Protocol):
    """Ends an answer at a token, and says what of its text is left then."""

    def completed_by(self, tokens: Sequence[int]) -> bool:
        """Whether the answer ``tokens`` ends with its last one; asked once for every token."""

    def cut(self, text: str) -> str:
        """``text`` without what the rule leaves out."""

    def held_back(self, text: str) -> int:
        """How many characters at the end of ``text`` may still be left out."""


class StopStrings:
    """Finds the first stop string in a growing answer.

    Args:
        tokenizer: turns tokens into text; special tokens are left out, as in the answer's text.
        strings: what ends the answer.
    """

    def __init__(self, tokenizer: Any, strings: Sequence[str]) -> None:  # noqa: ANN401 - any tokenizer
        self.tokenizer = tokenizer
        self.strings = tuple(strings)
        self.longest = max(len(s) for s in self.strings)

    def completed_by(self, tokens: Sequence[int]) -> bool:
        """Whether the last of ``tokens`` completes a stop string."""
        # A stop string ends in the text of the last token; every token yields at least a byte, so this tail holds it.
        tail = self.tokenizer.decode(tokens[-(4 * self.longest + 8) :], skip_special_tokens=True)
        before = self.tokenizer.decode(tokens[-(4 * self.longest + 8) : -1], skip_special_tokens=True)
        return any(string in tail[max(0, len(before) - self.longest) :] for string in self.strings)

    def cut(self, text: str) -> str:
        """``text`` up to the first stop string."""
        found = [at for string in self.strings if (at := text.find(string)) >= 0]
        return text[: min(found)] if found else text

    def held_back(self, text: str) -> int:
        """How many characters at the end of ``text`` may still become part of a stop string."""
        for count in range(min(len(text), self.longest - 1), 0, -1):
            if any(string.startswith(text[-count:]) for string in self.strings):
                return count
        return 0


class TextStream:
    """Turns a growing list of tokens into pieces of text; what was given out is final."""

    def __init__(self, tokenizer: Any, stop: StopRule | None = None) -> None:  # noqa: ANN401
        self.tokenizer = tokenizer
        self.stop = stop
        self.sent = 0

    def push(self, tokens: Sequence[int], final: bool = False) -> str:
        """The text that is certain now and was not given out before."""
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True)
        if self.stop is not None:
            text = self.stop.cut(text)
        end = len(text)
        if not final:
            # A byte-level token may hold half a character, which decodes to U+FFFD until the rest comes.
            end = len(text.rstrip("\ufffd"))
            if self.stop is not None:
                end -= self.stop.held_back(text[:end])
        piece = text[self.sent : max(self.sent, end)]
        self.sent = max(self.sent, end)
        return piece
