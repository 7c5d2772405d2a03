"""The environment's say in which form of an op runs."""

from __future__ import annotations

import os

SWITCH = "SPECDECODES_KERNELS"
CHOICES = ("auto", "triton", "native", "naive")
"""``auto`` takes the fastest there is; the others force a form, or plain torch where that form does not exist."""


def wanted() -> str:
    """What the switch says.

    Raises:
        ValueError: none of its values.
    """
    value = os.environ.get(SWITCH, "auto")
    if value not in CHOICES:
        raise ValueError(f"{SWITCH}: expected one of {', '.join(CHOICES)}, got {value!r}")
    return value
