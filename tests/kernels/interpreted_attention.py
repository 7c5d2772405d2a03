"""Attention of a tree behind a prefix, in Triton's interpreter; run like ``interpreted.py``."""

from __future__ import annotations

import pytest
import torch

from specdecodes.core.tree import Tree
from specdecodes.kernels.tree_attention import naive, triton
from specdecodes.models.target import Target

from ..models.configs import FAMILIES
from ..models.families import gap, logits_of, make, prompt_of, stock_prefix, stock_tree, tree_of
from .interpreted import BF16, F32, TOLERANCE, each_dtype
from .paths import error
from .test_mamba2_scan import SHAPES
from .test_native import _poisoned  # noqa: F401 - an autouse fixture: what is not written is nan
from .test_tree_attention import Inputs, attend, exact, inputs

SLIDING = [
    "mistral-window",
    "qwen2-window",
    "gemma3",
    "mixtral",
    "cohere2",
    "exaone4",
    "ministral3",
    "olmo3",
    "phi3",
    "starcoder2",
]
"""Families with sdpa and a window."""
COUNTS = [1, 13, 17, *(pytest.param(count, marks=pytest.mark.slow) for count in (2, 15, 16, 31, 32, 33, 63, 128))]
QUICK = ("llama", "bamba", "kimi_linear")
SPLIT = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
    for name, family in FAMILIES.items()
    if family.attention and family.attention_kind == "sdpa" and name not in SLIDING
]
"""Families with sdpa and no window: attention alone, beside a recurrence, latent (unlike dims)."""


def rounded(values: Inputs, dtype: torch.dtype) -> Inputs:
    """What the kernel is given, in float64."""
    q, keys, of = (each.to(dtype).double() for each in (values.q, values.keys, values.values))
    return Inputs(q, keys, of, values.lengths, values.ancestors, values.scale)


@each_dtype
@pytest.mark.parametrize("count", COUNTS)
def test_trees_of_every_size(count: int, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        values = rounded(inputs(shape, count, 70, heads=(6, 2), dims=(20, 9)), dtype)
        found = attend(values, dtype)
        assert found.dtype == dtype
        assert error(found, exact(values)) < TOLERANCE[dtype], shape


@pytest.mark.parametrize("length", [1, 63, 64, 65, 300, 700])
def test_prefixes_of_every_length(length: int) -> None:
    """Pieces that are empty, half full and full, and a tree that starts inside a tile."""
    values = rounded(inputs("random", 5, length, heads=(2, 1), dims=(16, 16)), F32)
    assert error(attend(values, F32), exact(values)) < TOLERANCE[F32]


@pytest.mark.parametrize("heads", [(1, 1), (3, 3), (12, 2)], ids=str)
def test_heads_of_keys_that_several_queries_read(heads: tuple[int, int]) -> None:
    values = rounded(inputs("random", 13, 40, heads=heads, dims=(8, 24)), F32)
    assert error(attend(values, F32), exact(values)) < TOLERANCE[F32]


def test_large_scores_do_not_overflow() -> None:
    values = rounded(inputs("random", 13, 300), F32)
    values.q *= 1e3
    assert error(attend(values, F32), exact(values)) < 1e-4


@pytest.mark.parametrize("name", SPLIT)
@torch.no_grad()
def test_models_attend_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scored without a mask over the context, every node has the logits of its own steps; so after a commit."""
    calls = 0
    launch = triton.tree_attention

    def counted(*args: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return launch(*args)

    monkeypatch.setattr(triton, "tree_attention", counted)
    monkeypatch.setattr(naive, "tree_attention", None)
    target, start = Target(make(name)), stock_prefix(name, F32, 13)
    target.prefill(prompt_of(13))
    tree: Tree = tree_of("random", "attention")
    for _ in range(2):
        nodes = stock_tree(target.model, start, tree)
        assert gap(target.score(tree), logits_of(nodes)) < 1e-3
        path = [0]
        while children := [i for i, parent in enumerate(tree.parents[0].tolist()) if parent == path[-1]]:
            path.append(children[-1])
        target.commit(torch.tensor([path]))
        start = nodes[path[-1]]
    assert calls >= 2, "at least once a score"


def test_other_models_keep_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "tree_attention", None)
    for name in ("qwen3", *SLIDING[:2], "gemma2"):  # eager, a window, a soft cap
        target, start = Target(make(name)), stock_prefix(name, F32, 13)
        target.prefill(prompt_of(13))
        tree = tree_of("random", "mask")
        assert gap(target.score(tree), logits_of(stock_tree(target.model, start, tree))) < 1e-3, name


def test_half_precision_is_read_as_it_is() -> None:
    values = rounded(inputs("random", 13, 300), BF16)
    assert error(attend(values, BF16), exact(values)) < TOLERANCE[BF16]
