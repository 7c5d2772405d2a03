"""Drafted and accepted tokens by depth."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from specdecodes.core.decoder import Generation
from specdecodes.core.tree import Topology, Tree, Verdict
from specdecodes.plugins.observers.acceptance import Acceptance, count_steps


def counted(trees: list[Tree], paths: list[list[int]], accept_lengths: list[int]) -> Any:
    observer = Acceptance()
    state: Any = SimpleNamespace(extras={})
    observer.generation_started(state)
    for tree, nodes in zip(trees, paths, strict=True):
        path = torch.tensor([nodes])
        observer.step_finished(state, tree, Verdict(path, torch.tensor([0]), torch.tensor([1])))
        for buffer in (tree.num_nodes, None if tree.topology else tree.parents, path):
            if buffer is not None:
                buffer.zero_()  # a component that uses its buffer again
    generation = Generation([[1]], "", accept_lengths, {}, 1)
    observer.generation_finished(state, generation)
    return generation.extras["acceptance"]


def tree(parents: list[int], num_nodes: int | None = None) -> Tree:
    count = None if num_nodes is None else torch.tensor([num_nodes])
    return Tree(torch.zeros(1, len(parents), dtype=torch.long), torch.tensor([parents]), count)


def test_counts_by_hand() -> None:
    # Node: parents -1 0 0 1 1, -1 0, -1; accepted: node 2, then 4 below 1 (its second child), then nothing.
    parents = [[-1, 0, 0, 1, 1], [-1, 0, 0, 1, 1], [-1, 0], [-1]]
    assert count_steps(parents, [[0, 2], [0, 1, 4], [0], [0]], [2, 3, 1, 1]) == {
        "drafted": 9,
        "offered": [3, 2],
        "accepted": [2, 1],
        "offered_by_rank": [[3, 2], [1, 1]],
        "accepted_by_rank": [[1, 1], [0, 1]],
    }
    nothing: dict[str, Any] = {"offered": [], "accepted": [], "offered_by_rank": [], "accepted_by_rank": []}
    assert count_steps([], [], []) == {"drafted": 0, **nothing}


def test_only_emitted_tokens_count_as_accepted() -> None:
    # A stop string ended the answer at the first accepted node of two.
    found = count_steps([[-1, 0, 1]], [[0, 1, 2]], [1])
    assert found["accepted"] == [0, 0]
    assert (found["offered_by_rank"], found["accepted_by_rank"]) == ([[1]], [[0]])


def test_padding_nodes_were_not_drafted() -> None:
    trees = [tree([-1, 0, 1, 0], 3), tree([-1, 0, 1, 2]), tree([-1, 0, 0, 0], 1)]
    found = counted(trees, [[0, 1, -1], [0, 1, 2, 3], [0]], [2, 4, 1])
    assert found == {
        "drafted": 2 + 3,
        "offered": [2, 2, 1],
        "accepted": [2, 1, 1],
        "offered_by_rank": [[2], [2], [1]],
        "accepted_by_rank": [[2], [1], [1]],
    }


def test_shapes_that_are_shared_are_not_copied() -> None:
    topology = Topology(torch.tensor([[-1, 0, 0]]))
    shared = [Tree(torch.zeros(1, 3, dtype=torch.long), topology.parents, topology=topology) for _ in range(2)]
    found = counted(shared, [[0, 2], [0, 1]], [2, 2])
    assert (found["offered_by_rank"], found["accepted_by_rank"]) == ([[2, 2]], [[1, 1]])


def test_plain_decoding_drafts_nothing() -> None:
    found = counted([tree([-1]) for _ in range(3)], [[0]] * 3, [1, 1, 1])
    assert found["drafted"] == 0
    assert not any(counts for name, counts in found.items() if name != "drafted")
