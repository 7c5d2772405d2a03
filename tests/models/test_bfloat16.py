"""Scoring in bfloat16 against the stock model's own two ways: one-token steps, and one forward over everything."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from specdecodes.core.tree import Tree
from specdecodes.models.target import Target

from .configs import FAMILIES, each
from .families import logits_of, path_to, prompt_of, shared, stock_prefix, stock_tree, takes_positions, tree_of

BF16 = torch.bfloat16
TIMES = 3.0
ROUNDING = 2.0**-6
"""One rounding of a logit between 2 and 4 to the 8 bits of bfloat16; some models agree with themselves bit for bit."""


@torch.no_grad()
def stock_full(name: str, prompt: Tensor, tree: Tree) -> Tensor:
    """Logits [T, V] after every node, its whole path in one forward without a cache."""
    model, logits = shared(name, BF16), []
    for node in range(tree.shape[1]):
        ids = torch.cat([prompt, tree.tokens[:, path_to(tree, node)]], dim=1)
        positions = {"position_ids": torch.arange(ids.shape[1])[None]} if takes_positions(model) else {}
        logits.append(model(ids, **positions).logits[0, -1])
    return torch.stack(logits).float()


@pytest.mark.slow
@pytest.mark.parametrize("name", each(FAMILIES))
def test_no_further_from_steps_than_stock_itself(name: str) -> None:
    prompt, tree = prompt_of(13), tree_of("stree", "bf16")
    target = Target(shared(name, BF16))
    target.prefill(prompt)
    ours = target.score(tree)[0].float()
    stock = logits_of(stock_tree(target.model, stock_prefix(name, BF16, 13), tree))[0].float()
    gap = max(float((stock_full(name, prompt, tree) - stock).abs().max()), ROUNDING)
    assert float((ours - stock).abs().max()) <= TIMES * gap
    best, second = stock.topk(2).values.unbind(-1)
    differs = ours.argmax(-1) != stock.argmax(-1)
    assert float(torch.where(differs, best - second, 0.0).max()) <= gap
