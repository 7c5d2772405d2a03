"""One adapter per recurrence; which one a model needs follows from the scan op that its modeling file calls."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from specdecodes.models.recurrences.gated_delta import GatedDeltaLayer, GatedDeltaStack
from specdecodes.models.recurrences.kimi_delta import KimiDeltaLayer
from specdecodes.models.recurrences.layer import RecurrentLayer
from specdecodes.models.recurrences.mamba2 import Mamba2Layer, Mamba2Stack
from specdecodes.models.recurrences.s6 import S6Layer, S6Stack
from specdecodes.models.recurrences.short_conv import ShortConvLayer
from specdecodes.models.recurrences.stack import RecurrentStack


@dataclass(frozen=True)
class Recurrence:
    """An adapter.

    Attributes:
        layer: one mixer. stack: mixers of one shape.
    """

    layer: type[RecurrentLayer]
    stack: type[RecurrentStack]


CONV = "causal_conv1d_fn"
"""The op of the conv that every recurrent mixer starts with."""
SHORT_CONV = Recurrence(ShortConvLayer, RecurrentStack)
"""For modeling files that call the conv and no scan."""

SCANS: dict[str, Recurrence] = {
    "mamba2_chunk_scan": Recurrence(Mamba2Layer, Mamba2Stack),
    "mamba_selective_scan": Recurrence(S6Layer, S6Stack),
    "torch_chunk_gated_delta_rule": Recurrence(GatedDeltaLayer, GatedDeltaStack),
    "chunk_kimi_delta_attention": Recurrence(KimiDeltaLayer, GatedDeltaStack),
}
"""The stock op that scans a sequence, and who serves it."""
STEPS = (
    "causal_conv1d_update",
    "mamba2_selective_state_update",
    "mamba_selective_state_update",
    "torch_recurrent_gated_delta_rule",
    "recurrent_kimi_delta_attention",
)
"""Stock ops of one-token steps."""


def recurrence_of(ops: Collection[str]) -> Recurrence | None:
    """The adapter of a model whose modeling files call ``ops``; None if it has no recurrent layer.

    Raises:
        ValueError: more than one kind of scan in one model.
    """
    found = [name for name in SCANS if name in ops]
    if len(found) > 1:
        raise ValueError(f"model: expected one kind of recurrence, got {', '.join(found)}; this model is not supported")
    if found:
        return SCANS[found[0]]
    return SHORT_CONV if CONV in ops else None
