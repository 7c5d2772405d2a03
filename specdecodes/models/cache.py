"""The cache that stock models are given: it stores, and the pass under way decides what an update means."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from specdecodes.kernels.kv_gather import move_rows_
from specdecodes.models.recurrences.layer import RecurrentLayer

if TYPE_CHECKING:
    from specdecodes.models.passes import CachedPass

GROWTH = 256
"""A growing cache allocates in multiples of this many positions."""
_PLACES = itertools.count(1)


class AttentionRows:
    """Keys and values of one attention layer, [B, heads, capacity, head dim]; positions are the caller's business.

    Args:
        capacity: positions allocated at once and for good (a static cache); None grows by doubling (a dynamic one).
    """

    def __init__(self, capacity: int | None) -> None:
        self.fixed = capacity
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.place = 0

    def hold(self, keys: Tensor, values: Tensor) -> None:
        """Take over buffers; ``place`` is a number that only these have."""
        self.keys, self.values = keys, values
        self.place = next(_PLACES)

    def reserve(self, length: int, like: Tensor | None = None, like_values: Tensor | None = None) -> None:
        """Make room for ``length`` positions."""
        if self.keys is None:
            if like is None or like_values is None:
                return
            size = self.fixed or _grown(length)
            shapes = [(*each.shape[:2], size, each.shape[3]) for each in (like, like_values)]
            self.hold(like.new_zeros(shapes[0]), like_values.new_zeros(shapes[1]))
        elif self.keys.shape[2] < length and self.fixed is None:
            extra = _grown(max(length, 2 * self.keys.shape[2])) - self.keys.shape[2]
            assert self.values is not None
            self.hold(*(torch.nn.functional.pad(each, (0, 0, 0, extra)) for each in (self.keys, self.values)))

    def write(self, positions: Tensor, keys: Tensor, values: Tensor, visible: int | None) -> tuple[Tensor, Tensor]:
        """Write rows [B, heads, n, head dim] at ``positions`` [n]; returns the first ``visible`` positions, or all."""
        assert self.keys is not None and self.values is not None
        self.keys.index_copy_(2, positions, keys)
        self.values.index_copy_(2, positions, values)
        return self.keys[:, :, :visible], self.values[:, :, :visible]

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy the rows at ``source`` [k] (any order) to the positions ``target`` [k]."""
        assert self.keys is not None and self.values is not None
        move_rows_(self.keys, self.values, source, target)

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return 0 if self.keys is None or self.values is None else self.keys.nbytes + self.values.nbytes


def _grown(length: int) -> int:
    return -(-length // GROWTH) * GROWTH


class TreeCache(Cache):
    """A transformers Cache without a will of its own.

    ``has_previous_state`` is always False: a stock mixer then takes one and the same path for prefill, steps and
    trees (conv op, then scan op, with raw step sizes), and the pass supplies state and window itself. Attention and
    recurrent parts of one layer (Falcon-H1, Zamba2) live side by side.
    """

    def __init__(self, capacity: int | None = None, recurrence: type[RecurrentLayer] = RecurrentLayer) -> None:
        super().__init__(layers=[])
        self.capacity = capacity
        self.recurrence = recurrence
        self.attention: dict[int, AttentionRows] = {}
        self.recurrent: dict[int, RecurrentLayer] = {}
        self.length = 0
        self.serving: CachedPass | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Called by attention layers: [B, heads, n, head dim]."""
        assert self.serving is not None
        return self.serving.attend(layer_idx, key_states, value_states)

    def update_conv_state(self, conv_states: Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any) -> Tensor:
        """Called by recurrent mixers with raw conv inputs [B, C, n] just before the conv op."""
        assert self.serving is not None
        self.serving.enter(layer_idx)
        return conv_states

    def update_recurrent_state(
        self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any
    ) -> Tensor:
        """Called after the scan op; the pass has moved the state already, if it moves at all."""
        return recurrent_states

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        """See the class."""
        return False

    # transformers 5.24 and later ask for these instead of ``has_previous_state`` and the layers' ``record_past``.

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """See the class."""
        return None

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """See the class."""
        return None

    def is_recording_past(self, layer_idx: int) -> bool:
        """Unreachable while there is no state; a stock mixer may ask all the same."""
        return False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Committed tokens."""
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """(key length, offset): everything committed and the query itself."""
        return self.length + query_length, 0

    def attention_rows(self, layer_idx: int) -> AttentionRows:
        """The rows of a layer, made on first use."""
        if layer_idx not in self.attention:
            self.attention[layer_idx] = AttentionRows(self.capacity)
        return self.attention[layer_idx]

    def recurrent_layer(self, layer_idx: int) -> RecurrentLayer:
        """The recurrent part of a layer, made on first use."""
        if layer_idx not in self.recurrent:
            self.recurrent[layer_idx] = self.recurrence(layer_idx)
        return self.recurrent[layer_idx]

    def reset(self) -> None:
        """Back to the empty prefix; buffers are kept."""
        self.length = 0
        for layer in self.recurrent.values():
            layer.reset()
