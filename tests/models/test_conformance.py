"""Prefill, score and commit of every family against stock transformers, which decodes one token at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from specdecodes.core.tree import Tree
from specdecodes.models import target as target_module
from specdecodes.models.target import Target
from specdecodes.plugins.states.base import StateBackend
from specdecodes.plugins.states.copy import StateCopy
from specdecodes.plugins.states.reforward import Reforward
from specdecodes.plugins.states.replay import Replay

from .configs import FAMILIES, LIFTED, RECURRENT, each
from .families import (
    SHAPES,
    Steps,
    gap,
    lifted,
    logits_of,
    make,
    path_to,
    prompt_of,
    shared,
    state_error,
    stock_path,
    stock_prefix,
    stock_tree,
    stock_walk,
    tree_of,
)

F32, F64 = torch.float32, torch.float64
LIFTED_TOLERANCE = 1e-9
"""Largest absolute difference in float64, where logits have a standard deviation of 1; ``Family`` has float32's."""
BACKENDS: list[type[StateBackend]] = [Replay, StateCopy, Reforward]
ALL_SHAPES = [*SHAPES, "random", "deep"]


def spelled(value: object) -> str:
    return getattr(value, "__name__", str(value).removeprefix("torch."))


def tolerance(name: str, dtype: torch.dtype) -> float:
    return LIFTED_TOLERANCE if dtype == F64 else FAMILIES[name].float32


def model(name: str, dtype: torch.dtype, *more: object, slow: bool = False):
    return pytest.param(name, dtype, *more, marks=pytest.mark.slow if slow else FAMILIES[name].marks(dtype))


MODELS = [*((name, F32) for name in FAMILIES), *((name, F64) for name in LIFTED)]
each_model = pytest.mark.parametrize(("name", "dtype"), [model(*of) for of in MODELS], ids=spelled)
# Attention alone gives a back-end nothing to keep or to move, and a conv window nothing to reach beyond the prompt. Of
# the other families one for each recurrence stands for all in the short run.
QUICK = ("bamba", "mamba2", "mamba", "qwen3_5")
assert set(QUICK) <= set(RECURRENT)
each_model_and_backend = pytest.mark.parametrize(
    ("name", "dtype", "backend"),
    [model(*of, backend, slow=of[0] not in QUICK and backend is not Replay) for of in MODELS for backend in BACKENDS],
    ids=spelled,
)
each_model_and_length = pytest.mark.parametrize(
    ("name", "dtype", "length"),
    [model(*of, length, slow=of[0] not in QUICK and length < 13) for of in MODELS for length in (1, 2, 13)],
    ids=spelled,
)


