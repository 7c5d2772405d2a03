"""The entropy gate on distributions written out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from specdecodes.core.sampling import Best, Rng
from specdecodes.core.tree import Tree
from specdecodes.plugins.verifiers.entropy_gate import EntropyGate
from specdecodes.testing import explore

SURE = [0.9, 0.1, 0.0, 0.0]  # H / ln 4 = 0.23
UNSURE = [0.4, 0.3, 0.3, 0.0]  # 0.79
BEST = {0: [0.97, 0.01, 0.01, 0.01], 2: [0.01, 0.01, 0.97, 0.01]}


def judged(laws, tokens, parents, count=None, rng=None, shift=0.0, **settings):
    """Path and bonus; at temperature 0 the scores are not normalised (``shift``)."""
    scores = torch.tensor([laws], dtype=torch.float64).log() + shift
    num_nodes = None if count is None else torch.tensor([count])
    tree = Tree(torch.tensor([tokens]), torch.tensor([parents]), num_nodes)
    verdict = EntropyGate(**settings).accept(scores, tree, rng or Best())
    return [node for node in verdict.path[0].tolist() if node >= 0], int(verdict.bonus)


CHAIN = ([0, 1, 2, 0], [-1, 0, 1, 2])  # the target says 0 at the root, then 2 and 0, as drafted


@pytest.mark.parametrize("shift", [0.0, 17.0])
@pytest.mark.parametrize(
    ("gate", "threshold", "opens_when_sure", "opens_when_unsure"),
    [
        ("low-entropy", 0.5, True, False),
        ("low-entropy", 0.2, False, False),
        ("high-entropy", 0.5, False, True),
        ("high-entropy", 0.2, True, True),
        ("probability", 0.05, True, True),
        ("probability", 0.2, False, True),
        ("probability", 0.5, False, False),
    ],
)
def test_the_gate(gate, threshold, opens_when_sure, opens_when_unsure, shift):
    for law, opens in ((SURE, opens_when_sure), (UNSURE, opens_when_unsure)):
        laws = [law, BEST[2], BEST[0], BEST[2]]
        path, bonus = judged(laws, *CHAIN, shift=shift, gate=gate, threshold=threshold, window_size=2)
        assert (path, bonus) == (([0, 1, 2, 3], 2) if opens else ([0], 0))


@pytest.mark.parametrize(("window", "accepted"), [(0, True), (1, True), (2, True), (3, False)])
def test_so_many_matches_must_follow(window, accepted):
    laws = [SURE, BEST[2], BEST[0], BEST[2]]
    assert judged(laws, *CHAIN, threshold=0.5, window_size=window) == (([0, 1, 2, 3], 2) if accepted else ([0], 0))


def test_a_match_is_entered_whatever_the_gate_says():
    laws = [UNSURE, BEST[2], BEST[0]]
    assert judged(laws, [0, 0, 2], [-1, 0, 1], threshold=0.0) == ([0, 1, 2], 0)
    laws = [SURE, BEST[2], BEST[2], BEST[0], BEST[0]]
    # The first child is no match but has two behind it; the second is the target's choice.
    assert judged(laws, [0, 1, 0, 2, 0], [-1, 0, 0, 1, 3], threshold=0.5)[0] == [0, 2]


def test_a_mismatch_among_those_that_follow_ends_the_run():
    laws = [SURE, BEST[2], BEST[2], BEST[0]]
    assert judged(laws, *CHAIN, threshold=0.5, window_size=2) == ([0], 0), "below the second token comes a 2, not a 0"
    assert judged(laws, *CHAIN, threshold=0.5, window_size=1) == ([0, 1, 2], 2)


def test_of_several_the_longest_run_is_entered_then_the_first():
    law = [0.8, 0.1, 0.1, 0.0]
    laws = [law, BEST[2], BEST[2], BEST[0], BEST[0], BEST[2]]
    tokens, parents = [0, 1, 2, 2, 2, 0], [-1, 0, 0, 1, 2, 4]
    assert judged(laws, tokens, parents, threshold=0.6, window_size=1)[0] == [0, 2, 4, 5]
    assert judged(laws[:5], tokens[:5], parents[:5], threshold=0.6, window_size=1)[0] == [0, 1, 3]


@pytest.mark.parametrize("gate", ["low-entropy", "probability"])
def test_what_the_target_rules_out_is_never_accepted(gate):
    laws = [SURE, BEST[2], BEST[0], BEST[2]]
    threshold = 1.0 if gate == "low-entropy" else 0.0
    assert judged(laws, [0, 3, 2, 0], [-1, 0, 1, 2], gate=gate, threshold=threshold) == ([0], 0)


def test_padding_is_no_match():
    laws = [SURE, BEST[2], BEST[2]]
    assert judged(laws, [0, 1, 2], [-1, 0, 0], count=2, threshold=0.5, window_size=1) == ([0], 0)


def test_above_temperature_0_a_node_draws_once_whoever_asks():
    """The run that is looked ahead at is the run that is then walked."""
    coin = [0.5, 0.0, 0.5, 0.0]
    logp = torch.tensor([[SURE, coin, coin]], dtype=torch.float64).log()
    tree = Tree(torch.tensor([[0, 1, 2]]), torch.tensor([[-1, 0, 1]]))
    rule = EntropyGate(threshold=0.5, window_size=1)
    law = {}
    for weight, verdict in explore(lambda rng: rule.accept(logp, tree, rng)):
        key = (int(verdict.num_accepted), int(verdict.bonus))
        law[key] = law.get(key, 0.0) + weight
    # The root draws 1 (0.1): then 2 matches (half) or not. It draws 0 (0.9): forgiven only where 2 is drawn next.
    expected = {(1, 0): 0.1 * 0.5, (2, 0): 0.5 * 0.5, (2, 2): 0.5 * 0.5, (0, 0): 0.9 * 0.5}
    assert law == pytest.approx(expected)


def test_a_seeded_answer_is_reproduced():
    laws = [UNSURE] * 4
    found = {str(judged(laws, *CHAIN, rng=Rng(3), threshold=1.0, window_size=1)) for _ in range(5)}
    assert len(found) == 1


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"gate": "entropy"}, "gate: expected one of low-entropy, high-entropy, probability, got 'entropy'"),
        ({"threshold": 1.1}, "threshold: expected 0 to 1, got 1.1"),
        ({"threshold": math.nan}, "threshold: expected 0 to 1, got nan"),
        ({"window_size": -1}, "window_size: expected 0 matches or more, got -1"),
    ],
)
def test_settings_out_of_range(settings, line):
    with pytest.raises(ValueError, match=line):
        EntropyGate(**settings)
