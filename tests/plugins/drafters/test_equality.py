"""Every drafter on the embedded pair: plain decoding's tokens, greedy and sampled, and more than one per step."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from specdecodes import assets, load
from specdecodes.models.loading import load_model, load_tokenizer
from specdecodes.plugins.drafters.corpus import read_corpus
from specdecodes.plugins.drafters.datastore import Datastore
from specdecodes.testing import toy_model
from specdecodes.testing.toys import toy_prompt

PROMPTS = (
    "Tom has 3 boxes with 12 apples each. He gives away 7 apples. How many apples are left?",
    "Write a Python function that adds two numbers.",
)
DRAFTED = {
    "suffix": dict(mode="suffix"),
    "suffix with answers": dict(mode="suffix", corpus="answers"),
    "suffix tree": dict(mode="suffix", build_tree="static", tree="3,2.1.0,1.0.0,1,1"),
    "recycling": dict(mode="recycling"),
    "recycling, cold": dict(mode="recycling", warm=False),
    "jacobi": dict(mode="stree", propose="jacobi"),
    "rest": dict(mode="sd", propose="rest"),
    "cascade": dict(mode="stree", propose="cascade", first="suffix", draft="mamba2"),
    "merge": dict(mode="stree", propose="merge", draft="mamba2", tree="4,2,1"),
    "merge of three": dict(mode="sd", propose="merge", drafters="suffix,jacobi,ngram"),
}


@cache
def target():
    return load_model("embedded", "target", torch.device("cpu"), torch.float32)


@cache
def tokenizer():
    return load_tokenizer("embedded", None)


@cache
def datastore():
    return Datastore.build(read_corpus("embedded", tokenizer()), len(tokenizer().get_vocab()))


def decoded(temperature, **settings):
    decoder = load(target(), tokenizer=tokenizer(), **settings)
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    return [decoder.generate(chat, max_new_tokens=48, temperature=temperature, seed=1) for chat in chats]


@cache
def plain(temperature):
    return [out.tokens for out in decoded(temperature, mode="naive")]


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", DRAFTED)
def test_tokens_equal_plain_decoding(name, temperature):
    settings = dict(DRAFTED[name])
    if name == "rest":
        settings["datastore"] = datastore()
    found = decoded(temperature, **settings)
    assert [out.tokens for out in found] == plain(temperature)
    assert sum(out.tau for out in found) / len(found) > 1.0


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.parametrize("settings", [dict(mode="suffix"), dict(mode="recycling"), dict(propose="jacobi")], ids=str)
def test_long_answers(settings):
    """Beyond what is counted or matched at once, through loops and back out of them."""
    model, prompt = toy_model("bamba", dtype=torch.float64), toy_prompt(9)
    sampling = {"max_new_tokens": 900, "temperature": 0.5, "seed": 2}
    out = load(model, **settings).generate(prompt, **sampling)
    assert out.tokens == load(model, mode="naive").generate(prompt, **sampling).tokens
    assert out.tau > 1.1


def test_a_draft_model_must_be_named():
    with pytest.raises(ValueError, match="draft: this mode drafts with a model; name one"):
        load(toy_model("llama"), propose="merge")


@pytest.mark.parametrize("propose", ["model", "cascade", "merge"])
def test_the_embedded_target_has_a_draft_model(propose):
    found, named = (load(target(), draft, propose=propose).greedy.hooks.manager for draft in (None, "mamba2"))
    drafter = found.get_plugin("drafter")
    model = drafter if propose == "model" else drafter.drafters[1]
    assert Path(model.runner.model.name_or_path) == assets.folder("mamba2")
    assert found.get_plugin("tree").max_nodes == named.get_plugin("tree").max_nodes
