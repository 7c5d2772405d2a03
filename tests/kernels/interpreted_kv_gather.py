"""The kernel that moves rows of an attention cache, in Triton's interpreter; run like ``interpreted.py``."""

from __future__ import annotations

import pytest
import torch

from specdecodes.kernels import kv_gather
from specdecodes.models.cache import AttentionRows

from .interpreted import BF16, F32
from .test_kv_gather import PATHS, moved
from .test_native import normal


@pytest.mark.parametrize("dims", [(5, 7), (64, 64), (128, 20)], ids=str)
@pytest.mark.parametrize("path", PATHS, ids=len)
def test_rows_are_moved_as_if_all_were_read_first(path: list[int], dims: tuple[int, int]) -> None:
    """Keys and values of different size; what is not moved stays, to the bit."""
    for dtype in (F32, BF16):
        keys, values = (normal(2, 3, 150, dim, seed=dim).to(dtype) for dim in dims)
        expected = [moved(each, path, 9) for each in (keys, values)]
        places = (keys.data_ptr(), values.data_ptr())
        kv_gather.move_rows_(keys, values, torch.tensor(path), torch.arange(9, 9 + len(path)))
        assert torch.equal(keys, expected[0]) and torch.equal(values, expected[1])
        assert places == (keys.data_ptr(), values.data_ptr())


def test_a_cache_moves_its_rows_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_gather.naive, "move_rows_", None)
    rows = AttentionRows(16)
    rows.reserve(16, normal(1, 2, 16, 8), normal(1, 2, 16, 8))
    assert rows.keys is not None
    rows.keys.copy_(normal(1, 2, 16, 8))
    expected = moved(rows.keys, [3, 5], 2)
    rows.move(torch.tensor([3, 5]), torch.tensor([2, 3]))
    assert torch.equal(rows.keys, expected)


def test_longer_paths_are_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_gather, "LONGEST_PATH", 2)
    keys, values = normal(1, 1, 12, 4), normal(1, 1, 12, 4, seed="v")
    expected = moved(keys, [4, 7, 9], 3)
    kv_gather.move_rows_(keys, values, torch.tensor([4, 7, 9]), torch.arange(3, 6))
    assert torch.equal(keys, expected)
