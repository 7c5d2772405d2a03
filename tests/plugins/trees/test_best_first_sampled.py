"""Dynamic trees of drawn children: by hand, and lossless by enumeration of every draw and every outcome."""

from __future__ import annotations

import math
from typing import cast

import pytest
import torch

from specdecodes.core.sampling import LogitsPipeline, SamplingParams
from specdecodes.core.state import DecodeState
from specdecodes.models.target import Target
from specdecodes.plugins.trees.beam import Beam
from specdecodes.plugins.trees.best_first import BestFirst
from specdecodes.plugins.trees.best_first_sampled import BestFirstSampled
from specdecodes.plugins.verifiers.residual import WithoutReplacement
from specdecodes.plugins.verifiers.token_match import TokenMatch
from specdecodes.testing import (
    EnumeratingRng,
    LiteralProposal,
    LiteralTarget,
    check_tree_builder,
    explore,
    total_variation,
)
from specdecodes.testing.enumeration import sequence_law
from specdecodes.testing.laws import CASES, laws_of

EXACT = 1e-12
DRAFT = {(): {0: 0.5, 1: 0.3, 2: 0.2}, (0,): {3: 0.9, 4: 0.1}, (1,): {5: 0.6, 6: 0.4}, (2,): {1: 1.0}}


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        # 0 first: 0.5 is left for a second draw, 0.2 or 0.3 for a third; each child is run while there is budget.
        ([0, 0, 0], [(), (0,), (1,), (2,)]),
        # 2 first: 0.8 is left, then 1: 0.5 is left.
        ([2, 1, 0], [(), (2,), (1,), (0,)]),
    ],
)
def test_draws_of_a_level_by_hand(ask, paths, script, expected):
    builder = BestFirstSampled(max_nodes=4, depth=2, topk=3, width=2, threshold=0.1)
    tree, proposal = ask(builder, DRAFT, draws="without_replacement", rng=EnumeratingRng(script))
    assert paths(tree) == expected
    assert not proposal.expanded, "the budget is spent"
    law = [0.5, 0.3, 0.2, *[0.0] * 5]
    assert torch.allclose(tree.logq[0, 0].exp(), torch.tensor(law, dtype=torch.float64))


def test_a_level_ends_where_a_draw_is_of_little_use(ask, paths):
    builder = BestFirstSampled(max_nodes=9, depth=2, topk=3, width=2, threshold=0.4)
    rng = EnumeratingRng([0, 0, 0, 0, 0, 0, 0])
    tree, proposal = ask(builder, DRAFT, draws="without_replacement", rng=rng)
    # Root: 0 (1 left), 1 (0.5 left), then 0.2 is too little. Below 0, reached with 0.5: 3, then 0.05 is too little.
    # Below 1, reached with 0.3: nothing.
    assert paths(tree) == [(), (0,), (1,), (0, 3)]
    assert proposal.slots[0] == [(), (0,), (0,)], "what is worth no draw is not run; two slots all the same"
    assert tree.slots[0].tolist() == [0, 1, -1, -1, *[-1] * 5]


def test_the_next_draw_goes_where_it_is_of_most_use(ask, paths):
    builder = BestFirstSampled(max_nodes=6, depth=2, topk=2, width=2, threshold=0.05)
    tree, _ = ask(builder, DRAFT, draws="without_replacement", rng=EnumeratingRng([1, 0, 0, 0, 0, 0]))
    # Root: 1 (0.3), 0 (0.5). Below 0: 3 (use 0.5); below 1: 5 (0.3), then 6 (0.3 * 0.4); 0's second would be 0.05.
    assert paths(tree) == [(), (1,), (0,), (0, 3), (1, 5), (1, 6)]


@pytest.mark.parametrize("settings", [{"max_nodes": 1}, {"max_nodes": 2}, {"depth": 1, "threshold": 0.0}])
def test_limits(ask, paths, settings):
    builder = BestFirstSampled(**settings)
    tree, _ = ask(builder, DRAFT, draws="without_replacement")
    assert len(paths(tree)) == min(builder.max_nodes, 4) and max(len(path) for path in paths(tree)) <= 1


def test_what_the_draft_rules_out_is_not_drawn(ask, paths):
    builder = BestFirstSampled(max_nodes=20, depth=3, topk=8, width=4, threshold=0.0)
    certain = {(): {0: 1.0}, (0,): {1: 0.5, 2: 0.5}, (0, 1): {3: 1.0}, (0, 2): {4: 1.0}}
    tree, _ = ask(builder, certain, draws="without_replacement")
    assert set(paths(tree)) == {(), (0,), (0, 1), (0, 2), (0, 1, 3), (0, 2, 4)}


