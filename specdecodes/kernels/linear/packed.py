"""Weight products of few rows on a CPU, over weights that were packed once: our own kernels, else oneDNN.

Packed weights cannot be traced by ``torch.compile``, so the op takes a handle: an int that a graph holds as a
constant, while what lies behind it may be packed again.
"""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor

from specdecodes.kernels import native

_packed: dict[int, Tensor] = {}
_handles = itertools.count()

native.LIBRARY.define("packed_linear(Tensor x, Tensor? bias, int handle, int out_features) -> Tensor")


def available(dtype: torch.dtype) -> bool:
    """Whether this build and processor have the product in ``dtype`` (float32, bfloat16)."""
    if dtype == torch.float32 and native.library() is not None:
        return True
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


def pack(weight: Tensor, handle: int | None = None, rows: int = 8) -> int:
    """Pack ``weight`` [out, in] for products of about ``rows`` rows (any number works); returns the handle.

    A float32 weight that bfloat16 holds exactly is kept in bfloat16; its products are those of float32 all the same.

    Args:
        handle: replace what lies behind this one; None makes a new one.
    """
    if handle is None:
        handle = next(_handles)
    with torch.no_grad():
        weight = weight.detach()
        library = native.library() if weight.dtype == torch.float32 else None
        if library is None:
            _packed[handle] = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        elif torch.equal(weight, halved := weight.bfloat16()):
            _packed[handle] = _chunks(halved)
        else:
            _packed[handle] = _blocks(weight, library.linear_block())
    return handle


def _blocks(weight: Tensor, block: int) -> Tensor:
    """``weight`` [out, in] as [out / block, in, block], padded with zeros: the kernel reads it front to back."""
    padded = torch.nn.functional.pad(weight, (0, 0, 0, -weight.shape[0] % block))
    return padded.unflatten(0, (-1, block)).mT.contiguous()


def _chunks(weight: Tensor) -> Tensor:
    """``weight`` [out, in] as [out / 48, in / 32, 3, 16, 16, 2] (inputs in pairs innermost), padded with zeros."""
    padded = torch.nn.functional.pad(weight, (0, -weight.shape[1] % 32, 0, -weight.shape[0] % 48))
    return padded.view(padded.shape[0] // 48, 3, 16, -1, 16, 2).permute(0, 3, 1, 4, 2, 5).contiguous()


@functools.cache
def has_tiles() -> bool:
    """Whether the processor multiplies bfloat16 in tile registers (AMX) and this process may use them."""
    library = native.library()
    return library is not None and bool(library.linear_has_tiles())


def unpack(handle: int) -> None:
    """Free what lies behind ``handle``."""
    _packed.pop(handle, None)


def packed_linear(x: Tensor, bias: Tensor | None, handle: int, out_features: int) -> Tensor:
    """``x`` [..., in] times the packed weight, plus ``bias`` [out]: [..., out] in the dtype of ``x``. No gradient."""
    result: Tensor = torch.ops.specdecodes.packed_linear(x, bias, handle, out_features)
    return result


def _multiply(x: Tensor, bias: Tensor | None, handle: int, out_features: int) -> Tensor:
    weight = _packed[handle]
    if weight.is_mkldnn:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return result
    x = x.contiguous()
    y = x.new_empty(*x.shape[:-1], out_features)
    size = (y.numel() // out_features, x.shape[-1], out_features)
    if weight.dtype == torch.bfloat16:
        native.call("linear_half", (x, weight, bias, y), *size, int(has_tiles()))
    else:
        native.call("linear", (x, weight, bias, y), *size)
    return y


native.LIBRARY.impl("packed_linear", _multiply, "CPU")


@torch.library.register_fake("specdecodes::packed_linear", lib=native.LIBRARY)
def _shape(x: Tensor, bias: Tensor | None, handle: int, out_features: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)
