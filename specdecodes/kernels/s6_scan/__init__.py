"""The S6 recurrence: plain torch so far; a faster form is chosen here."""

from specdecodes.kernels.s6_scan.naive import (
    discretize,
    jump_,
    read_states,
    sequence_scan,
    step_,
    tree_states,
    tree_states_by_doubling,
)

__all__ = ["discretize", "jump_", "read_states", "sequence_scan", "step_", "tree_states", "tree_states_by_doubling"]
