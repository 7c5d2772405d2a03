"""Losslessness by enumeration of the shipped code: drafter, builder, processing, rule, clipping, several steps."""

from __future__ import annotations

import math
from typing import cast

import pytest
import torch

from specdecodes.core.loop import steps
from specdecodes.core.sampling import LogitsPipeline, SamplingParams
from specdecodes.core.state import DecodeState
from specdecodes.core.tree import Tree
from specdecodes.plugin import Hooks
from specdecodes.plugins.states.replay import Replay
from specdecodes.plugins.trees.static import Static
from specdecodes.plugins.verifiers.block import Block
from specdecodes.plugins.verifiers.residual import MultiStep, Rejection, WithoutReplacement
from specdecodes.plugins.verifiers.token_match import TokenMatch
from specdecodes.plugins.verifiers.traversal import Traversal
from specdecodes.testing import LiteralDrafter, LiteralTarget, explore, total_variation
from specdecodes.testing.enumeration import sequence_law
from specdecodes.testing.laws import CASES, Laws, draw_tree, laws_of
from specdecodes.testing.toys import numbers

from ...testing.mutants import DraftNotRenormalised, Rejecting, SortedSiblings, SortsSiblings

EXACT = 1e-12
PROMPT = [0, 1]

PARAMS = {
    "as they are": dict(temperature=1.0),
    "cooled": dict(temperature=0.6),
    "top-k": dict(temperature=1.0, top_k=2),
    "top-p": dict(temperature=1.2, top_p=0.6),
    "min-p": dict(temperature=1.0, min_p=0.4),
    "repetition penalty": dict(temperature=0.9, repetition_penalty=1.7),
}

COMBINATIONS = {
    "rejection": (Rejection, "iid", "1,1"),
    "multi-step": (MultiStep, "iid", "2"),
    "without-replacement": (WithoutReplacement, "without_replacement", "2"),
    "token-match": (TokenMatch, "none", "2,1"),
    "block": (Block, "iid", "1,1"),
    "traversal": (Traversal, "without_replacement", "2,1"),
}
OTHER_DRAWS = {
    "rejection-without-replacement": (Rejection, "without_replacement", "1,1"),
    "block-without-replacement": (Block, "without_replacement", "1,1"),
    "traversal-iid": (Traversal, "iid", "2"),
    "token-match-iid": (TokenMatch, "iid", "2"),
    "token-match-without-replacement": (TokenMatch, "without_replacement", "2"),
}


def rule(name, vocab):
    return lambda prefix: 1.5 * torch.randn(vocab, generator=numbers(name, prefix), dtype=torch.float64)


def decode_law(verifier, builder, draws, params, vocab, length, rules=None):
    """(law of the ``length`` tokens after a first one, the target's own), over all outcomes of whole decodes."""
    rules = rules or (rule("target", vocab), rule("draft", vocab))
    target = LiteralTarget(rules[0], vocab)
    plugins = {
        "drafter": LiteralDrafter(rules[1]),
        "tree": builder,
        "state": Replay(),
        "verifier": verifier,
    }
    hooks, settings = Hooks(plugins), SamplingParams(max_new_tokens=length + 1, **params)
    prompt, first = torch.tensor([PROMPT[:-1]]), torch.nn.functional.one_hot(torch.tensor(PROMPT[-1:]), vocab).log()

    def decode(rng):
        state = DecodeState(target, prompt, settings, rng=rng, draws=draws)
        target.prefill(prompt)
        state.first(first)
        for _ in steps(hooks, state):
            pass
        assert target.committed[0] == state.history[0][:-1]
        return tuple(state.tokens[0][1:])

    law = {}
    for weight, tokens in explore(decode):
        law[tokens] = law.get(tokens, 0.0) + weight
    pipeline = LogitsPipeline(settings)

    def next_law(prefix):
        history = [*PROMPT, *prefix]
        return pipeline(target.logits(history)[None], [history])[0].exp().tolist()

    return law, sequence_law({(): 1.0}, next_law, length)


