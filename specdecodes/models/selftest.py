"""The check that a model passes before it decodes: tree scoring against the stock model's own one-token steps.

What we rely on (op signatures, cache methods, how masks and positions are read) belongs to transformers and may
change with any version, and a configuration can switch on what nobody has seen. Twelve nodes and a step find out.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from specdecodes.core.tree import Tree
from specdecodes.models.families import RefusedError
from specdecodes.models.recurrences.mamba2 import NO_LIMIT
from specdecodes.models.target import Target

PARENTS = (-1, 0, 0, 1, 2, 4)
"""Two branches of unequal depth, stored breadth first: index, depth and cache slot of a node are all different."""
ACCEPTED = (0, 2, 4, 5)
"""A path whose nodes do not lie next to each other, so that gathering matters."""
LEAVES = ((0, 1, 3), ACCEPTED)
PROMPT = 7
"""Tokens before the tree: more than a conv window, so that none of its taps is padding."""
CHUNK = 8
"""Stock scans pad to whole chunks (256 by default) and are slow on a CPU; the chunk size does not change the result."""

FLOORS = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 8e-2}
"""Least tolerance in units of the logits' standard deviation, by dtype.

Correct scoring of random models stays below 1e-5 in float32, and little below that in float64, because stock norms and
scans round to float32 whatever the dtype. The mistakes that this test exists for (index for depth, a conv window or a
key left where it was, a missing mask or commit) start at 4e-1. 1e-3 leaves room for much deeper models on the one side
and is hundreds of times below a mistake on the other.
bfloat16 has 8 significant bits, so that one rounding of a logit of 3 standard deviations is 1e-2; a model may well
agree with itself bit for bit where we are two such roundings off (llama: up to 3e-2). float16 has 11 bits.
"""
GAPS = 3.0
"""Deep or badly conditioned models round more; the model's own gap between steps and sequences says how much."""


@dataclass(frozen=True)
class SelfTestReport:
    """What the self-test measured.

    Attributes:
        family: the model's type. dtype: its dtype.
        max_error: largest difference between our logits and those of stock one-token steps.
        tolerance: what was allowed. seconds: what the test took.
    """

    family: str
    dtype: torch.dtype
    max_error: float
    tolerance: float
    seconds: float


@torch.inference_mode()
def self_test(target: Target) -> SelfTestReport:
    """Compare a tree, a commit, another tree and a plain step of ``target`` with the stock model's one-token steps.

    Meant for loading: what ``target`` has committed is dropped, and it is left empty. Draws no random numbers.

    Raises:
        RefusedError: they disagree by more than ``max(floor(dtype) * logits std, 3 * gap)``, where gap is the stock
            model's own difference between one-token steps and one forward over the same tokens.
    """
    began = time.perf_counter()
    try:
        with _mixers(target, chunk_size=CHUNK):
            checks = _Stock(target).run()
    finally:
        target.cache.reset()
    return _judge(target, checks, began)


@dataclass
class _Check:
    """One comparison: ours against stock steps, [n, V] each, and stock's own other way of getting there."""

    place: str
    ours: Tensor
    stock: Tensor
    again: Tensor


def _judge(target: Target, checks: list[_Check], began: float) -> SelfTestReport:
    family, dtype = target.model.config.model_type, target.dtype
    stock = torch.cat([check.stock for check in checks]).double()
    if not bool(stock.isfinite().all()):
        raise RefusedError(
            f"model: {family} ({dtype}) is refused: its own logits are not finite; are its weights intact?"
        )
    gap = float((torch.cat([check.again for check in checks]).double() - stock).abs().max())
    tolerance = max(FLOORS[dtype] * float(stock.std()), GAPS * gap)
    worst = 0.0
    for check in checks:
        errors = (check.ours.double() - check.stock.double()).abs().amax(-1)
        for node, error in enumerate(errors.tolist()):
            if not error <= tolerance:  # nan must not pass
                raise RefusedError(
                    f"model: {family} ({dtype}) is refused: {check.place}, node {node} differs from the stock model's "
                    f"own one-token steps by {error:.2g}; expected at most {tolerance:.2g}"
                )
            worst = max(worst, error)
    return SelfTestReport(family, dtype, worst, tolerance, time.perf_counter() - began)


