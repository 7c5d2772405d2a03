"""Tiny random models of every supported family, and stock transformers as the reference that they are compared with.

The reference is the stock model fed one token at a time with its own cache. Weights are spread so that the logits'
standard deviation is 1: with the default initialisation every logit is near 0 and errors hide.
"""

from __future__ import annotations

import copy
import inspect
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from specdecodes.core.tree import Tree
from specdecodes.models.families import CACHE_ARGUMENTS
from specdecodes.models.target import Target

from .configs import FAMILIES
from .tiny import VOCAB


def numbers(*parts: Any) -> torch.Generator:
    """A generator that depends on ``parts`` only."""
    return torch.Generator().manual_seed(zlib.crc32(repr(parts).encode()))


@torch.no_grad()
def make(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A new model of ``FAMILIES[name]`` with the same weights on every call."""
    family = FAMILIES[name]
    config = family.config()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=family.attention_kind, dtype=torch.float32)
    source = numbers(name)
    for key, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=source)
        if any(part in key for part in ("embed_tokens", "embed_positions", "embeddings", ".wte.", ".wpe.")):
            weight.copy_(noise)
        elif key.endswith(("conv1d.weight", "conv.weight")):
            weight.copy_(noise * 0.5)
        elif key.endswith(("A_log", "dt_bias")):
            weight.add_(0.3 * noise)
        elif key.endswith(("dt_proj.bias", "dt_proj_bias")):
            weight.copy_(noise - 2)  # as it is, steps are so small that states hardly matter
        elif weight.ndim >= 2:
            weight.copy_(noise / math.sqrt(weight.shape[-1]))
        else:
            weight.add_(0.2 * noise)  # norms, biases, D
    model.eval()
    ids = prompt_of(48, name)
    spread = model(ids, position_ids=torch.arange(48)[None]).logits if takes_positions(model) else model(ids).logits
    model.get_output_embeddings().weight.div_(spread.std())
    if dtype == torch.float64 and any("experts" in part for part, _ in model.named_modules()):
        model.set_experts_implementation("eager")  # the grouped matrix product has no float64
    return model.to(dtype)


@cache
def shared(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The same model for all tests; do not change it."""
    return make(name, dtype)


def prompt_of(length: int, *parts: Any) -> Tensor:
    """Fixed random token ids [1, length]."""
    return torch.randint(3, VOCAB, (1, length), generator=numbers("prompt", *parts))


def takes_positions(model: PreTrainedModel) -> bool:
    """State-space models do not."""
    return "position_ids" in inspect.signature(type(model).forward).parameters


class _Lift(TorchFunctionMode):
    depth = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float:
            return args[0].to(torch.float64)
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return func(*args, **kwargs)


@contextmanager
def lifted(dtype: torch.dtype) -> Iterator[None]:
    """For float64: every cast to float32 inside becomes one to float64, in stock code and in ours.

    Stock models round norms, softmaxes and scans to float32 whatever their dtype; this takes the rounding away, so
    that what remains is a bug.
    """
    if dtype == torch.float64 and not _Lift.depth:
        _Lift.depth += 1
        try:
            with _Lift():
                yield
        finally:
            _Lift.depth -= 1
    else:
        yield


@torch.no_grad()
def stock_step(model: PreTrainedModel, cache: DynamicCache, tokens: list[int], position: int) -> Tensor:
    """Tokens from ``position`` on through the stock model and its own cache: logits after the last one [V]."""
    parameters = inspect.signature(type(model).forward).parameters
    kwargs: dict[str, Any] = {"input_ids": torch.tensor([tokens])}
    kwargs[next(name for name in CACHE_ARGUMENTS if name in parameters)] = cache
    if takes_positions(model):  # always: Bamba ignores the cache's length without
        kwargs["position_ids"] = torch.arange(position, position + len(tokens))[None]
    with lifted(model.dtype):
        return model(use_cache=True, **kwargs).logits[0, -1]


@dataclass
class Node:
    """Stock decoding after a prefix: the cache, the logits and how many tokens they have seen."""

    cache: DynamicCache
    logits: Tensor
    length: int


def stock_path(model: PreTrainedModel, tokens: list[int], start: Node | None = None) -> Node:
    """Feed ``tokens`` one by one, after ``start`` (which stays as it is)."""
    cache = DynamicCache(config=model.config) if start is None else copy.deepcopy(start.cache)
    length = 0 if start is None else start.length
    logits = torch.empty(0)
    for token in tokens:
        logits = stock_step(model, cache, [token], length)
        length += 1
    return Node(cache, logits, length)


@cache
def stock_prefix(name: str, dtype: torch.dtype, length: int) -> Node:
    """Stock decoding of ``prompt_of(length)``; shared, so copy before use (``stock_path`` does)."""
    model, tokens = shared(name, dtype), prompt_of(length)[0].tolist()
    if not FAMILIES[name].clamps:
        return stock_path(model, tokens)
    cache = DynamicCache(config=model.config)
    return Node(cache, stock_step(model, cache, tokens, 0), length)


def stock_tree(model: PreTrainedModel, start: Node, tree: Tree) -> list[Node]:
    """Stock decoding after every node of ``tree`` (one row), each along its own path."""
    tokens, parents = tree.tokens[0].tolist(), tree.parents[0].tolist()
    nodes: list[Node] = []
    for token, parent in zip(tokens, parents, strict=True):
        nodes.append(stock_path(model, [token], start if parent < 0 else nodes[parent]))
    return nodes


Steps = tuple[tuple[str, int], ...]
"""Steps in a row: the shape of a tree, and the node at which the accepted path ends (0: no drafted token)."""


@cache
def stock_walk(name: str, dtype: torch.dtype, length: int, steps: Steps) -> list[tuple[Tree, list[Node]]]:
    """Stock decoding of every node of each step's tree after ``prompt_of(length)`` and the paths accepted before."""
    start, walk = stock_prefix(name, dtype, length), []
    for number, (shape, last) in enumerate(steps):
        tree = tree_of(shape, "walk", number)
        nodes = stock_tree(shared(name, dtype), start, tree)
        walk.append((tree, nodes))
        start = nodes[last]
    return walk


def logits_of(nodes: list[Node]) -> Tensor:
    """[1, T, V]."""
    return torch.stack([node.logits for node in nodes])[None]


def state_error(target: Target, node: Node) -> float:
    """Largest difference of everything committed (windows, states, keys, values) from a stock cache."""
    assert target.length == node.length
    worst = 0.0
    for index, layer in target.cache.recurrent.items():
        stock = node.cache.layers[index]
        assert layer.window is not None
        worst = max(worst, gap(layer.window, stock.conv_states[0]))
        if layer.state is not None:
            state = stock.recurrent_states[0]
            assert layer.state.numel() == state.numel()
            worst = max(worst, gap(layer.state.view_as(state), state))  # one of them may split channels into heads
    for index, rows in target.cache.attention.items():
        stock = node.cache.layers[index]
        assert rows.keys is not None and rows.values is not None
        first = node.length - stock.keys.shape[2]  # a layer with a window keeps no more
        worst = max(worst, gap(rows.keys[:, :, first : node.length], stock.keys))
        worst = max(worst, gap(rows.values[:, :, first : node.length], stock.values))
    return worst


def gap(ours: Tensor, stock: Tensor) -> float:
    """Largest absolute difference; shapes must agree, and what is not finite counts as infinite."""
    assert ours.shape == stock.shape, f"{tuple(ours.shape)} against {tuple(stock.shape)}"
    difference = (ours.double() - stock.double()).abs().max().item() if ours.numel() else 0.0
    return difference if math.isfinite(difference) else math.inf


SHAPES: dict[str, list[int]] = {
    "single": [-1],
    "chain": [-1, 0, 1, 2, 3, 4],
    "star": [-1, 0, 0, 0, 0, 0],
    "comb": [-1, 0, 0, 1, 1, 3, 3, 5, 5],
    "stree": [-1, 0, 0, 0, 1, 1, 2, 4, 4, 5, 7, 7, 7],
    "six": [-1, 0, 0, 1, 2, 4],
}
"""Parents of trees by name; ``random`` and ``deep`` are made by :func:`tree_of`."""


def tree_of(shape: str, *parts: Any) -> Tree:
    """A tree of the given shape with random tokens (siblings may repeat a token: that must not matter)."""
    source = numbers(shape, *parts)
    if shape == "random":  # any parent
        parents = [-1] + [int(torch.randint(i, (1,), generator=source)) for i in range(1, 16)]
    elif shape == "deep":  # one of the last three nodes as the parent
        parents = [-1] + [i - 1 - int(torch.randint(min(i, 3), (1,), generator=source)) for i in range(1, 24)]
    else:
        parents = SHAPES[shape]
    tokens = torch.randint(3, VOCAB, (1, len(parents)), generator=source)
    return Tree(tokens, torch.tensor([parents]))


def path_to(tree: Tree, node: int) -> list[int]:
    """Node ids from the root to ``node``."""
    path = [node]
    while (parent := int(tree.parents[0, path[0]])) >= 0:
        path.insert(0, parent)
    return path
