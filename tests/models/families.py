"""Tiny random models of every supported family, and stock transformers as the reference that they are compared with.

The reference is the stock model fed one token at a time with its own cache. Weights are spread so that the logits'
standard deviation is 1: with the default initialisation every logit is near 0 and errors hide.
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import (
    AutoModelForCausalLM,
    BambaConfig,
    DynamicCache,
    FalconH1Config,
    GraniteMoeHybridConfig,
    LlamaConfig,
    Mamba2Config,
    MistralConfig,
    NemotronHConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Zamba2Config,
)

from specdecodes.core.tree import Tree
from specdecodes.models.target import Target

VOCAB = 97
HIDDEN = 32
ENDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}
SMALL: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "initializer_range": 0.1, **ENDS}
HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
PLAIN: dict[str, Any] = {
    **SMALL,
    **HEADS,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "max_position_embeddings": 1024,
}
MAMBA: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 12,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}


def _mamba2(**settings: Any) -> Mamba2Config:
    sizes = {"num_heads": 8, "head_dim": 8, "state_size": 12, "num_hidden_layers": 2, "chunk_size": 8}
    return Mamba2Config(**{**SMALL, **sizes, **settings})


def _falcon_h1(**settings: Any) -> FalconH1Config:
    multipliers = {
        "lm_head_multiplier": 0.5,
        "embedding_multiplier": 1.7,
        "mlp_multipliers": [0.8, 1.3],
        "key_multiplier": 0.6,
        "attention_in_multiplier": 1.2,
        "attention_out_multiplier": 0.7,
        "ssm_multipliers": [0.5, 1.4, 0.8, 1.2, 0.9],
        "ssm_in_multiplier": 1.1,
        "ssm_out_multiplier": 0.6,
    }
    return FalconH1Config(**{**PLAIN, **MAMBA, "mamba_d_ssm": 64, "mamba_n_groups": 2, **multipliers, **settings})


def _granite(**settings: Any) -> GraniteMoeHybridConfig:
    scales = {
        "embedding_multiplier": 2.0,
        "logits_scaling": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.3,
    }
    layers = {"num_hidden_layers": 3, "layer_types": ["linear_attention", "full_attention", "linear_attention"]}
    return GraniteMoeHybridConfig(**{**PLAIN, **MAMBA, **layers, **scales, "shared_intermediate_size": 40, **settings})


def _nemotron_h(*layers: str) -> NemotronHConfig:
    sizes = {
        "ssm_state_size": 12,
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "n_groups": 2,
        "chunk_size": 8,
        "head_dim": 8,
    }
    experts = {"n_routed_experts": 4, "moe_intermediate_size": 24, "moe_shared_expert_intermediate_size": 24}
    sizes = {**SMALL, **HEADS, **sizes, **experts, "intermediate_size": 48, "max_position_embeddings": 1024}
    return NemotronHConfig(**sizes, layers_block_type=list(layers))


def _zamba2() -> Zamba2Config:
    return Zamba2Config(
        **{**PLAIN, "num_key_value_heads": 4, "num_hidden_layers": 4},  # the stock adapters cannot group queries
        layers_block_type=["linear_attention", "hybrid", "linear_attention", "hybrid"],
        mamba_d_state=12,
        n_mamba_heads=8,
        mamba_ngroups=2,
        chunk_size=8,
        num_mem_blocks=2,
        use_mem_rope=True,
        use_shared_attention_adapter=True,
        adapter_rank=4,
    )


@dataclass(frozen=True)
class Family:
    """One row: how to make a configuration, and what is known about its stock model.

    Attributes:
        recurrent, attention: what its layers carry.
        lifts: False where the stock model cannot run in float64 at all.
        clamps: stock prefill bounds step sizes from below and stock steps do not, so that the two disagree; then the
            reference prefills in one forward, as ``generate`` does. Everywhere else it takes one token at a time.
    """

    config: Callable[[], PreTrainedConfig]
    recurrent: bool = True
    attention: bool = True
    lifts: bool = True
    clamps: bool = False
    attention_kind: str = "sdpa"


FAMILIES: dict[str, Family] = {
    "mamba2": Family(lambda: _mamba2(n_groups=1), attention=False, attention_kind="eager"),
    # Width 3 instead of 4 and no conv bias: nothing may take either for granted.
    "mamba2-groups": Family(
        lambda: _mamba2(n_groups=2, conv_kernel=3, use_conv_bias=False, use_bias=True),
        attention=False,
        attention_kind="eager",
    ),
    "bamba": Family(
        lambda: BambaConfig(**{**PLAIN, **MAMBA, "num_hidden_layers": 3}, mamba_n_groups=2, attn_layer_indices=[1])
    ),
    "falcon_h1": Family(_falcon_h1),
    "falcon_h1-norm": Family(lambda: _falcon_h1(mamba_rms_norm=True, mamba_norm_before_gate=False)),
    "granitemoehybrid": Family(lambda: _granite(num_local_experts=4, num_experts_per_tok=2)),
    "granitemoehybrid-dense": Family(
        lambda: _granite(num_local_experts=0, num_experts_per_tok=0, position_embedding_type="rope")
    ),
    "nemotron_h": Family(
        lambda: _nemotron_h("linear_attention", "mlp", "full_attention", "linear_attention"), clamps=True
    ),
    "nemotron_h-experts": Family(
        lambda: _nemotron_h("linear_attention", "moe", "full_attention", "linear_attention"), lifts=False, clamps=True
    ),
    "zamba2": Family(_zamba2, clamps=True),
    "llama": Family(lambda: LlamaConfig(**PLAIN), recurrent=False),
    "qwen2": Family(lambda: Qwen2Config(**PLAIN), recurrent=False),
    "qwen3": Family(lambda: Qwen3Config(**PLAIN, head_dim=8), recurrent=False, attention_kind="eager"),
    "mistral": Family(lambda: MistralConfig(**PLAIN, sliding_window=None), recurrent=False),
}
"""Every family that ``specdecodes.models.families.SUPPORTED`` names, some in two configurations."""

RECURRENT = [name for name, family in FAMILIES.items() if family.recurrent]
LIFTED = [name for name, family in FAMILIES.items() if family.lifts]


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
        if key.endswith("embed_tokens.weight") or "embeddings" in key:
            weight.copy_(noise)
        elif "conv1d.weight" in key:
            weight.copy_(noise * 0.5)
        elif weight.ndim >= 2:
            weight.copy_(noise / math.sqrt(weight.shape[-1]))
        elif key.endswith(("A_log", "dt_bias")):
            weight.add_(0.3 * noise)
        else:
            weight.add_(0.2 * noise)  # norms, biases, D
    model.eval()
    ids = prompt_of(48, name)
    spread = model(ids, position_ids=torch.arange(48)[None]).logits if takes_positions(model) else model(ids).logits
    model.get_output_embeddings().weight.div_(spread.std())
    if dtype == torch.float64 and getattr(config, "num_local_experts", 0):
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
    """Mamba-2 alone does not."""
    return model.config.model_type != "mamba2"


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
    kwargs: dict[str, Any] = {"input_ids": torch.tensor([tokens])}
    if takes_positions(model):  # always: Bamba ignores the cache's length without
        positions = torch.arange(position, position + len(tokens))
        kwargs |= {"position_ids": positions[None], "past_key_values": cache}
    else:
        kwargs["cache_params"] = cache
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
        assert layer.window is not None and layer.state is not None
        worst = max(worst, gap(layer.window, stock.conv_states[0]), gap(layer.state, stock.recurrent_states[0]))
    for index, rows in target.cache.attention.items():
        stock = node.cache.layers[index]
        assert rows.keys is not None and rows.values is not None
        worst = max(worst, gap(rows.keys[:, :, : node.length], stock.keys))
        worst = max(worst, gap(rows.values[:, :, : node.length], stock.values))
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
