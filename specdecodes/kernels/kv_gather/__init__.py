"""Moving accepted rows of an attention cache: chooses between Triton (CUDA) and plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from specdecodes.kernels import choice
from specdecodes.kernels.kv_gather import naive

__all__ = ["LONGEST_PATH", "move_rows_"]

LONGEST_PATH = 512
"""Rows that the Triton form moves at once: it holds them in registers."""


def move_rows_(keys: Tensor, values: Tensor, source: Tensor, target: Tensor) -> None:
    """See :func:`naive.move_rows_`. Compiled graphs would copy around an op in place."""
    served = source.shape[0] <= LONGEST_PATH and choice.serves("triton", keys.device.type, keys.dtype)
    if torch.compiler.is_compiling() or not (served and keys.is_contiguous() and values.is_contiguous()):
        naive.move_rows_(keys, values, source, target)
        return
    from specdecodes.kernels.kv_gather import triton  # where it is chosen, it imports

    triton.move_rows_(keys, values, source, target)
