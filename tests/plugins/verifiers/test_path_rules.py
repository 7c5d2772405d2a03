"""Block and traversal verification: the law of whole blocks, the paper's own form, and how much more they accept."""

from __future__ import annotations

import math

import pytest
import torch

from specdecodes.core.tree import Tree
from specdecodes.plugins.verifiers.block import Block
from specdecodes.plugins.verifiers.residual import MultiStep, Rejection, WithoutReplacement
from specdecodes.plugins.verifiers.traversal import Traversal
from specdecodes.testing import explore, total_variation
from specdecodes.testing.enumeration import sequence_law
from specdecodes.testing.laws import CASES, Laws, draw_tree, laws_of
from specdecodes.testing.toys import numbers

EXACT = 1e-12

CHAINS = [(-1, 0, 1), (-1, 0, 1, 2)]
TREES = [(-1, 0, 0, 1, 2), (-1, 0, 1, 1), (-1, 0, 0, 1, 1), (-1, 0, 0, 1, 3)]


def random_laws(seed, vocab=3):
    """Laws that differ from path to path, from flat (small scales) to peaked."""
    scale = (0.5, 1.5, 4.0)[seed % 3]

    def law(who):
        return lambda path: scale * torch.randn(vocab, generator=numbers(who, seed, path), dtype=torch.float64)

    return Laws(vocab, law("target"), law("draft"))


def logp_of(tree, laws):
    tokens = tree.tokens[0].tolist()
    paths = [tuple(tokens[node] for node in path if node > 0) for path in tree.structure.paths[0].tolist()]
    return torch.stack([laws.target(path) for path in paths]).log_softmax(-1)[None]


def outcomes(verifier, laws, grow):
    """(probability, tree, verdict) of every tree that ``grow(rng)`` may give and all that the rule may say to it."""
    for chance, tree in explore(grow):
        logp = logp_of(tree, laws)
        for weight, verdict in explore(lambda rng, logp=logp, tree=tree: verifier.accept(logp, tree, rng)):
            yield chance * weight, tree, verdict


def joint_distance(verifier, laws, grow, length):
    """Total variation between the first ``length`` tokens of this decode step, continued plainly, and the target's."""
    emitted = {}
    for chance, tree, verdict in outcomes(verifier, laws, grow):
        path = [int(tree.tokens[0, node]) for node in verdict.path[0].tolist() if node > 0]
        block = (*path, int(verdict.bonus))
        emitted[block] = emitted.get(block, 0.0) + chance

    def next_law(prefix):
        return laws.target(prefix).softmax(-1).tolist()

    ours = sequence_law(emitted, next_law, length)
    return total_variation(ours, sequence_law({(): 1.0}, next_law, length))


def mean_accepted(verifier, laws, parents, draws):
    found = outcomes(verifier, laws, lambda rng: draw_tree(parents, laws, rng, draws))
    return math.fsum(chance * int(verdict.num_accepted) for chance, _, verdict in found)


# The law


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("draws", Traversal.draws)
def test_a_tree_of_three_levels_keeps_the_joint_law(draws, case):
    laws, parents = laws_of(case, 3), (-1, 0, 0, 1, 3)
    assert joint_distance(Traversal(), laws, lambda rng: draw_tree(parents, laws, rng, draws), 4) < EXACT


@pytest.mark.parametrize("draws", Traversal.draws)
@pytest.mark.parametrize("seed", range(3))
def test_a_shape_that_follows_earlier_draws_keeps_the_law(seed, draws):
    """How many children a node gets may depend on what was drawn elsewhere: here, where the likelier sibling is."""
    laws = random_laws(seed)

    def grow(rng):
        def drawn(path, count):
            return rng.draws(laws.draft(path).softmax(-1)[None], count, draws == "iid")[0].tolist()

        first = drawn((), 2)
        q = laws.draft(()).softmax(-1)
        counts = (2, 1) if q[first[0]] >= q[first[1]] else (0, 2)
        tokens, parents, logq = [0, *first], [-1, 0, 0], [laws.draft(()), *(laws.draft((x,)) for x in first)]
        for node, count in enumerate(counts, 1):
            for token in drawn((tokens[node],), count) if count else []:
                tokens.append(token)
                parents.append(node)
                logq.append(laws.draft((tokens[node], token)))
        return Tree(
            torch.tensor([tokens]),
            torch.tensor([parents]),
            logq=torch.stack(logq).log_softmax(-1)[None],
            draws=draws,
        )

    assert joint_distance(Traversal(), laws, grow, 3) < EXACT


