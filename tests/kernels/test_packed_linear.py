"""Packed weight products against float64."""

from __future__ import annotations

import pytest
import torch

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


def test_a_row_that_is_not_finite_stays_alone() -> None:
    handle = pack(torch.randn(24, 16))
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
