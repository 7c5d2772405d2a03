"""The short convolution of LFM2: a conv window and no state behind it."""

from __future__ import annotations

from specdecodes.models.recurrences.layer import RecurrentLayer


class ShortConvLayer(RecurrentLayer):
    """One mixer: what :class:`RecurrentLayer` does for the conv in front of a scan is all there is."""