@pytest.mark.parametrize("seed", range(3))
def test_a_chain_that_ends_where_a_draw_says_so_keeps_the_law(seed):
    laws = random_laws(seed)

    def grow(rng):
        tokens, path = [0], ()
        while len(path) < 3 and (not path or path[-1] != 1):  # token 1 ends the draft
            path = (*path, rng.categorical(laws.draft(path).softmax(-1)))
            tokens.append(path[-1])
        rows = [laws.draft(path[:depth]) for depth in range(len(tokens))]
        parents = torch.arange(len(tokens))[None] - 1
        return Tree(torch.tensor([tokens]), parents, logq=torch.stack(rows).log_softmax(-1)[None], draws="iid")

    assert joint_distance(Block(), laws, grow, 4) < EXACT


# Block verification as the paper writes it


def by_the_paper(p, q, tokens):
    """{(accepted, bonus): probability} for a drafted chain: forward products, then the last position that accepts."""
    mass = [1.0]
    for i, token in enumerate(tokens):
        mass.append(min(1.0, mass[-1] * float(p[i][token] / q[i][token])))
    law, left = {}, 1.0
    for i in range(len(tokens), -1, -1):
        if i == len(tokens):
            keep, bonus = mass[i], p[i]
        else:
            bonus = (mass[i] * p[i] - q[i]).clamp(min=0)
            total = float(bonus.sum())
            keep = 1.0 if i == 0 else total / (total + 1 - mass[i])
            bonus = bonus / total if total > 0 else p[i]
        for token, share in enumerate(bonus.tolist()):
            law[i, token] = left * keep * share
        left *= 1 - keep
    return law


@pytest.mark.parametrize("seed", range(12))
def test_block_is_the_rule_of_the_paper(seed):
    laws = random_laws(seed, vocab=4)
    for _, tree in explore(lambda rng: draw_tree((-1, 0, 1, 2), laws, rng, "iid")):
        tokens = tree.tokens[0, 1:].tolist()
        p, q = ([law(tuple(tokens[:i])).softmax(-1) for i in range(4)] for law in (laws.target, laws.draft))
        logp = torch.stack(p).log()[None]
        ours = {}
        for weight, verdict in explore(lambda rng, logp=logp, tree=tree: Block().accept(logp, tree, rng)):
            key = (int(verdict.num_accepted), int(verdict.bonus))
            ours[key] = ours.get(key, 0.0) + weight
        assert total_variation(ours, by_the_paper(p, q, tokens)) < EXACT


@pytest.mark.parametrize("case", CASES)
def test_a_chain_is_kept_as_often_as_its_joint_law_overlaps(case):
    """P(at least i accepted) is the mean of the mass m_i over the draft, whatever comes after it."""
    laws = laws_of(case, 4)
    kept = [0.0, 0.0]
    for chance, _, verdict in outcomes(Block(), laws, lambda rng: draw_tree((-1, 0, 1), laws, rng, "iid")):
        for i in range(int(verdict.num_accepted)):
            kept[i] += chance
    expected = [0.0, 0.0]
    for a, qa in enumerate(laws.draft(()).softmax(-1).tolist()):
        first = min(1.0, float(laws.target(()).softmax(-1)[a]) / qa) if qa else 0.0
        expected[0] += qa * first
        for b, qb in enumerate(laws.draft((a,)).softmax(-1).tolist()):
            second = min(1.0, first * float(laws.target((a,)).softmax(-1)[b]) / qb) if qb else 0.0
            expected[1] += qa * qb * second
    assert kept == pytest.approx(expected, abs=EXACT)


