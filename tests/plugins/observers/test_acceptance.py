"""Drafted and accepted tokens by depth."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from specdecodes.core.decoder import Generation
from specdecodes.core.tree import Tree, Verdict
from specdecodes.plugins.observers.acceptance import Acceptance, count_by_depth

VERDICT = Verdict(torch.tensor([[0]]), torch.tensor([0]), torch.tensor([1]))


def counted(trees: list[Tree], accept_lengths: list[int]) -> Any:
    observer = Acceptance()
    state: Any = SimpleNamespace(extras={})
    observer.generation_started(state)
    for tree in trees:
        observer.step_finished(state, tree, VERDICT)
        if tree.num_nodes is not None:
            tree.num_nodes.zero_()  # a builder that uses its buffer again
    generation = Generation([[1]], "", accept_lengths, {}, 1)
    observer.generation_finished(state, generation)
    return generation.extras["acceptance"]


def tree(parents: list[int], num_nodes: int | None = None) -> Tree:
    count = None if num_nodes is None else torch.tensor([num_nodes])
    return Tree(torch.zeros(1, len(parents), dtype=torch.long), torch.tensor([parents]), count)


def test_counts_by_hand() -> None:
    # Depths: 0 1 1 2, 0 1, 0. Accepted: 2, 0, 0 drafted tokens.
    assert count_by_depth([[0, 1, 1, 2], [0, 1], [0]], [3, 1, 1]) == {
        "drafted": 4,
        "offered": [2, 1],
        "accepted": [1, 1],
    }
    assert count_by_depth([], []) == {"drafted": 0, "offered": [], "accepted": []}


def test_padding_nodes_were_not_drafted() -> None:
    found = counted([tree([-1, 0, 1, 0], 3), tree([-1, 0, 1, 2]), tree([-1, 0, 0, 0], 1)], [2, 4, 1])
    assert found == {"drafted": 2 + 3, "offered": [2, 2, 1], "accepted": [2, 1, 1]}


def test_plain_decoding_drafts_nothing() -> None:
    assert counted([tree([-1])] * 3, [1, 1, 1]) == {"drafted": 0, "offered": [], "accepted": []}
