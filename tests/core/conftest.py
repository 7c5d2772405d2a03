"""Decoders over literal logits: no weights, every token known beforehand."""

from __future__ import annotations

import pytest
import torch

from specdecodes.core.decoder import Assembly, Decoder
from specdecodes.plugin import Hooks
from specdecodes.plugins.states.replay import Replay
from specdecodes.plugins.trees.static import Chain, Root, Static
from specdecodes.plugins.verifiers.greedy import Greedy
from specdecodes.plugins.verifiers.token_match import TokenMatch
from specdecodes.testing import LiteralDrafter, LiteralTarget

VOCAB = 32


def one_hot(token, vocab=VOCAB):
    """Logits that leave no doubt."""
    logits = torch.zeros(vocab, dtype=torch.float64)
    logits[token] = 20.0
    return logits


@pytest.fixture
def script():
    """A rule that says ``tokens`` one after the other once the prompt is over, then repeats the last."""

    def make(tokens, prompt=1, vocab=VOCAB):
        return lambda prefix: one_hot(tokens[min(len(prefix) - prompt, len(tokens) - 1)], vocab)

    return make


@pytest.fixture
def decoder():
    """A decoder over rules; ``depth`` makes a chain, ``tree`` a static tree, neither plain decoding."""

    def make(target, draft=None, *, depth=0, tree="", vocab=VOCAB, eos=(), tokenizer=None, sampling=None, observers=()):
        builder = Static(tree=tree) if tree else Chain(depth=depth) if depth else Root()
        roles = {
            "drafter": LiteralDrafter(draft or target),
            "tree": builder,
            "state": Replay(),
            **{f"observer {i}": observer for i, observer in enumerate(observers)},
        }
        sampler = sampling or TokenMatch()
        draws = next(d for d in sampler.draws if d in builder.draws)
        return Decoder(
            LiteralTarget(target, vocab, eos_ids=eos),
            tokenizer,
            "literal",
            Assembly(Hooks({**roles, "verifier": Greedy()}), "none"),
            Assembly(Hooks({**roles, "verifier": sampler}), draws),
        )

    return make


@pytest.fixture
def prompt():
    """One token, which every rule here treats as the start."""
    return torch.tensor([[0]])


class Pieces:
    """A tokenizer whose tokens are byte strings: half a character decodes to U+FFFD, as in byte-level BPE."""

    chat_template = None
    eos_token_id = None

    def __init__(self, pieces):
        self.pieces = [piece.encode() if isinstance(piece, str) else piece for piece in pieces]

    def decode(self, tokens, skip_special_tokens=True):
        return b"".join(self.pieces[token] for token in tokens).decode("utf-8", errors="replace")

    def encode(self, text, add_special_tokens=True):
        return [self.pieces.index(byte.encode()) for byte in text]


@pytest.fixture
def pieces():
    return Pieces
