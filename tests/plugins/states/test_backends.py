"""State back-ends beside each other: the same prompt, trees and paths leave the same state."""

from __future__ import annotations

import pytest
import torch

from specdecodes import registry
from specdecodes.core.tree import Tree
from specdecodes.models.target import Target
from specdecodes.testing import toy_model
from specdecodes.testing.toys import FAMILIES, numbers, toy_prompt

VOCAB = 48
STEPS = 6


def committed(target):
    """Everything that the next token depends on."""
    values = []
    for layer in target.cache.recurrent.values():
        values += [layer.window, layer.state]
    for rows in target.cache.attention.values():
        values += [rows.keys[:, :, : target.length], rows.values[:, :, : target.length]]
    return [value.clone() for value in values]


def run(family, backend, seed):
    """State after every step of random trees and random paths."""
    target = Target(toy_model(family), backend=backend)
    source = numbers("backends", seed)
    target.prefill(toy_prompt(1 + seed * 7, VOCAB))
    states = []
    for step in range(STEPS):
        count = 1 + int(torch.randint(9, (1,), generator=source))
        parents = [-1, *(int(torch.randint(node, (1,), generator=source)) for node in range(1, count))]
        tree = Tree(torch.randint(VOCAB, (1, count), generator=source), torch.tensor([parents]))
        target.score(tree)
        node = 0 if step == 2 else int(torch.randint(count, (1,), generator=source))
        target.commit(tree.structure.paths[:, node])
        states.append(committed(target))
    return states


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_back_ends_agree(family, seed):
    names = registry().names("state")
    runs = {name: run(family, registry().get("state", name).factory(), seed) for name in names}
    for name in names:
        for step, (ours, theirs) in enumerate(zip(runs[name], runs["reforward"], strict=True)):
            for value, other in zip(ours, theirs, strict=True):
                assert value.shape == other.shape
                assert float((value - other).abs().max()) < 2e-5, f"{name}, step {step}"


def test_a_path_is_committed_once():
    target = Target(toy_model("bamba"))
    target.prefill(toy_prompt(3, VOCAB))
    with pytest.raises(RuntimeError, match="no tree has been scored since the last commit"):
        target.commit(torch.tensor([[0]]))
    target.score(Tree(torch.tensor([[5]]), torch.tensor([[-1]])))
    target.commit(torch.tensor([[0]]))
    with pytest.raises(RuntimeError, match="no tree has been scored since the last commit"):
        target.commit(torch.tensor([[0]]))
