"""The lossy rules in whole decodes: they are lossy, and what they leave behind is never stale."""

from __future__ import annotations

import pytest
import torch

from specdecodes import hookimpl, load
from specdecodes.plugins.trees.static import Static
from specdecodes.plugins.verifiers.commonsense import Commonsense
from specdecodes.plugins.verifiers.entropy_gate import EntropyGate
from specdecodes.plugins.verifiers.typical import Typical
from specdecodes.testing import check_verifier, total_variation, toy_bigrams, toy_context, toy_model
from specdecodes.testing.state_backend import TOLERANCE, stock_logits
from specdecodes.testing.toys import toy_prompt

from .test_law import PARAMS, decode_law

SETTINGS = {
    "typical": dict(epsilon=0.02, delta=0.1),
    "entropy-gate": dict(gate="probability", threshold=0.02, window_size=0),
    "commonsense": dict(bigrams=toy_bigrams(top=24)),
}


@pytest.mark.parametrize(
    "make",
    [
        Typical,
        lambda: EntropyGate(threshold=0.9, window_size=1),
        lambda: EntropyGate(gate="high-entropy", threshold=0.5, window_size=0),
        lambda: Commonsense(toy_context(vocab_size=5), bigrams=toy_bigrams(5)),
    ],
)
@pytest.mark.parametrize("params", ["as they are", "cooled", "repetition penalty"])
def test_the_law_is_another_than_the_targets(make, params):
    law, expected = decode_law(make(), Static(tree="2,1"), "none", PARAMS[params], vocab=3, length=2)
    assert sum(law.values()) == pytest.approx(1.0, abs=1e-12)
    assert total_variation(law, expected) > 0.001
    assert set(law) <= set(expected) or params == "repetition penalty", "nothing that the target cannot say"


@pytest.mark.parametrize("name", SETTINGS)
def test_declared_lossy_they_pass(name):
    rules = {"typical": Typical, "entropy-gate": EntropyGate, "commonsense": Commonsense}
    assert not rules[name].lossless
    check_verifier(rules[name], **SETTINGS[name])


class Histories:
    """Keeps the history after every step."""

    def __init__(self, context=None):
        self.seen = []

    @hookimpl
    def generation_started(self, state):
        self.seen.append(list(state.history[0]))

    @hookimpl
    def step_finished(self, state):
        self.seen.append(list(state.history[0]))


@pytest.mark.parametrize("backend", ["replay", "copy", "reforward"])
@pytest.mark.parametrize(
    ("name", "temperature"),  # at temperature 0 greedy verification takes the place of typical acceptance
    [("typical", 1.0), ("entropy-gate", 0.0), ("entropy-gate", 1.0), ("commonsense", 0.0), ("commonsense", 1.0)],
)
def test_the_state_after_every_step_is_that_of_the_tokens_emitted(name, temperature, backend, monkeypatch):
    """What the target says next after each commit is what the stock model says after everything emitted so far."""
    model, draft = toy_model("bamba", dtype=torch.float64), toy_model("mamba2", dtype=torch.float64, seed=1)
    watching = Histories()
    decoder = load(
        model, draft, "stree", verify=name, commit_state=backend, observers=[watching], tree="3,2.1", **SETTINGS[name]
    )
    roots, score = [], decoder.target.score

    def recorded(tree):
        logits = score(tree)
        roots.append(logits[:, 0].clone())
        return logits

    monkeypatch.setattr(decoder.target, "score", recorded)
    prompt = toy_prompt(7)
    ours = decoder.generate(prompt, max_new_tokens=24, temperature=temperature, seed=5)
    assert not ours.lossless
    assert ours.tau > 1.3, "it accepts"
    sequential = stock_logits(model, watching.seen[: len(roots)]).detach()
    assert float((torch.cat(roots) - sequential).abs().max()) < TOLERANCE
    if temperature == 0:
        plain = load(model, mode="naive").generate(prompt, max_new_tokens=24)
        assert plain.lossless and plain.tokens != ours.tokens, "and not only what plain decoding says"
