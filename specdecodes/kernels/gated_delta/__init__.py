"""The gated delta rule: plain torch so far; a faster form is chosen here."""

from specdecodes.kernels.gated_delta.naive import (
    CHUNK,
    TreeScan,
    jump_,
    normalize,
    sequence_scan,
    step_,
    tree_scan,
    tree_states,
)

__all__ = ["CHUNK", "TreeScan", "jump_", "normalize", "sequence_scan", "step_", "tree_scan", "tree_states"]
