"""Compiled steps without a GPU: what a captured step will need. One graph for many trees, buffers that stay where they
are, no recompilation, and one look at a tensor's values a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from specdecodes import Target, Tree
from specdecodes.testing.toys import toy_model, toy_prompt

STEPS = 12


def random_step(nodes: int, seed: int) -> tuple[Tree, Tensor]:
    """A random tree, and a path from its root to a random node."""
    random = torch.Generator().manual_seed(seed)
    parents = [-1, *(int(torch.randint(node, (1,), generator=random)) for node in range(1, nodes))]
    path = [int(torch.randint(nodes, (1,), generator=random))]
    while path[0]:
        path.insert(0, parents[path[0]])
    tokens = torch.randint(2, 20, (1, nodes), generator=random)
    return Tree(tokens, torch.tensor([parents])), torch.tensor([path])


def compiling(monkeypatch: pytest.MonkeyPatch, counter: CompileCounterWithBackend) -> None:
    """``torch.compile`` with ``counter`` in place of the compiler; a graph must be whole."""
    real = torch.compile

    def compile(function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
        assert settings["fullgraph"], "a break in the graph would be a synchronisation"
        return real(function, backend=counter, **settings)

    monkeypatch.setattr(torch, "compile", compile)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounterWithBackend]:
    """Counts what is compiled, with ``aot_eager`` in place of the compiler."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiling(monkeypatch, counter)
    yield counter
    torch._dynamo.reset()


def addresses(target: Target) -> list[int]:
    """Where caches and states lie."""
    rows = [each.data_ptr() for layer in target.cache.attention.values() for each in (layer.keys, layer.values)]
    return rows + [each.data_ptr() for stack in target.stacks for each in (stack.windows, stack.states)]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bamba", "mamba2", "llama"])
def test_one_graph_serves_every_tree_of_a_size(family: str, graphs: CompileCounterWithBackend) -> None:
    model, prompt = toy_model(family), toy_prompt(44)
    target, eager = Target(model, compile=True, max_length=200), Target(model)
    target.hold_nodes(7)
    for each in (target, eager):
        each.prefill(prompt)
    counts, places = [], []
    for seed in range(STEPS):
        tree, path = random_step(7, seed)
        found, expected = (each.score(tree) for each in (target, eager))
        assert float((found - expected).abs().max()) < 1e-4
        for each in (target, eager):
            each.commit(path)
        counts.append(graphs.frame_count)
        places.append(addresses(target))
    # The first step compiles the score and the jump; the second has a key length that is marked as changing.
    assert counts[2:] == counts[2:3] * (STEPS - 2), f"a tree of the same size was compiled again: {counts}"
    assert counts[-1] <= 2 + len(target.stacks)
    assert target.length > 64, "what attention sees must have grown, by blocks of 64 positions"
    assert all(each == places[0] for each in places), "a cache or a state has moved"
    before = graphs.frame_count
    target.score(random_step(5, 0)[0])
    assert graphs.frame_count == before + 1, "a tree of another size is another graph"
    target.score(random_step(7, 99)[0])
    assert graphs.frame_count == before + 1, "and the first size still has its own"


LOOKS = ("item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__int__", "__float__", "__index__")
"""What waits for a GPU: it reads values on the host, or its shape depends on them."""


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What was read of tensors, and how many numbers each time. (A dispatch mode does not see ``item`` on a CPU.)"""
    found: list[tuple[str, int]] = []

    def counted(name: str) -> Callable[..., Any]:
        real = getattr(Tensor, name)

        def look(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            found.append((name, tensor.numel()))
            return real(tensor, *args, **kwargs)

        return look

    for name in LOOKS:
        monkeypatch.setattr(Tensor, name, counted(name))
    return found


@pytest.mark.parametrize("family", ["bamba", "mamba2", "llama"])
def test_a_step_looks_at_values_once(family: str, looks: list[tuple[str, int]]) -> None:
    """Scoring reads none on the host; the commit reads the path, which is small. The levels of a tree, which adapters
    on a CPU walk, are read from the parents when the tree is made."""
    target = Target(toy_model(family))
    target.prefill(toy_prompt(9))
    for seed in range(STEPS):
        tree, path = random_step(7, seed)
        _ = tree.structure.levels
        looks.clear()
        target.score(tree)
        assert looks == []
        target.commit(path)
        assert looks == [("tolist", path.numel())]
