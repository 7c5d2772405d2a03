"""Typical acceptance on distributions written out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from specdecodes.core.sampling import Rng
from specdecodes.core.tree import Tree
from specdecodes.plugins.verifiers.typical import Typical

P = [0.6, 0.3, 0.08, 0.02, 0.0]
FLAT = [0.2] * 5


def judged(laws, tokens, parents, count=None, **settings):
    logp = torch.tensor([laws], dtype=torch.float64).log()
    num_nodes = None if count is None else torch.tensor([count])
    tree = Tree(torch.tensor([tokens]), torch.tensor([parents]), num_nodes)
    verdict = Typical(**settings).accept(logp, tree, Rng(0))
    path = [node for node in verdict.path[0].tolist() if node >= 0]
    assert int(verdict.num_accepted) == len(path) - 1
    return path, int(verdict.bonus)


def entropy(p):
    return -sum(x * math.log(x) for x in p if x > 0)


@pytest.mark.parametrize("token", range(5))
@pytest.mark.parametrize("law", [P, FLAT], ids=["peaked", "flat"])
@pytest.mark.parametrize(("epsilon", "delta"), [(0.09, 0.3), (0.5, 0.9), (0.01, 0.1), (0.25, 0.5), (1.0, 100.0)])
def test_the_threshold(law, token, epsilon, delta):
    bonus_law = [0.1, 0.1, 0.1, 0.6, 0.1]
    accepted = law[token] > min(epsilon, delta * math.exp(-entropy(law)))
    path, bonus = judged([law, bonus_law], [0, token], [-1, 0], epsilon=epsilon, delta=delta)
    assert path == ([0, 1] if accepted else [0])
    assert bonus == (3 if accepted else 0), "the bonus is the target's best"


def test_what_the_target_rules_out_is_never_accepted():
    assert judged([P, P], [0, 4], [-1, 0], epsilon=1e-9, delta=1e-9) == ([0], 0)


def test_the_longest_path_wins():
    laws = [P, P, P, P]
    assert judged(laws, [0, 0, 1, 1], [-1, 0, 0, 2]) == ([0, 2, 3], 0)


def test_of_equally_long_paths_the_likelier_wins():
    laws = [P, P, P, P, P]
    tokens, parents = [0, 1, 0, 0, 1], [-1, 0, 0, 1, 2]  # 0.3 * 0.6 against 0.6 * 0.3, then
    assert judged(laws, tokens, parents)[0] == [0, 1, 3], "of equals the first"
    assert judged(laws, [0, 1, 0, 1, 0], parents)[0] == [0, 2, 4]


def test_nothing_stands_on_what_fell_and_padding_never_stands():
    laws = [P, P, P]
    assert judged(laws, [0, 3, 0], [-1, 0, 1]) == ([0], 0)
    assert judged(laws, [0, 3, 0], [-1, 0, 0], count=2) == ([0], 0)


def test_rows_are_judged_apart():
    logp = torch.tensor([[P, P], [FLAT, P]], dtype=torch.float64).log()
    tree = Tree(torch.tensor([[0, 3], [0, 3]]), torch.tensor([[-1, 0], [-1, 0]]))
    verdict = Typical().accept(logp, tree, Rng(0))
    assert verdict.num_accepted.tolist() == [0, 1] and verdict.bonus.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"epsilon": 0.0}, "epsilon: expected a probability above 0, at most 1, got 0.0"),
        ({"epsilon": 1.5}, "epsilon: expected a probability above 0, at most 1, got 1.5"),
        ({"delta": 0.0}, "delta: expected a number above 0, got 0.0"),
        ({"delta": math.nan}, "delta: expected a number above 0, got nan"),
    ],
)
def test_settings_out_of_range(settings, line):
    with pytest.raises(ValueError, match=line):
        Typical(**settings)