@pytest.mark.slow
@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("name", COMBINATIONS)
def test_a_whole_decode_has_the_law_of_the_target(name, params):
    verifier, draws, tree = COMBINATIONS[name]
    law, expected = decode_law(verifier(), Static(tree=tree), draws, PARAMS[params], vocab=3, length=2)
    assert math.isclose(sum(law.values()), 1.0, abs_tol=EXACT)
    assert total_variation(law, expected) < EXACT
    assert max(abs(law[key] - 1 / len(law)) for key in law) > 0.01, "a flat law would hide mistakes"


@pytest.mark.parametrize("name", OTHER_DRAWS)
def test_every_kind_of_draws_is_judged_rightly(name):
    verifier, draws, tree = OTHER_DRAWS[name]
    law, expected = decode_law(verifier(), Static(tree=tree), draws, PARAMS["top-p"], vocab=3, length=2)
    assert total_variation(law, expected) < EXACT


def one_step(verifier, laws, parents, draws):
    """(law of the first new token, probability that a draft was accepted) of the pure rule on drawn trees."""
    first, accepted = {}, 0.0
    for chance, tree in explore(lambda rng: draw_tree(parents, laws, rng, draws)):
        paths = tree.structure.paths[0].tolist()
        tokens = tree.tokens[0].tolist()
        logits = torch.stack([laws.target(tuple(tokens[node] for node in path if node > 0)) for path in paths])
        logp = logits.log_softmax(-1)[None]
        for weight, verdict in explore(lambda rng, logp=logp, tree=tree: verifier.accept(logp, tree, rng)):
            many = int(verdict.num_accepted) > 0
            token = tokens[int(verdict.path[0, 1])] if many else int(verdict.bonus)
            first[(token,)] = first.get((token,), 0.0) + chance * weight
            accepted += chance * weight * many
    return first, accepted


def law_of(laws):
    return {(token,): share for token, share in enumerate(laws.target(()).softmax(-1).tolist()) if share > 0}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("verifier", [Rejection, MultiStep, WithoutReplacement, Block, Traversal])
def test_a_single_draft_is_accepted_as_often_as_the_laws_overlap(verifier, case):
    laws = laws_of(case, 5)
    first, accepted = one_step(verifier(), laws, (-1, 0), verifier.draws[0])
    p, q = (law(()).softmax(-1) for law in (laws.target, laws.draft))
    assert math.isclose(accepted, float(torch.minimum(p, q).sum()), abs_tol=EXACT)
    assert total_variation(first, law_of(laws)) < EXACT


def test_a_node_with_every_token_as_a_child_always_accepts_one():
    laws = laws_of("random", 4)
    star = (-1, 0, 0, 0, 0)
    first, accepted = one_step(WithoutReplacement(), laws, star, "without_replacement")
    assert math.isclose(accepted, 1.0, abs_tol=EXACT)
    assert total_variation(first, law_of(laws)) < EXACT
    first, accepted = one_step(MultiStep(), laws, star, "iid")
    assert accepted < 0.999
    assert total_variation(first, law_of(laws)) < EXACT


def test_siblings_accept_more_than_one_draft_does():
    laws = laws_of("random", 5)
    chances = [one_step(WithoutReplacement(), laws, (-1, *[0] * k), "without_replacement")[1] for k in (1, 2, 3)]
    assert chances == sorted(chances) and chances[2] > chances[0] + 0.05


def zipf(vocab, exponent=1.2):
    """The draft equals the target: the case in which STree's own rule is furthest off."""
    logits = -exponent * torch.arange(1, vocab + 1, dtype=torch.float64).log()
    return Laws(vocab, lambda path: logits, lambda path: logits)


def test_siblings_sorted_after_drawing_bias_the_result():
    laws, star = zipf(7), (-1, 0, 0, 0)
    kept, _ = one_step(Rejecting(), laws, star, "without_replacement")
    biased, _ = one_step(SortsSiblings(), laws, star, "without_replacement")
    assert total_variation(kept, law_of(laws)) < EXACT
    assert total_variation(biased, law_of(laws)) > 0.3
    assert biased[(0,)] > kept[(0,)] + 0.15, "it sharpens towards the draft's best"


