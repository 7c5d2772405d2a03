"""Every lossless mode on every state back-end, on tiny stock models of three families."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch

from specdecodes import hookimpl, load, registry
from specdecodes.plugin import mode_is_lossless
from specdecodes.plugins.modes import MODES as BUILT_IN
from specdecodes.testing import toy_model
from specdecodes.testing.toys import FAMILIES, numbers, toy_prompt

LENGTH = 24
MODES = [name for name, (mode, _) in BUILT_IN.items() if mode_is_lossless(registry(), mode)]
BACKENDS = registry().names("state")


@cache
def near(family, dtype):
    """A draft that is often right: the target with noise on its output layer."""
    model = copy.deepcopy(toy_model(family, dtype=dtype))
    weight = model.get_output_embeddings().weight
    with torch.no_grad():
        weight.add_(0.25 * weight.std() * torch.randn(weight.shape, generator=numbers("near")).to(dtype))
    return model


@cache
def stock(family, dtype, prompt_length):
    """What ``model.generate`` of stock transformers says."""
    prompt = toy_prompt(prompt_length, 48, family)
    model = toy_model(family, dtype=dtype)
    out = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=LENGTH, do_sample=False, pad_token_id=0
    )
    return out[0, prompt_length:].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_equal_stock_generate_in_float64(family, mode, backend, mode_settings):
    target = toy_model(family, dtype=torch.float64)
    decoder = load(target, near(family, torch.float64), mode, commit_state=backend, **mode_settings(mode))
    taus = []
    for length in (1, 11):
        out = decoder.generate(toy_prompt(length, 48, family), max_new_tokens=LENGTH)
        assert out.tokens == [stock(family, torch.float64, length)]
        assert sum(out.accept_lengths) == LENGTH - 1
        taus.append(out.tau)
    if BUILT_IN[mode][0].propose == "model":
        assert 1.2 < max(taus) < 4.9, "the draft should be right sometimes and wrong sometimes"


@pytest.mark.parametrize("mode", ["sd", "stree"])
def test_a_repetition_penalty_equals_stock_generate(mode):
    prompt, penalty = toy_prompt(11, 48, "penalty"), 1.3
    target = toy_model("bamba", dtype=torch.float64)
    stock_out = target.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=LENGTH,
        do_sample=False,
        pad_token_id=0,
        repetition_penalty=penalty,
    )
    decoder = load(target, near("bamba", torch.float64), mode)
    out = decoder.generate(prompt, max_new_tokens=LENGTH, repetition_penalty=penalty)
    assert out.tokens == [stock_out[0, prompt.shape[1] :].tolist()]
    assert out.tau > 1


@pytest.mark.parametrize("mode", ["sd", "stree"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_target_that_drafts_for_itself_accepts_everything(family, mode):
    model = toy_model(family)
    decoder = load(model, model, mode)
    for length in (1, 11):
        out = decoder.generate(toy_prompt(length, 48, family), max_new_tokens=41)
        assert out.accept_lengths == [5] * 8, "depth 4 and the bonus, in every step"


class Rejections:
    """For every drafted node that was refused although its own model drafted it first: the target's logit gap."""

    def __init__(self, target):
        self.gaps = []
        self.drafted = 0
        self.accepted = 0
        self._target = target
        self._score = target.score
        target.score = self._scored

    def _scored(self, tree):
        self._logits = self._score(tree)
        return self._logits

    @hookimpl
    def step_finished(self, state, tree, verdict):
        if state.finished:
            return
        accepted = int(verdict.num_accepted)
        self.drafted += 4
        self.accepted += accepted
        last = int(verdict.path[0, accepted])
        children = (tree.parents[0] == last).nonzero()[:, 0]
        if len(children):
            logits = self._logits[0, last].float()
            self.gaps.append(float(logits.max() - logits[tree.tokens[0, children]].max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_in_bfloat16_is_refused_only_at_near_ties(family, record_property):
    """Measured on these models: everything is accepted, too, once draft and rule take the same of two equal logits.

    Before, 1 to 3 in 100 were refused, each at an exact tie of the target's two best: bfloat16 has 8 significant bits,
    ``argmax`` takes the first of equals and ``topk`` any. Trees with several children per node contain both.
    """
    model = toy_model(family, dtype=torch.bfloat16)
    decoder = load(model, model, "sd")
    watch = Rejections(decoder.target)
    decoder.greedy.hooks.manager.register(watch, "watch")
    for seed in range(4):
        decoder.generate(toy_prompt(9, 48, family, seed), max_new_tokens=61)
    record_property("acceptance", watch.accepted / watch.drafted)
    record_property("largest_gap", max(watch.gaps, default=0.0))
    # Beyond ties: a chain and one-token steps round at different places, some layers deep, logits around 3.
    assert watch.accepted / watch.drafted > 0.9
    assert all(gap <= 0.125 for gap in watch.gaps)


def test_a_draft_may_be_of_another_family_and_unlike():
    prompt = toy_prompt(7, 48)
    for target, draft in (("llama", "bamba"), ("mamba2", "llama"), ("bamba", "mamba2")):
        model = toy_model(target, dtype=torch.float64)
        out = load(model, toy_model(draft, seed=1, dtype=torch.float64), "stree").generate(
            prompt, max_new_tokens=LENGTH
        )
        assert out.tokens == load(model, mode="naive").generate(prompt, max_new_tokens=LENGTH).tokens


@pytest.mark.parametrize("mode", ["naive", "stree"])
def test_a_static_cache_may_be_filled_to_its_last_position(mode):
    prompt, model = toy_prompt(9), toy_model("bamba")
    decoder = load(model, near("bamba", torch.float32), mode, max_length=9 + LENGTH)
    out = decoder.generate(prompt, max_new_tokens=LENGTH)
    assert out.tokens == load(model, mode="naive").generate(prompt, max_new_tokens=LENGTH).tokens
    with pytest.raises(ValueError, match=f"but the static cache holds {9 + LENGTH} positions"):
        decoder.generate(prompt, max_new_tokens=LENGTH + 1)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["naive", "stree"])
def test_a_compiled_decoder_says_the_same(mode):
    """Up to the last position of the static cache: greedy and sampled, target and draft model, step, tree and jump."""
    target, draft = toy_model("bamba"), near("bamba", torch.float32)
    eager = load(target, draft, mode)
    compiled = load(target, draft, mode, compile=True, max_length=9 + 90)
    prompt = toy_prompt(9)
    for sampling in ({}, {"temperature": 0.8, "seed": 1}):
        expected = eager.generate(prompt, max_new_tokens=90, ignore_eos=True, **sampling)
        found = compiled.generate(prompt, max_new_tokens=90, ignore_eos=True, **sampling)
        assert found.tokens == expected.tokens
        assert found.accept_lengths == expected.accept_lengths
    with pytest.raises(ValueError, match="the static cache holds 99 positions"):
        compiled.generate(prompt, max_new_tokens=91)


@pytest.mark.slow
def test_compiled_decoders_of_one_shape_do_not_share_what_they_compiled():
    """Guards on modules are left out, so that a graph made for one model must never serve another."""
    models = [toy_model("mamba2", seed=seed) for seed in (0, 1)]
    models[1].config.layer_norm_epsilon = models[1].backbone.norm_f.variance_epsilon = 0.5  # a constant of the graph
    prompt = toy_prompt(6)
    for model in models:
        plain = load(model, mode="naive").generate(prompt, max_new_tokens=12)
        assert load(model, mode="naive", compile=True).generate(prompt, max_new_tokens=12).tokens == plain.tokens


@pytest.mark.parametrize(
    ("mode", "rule", "other"),
    [
        ("sd", "Rejection", "block"),
        ("stree", "WithoutReplacement", "traversal"),
        ("sequoia", "WithoutReplacement", None),
    ],
)
def test_sampling_keeps_the_rule_that_the_mode_is_named_for(mode, rule, other):
    """The README says so, and which verifier may take its place."""

    def sampling(**parts):
        decoder = load(toy_model("llama"), toy_model("llama", seed=1), mode, lossless_only=True, **parts)
        return type(decoder.sampling.hooks.manager.get_plugin("verifier")).__name__

    assert sampling() == rule
    assert other is None or sampling(verify=other) == other.capitalize()
