"""What stock transformers get wrong, silently: each trap is real, and ours is right or refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from specdecodes.models import target as target_module
from specdecodes.models.target import Target

from .families import gap, logits_of, make, prompt_of, shared, stock_path, stock_prefix, stock_tree, tree_of

WRONG = 0.1
"""Far above rounding, where logits have a standard deviation of 1."""


@torch.no_grad()
def continued(name: str, ids: Tensor, split: int, **kwargs: Any) -> Tensor:
    """Stock logits after ``ids``, of which ``split`` tokens are in the cache already."""
    model = shared(name)
    argument = "cache_params" if "mamba" in model.config.model_type else "past_key_values"
    cache = {argument: DynamicCache(config=model.config)}
    model(ids[:, :split], use_cache=True, **cache)
    return model(ids[:, split:], use_cache=True, **cache, **kwargs).logits[0, -1]


@pytest.mark.parametrize("name", ["mamba2", "bamba", "falcon_h1", "granitemoehybrid", "nemotron_h"])
def test_step_sizes_that_only_sequences_limit(name: str) -> None:
    """Stock one-token steps ignore ``time_step_limit``, so the model disagrees with itself: refused."""
    model = make(name)
    for mixer in model.modules():
        if hasattr(mixer, "time_step_limit"):
            mixer.time_step_limit = (0.01, 0.02)
    ids = prompt_of(13)
    with torch.no_grad():
        positions = {} if name == "mamba2" else {"position_ids": torch.arange(13)[None]}
        assert gap(model(ids, **positions).logits[0, -1], stock_path(model, ids[0].tolist()).logits) > WRONG
    model.config.time_step_limit = (0.01, 0.02)
    with pytest.raises(ValueError, match=r"time_step_limit \(0\.01, 0\.02\) is not supported"):
        Target(model)


def test_bamba_without_position_ids() -> None:
    """Stock counts positions from 0 whatever the cache holds; we always pass them."""
    ids = prompt_of(13)
    expected = stock_prefix("bamba", torch.float32, 13).logits
    assert gap(continued("bamba", ids, 12), expected) > WRONG
    target = Target(shared("bamba"))
    assert gap(target.prefill(ids)[0], expected) < 1e-4
    target.prefill(ids[:, :12])
    target.step_in_place = True
    assert gap(target.score(tree_with(ids[:, 12:]))[0, -1], expected) < 1e-4


def tree_with(root: Tensor) -> Any:
    tree = tree_of("single")
    return replace(tree, tokens=root)


@pytest.mark.parametrize("name", ["qwen3", "gemma2"])
def test_a_boolean_mask_with_eager_attention(name: str) -> None:
    """Eager attention adds its mask: true and false are 1 and 0, and every node sees every other. Ours is additive."""
    assert shared(name).config._attn_implementation == "eager"
    target, tree = Target(shared(name)), tree_of("stree")
    stock = logits_of(stock_tree(target.model, stock_prefix(name, torch.float32, 13), tree))
    target.prefill(prompt_of(13))
    assert gap(target.score(tree), stock) < 1e-4
    mask = target.placement.mask

    def boolean(*args: Any) -> Any:
        made = mask(*args)
        return {kind: each == 0 for kind, each in made.items()} if isinstance(made, dict) else made == 0

    target.placement.mask = boolean  # type: ignore[method-assign]
    assert gap(target.score(tree), stock) > WRONG


def test_falcon_h1_with_a_norm_in_a_batch() -> None:
    """Stock 5.17 squeezes the wrong dimension in steps of more than one row; we decode rows one by one."""
    model = shared("falcon_h1-norm")
    rows = torch.cat([prompt_of(5, "first"), prompt_of(5, "second")])
    with pytest.raises(ValueError, match=r"expected one row \(B = 1\), got 2; .*decode the rows one by one"):
        Target(model).prefill(rows)
    target, tree = Target(model), tree_of("six")
    for row in rows:
        start = stock_path(model, row.tolist())
        assert gap(target.prefill(row[None])[0], start.logits) < 1e-4
        assert gap(target.score(tree), logits_of(stock_tree(model, start, tree))) < 1e-4


@pytest.mark.parametrize("name", ["mamba", "falcon_mamba", "jamba", "zamba"])
def test_s6_continues_where_it_was(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stock S6 scan starts from zero: tokens after a cached prefix are wrong. Ours continue, in any chunks."""
    ids = prompt_of(13)
    expected = stock_prefix(name, torch.float32, 13).logits
    positions = {"position_ids": torch.arange(11, 13)[None]} if name in ("jamba", "zamba") else {}
    assert gap(continued(name, ids, 11, **positions), expected) > WRONG
    for chunk in (11, 1):
        monkeypatch.setattr(target_module, "PREFILL_CHUNK", chunk)
        assert gap(Target(shared(name)).prefill(ids)[0], expected) < 1e-4
