"""Let a pass serve the weight products of a stock model, as it serves the ops of recurrent mixers."""

from __future__ import annotations

import weakref

from torch import Tensor, nn

from specdecodes.kernels.linear.packed import available, pack, unpack
from specdecodes.models import interpose

PACK_LIMIT = 2 << 30
"""Bytes of weights up to which a copy of them is worth its memory."""


class PackedLinear(nn.Linear):
    """A linear layer that a pass under way may serve from a packed copy of its weight, found by ``handle``.

    Parameters, state dict and results outside a pass are those of :class:`torch.nn.Linear`, whose place it takes.
    """

    handle: int

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        current = interpose.under_way()
        serve = getattr(current, "linear", None)
        return super().forward(input) if serve is None else serve(self, input)


class PackedProducts:
    """The packed copies of a model's linear layers.

    There are none unless the model is on a CPU whose oneDNN has its dtype, and its linear weights take at most
    :data:`PACK_LIMIT` bytes.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = [each for each in model.modules() if isinstance(each, nn.Linear) and _plain(each)]
        fits = sum(layer.weight.nbytes for layer in layers) <= PACK_LIMIT
        self.layers = layers if fits else []
        self.refresh()

    def refresh(self) -> None:
        """Pack what was never packed or has changed since; 15 us for 35 layers of which none has."""
        for layer in self.layers:
            _refresh(layer)


_sources: weakref.WeakKeyDictionary[nn.Module, tuple[object, ...]] = weakref.WeakKeyDictionary()
"""What the copy of a layer was made from. Not an attribute: a deep copy of the layer must not share the handle."""


def _plain(layer: nn.Linear) -> bool:
    """Whether it is no more than :class:`torch.nn.Linear`; adapters and quantised layers have classes of their own."""
    return type(layer) in (nn.Linear, PackedLinear)


def _refresh(layer: nn.Linear) -> None:
    weight = layer.weight
    version = None if weight.is_inference() else weight._version
    source = (weight.data_ptr(), version, weight.dtype, weight.device)
    known = _sources.get(layer)
    if known == source:
        return
    if weight.device.type != "cpu" or not available(weight.dtype):
        layer.__class__ = nn.Linear
    elif known is not None and isinstance(layer, PackedLinear):
        pack(weight, layer.handle)
    else:
        layer.__class__ = PackedLinear
        assert isinstance(layer, PackedLinear)
        layer.handle = pack(weight)
        weakref.finalize(layer, unpack, layer.handle)
    _sources[layer] = source