@pytest.mark.parametrize("settings", [{"max_nodes": 0}, {"depth": 0}, {"topk": 0}, {"width": -2}])
def test_settings_below_one_are_refused(settings):
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=f"^{name}: expected at least 1, got {value}$"):
        BestFirstSampled(**settings)


@pytest.mark.parametrize("threshold", [-0.1, 1.5, math.nan])
def test_a_threshold_is_a_probability(threshold):
    with pytest.raises(ValueError, match=r"^threshold: expected a probability from 0 to 1, got "):
        BestFirstSampled(threshold=threshold)


@pytest.mark.parametrize(
    "settings",
    [{}, {"threshold": 0.0}, {"max_nodes": 40, "threshold": 0.001}, {"max_nodes": 2}, {"topk": 1}, {"width": 1}],
)
def test_contract(settings):
    check_tree_builder(BestFirstSampled, **settings)


def step_law(builder, verifier, laws, params):
    """(law of what one step emits and plain decoding continues, the target's own), over all draws and outcomes.

    Tokens of the laws' vocabulary; root and prompt are token 0.
    """
    target = LiteralTarget(lambda prefix: laws.target(prefix[2:]), laws.vocab)
    certain = torch.full((1, laws.vocab), -torch.inf, dtype=torch.float64)
    certain[:, 0] = 0.0
    settings = SamplingParams(max_new_tokens=64, **params)

    def step(rng):
        draws = next(kind for kind in verifier.draws if kind in builder.draws)
        state = DecodeState(cast("Target", target), torch.zeros(1, 1, dtype=torch.long), settings, draws=draws)
        target.prefill(state.prompt)
        state.first(certain)
        state.rng = rng
        tree = builder.build_tree(state, LiteralProposal(lambda prefix: laws.draft(prefix[2:]), state))
        verdict = verifier.verify(state, tree)
        path = verdict.path[0, 1 : int(verdict.num_accepted) + 1]
        return (*tree.tokens[0, path].tolist(), int(verdict.bonus))

    emitted = {}
    for weight, tokens in explore(step):
        emitted[tokens] = emitted.get(tokens, 0.0) + weight
    pipeline = LogitsPipeline(settings)

    def next_law(prefix):
        return pipeline(target.logits((0, 0, *prefix))[None])[0].exp().tolist()

    length = builder.max_depth + 1
    return sequence_law(emitted, next_law, length), sequence_law({(): 1.0}, next_law, length)


FEW = {"max_nodes": 5, "depth": 2, "topk": 2, "width": 2, "threshold": 0.2}
SHAPES = {
    "by use": FEW,
    "all of the budget": {**FEW, "threshold": 0.0},
    "only what is likely": {**FEW, "threshold": 0.45},
    "deep": {"max_nodes": 4, "depth": 3, "topk": 2, "width": 1, "threshold": 0.1},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_law_of_the_target_is_kept(shape, case):
    law, expected = step_law(
        BestFirstSampled(**SHAPES[shape]), WithoutReplacement(), laws_of(case, 3), {"temperature": 1.0}
    )
    assert math.isclose(sum(law.values()), 1.0, abs_tol=EXACT)
    assert total_variation(law, expected) < EXACT


@pytest.mark.slow
@pytest.mark.parametrize(
    "params", [{"temperature": 0.6}, {"temperature": 1.0, "top_k": 2}, {"temperature": 1.2, "top_p": 0.6}]
)
@pytest.mark.parametrize("verifier", [WithoutReplacement, TokenMatch])
def test_the_law_is_kept_under_processing(verifier, params):
    law, expected = step_law(BestFirstSampled(**FEW), verifier(), laws_of("random", 3), params)
    assert total_variation(law, expected) < EXACT


CHOSEN = {"best-first": BestFirst(max_nodes=5, depth=2, topk=2, width=2), "beam": Beam(width=2, depth=2)}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", CHOSEN)
def test_children_chosen_by_score_go_with_token_match(name, case):
    law, expected = step_law(CHOSEN[name], TokenMatch(), laws_of(case, 3), {"temperature": 1.0})
    assert total_variation(law, expected) < EXACT


class LikelyOnly(BestFirstSampled):
    """Makes a draw at the root only if a likely token comes."""

    def _draw(self, row, nodes, drawn, chances):
        if chances[0][0] > 0.4:
            super()._draw(row, nodes, drawn, chances)


def test_a_draw_made_because_of_what_comes_is_biased():
    settings = (WithoutReplacement(), laws_of("random", 3), {"temperature": 1.0})
    law, expected = step_law(LikelyOnly(max_nodes=2, depth=1), *settings)
    assert total_variation(law, expected) > 0.01
    law, expected = step_law(BestFirstSampled(max_nodes=2, depth=1), *settings)
    assert total_variation(law, expected) < EXACT