@pytest.fixture(autouse=True)
def _lift(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests with a ``dtype`` of float64 run with the internal casts lifted."""
    parameters = getattr(getattr(request.node, "callspec", None), "params", {})
    dtype = parameters.get("dtype", F32)
    if dtype == F64:
        shared(parameters["name"], dtype)  # made outside: its weights start as float32
    with lifted(dtype):
        yield


def prefilled(name: str, dtype: torch.dtype = F32, length: int = 13, backend: StateBackend | None = None) -> Target:
    target = Target(shared(name, dtype), backend=backend)
    target.prefill(prompt_of(length))
    return target


def committed(target: Target) -> list[Tensor]:
    """A copy of everything committed: windows, states, keys and values."""
    layers = target.cache.recurrent.values()
    found = [buffer for layer in layers for buffer in (layer.window, layer.state)]
    for rows in target.cache.attention.values():
        assert rows.keys is not None and rows.values is not None
        found += [rows.keys[:, :, : target.length], rows.values[:, :, : target.length]]
    return [buffer.clone() for buffer in found if buffer is not None]


def padded(path: list[int], width: int) -> Tensor:
    return torch.tensor([path + [-1] * (width - len(path))])


# -- scoring ----------------------------------------------------------------------------------------------------------


@each_model_and_length
def test_every_node(name: str, dtype: torch.dtype, length: int) -> None:
    target, start = Target(shared(name, dtype)), stock_prefix(name, dtype, length)
    assert gap(target.prefill(prompt_of(length))[0], start.logits) < tolerance(name, dtype)
    assert state_error(target, start) < tolerance(name, dtype)
    for shape in ALL_SHAPES:
        tree = tree_of(shape, length)
        stock = logits_of(stock_tree(target.model, start, tree))
        assert gap(target.score(tree), stock) < tolerance(name, dtype), shape


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        model(name, dtype, slow=name not in RECURRENT or (dtype == F64 and name not in ("mamba2", "zamba2")))
        for name, dtype in MODELS
    ],
    ids=spelled,
)
def test_every_node_after_a_long_prompt(name: str, dtype: torch.dtype) -> None:
    target, start = Target(shared(name, dtype)), stock_prefix(name, dtype, 300)
    assert gap(target.prefill(prompt_of(300))[0], start.logits) < tolerance(name, dtype)
    assert state_error(target, start) < tolerance(name, dtype)
    tree = tree_of("random", 300)
    nodes = stock_tree(target.model, start, tree)
    assert gap(target.score(tree), logits_of(nodes)) < tolerance(name, dtype)
    target.commit(padded(path_to(tree, 15), 16))
    assert state_error(target, nodes[15]) < tolerance(name, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@each_model
def test_many_random_trees(name: str, dtype: torch.dtype, seed: int) -> None:
    target, start = prefilled(name, dtype), stock_prefix(name, dtype, 13)
    for shape in ("random", "deep"):
        tree = tree_of(shape, "many", seed)
        assert gap(target.score(tree), logits_of(stock_tree(target.model, start, tree))) < tolerance(name, dtype)


@each_model
def test_prefill_in_chunks(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_module, "PREFILL_CHUNK", 5)
    target = Target(shared(name, dtype))
    target.prefill(prompt_of(20, "something else"))  # must be gone
    assert gap(target.prefill(prompt_of(13))[0], stock_prefix(name, dtype, 13).logits) < tolerance(name, dtype)
    assert state_error(target, stock_prefix(name, dtype, 13)) < tolerance(name, dtype)


@pytest.mark.parametrize("name", each(FAMILIES))
def test_scoring_commits_nothing(name: str) -> None:
    for backend in BACKENDS:
        target = prefilled(name, backend=backend())
        tree, other = tree_of("stree"), tree_of("random")
        before = committed(target)
        first = target.score(tree)
        target.score(other)
        assert torch.equal(target.score(tree), first)
        assert target.length == 13
        assert all(torch.equal(a, b) for a, b in zip(committed(target), before, strict=True))


@pytest.mark.parametrize("name", each(FAMILIES))
def test_a_node_changes_its_descendants_only(name: str) -> None:
    target, tree = prefilled(name), tree_of("stree")
    clean = target.score(tree)
    for node in range(tree.shape[1]):
        tokens = tree.tokens.clone()
        tokens[0, node] = (tokens[0, node] + 1) % target.vocab_size
        change = (target.score(Tree(tokens, tree.parents)) - clean).abs().amax(-1)[0]
        below = tree.structure.ancestors[0, :, node]
        assert change[below].min() > 1e-2
        # Not 0: a token that visits another expert changes the shape of that expert's matrix product.
        assert change[~below].max() < 1e-5 if not below.all() else True


@pytest.mark.slow
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", each(FAMILIES))
def test_a_broken_node_reaches_its_descendants_only(name: str, value: float) -> None:
    model, tree = make(name), tree_of("stree")
    broken_token = 2  # in no prompt and no tree
    clean = prefilled(name).score(tree)
    with torch.no_grad():
        model.get_input_embeddings().weight[broken_token] = value
    for node in (1, 3, 7):
        tokens = tree.tokens.clone()
        tokens[0, node] = broken_token
        below = tree.structure.ancestors[0, :, node]
        for backend in BACKENDS:
            target = Target(model, backend=backend())
            target.prefill(prompt_of(13))
            logits = target.score(Tree(tokens, tree.parents))
            assert logits[0, below].isnan().all()
            assert gap(logits[:, ~below], clean[:, ~below]) < 1e-5
            target.commit(padded([0, 2, 6], 5))
            expected = stock_path(shared(name), tree.tokens[0, [0, 2, 6]].tolist(), stock_prefix(name, F32, 13))
            assert state_error(target, expected) < tolerance(name, F32)
            follow = tree_of("six")  # rows of the broken node still lie in the cache
            assert gap(target.score(follow), logits_of(stock_tree(shared(name), expected, follow))) < tolerance(
                name, F32
            )


@pytest.mark.parametrize("name", each(FAMILIES))
def test_padding_nodes_are_inert(name: str) -> None:
    target, tree = prefilled(name), tree_of("six")
    clean = target.score(tree)
    tokens = torch.cat([tree.tokens, torch.tensor([[3, 3, 4]])], dim=1)
    parents = torch.cat([tree.parents, torch.zeros(1, 3, dtype=torch.long)], dim=1)
    logits = target.score(Tree.checked(tokens, parents, torch.tensor([6]), vocab_size=target.vocab_size))
    assert gap(logits[:, :6], clean) < 1e-5
    target.commit(padded([0, 2, 4, 5], 9))
    expected = stock_path(target.model, tree.tokens[0, [0, 2, 4, 5]].tolist(), stock_prefix(name, F32, 13))
    assert state_error(target, expected) < tolerance(name, F32)


# -- committing -------------------------------------------------------------------------------------------------------


@each_model_and_backend
def test_state_after_every_path(name: str, dtype: torch.dtype, backend: type[StateBackend]) -> None:
    tree, nodes = stock_walk(name, dtype, 2, (("stree", 0),))[0]  # a prompt shorter than a conv window
    target = Target(shared(name, dtype), backend=backend())
    for node, expected in enumerate(nodes):
        target.prefill(prompt_of(2))
        target.score(tree)
        target.commit(padded(path_to(tree, node), 6))
        assert state_error(target, expected) < tolerance(name, dtype), node


@pytest.mark.slow
@each_model
def test_state_after_a_deep_path(name: str, dtype: torch.dtype) -> None:
    tree = tree_of("deep", "path")
    nodes = stock_tree(shared(name, dtype), stock_prefix(name, dtype, 13), tree)
    for node in (11, 20, 23):
        target = prefilled(name, dtype)
        target.score(tree)
        target.commit(padded(path_to(tree, node), 24))
        assert state_error(target, nodes[node]) < tolerance(name, dtype)


STEPS: Steps = (
    ("stree", 12),
    ("single", 0),
    ("six", 0),
    ("random", 15),
    ("star", 5),
    ("chain", 5),
    ("comb", 8),
    ("single", 0),
    ("six", 3),
)


def walk(target: Target, name: str, dtype: torch.dtype, steps: Steps = STEPS) -> None:
    for number, (tree, nodes) in enumerate(stock_walk(name, dtype, target.length, steps)):
        last = steps[number][1]
        assert gap(target.score(tree), logits_of(nodes)) < tolerance(name, dtype), number
        target.commit(padded(path_to(tree, last), 16))
        assert state_error(target, nodes[last]) < tolerance(name, dtype), number


@each_model_and_backend
def test_several_steps(name: str, dtype: torch.dtype, backend: type[StateBackend]) -> None:
    walk(prefilled(name, dtype, 1, backend()), name, dtype)


@each_model
def test_steps_in_place(name: str, dtype: torch.dtype) -> None:
    """Plain decoding, and trees in between."""
    target = prefilled(name, dtype)
    target.step_in_place = True
    single = (("single", 0),) * 3
    walk(target, name, dtype, (*single, ("six", 5), *single, ("stree", 0), *single))


@pytest.mark.parametrize("name", each(RECURRENT))
def test_backends_agree(name: str) -> None:
    dtype = F64 if FAMILIES[name].lifts else F32
    shared(name, dtype)
    with lifted(dtype):
        targets = [prefilled(name, dtype, backend=backend()) for backend in BACKENDS]
        for number, (shape, last) in enumerate(STEPS):
            tree = tree_of(shape, "agree", number)
            logits = [target.score(tree) for target in targets]
            for target in targets:
                target.commit(padded(path_to(tree, last), 16))
            states = [committed(target) for target in targets]
            for other in (1, 2):
                assert gap(logits[0], logits[other]) < tolerance(name, dtype)
                assert max(gap(a, b) for a, b in zip(states[0], states[other], strict=True)) < tolerance(name, dtype)


# -- caches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", each(FAMILIES))
def test_static_cache_equals_dynamic(name: str) -> None:
    dynamic, static = Target(shared(name)), Target(shared(name), max_length=80)
    prompt = prompt_of(13)
    assert torch.equal(dynamic.prefill(prompt), static.prefill(prompt))
    addresses = [rows.keys.data_ptr() for rows in static.cache.attention.values() if rows.keys is not None]
    for number, (shape, last) in enumerate(STEPS):
        tree = tree_of(shape, "static", number)
        assert torch.equal(dynamic.score(tree), static.score(tree)), number
        for target in (dynamic, static):
            target.commit(padded(path_to(tree, last), 16))
        assert all(torch.equal(a, b) for a, b in zip(committed(dynamic), committed(static), strict=True)), number
    assert all(rows.keys is not None and rows.keys.shape[2] == 80 for rows in static.cache.attention.values())
    assert addresses == [rows.keys.data_ptr() for rows in static.cache.attention.values() if rows.keys is not None]


@pytest.mark.parametrize(
    "name",
    ["bamba", *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama", "qwen3", "falcon_h1", "zamba2"))],
)
def test_cache_grows_past_its_first_allocation(name: str) -> None:
    target = prefilled(name, length=243)
    assert all(rows.keys is not None and rows.keys.shape[2] == 256 for rows in target.cache.attention.values())
    walk(target, name, F32, (("stree", 5), ("deep", 23), ("six", 5), ("random", 14)))
    assert all(rows.keys is not None and rows.keys.shape[2] == 512 for rows in target.cache.attention.values())


def test_commit_needs_a_scored_tree() -> None:
    target = prefilled("llama")
    with pytest.raises(RuntimeError, match="no tree has been scored"):
        target.commit(torch.tensor([[0]]))
    target.score(tree_of("six"))
    target.commit(torch.tensor([[0]]))
    with pytest.raises(RuntimeError, match="no tree has been scored"):
        target.commit(torch.tensor([[0]]))
