"""What the modes are asked: the prompt of each turn of a question."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from specdecodes.benchmark.questions import Question
from specdecodes.core.decoder import Decoder


class Conversation:
    """One question as it goes on: chat messages where the tokenizer has a template, plain text elsewhere.

    As plain text the first turn is the prompt as it stands (a HumanEval prompt is continued), and a later turn
    follows what was said before after an empty line. A text (see :class:`Question`) is cut and continued as it is.
    """

    def __init__(self, decoder: Decoder, question: Question) -> None:
        self.decoder = decoder
        self.turns = question.turns
        self.prompt_tokens = question.prompt_tokens
        self.chats = decoder.tokenizer.chat_template is not None and question.prompt_tokens is None
        self.messages: list[dict[str, str]] = []
        self.text = ""

    def prompt(self, turn: int, max_new_tokens: int) -> Tensor:
        """The prompt of ``turn`` as int64 [1, L].

        Raises:
            ValueError: longer than the model allows.
        """
        question = self.turns[turn]
        prompt: Any
        if self.chats:
            prompt = self.messages = [*self.messages, {"role": "user", "content": question}]
        else:
            prompt = self.text = f"{self.text}\n\n{question}\n\n" if self.text else question
        ids = self.decoder.encode(prompt)[:, : self.prompt_tokens]
        self.decoder.target.check_room(ids.shape[0], ids.shape[1], max_new_tokens)
        return ids

    def answered(self, text: str) -> None:
        """Go on from ``text``: the answer that every mode sees in the next turn."""
        if self.chats:
            self.messages = [*self.messages, {"role": "assistant", "content": text}]
        else:
            self.text += text
