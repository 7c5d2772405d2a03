"""A draft of another family, with a vocabulary that is padded to another width: greedy and sampled, exact both ways."""

from __future__ import annotations

import copy
import shutil
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from specdecodes import load
from specdecodes.core.decoder import Assembly
from specdecodes.core.loop import steps
from specdecodes.core.sampling import LogitsPipeline, SamplingParams
from specdecodes.core.state import DecodeState
from specdecodes.testing import explore, total_variation, toy_model
from specdecodes.testing.enumeration import sequence_law
from specdecodes.testing.state_backend import stock_logits
from specdecodes.testing.toys import toy_prompt

from ..conftest import Pair, tokenizer_of

PAIRS = [("bamba", "mamba2"), ("llama", "mamba2"), ("mamba2", "llama"), ("llama", "bamba")]
WIDTHS = [(48, 45), (45, 48)]
"""Of target and draft."""
each_pair = pytest.mark.parametrize(("target", "draft"), PAIRS)
each_width = pytest.mark.parametrize("widths", WIDTHS, ids=str)


def of(family, width, seed=0):
    return toy_model(family, vocab_size=width, dtype=torch.float64, seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("mode", ["sd", "stree"])
@each_width
@each_pair
def test_the_tokens_are_those_of_plain_decoding(target, draft, widths, mode, temperature):
    """Greedy, and sampled with the verifier that gives plain decoding's tokens of the same seed."""
    model, prompt = of(target, widths[0]), toy_prompt(9, min(widths))
    decoder = load(model, of(draft, widths[1], seed=1), mode, verify="token-match")
    settings = {"max_new_tokens": 24, "temperature": temperature, "top_k": 7, "seed": 3}
    found = decoder.generate(prompt, **settings).tokens
    assert found == load(model, mode="naive").generate(prompt, **settings).tokens


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_wider_draft_that_agrees_is_always_right(temperature):
    """The same weights, and rows that no token has, which get the best logits: they must not count."""
    narrow, wide = of("llama", 45), copy.deepcopy(of("llama", 48))
    weights = {name: weight.clone() for name, weight in narrow.state_dict().items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = torch.cat([weights[name], 9 * weights[name][:3]])
    wide.load_state_dict(weights)
    prompt = toy_prompt(9, 45)
    assert int(wide(prompt).logits.argmax(-1).max()) >= 45, "the rows are never best, and this test shows nothing"
    decoder = load(narrow, wide, "sd", depth=3)
    out = decoder.generate(prompt, max_new_tokens=33, temperature=temperature, seed=1)
    assert set(out.accept_lengths) == {4}


MODES = {
    "chain": dict(mode="sd", depth=1),
    "chain, block": dict(mode="sd", depth=2, verify="block"),
    "tree": dict(mode="stree", tree="2,1"),
    "tree, traversal": dict(mode="stree", tree="2,1", verify="traversal"),
}
SAMPLING = {"cut": {"temperature": 1.0, "top_p": 0.8}, "whole": {"temperature": 0.8}}


@pytest.mark.slow
@pytest.mark.parametrize("widths", [(5, 4), (4, 5)], ids=str)
@pytest.mark.parametrize(
    ("mode", "params"),
    [
        pytest.param(mode, law, marks=[] if mode == "chain" or name == "cut" else pytest.mark.slow, id=f"{mode} {name}")
        for mode in MODES
        for name, law in SAMPLING.items()
    ],
)
def test_the_law_of_sampled_tokens(mode, widths, params):
    """Every outcome of one step of the shipped code, drafted by a model: the law is the target's own."""
    model, prompt = of("llama", widths[0]), torch.tensor([[1, 3, 2]])
    decoder = load(model, of("mamba2", widths[1], seed=1), **MODES[mode])
    assembly, settings = decoder.sampling, SamplingParams(max_new_tokens=20, **params)
    assert isinstance(assembly, Assembly) and assembly.lossless
    pipeline, first = LogitsPipeline(settings), widths[0] - 1  # the widest token, which the narrower draft has not

    def next_law(tokens):
        logits = stock_logits(model, [[*prompt[0].tolist(), first, *tokens]])
        return pipeline(logits)[0].exp().tolist()

    def run(rng):
        state = DecodeState(decoder.target, prompt, settings, pipeline=pipeline, rng=rng, draws=assembly.draws)
        with torch.inference_mode():
            decoder.target.prefill(prompt)
            state.first(torch.nn.functional.one_hot(torch.tensor([first]), widths[0]).double() * 90)
            assembly.hooks.generation_started(state)
            next(steps(assembly.hooks, state))
        return tuple(state.tokens[0][1:])

    emitted = defaultdict(float)
    for weight, tokens in explore(run):
        emitted[tokens] += weight
    assert any(len(tokens) > 1 for tokens in emitted)
    assert total_variation(sequence_law(emitted, next_law, 3), sequence_law({(): 1.0}, next_law, 3)) < 1e-6


@each_width
def test_the_published_widths(widths):
    """GPT-NeoX's 50,277 tokens, and the same padded to a multiple of 8 or 16."""
    sizes = {48: 50280, 45: 50277}
    model = of("llama", sizes[widths[0]])
    prompt = toy_prompt(9, 50277)
    found = load(model, of("mamba2", sizes[widths[1]], seed=1), "stree").generate(prompt, max_new_tokens=8)
    assert found.tokens == load(model, mode="naive").generate(prompt, max_new_tokens=8).tokens


@each_width
def test_widths_that_differ_are_no_tokenizers_that_differ(widths, tmp_path):
    words = ["<pad>", *(f"w{i}" for i in range(40))]
    for name, family, width in zip(("target", "draft"), ("bamba", "mamba2"), widths, strict=True):
        of(family, width).save_pretrained(tmp_path / name)
        tokenizer_of(words).save_pretrained(tmp_path / name)
    target, draft = (str(tmp_path / name) for name in ("target", "draft"))
    found, plain = (load(target, draft, mode).generate("w1 w2", max_new_tokens=5) for mode in ("stree", "naive"))
    assert found.tokens == plain.tokens


def test_a_token_more_is_another_tokenizer(pair: Pair, tmp_path: Path):
    other = tmp_path / "other"
    shutil.copytree(pair.draft, other)
    tokenizer_of(["<pad>", "<s>", *(f"w{i}" for i in range(47))]).save_pretrained(other)
    with pytest.raises(ValueError, match=r"^draft: .*: id 48 is 'w46', expected None; use a draft of the same"):
        load(pair.target, str(other))
