"""Moving accepted rows of an attention cache in plain torch, against a row at a time from a copy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from specdecodes.kernels import kv_gather

from .paths import numbers

PATHS = [[9], [9, 11, 12], [21, 9, 10, 10, 30], [*range(10, 27)], [*range(30, 9, -1)], [*range(11, 139)]]
"""Where rows come from when they go to 9 and on: into each other, out of order, twice, up to 128 of them."""


def moved(x: Tensor, path: list[int], start: int) -> Tensor:
    """What ``x`` [B, heads, S, dim] must be afterwards."""
    after = x.clone()
    for place, node in enumerate(path, start):
        after[:, :, place] = x[:, :, node]
    return after


@pytest.mark.parametrize("path", PATHS, ids=len)
def test_rows_are_moved_as_if_all_were_read_first(path: list[int]) -> None:
    keys, values = (torch.randn(2, 3, 150, dim, generator=numbers(dim)) for dim in (5, 7))
    expected = [moved(each, path, 9) for each in (keys, values)]
    kv_gather.move_rows_(keys, values, torch.tensor(path), torch.arange(9, 9 + len(path)))
    assert torch.equal(keys, expected[0]) and torch.equal(values, expected[1])
