"""Trees, numbers and errors for tests of ops that run along the paths of a tree."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SIZES = [1, 2, 13, 16, 17, 33]
F32, F64 = torch.float32, torch.float64
TOLERANCE = {F32: 5e-6, F64: 1e-13}
"""Relative: largest difference over the largest value."""
ROWS = 2


def numbers(*parts: Any) -> torch.Generator:
    """A generator that depends on ``parts`` only."""
    return torch.Generator().manual_seed(zlib.crc32(repr(parts).encode()))


def error(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest value; what is not finite counts as infinite."""
    assert found.shape == expected.shape
    gap = float((found.double() - expected.double()).abs().max() / expected.double().abs().max())
    return gap if gap == gap else float("inf")


def chain(count: int) -> Tensor:
    """[B, T]."""
    return torch.arange(-1, count - 1).repeat(ROWS, 1)


def random_tree(count: int) -> Tensor:
    """Another tree in every row."""
    source = numbers("tree", count)
    parents = [[-1] + [int(torch.randint(i, (1,), generator=source)) for i in range(1, count)] for _ in range(ROWS)]
    return torch.tensor(parents)


def star(count: int) -> Tensor:
    """All nodes below the root."""
    return torch.tensor([[-1] + [0] * (count - 1)] * ROWS)


SHAPES = {"chain": chain, "random": random_tree, "star": star}


def along(parents: Tensor, state: Tensor, step: Callable[[int, int, Tensor], tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Run ``step(row, node, state before) -> (y, state after)`` along every node's path: y and states [B, T, ...]."""
    ys, states = [], []
    for row in range(parents.shape[0]):
        ys.append([])
        states.append([])
        for node, parent in enumerate(parents[row].tolist()):
            y, after = step(row, node, state[row] if parent < 0 else states[row][parent])
            ys[row].append(y)
            states[row].append(after)
    return [torch.stack([torch.stack(row) for row in each]) for each in (ys, states)]


def path_of(parents: Tensor, row: int, node: int) -> list[int]:
    """Nodes from the root down to ``node``."""
    path = [node]
    while (parent := int(parents[row, path[0]])) >= 0:
        path.insert(0, parent)
    return path
