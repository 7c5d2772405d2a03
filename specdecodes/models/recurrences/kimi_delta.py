"""Kimi delta attention (Kimi-Linear): the gated delta rule with a decay per key channel."""

from __future__ import annotations

from typing import ClassVar

from specdecodes.kernels.gated_delta import TreeScan
from specdecodes.kernels.installed import KIMI_DELTA, Kernel
from specdecodes.kernels.kimi_delta import CHUNK, tree_scan
from specdecodes.models.recurrences.gated_delta import GatedDeltaLayer


class KimiDeltaLayer(GatedDeltaLayer):
    """One mixer; the state is [B, H, K, V]."""

    scan: ClassVar[TreeScan] = staticmethod(tree_scan)
    chunk: ClassVar[int] = CHUNK
    installed: ClassVar[Kernel] = KIMI_DELTA