class _Stock:
    """The stock model beside ours: each node of a tree continues a copy of its parent's own stock cache."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def run(self) -> list[_Check]:
        """Prefill, score, commit, score, commit, step."""
        target, count, length = self.target, len(PARENTS), PROMPT
        ids = _token_ids(target, PROMPT + 2 * count + 1)
        prompt, first, second, last = ids.split([PROMPT, count, count, 1], dim=1)
        prefix = self._forward(self._empty(), prompt, 0)[1]
        target.prefill(prompt)
        checks, before = [], prompt
        continues = target.recurrence is None or target.recurrence.layer.continues
        for place, tokens in (("first tree", first), ("tree after a commit", second)):
            nodes = self._steps(prefix, tokens, length)
            again = self._paths(prefix, ids[:, :0] if continues else before, tokens, length)
            ours = target.score(Tree(tokens, torch.tensor([PARENTS], device=target.device)))[0]
            checks.append(_Check(place, ours, torch.cat([logits for logits, _ in nodes]), again))
            target.commit(torch.tensor([ACCEPTED], device=target.device))
            prefix = nodes[ACCEPTED[-1]][1]
            before = torch.cat([before, tokens[:, list(ACCEPTED)]], dim=1)
            length += len(ACCEPTED)
        stock = self._forward(prefix, last, length)[0]
        checks.append(_Check("plain step after a commit", self._plain_step(last), stock, stock))
        return checks

    def _steps(self, prefix: DynamicCache, tokens: Tensor, length: int) -> list[tuple[Tensor, DynamicCache]]:
        """Logits [1, V] and cache after every node, one token at a time."""
        nodes: list[tuple[Tensor, DynamicCache]] = []
        for node, parent in enumerate(PARENTS):
            before = prefix if parent < 0 else nodes[parent][1]
            nodes.append(self._forward(before, tokens[:, node : node + 1], length + _depth(node)))
        return nodes

    def _paths(self, prefix: DynamicCache, before: Tensor, tokens: Tensor, length: int) -> Tensor:
        """Logits [T, V] with each leaf's path in one forward; stock steps know no limit, so neither may this.

        Args:
            before: everything committed [1, length], for models that cannot continue ``prefix`` so; else empty.
        """
        logits: dict[int, Tensor] = {}
        cache, start = (self._empty(), 0) if before.shape[1] else (prefix, length)
        with _mixers(self.target, time_step_limit=NO_LIMIT):
            for path in LEAVES:
                rows = self._forward(cache, torch.cat([before, tokens[:, list(path)]], dim=1), start)[0]
                logits |= dict(zip(path, rows[-len(path) :], strict=True))
        return torch.stack([logits[node] for node in range(len(PARENTS))])

    def _empty(self) -> DynamicCache:
        return DynamicCache(config=self.target.model.config)

    def _plain_step(self, token: Tensor) -> Tensor:
        target = self.target
        before, target.step_in_place = target.step_in_place, True
        try:
            root = torch.zeros_like(token)
            logits = target.score(Tree(token, root - 1))[0]
            target.commit(root)
        finally:
            target.step_in_place = before
        return logits

    def _forward(self, cache: DynamicCache, ids: Tensor, start: int) -> tuple[Tensor, DynamicCache]:
        """Logits [n, V] of ids [1, n] after the ``start`` tokens of ``cache`` (which stays), and their cache."""
        signature = self.target.signature
        cache = copy.deepcopy(cache)
        kwargs: dict[str, Any] = {signature.cache_argument: cache}
        if signature.takes_positions:  # always: Bamba ignores the cache's length without them
            kwargs["position_ids"] = torch.arange(start, start + ids.shape[1], device=ids.device)[None]
        logits: Tensor = self.target.model(input_ids=ids, use_cache=True, **kwargs).logits[0]
        return logits, cache


def _depth(node: int) -> int:
    return 0 if PARENTS[node] < 0 else _depth(PARENTS[node]) + 1


def _token_ids(target: Target, count: int) -> Tensor:
    """Different token ids [1, count] (as far as the vocabulary goes), the same for every model of one vocabulary."""
    embeddings = target.model.get_input_embeddings()
    size = min(target.vocab_size, int(embeddings.weight.shape[0]))
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
    return order.repeat(-(-count // size))[None, :count].to(target.device)


@contextmanager
def _mixers(target: Target, **attributes: Any) -> Iterator[None]:
    """Set attributes of the mixers that have them for the length of the block."""
    before = [
        (module, name, getattr(module, name))
        for module in target.model.modules()
        if hasattr(module, "A_log")
        for name in attributes
        if hasattr(module, name)
    ]
    try:
        for module, name, _ in before:
            setattr(module, name, attributes[name])
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
