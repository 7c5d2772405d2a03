"""Decoders kept for the model that they decode with, so that repeated calls do not make them again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from specdecodes.core.decoder import Decoder

KEPT = 4
"""Decoders kept per model, each with a cache of its own; the one used longest ago goes first."""

_ATTRIBUTE = "_specdecodes_decoders"
_PLAIN = (str, int, float, bool, type(None), torch.dtype)

Settings = Mapping[str, Any]


class DecoderPool:
    """Decoders by their settings.

    It is an attribute of the target: a decoder refers to its model, so that in any mapping outside the two would keep
    each other alive. Copies and pickles of a model start without decoders.

    A decoder is taken out while it is in use. A second call meanwhile (another thread, a stopping criterion that
    generates) therefore gets one of its own, and one that failed half-way does not come back.
    """

    def __init__(self) -> None:
        self.entries: list[tuple[Settings, tuple[object, ...], Decoder]] = []

    def take(self, settings: Settings, weights: tuple[object, ...]) -> Decoder | None:
        """A decoder with these settings and weights, or None.

        Args:
            settings: strings and numbers are compared by value, everything else by identity.
            weights: what :func:`weights_of` says now; decoders of other weights are thrown away.
        """
        self.entries = [entry for entry in self.entries if entry[1] == weights or not _same(entry[0], settings)]
        for index, entry in enumerate(self.entries):
            if _same(entry[0], settings):
                return self.entries.pop(index)[2]
        return None

    def put(self, settings: Settings, weights: tuple[object, ...], decoder: Decoder) -> None:
        """Keep ``decoder`` for the next call."""
        self.entries = [*self.entries, (settings, weights, decoder)][-KEPT:]

    def __deepcopy__(self, memo: dict[int, Any]) -> DecoderPool:
        return DecoderPool()

    def __reduce__(self) -> tuple[type[DecoderPool], tuple[()]]:
        return DecoderPool, ()


def pool_of(model: PreTrainedModel) -> DecoderPool:
    """The decoders kept for ``model``."""
    pool: DecoderPool = model.__dict__.setdefault(_ATTRIBUTE, DecoderPool())
    return pool


def weights_of(models: list[PreTrainedModel]) -> tuple[object, ...]:
    """Changes with every in-place change of a weight, and when weights are moved or cast: decoders hold copies."""
    return tuple(
        (weight.data_ptr(), None if weight.is_inference() else weight._version)
        for model in models
        for weight in model.parameters()
    )


def _same(one: Settings, other: Settings) -> bool:
    return one.keys() == other.keys() and all(
        value is other[name] or (isinstance(value, _PLAIN) and value == other[name]) for name, value in one.items()
    )
