"""Dynamic trees that are built of tensors alone: the same as those that are built on the host."""

from __future__ import annotations

import pytest
import torch

from specdecodes.plugins.trees.beam import Beam
from specdecodes.plugins.trees.best_first import BestFirst
from specdecodes.testing import LiteralProposal
from specdecodes.testing.toys import numbers

VOCAB = 8
BUILDERS = {
    "root alone": lambda: BestFirst(max_nodes=1),
    "pair": lambda: BestFirst(max_nodes=2),
    "default": lambda: BestFirst(max_nodes=13),
    "chain": lambda: BestFirst(max_nodes=5, topk=1, width=1),
    "wide": lambda: BestFirst(max_nodes=20, depth=3, topk=5, width=9),
    "narrow": lambda: BestFirst(max_nodes=9, depth=6, topk=3, width=1),
    "all there is": lambda: BestFirst(max_nodes=200, depth=2, topk=3, width=3),
    "beam": lambda: Beam(width=3, depth=4),
    "beam of one": lambda: Beam(width=1, depth=3),
    "wide beam": lambda: Beam(width=8, depth=2),
}


class InOne(LiteralProposal):
    """Takes a whole step as one run, and remembers what it was asked inside."""

    at_least = VOCAB

    def in_one(self, build, *inputs):
        self.in_one = None
        self.built = build
        return build(self, *inputs)


def random_rule(sharpness):
    return lambda prefix: sharpness * torch.randn(VOCAB, generator=numbers(prefix), dtype=torch.float64)


def tied(prefix):
    """Probabilities 1/2, 1/4, 1/8, ...: many paths are as probable as others."""
    places = torch.randperm(VOCAB, generator=numbers(prefix))
    return -torch.arange(VOCAB, dtype=torch.float64)[places] * torch.log(torch.tensor(2.0, dtype=torch.float64))


def certain(prefix):
    """One token has all the probability, and rounding may put it above that."""
    logits = torch.full((VOCAB,), -1e9, dtype=torch.float64)
    logits[(sum(prefix) * 5 + 1) % VOCAB] = 0.0
    return logits


RULES = {"flat": random_rule(0.3), "sharp": random_rule(2.0), "tied": tied, "certain": certain}


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("name", BUILDERS)
def test_the_trees_of_the_host(ask, name, rule, rows):
    expected, _ = ask(BUILDERS[name](), rule, rows=rows)
    builder = BUILDERS[name]()
    found, proposal = ask(builder, rule, rows=rows, kind=InOne)
    assert proposal.built == builder._drafted, "the same function in every step"
    assert found.num_nodes is None or torch.equal(found.num_nodes, expected.num_nodes)
    for row in range(rows):
        count = expected.count(row)
        assert count == builder.max_nodes
        assert torch.equal(found.tokens[row], expected.tokens[row])
        assert torch.equal(found.parents[row], expected.parents[row])
        # The host ends early where no deeper node can enter the tree; levels below may have been run here.
        slots = expected.slots[row]
        assert torch.equal(found.slots[row][slots >= 0], slots[slots >= 0])


def test_what_follows_from_the_parents_comes_with_the_tree(ask):
    builder = BestFirst(max_nodes=9, depth=4)
    tree, _ = ask(builder, random_rule(1.0), kind=InOne)
    fresh = type(tree.structure)(tree.parents)
    assert torch.equal(tree.structure.ancestors, fresh.ancestors)
    assert torch.equal(tree.structure.depths, fresh.depths)
    deepest = fresh.paths.shape[-1]
    assert tree.structure.paths.shape[-1] == 8 >= builder.max_depth + 1 >= deepest, "a power of two"
    assert torch.equal(tree.structure.paths[..., :deepest], fresh.paths)
    assert bool((tree.structure.paths[..., deepest:] == -1).all())


def test_a_drafter_with_too_few_candidates_is_asked_on_the_host(ask):
    class Few(InOne):
        at_least = 3

    tree, proposal = ask(BestFirst(max_nodes=6, topk=4), random_rule(1.0), kind=Few)
    assert not hasattr(proposal, "built") and tree.count() == 6


def test_a_draft_that_is_not_finite_gives_a_tree_all_the_same(ask):
    def rule(prefix):
        logits = random_rule(1.0)(prefix)
        return logits if len(prefix) < 4 else torch.full_like(logits, float("nan"))

    for builder in (BestFirst(max_nodes=9, depth=4, topk=3, width=3), Beam(width=2, depth=4)):
        tree, proposal = ask(builder, rule, kind=InOne)
        for node, (slot, parent) in enumerate(zip(tree.slots[0].tolist(), tree.parents[0].tolist(), strict=True)):
            if node and slot >= 0:  # below the slot of its parent, or else another state would be committed
                assert proposal.slots[0][slot][:-1] == proposal.slots[0][tree.slots[0, parent]]
