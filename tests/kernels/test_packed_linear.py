"""Packed weight products against float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from specdecodes.kernels import native
from specdecodes.kernels.linear import packed
from specdecodes.kernels.linear.packed import available, pack, packed_linear, unpack

ROWS = [1, 2, 3, 8, 13, 17, 64, 300]


def _relative_error(got: torch.Tensor, exact: torch.Tensor) -> float:
    return float((got.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 5e-3)])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (96, 33), (320, 1288)])
def test_products_agree_with_float64(dtype: torch.dtype, tolerance: float, rows: int, shape: tuple[int, int]) -> None:
    if not available(dtype):
        pytest.skip(f"this processor has no packed products in {dtype}")
    torch.manual_seed(rows)
    wide, narrow = shape[1], shape[0]
    weight = torch.randn(wide, narrow, dtype=dtype)
    bias = torch.randn(wide, dtype=dtype)
    x = torch.randn(2, rows, narrow, dtype=dtype)
    handle = pack(weight)
    for added in (None, bias):
        got = packed_linear(x, added, handle, wide)
        exact = torch.nn.functional.linear(x.double(), weight.double(), None if added is None else added.double())
        assert got.shape == (2, rows, wide) and got.dtype == dtype
        assert _relative_error(got, exact) < tolerance
    unpack(handle)


NATIVE = pytest.mark.skipif(native.library() is None, reason="no C++ compiler")
WITH_TILES = pytest.param(
    True, marks=pytest.mark.skipif(not packed.has_tiles(), reason="this processor has no tile registers (AMX)")
)
"""Of a test of weights that bfloat16 holds, with and without tile registers."""


def _exact(*shape: int) -> torch.Tensor:
    """Random float32 that bfloat16 holds."""
    return torch.randn(*shape).bfloat16().float()


@NATIVE
@pytest.mark.parametrize("tiles", [False, WITH_TILES])
@pytest.mark.parametrize("rows", [*ROWS, 15, 16, 33])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (31, 48), (32, 49), (96, 33), (320, 1288), (1288, 50)])
def test_weights_that_bfloat16_holds_give_products_of_float32(
    shape: tuple[int, int], rows: int, tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "has_tiles", lambda: tiles)
    torch.manual_seed(rows)
    narrow, wide = shape
    weight, bias, x = _exact(wide, narrow), torch.randn(wide), torch.randn(2, rows, narrow)
    handle = pack(weight)
    assert packed._packed[handle].dtype == torch.bfloat16
    for added in (None, bias):
        exact = torch.nn.functional.linear(x.double(), weight.double(), None if added is None else added.double())
        got = packed_linear(x, added, handle, wide)
        assert got.dtype == torch.float32
        assert _relative_error(got, exact) < 1e-6, "float32's, not bfloat16's of 4e-3"
        for count in (1, 3):  # every row by itself, in whatever company
            alone = packed_linear(x[:, :count].contiguous(), added, handle, wide)
            assert torch.equal(alone, got[:, :count])
    unpack(handle)


@NATIVE
@pytest.mark.parametrize("tiles", [False, WITH_TILES])
def test_every_bit_of_an_input_counts(tiles: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "has_tiles", lambda: tiles)
    handle = pack(torch.eye(40))
    scale = torch.logspace(-30, 30, 40)
    x = torch.randn(5, 40) * scale
    assert torch.equal(packed_linear(x, None, handle, 40), x)
    x[1, 3], x[2, 5] = float("inf"), torch.finfo(torch.float32).max
    got = packed_linear(x, None, handle, 40)
    assert not got[1].isfinite().all() and torch.equal(got[[0, 2, 3, 4]], x[[0, 2, 3, 4]])
    unpack(handle)


@NATIVE
def test_a_weight_that_bfloat16_does_not_hold_keeps_its_bits() -> None:
    weight = torch.eye(3)
    weight[1, 1] = 1 + 2**-20
    handle = pack(weight)
    assert packed._packed[handle].dtype == torch.float32
    assert torch.equal(packed_linear(torch.ones(1, 3), None, handle, 3)[0], weight.diagonal())
    unpack(handle)


@pytest.mark.parametrize("tiles", [False, WITH_TILES])
@pytest.mark.parametrize("make", [torch.randn, _exact])
def test_a_row_that_is_not_finite_stays_alone(
    make: Callable[..., torch.Tensor], tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "has_tiles", lambda: tiles)
    handle = pack(make(24, 16))
    x = torch.randn(1, 5, 16)
    x[0, 3] = float("nan")
    finite = packed_linear(x, None, handle, 24).isfinite().all(-1)
    assert finite.tolist() == [[True, True, True, False, True]]
    unpack(handle)


def test_packing_again_keeps_the_handle() -> None:
    x = torch.randn(1, 4, 8)
    handle = pack(torch.randn(6, 8))
    weight = torch.randn(6, 8)
    assert pack(weight, handle) == handle
    torch.testing.assert_close(packed_linear(x, None, handle, 6), x @ weight.T)
    unpack(handle)
    with pytest.raises(KeyError):
        packed_linear(x, None, handle, 6)


def test_the_op_is_traced_with_its_shape() -> None:
    weight = torch.randn(6, 8)
    handle = pack(weight)
    compiled = torch.compile(lambda x: packed_linear(x, None, handle, 6) + 1, fullgraph=True, backend="aot_eager")
    x = torch.randn(1, 3, 8)
    torch.testing.assert_close(compiled(x), x @ weight.T + 1)
    unpack(handle)
