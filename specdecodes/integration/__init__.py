"""Speculative decoding inside transformers: ``model.generate(..., custom_generate=specdecodes.custom_generate(...))``.

What stock ``generate`` does before it decodes stays stock: it builds the logits processors and the stopping criteria
from its own arguments and hands them over. Traps of a callable ``custom_generate``, seen in transformers 5.17 and 5.24:
``streamer``, ``assistant_model`` and ``tokenizer`` are not handed over, without a word; hence names of our own.
"""

from specdecodes.integration.method import CustomGenerate, custom_generate

__all__ = ["CustomGenerate", "custom_generate"]
