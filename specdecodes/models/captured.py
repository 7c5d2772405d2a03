"""Forwards as CUDA graphs: recorded once for everything that shapes them, replayed with other inputs in their places.

A graph holds addresses and numbers, not names: it reads its inputs where they lay when it was recorded, and a length
that was an int then stays that int for good. So each graph has inputs of its own, into which a call copies what it was
given, and it is kept under a key of all that is baked into it: the pass (what is kept, how many nodes), shapes, dtypes
and whatever is no tensor among the inputs, and where caches and states lie. Another tree of the same size is another
input; another size, length of what attention sees, dtype or cache is another graph.

Recording runs the forward several times, for real. What it moves in place (a step of plain decoding advances the
states, a commit copies rows of keys and values onto others) is put back afterwards; what a forward writes alike each
time is written again by the replay.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from specdecodes.models.passes import CachedPass

WARM_UPS = 2
"""Runs before recording: they compile kernels and make workspaces, neither of which may happen while recording."""

Replay = Callable[[], None]
Recorder = Callable[[Callable[[], Any]], tuple[Any, Replay]]
"""Runs a function of no arguments, records it, and returns its outputs and what runs it again into the same tensors."""

_log = logging.getLogger(__name__)


def recorder_for(device: torch.device, compile: bool) -> Recorder | None:
    """What records the forwards of a target, if they are captured: on CUDA, where ``compile`` is asked for."""
    return record_on_cuda if compile and device.type == "cuda" else None


def record_on_cuda(function: Callable[[], Any]) -> tuple[Any, Replay]:
    """A :data:`Recorder` of CUDA graphs, each with its own memory."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function()
    return outputs, graph.replay


@dataclass
class _Graph:
    """Its own inputs, what they are copied into before it runs; its outputs, which the next run overwrites."""

    inputs: list[Tensor]
    outputs: Any
    replay: Replay


class Captured:
    """A forward that is recorded and replayed.

    Args:
        forward: takes the pass and its inputs; returns tensors in any nest of tuples.
        record: see :data:`Recorder`.
        moved: what the forward may move in place.
        places: where caches and states lie, as numbers.
    """

    def __init__(
        self,
        forward: Callable[..., Any],
        record: Recorder,
        moved: Callable[[], Sequence[Tensor]],
        places: Callable[[], tuple[int, ...]],
    ) -> None:
        self._forward = forward
        self._record = record
        self._moved = moved
        self._places = places
        self._graphs: dict[Any, _Graph | None] = {}

    @property
    def recorded(self) -> int:
        """Graphs so far."""
        return sum(graph is not None for graph in self._graphs.values())

    def __call__(self, current: CachedPass, *inputs: Any) -> Any:  # noqa: ANN401 - as the forward
        """Run the forward; where it cannot be recorded, it runs as it is.

        What is no tensor among the inputs is part of the key, a function too.
        """
        leaves, form = pytree.tree_flatten((inputs, current.tensors()))
        given = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        fixed = tuple(None if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        shapes = tuple((each.shape, each.dtype, each.device) for each in given)
        key = (current, fixed, shapes, self._places())
        if key not in self._graphs:
            self._graphs[key] = self._recorded(current, leaves, form)
        graph = self._graphs[key]
        if graph is None:
            return self._forward(current, *inputs)
        torch._foreach_copy_(graph.inputs, given)
        graph.replay()
        return pytree.tree_map_only(Tensor, torch.clone, graph.outputs)

    def _recorded(self, current: CachedPass, leaves: Sequence[Any], form: pytree.TreeSpec) -> _Graph | None:
        own = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        inputs, tensors = pytree.tree_unflatten(own, form)

        def run() -> Any:  # noqa: ANN401 - as the forward
            current.use(tensors)
            return self._forward(current, *inputs)

        before = [each.clone() for each in self._moved()]
        try:
            outputs, replay = self._record(run)
        except RuntimeError as error:
            _log.warning("a step cannot be captured, it runs as it is: %s", " ".join(str(error).split())[:300])
            return None
        finally:
            for each, old in zip(self._moved(), before, strict=True):
                each.copy_(old)
            current.use(pytree.tree_unflatten(leaves, form)[1])
        return _Graph([leaf for leaf in own if isinstance(leaf, Tensor)], outputs, replay)