# How much is accepted


@pytest.mark.parametrize("parents", CHAINS, ids=str)
def test_block_accepts_at_least_as_much_as_rejection(parents):
    gains = []
    for seed in range(24):
        laws = random_laws(seed)
        block, plain = (mean_accepted(rule(), laws, parents, "iid") for rule in (Block, Rejection))
        gains.append(block - plain)
    assert min(gains) > -EXACT
    assert max(gains) > 0.05, "and more where early tokens fit badly and later ones well"


@pytest.mark.slow
@pytest.mark.parametrize(("plain", "draws"), [(MultiStep, "iid"), (WithoutReplacement, "without_replacement")])
@pytest.mark.parametrize("parents", TREES, ids=str)
def test_traversal_accepts_at_least_as_much_as_the_plain_rules(parents, plain, draws):
    gains = []
    for seed in range(24):
        laws = random_laws(seed)
        ours, theirs = (mean_accepted(rule(), laws, parents, draws) for rule in (Traversal, plain))
        gains.append(ours - theirs)
    assert min(gains) > -EXACT
    assert max(gains) > 0.02


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("plain", "draws"), [(MultiStep, "iid"), (WithoutReplacement, "without_replacement")])
def test_traversal_never_accepts_less_in_any_corner(plain, draws, case):
    laws, parents = laws_of(case, 3), (-1, 0, 0, 1, 2)
    ours, theirs = (mean_accepted(rule(), laws, parents, draws) for rule in (Traversal, plain))
    assert ours > theirs - EXACT


@pytest.mark.parametrize("seed", range(6))
def test_one_level_leaves_nothing_to_gain(seed):
    laws = random_laws(seed, vocab=4)
    for rule, draws in ((MultiStep, "iid"), (WithoutReplacement, "without_replacement")):
        same = [mean_accepted(verifier(), laws, (-1, 0, 0), draws) for verifier in (Traversal, rule)]
        assert same[0] == pytest.approx(same[1], abs=EXACT)


def test_a_strict_gain_by_hand():
    """First token: p = (3/4, 1/4), q = (1/4, 3/4); second: p = (1, 0), q = (1/2, 1/2).

    Rejection keeps the first token with sum(min(p, q)) = 1/2, then the second with 1/2: 3/4 of a token on average.
    Block: token 0 (drafted with 1/4) has mass 1, token 1 (with 3/4) has 1/3; where the draft goes on with token 0
    (1/2) the mass doubles, to 1 or 2/3. Two tokens: 1/4 * 1/2 * 1 + 3/4 * 1/2 * 2/3 = 3/8; one or two: 1/2.
    """

    def law(first, second):
        return lambda path: torch.tensor(second if path else first, dtype=torch.float64).log()

    laws = Laws(2, law([0.75, 0.25], [1.0, 0.0]), law([0.25, 0.75], [0.5, 0.5]))
    assert mean_accepted(Rejection(), laws, (-1, 0, 1), "iid") == pytest.approx(3 / 4)
    for rule in (Block, Traversal):
        assert mean_accepted(rule(), laws, (-1, 0, 1), "iid") == pytest.approx(7 / 8)


def test_nothing_drafted_leaves_a_plain_step():
    for rule in (Block, Traversal):
        tree = Tree(torch.zeros(1, 1, dtype=torch.long), torch.full((1, 1), -1), logq=torch.zeros(1, 1, 2), draws="iid")
        logp = torch.tensor([[[0.3, 0.7]]], dtype=torch.float64).log()
        found = {int(v.bonus): w for w, v in explore(lambda rng, r=rule, t=tree, x=logp: r().accept(x, t, rng))}
        assert found == pytest.approx({0: 0.3, 1: 0.7})
