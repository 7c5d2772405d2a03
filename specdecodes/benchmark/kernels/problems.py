"""Inputs for every op, of the shapes and dtypes that a score or a commit hands over, and the op called as they call it.

Letters: as in ``costs``. One row (B = 1).
"""

from __future__ import annotations

import weakref
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from specdecodes.benchmark.kernels.costs import Widths
from specdecodes.benchmark.shapes import AttentionSizes, Product
from specdecodes.core.tree import Topology
from specdecodes.kernels import choice, mamba2_scan
from specdecodes.kernels.linear.packed import pack, packed_linear, unpack
from specdecodes.kernels.tree_attention import tree_attention as attend
from specdecodes.models.cache import AttentionRows
from specdecodes.models.masks import behind_prefix

LONGEST_PATH = 4
"""Nodes that are committed, where the tree has as many."""
EXACT_ROWS = 4096
"""Outputs of a weight that are computed in float64 at once."""


@dataclass(frozen=True)
class Where:
    """What a problem is made for: device, the model's dtype, committed tokens, a chain instead of a random tree."""

    device: torch.device
    dtype: torch.dtype
    context: int = 1024
    chain: bool = False

    @property
    def widths(self) -> Widths:
        """Bytes of an element."""
        return Widths.of(self.dtype)


Outputs = Sequence[Tensor]


@dataclass(frozen=True)
class Problem:
    """One call of an op.

    Attributes:
        run: the op; some work in place, on inputs that stay bounded however often they run.
        exact: what the first ``run`` returns, in float64 by the plain form; called before it.
        given: the inputs, by the names that peers' adapters read.
    """

    run: Callable[[], Outputs]
    exact: Callable[[], Outputs]
    given: dict[str, Any] = field(default_factory=dict)


class Numbers:
    """Normal random numbers that depend on ``parts`` only, for the device."""

    def __init__(self, where: Where, *parts: object) -> None:
        self.where = where
        self.source = torch.Generator(where.device).manual_seed(zlib.crc32(repr(parts).encode()))

    def model(self, *shape: int) -> Tensor:
        """In the model's dtype."""
        return torch.randn(*shape, generator=self.source, device=self.where.device, dtype=self.where.dtype)

    def state(self, *shape: int) -> Tensor:
        """In the dtype of states."""
        kind = mamba2_scan.compute_dtype(self.where.dtype)
        return torch.randn(*shape, generator=self.source, device=self.where.device, dtype=kind)


def topology(count: int, where: Where) -> Topology:
    """Of a random tree, the same for the same count; or of a chain."""
    source = torch.Generator().manual_seed(count)
    above = [i - 1 if where.chain else int(torch.randint(i, (1,), generator=source)) for i in range(1, count)]
    return Topology(torch.tensor([[-1, *above]], device=where.device))


def linear(products: Sequence[Product], count: int, where: Where, numbers: Numbers, packed: bool) -> Problem:
    """Products of T rows with weights; ``packed``: from copies that were laid out once (``kernels/linear``)."""
    weights = [numbers.model(out, features).mul_(features**-0.5) for out, features in products]
    rows = [numbers.model(count, features) for _, features in products]

    def exact() -> Outputs:
        return [
            torch.cat([x.double() @ part.double().T for part in weight.split(EXACT_ROWS)], dim=1)
            for x, weight in zip(rows, weights, strict=True)
        ]

    if not packed:
        return Problem(lambda: [F.linear(x, weight) for x, weight in zip(rows, weights, strict=True)], exact)
    calls = [(x, None, pack(weight), len(weight)) for x, weight in zip(rows, weights, strict=True)]

    def run() -> Outputs:
        return [packed_linear(*call) for call in calls]

    for call in calls:
        weakref.finalize(run, unpack, call[2])
    return Problem(run, exact)


def kv_gather(sizes: AttentionSizes, count: int, where: Where, numbers: Numbers) -> Problem:
    """Move the accepted rows of all attention layers to where the committed ones end."""
    n, s, length = numbers, sizes, path_length(count)
    layers = []
    for _ in range(s.layers):
        rows = AttentionRows(where.context + count)
        like = n.model(1, s.kv_heads, 1, s.head_dim)
        rows.reserve(where.context + count, like, like)
        assert rows.keys is not None and rows.values is not None
        rows.keys.normal_(generator=n.source)
        rows.values.normal_(generator=n.source)
        layers.append(rows)
    source = torch.linspace(0, count - 1, length, device=where.device).long() + where.context
    target = torch.arange(length, device=where.device) + where.context

    def run() -> Outputs:
        for rows in layers:
            rows.move(source, target)
        end = where.context + length
        return [each[:, :, where.context : end] for rows in layers for each in _kept(rows)]

    def exact() -> Outputs:
        return [each.index_select(2, source).double() for rows in layers for each in _kept(rows)]

    return Problem(run, exact)


def tree_attention(sizes: AttentionSizes, count: int, where: Where, numbers: Numbers) -> Problem:
    """Attention of T nodes over the committed rows and each other: split in two, or stock sdpa under our mask."""
    n, s, visible = numbers, sizes, where.context + count
    q = n.model(1, s.heads, count, s.head_dim)
    k, v = (n.model(1, s.kv_heads, visible, s.head_dim) for _ in range(2))
    tree = topology(count, where)
    mask = behind_prefix(tree.mask(where.dtype), where.context, visible)
    module: Any = SimpleNamespace(num_key_value_groups=s.heads // s.kv_heads, is_causal=False)

    def exact() -> Outputs:
        keys, values = (each.double().repeat_interleave(s.heads // s.kv_heads, dim=1) for each in (k, v))
        scores = q.double() @ keys.mT * s.head_dim**-0.5 + behind_prefix(
            tree.mask(torch.float64), where.context, visible
        )
        return ((scores.softmax(-1) @ values).transpose(1, 2),)

    lengths = torch.tensor([where.context], device=where.device)
    scale = s.head_dim**-0.5

    def run() -> Outputs:
        if choice.serves("triton", where.device.type, where.dtype):
            return (attend(q, k, v, lengths, tree.ancestors, scale),)
        return (sdpa_attention_forward(module, q, k, v, mask, scaling=scale)[0],)

    return Problem(run, exact)


def path_length(count: int) -> int:
    """Nodes of a tree that are committed."""
    return min(count, LONGEST_PATH)


def error(problem: Problem) -> float:
    """Largest difference from float64 over the largest value; what is not finite counts as infinite."""
    expected = [each.double() for each in problem.exact()]
    found = problem.run()
    gaps = [_gap(ours.double(), exact) for ours, exact in zip(found, expected, strict=True)]
    return max(gap if gap == gap else float("inf") for gap in gaps)


def _gap(ours: Tensor, exact: Tensor) -> float:
    return float((ours - exact).abs().max() / exact.abs().max().clamp(min=torch.finfo(torch.float64).tiny))


def _kept(rows: AttentionRows) -> tuple[Tensor, Tensor]:
    assert rows.keys is not None and rows.values is not None
    return rows.keys, rows.values