def test_a_builder_that_sorts_drawn_siblings_biases_a_decode():
    laws = zipf(5)
    settings = ("without_replacement", PARAMS["as they are"], 5, 1, (laws.target, laws.draft))
    law, expected = decode_law(WithoutReplacement(), SortedSiblings(tree="3"), *settings)
    assert total_variation(law, expected) > 0.05
    law, expected = decode_law(WithoutReplacement(), Static(tree="3"), *settings)
    assert total_variation(law, expected) < EXACT


def test_a_rule_for_independent_draws_does_not_fit_draws_without_replacement():
    laws = laws_of("random", 4)
    biased, _ = one_step(DraftNotRenormalised(), laws, (-1, 0, 0), "without_replacement")
    assert total_variation(biased, law_of(laws)) > 0.01


@pytest.mark.parametrize("verifier", [Rejection, MultiStep, WithoutReplacement, TokenMatch, Block, Traversal])
def test_float32_rounding_stays_small_and_finite(verifier):
    for case in CASES:
        laws = laws_of(case, 5)
        single = Laws(5, lambda path, of=laws.target: of(path).float(), lambda path, of=laws.draft: of(path).float())
        shape = (-1, 0) if verifier.chain_only else (-1, 0, 0, 0)
        first, _ = one_step(verifier(), single, shape, verifier.draws[0])
        assert total_variation(first, law_of(laws)) < 1e-5


def test_a_token_the_draft_could_not_have_drawn_is_judged_by_the_target():
    """A caller's tree may claim what its ``logq`` rules out; nothing may divide by zero."""
    logq = torch.tensor([[[0.0, -torch.inf], [0.0, -torch.inf]]], dtype=torch.float64)
    tree = Tree(torch.tensor([[0, 1]]), torch.tensor([[-1, 0]]), logq=logq, draws="iid")
    for p, accepted in ((0.4, 1), (0.0, 0)):
        logp = torch.tensor([[[1 - p, p], [1.0, 0.0]]], dtype=torch.float64).log()
        outcomes = {
            int(verdict.num_accepted) for _, verdict in explore(lambda rng, x=logp: MultiStep().accept(x, tree, rng))
        }
        assert outcomes == {accepted}


def test_several_rows_are_judged_apart():
    laws = [laws_of(case, 4) for case in ("random", "disjoint supports")]
    trees = [next(iter(explore(lambda rng, x=x: draw_tree((-1, 0, 0), x, rng, "iid"))))[1] for x in laws]
    logp = torch.stack(
        [
            torch.stack([x.target(()), *(x.target((int(token),)) for token in tree.tokens[0, 1:])]).log_softmax(-1)
            for x, tree in zip(laws, trees, strict=True)
        ]
    )
    both = Tree(
        torch.cat([tree.tokens for tree in trees]),
        torch.cat([tree.parents for tree in trees]),
        None,
        None,
        torch.cat([cast("torch.Tensor", tree.logq) for tree in trees]),
        "iid",
    )
    joint = {}
    for weight, verdict in explore(lambda rng: MultiStep().accept(logp, both, rng)):
        key = tuple(int(x) for x in (*verdict.num_accepted, *verdict.bonus))
        joint[key] = joint.get(key, 0.0) + weight
    alone = []
    for row, tree in enumerate(trees):
        law = {}
        for weight, verdict in explore(
            lambda rng, row=row, tree=tree: MultiStep().accept(logp[row : row + 1], tree, rng)
        ):
            key = (int(verdict.num_accepted), int(verdict.bonus))
            law[key] = law.get(key, 0.0) + weight
        alone.append(law)
    product = {(a[0], b[0], a[1], b[1]): x * y for a, x in alone[0].items() for b, y in alone[1].items()}
    assert total_variation(joint, product) < EXACT
