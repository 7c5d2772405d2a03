"""Documents as text, and text as packed blocks of token ids."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from torch.utils.data import Dataset

from specdecodes.train.data import Document


def render(document: Document, eos: str) -> str:
    """The text of a document in the chat format of our own tokenizers (plain text just ends with ``eos``)."""
    if document[0]["role"] == "text":
        return document[0]["content"] + eos
    return "".join(f"<|{message['role']}|>{message['content'].strip()}{eos}" for message in document)


def text_of(document: Document, tokenizer: Any) -> str:  # noqa: ANN401 - any tokenizer
    """The text of a document as a model of this tokenizer knows it: by its chat template, else just the contents.

    No end of text follows an answer that was cut off: what reads it would learn to stop there.

    Raises:
        ValueError: the template refuses the messages.
    """
    cut = document[-1].get("end") == "cut"
    if document[0]["role"] == "text" or tokenizer.chat_template is None:
        text = "\n\n".join(message["content"] for message in document)
        return text if cut else text + tokenizer.eos_token
    try:
        # A last message without words leaves nothing to go on from.
        goes_on = cut and bool(document[-1]["content"].strip())
        return tokenizer.apply_chat_template(document, tokenize=False, continue_final_message=goes_on)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in document)
        raise ValueError(f"data: the tokenizer's chat template refuses the roles {roles} ({error})") from error


class Blocks(Dataset[dict[str, Tensor]]):
    """Token ids of all documents, one after the other, cut into blocks: item ``i`` is {input_ids, labels} of [block].

    Raises:
        ValueError: fewer tokens than one block; ``what`` names the documents in the message.
    """

    def __init__(self, documents: Sequence[Document], tokenizer: Any, block: int, what: str = "data") -> None:  # noqa: ANN401
        ids = array("i")
        for start in range(0, len(documents), 1000):  # a tokenizer's answer holds far more than ids
            texts = [text_of(document, tokenizer) for document in documents[start : start + 1000]]
            for encoded in tokenizer(texts, add_special_tokens=False)["input_ids"]:
                ids.extend(encoded)
        count = len(ids) // block
        if count == 0:
            raise ValueError(
                f"{what}: expected at least one block of {block} tokens, got {len(ids)} tokens in "
                f"{len(documents)} documents; lower training.block"
            )
        self.blocks: Tensor = torch.tensor(ids[: count * block], dtype=torch.int32).view(count, block)

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = self.blocks[index].long()
        return {"input_ids": ids, "labels": ids}
