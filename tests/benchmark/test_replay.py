"""A replay gives the accepted lengths of the decode that it stands for."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch

from specdecodes.benchmark.replay import Replay, replay
from specdecodes.core.decoder import Assembly, Decoder
from specdecodes.plugin import Context, Hooks
from specdecodes.plugins.drafters.ngram import Ngram
from specdecodes.plugins.drafters.ngram_table import NgramTable
from specdecodes.plugins.states.replay import Replay as ReplayBackend
from specdecodes.plugins.trees.static import Chain, Static
from specdecodes.plugins.verifiers.greedy import Greedy
from specdecodes.testing import LiteralDrafter, toy_context

VOCAB = 16


def counting(off: int) -> LiteralDrafter:
    """Drafts the last token plus 1 + ``off``."""

    def rule(prefix: tuple[int, ...]) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor((prefix[-1] + 1 + off) % VOCAB), VOCAB) * 9.0

    return LiteralDrafter(rule)


@pytest.mark.parametrize(
    ("off", "answer", "lengths"),
    [
        (0, range(1, 14), [4, 4, 4]),
        (0, range(1, 13), [4, 4, 3]),  # the end of the answer cuts the last step
        (0, range(1, 11), [4, 4, 1]),
        (1, range(1, 5), [1, 1, 1]),
        (0, [1], []),
        (0, [1, 2, 3, 9, 10, 11, 12, 13], [3, 4]),
    ],
)
def test_chain_against_known_lengths(off: int, answer: Sequence[int], lengths: list[int]) -> None:
    assert replay(counting(off), Chain(depth=3), [([0], list(answer))], VOCAB).accept_lengths == [lengths]


@pytest.mark.parametrize("spec", ["1,1,1", "3,2.1,2.1,3", "2,0.1,1"])
@pytest.mark.parametrize("with_table", [False, True])
def test_replay_equals_the_decode(spec: str, with_table: bool) -> None:
    context: Context = toy_context("llama", dtype=torch.float64)
    target, vocab_size = context.target, context.target.vocab_size
    prompts = [[3, 4, 5, 3, 4], [7], list(range(5, 40))]
    texts = [[*prompt, 9, 9, 3, 4, 5] for prompt in prompts]
    table = NgramTable.build(texts, vocab_size, min_counts=(1, 1, 1)) if with_table else ""
    drafter, tree = Ngram(context, table=table), Static(context, tree=spec)
    target.backend = ReplayBackend()
    hooks = Hooks({"drafter": drafter, "tree": tree, "verifier": Greedy(), "state": target.backend})
    decoder = Decoder(target, None, "test", Assembly(hooks, "none"), "greedy only")
    made = [
        decoder.generate(torch.tensor([prompt]), max_new_tokens=40, ignore_eos=True, repetition_penalty=0.8)
        for prompt in prompts
    ]
    pairs = [(prompt, generation.tokens[0]) for prompt, generation in zip(prompts, made, strict=True)]
    replayed = replay(Ngram(SimpleNamespace(target=target), table=table), spec, pairs, vocab_size)
    assert replayed.accept_lengths == [generation.accept_lengths for generation in made]
    assert replayed.tau > 1.2  # otherwise nothing was tested
    steps = sum(len(generation.accept_lengths) for generation in made)
    assert replayed.tau == pytest.approx(sum(sum(g.accept_lengths) for g in made) / steps)


def test_nothing_to_replay() -> None:
    assert Replay([]).tau == 0.0
    for pair in (([], [1]), ([1], [])):
        with pytest.raises(ValueError, match="at least one token"):
            replay(counting(0), "1", [pair], VOCAB)
    with pytest.raises(ValueError, match="tree: expected levels like"):
        replay(counting(0), "1;2", [], VOCAB)
