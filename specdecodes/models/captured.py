"""Forwards as CUDA graphs: recorded once for everything that shapes them, replayed with other inputs in their places.

A graph holds addresses and numbers, not names: it reads its inputs where they lay when it was recorded, and a length
that was an int then stays that int for good. So each graph has inputs of its own, into which a call copies what it was
given, and it is kept under a key of all that is baked into it: the pass (what is kept, how many nodes), shapes, dtypes
and whatever is no tensor among the inputs, and where caches and states lie. Another tree of the same size is another
input; another size, length of what attention sees, dtype or cache is another graph.

A run inside a run is part of it: what is captured by itself elsewhere (a forward of a draft) runs as it is there.

Recording runs the forward several times, for real. What it moves in place (a step of plain decoding advances the
states, a commit copies rows of keys and values onto others) is put back afterwards; what a forward writes alike each
time is written again by the replay.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

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


class _Graph:
    """One recorded run.

    Args:
        inputs: its own, what they are copied into before it runs. outputs: any nest of tensors and numbers, which the
            next run overwrites. replay: runs it.
    """

    def __init__(self, inputs: Sequence[Tensor], outputs: Any, replay: Replay) -> None:  # noqa: ANN401
        self.replay = replay
        self._inputs = _by_dtype(inputs)
        self._leaves, self._form = pytree.tree_flatten(outputs)
        self._outputs = _by_dtype(self._leaves)

    def copy_in(self, given: Sequence[Tensor]) -> None:
        """Let the next run read these."""
        for own, places in self._inputs:
            torch._foreach_copy_(own, [given[place] for place in places])

    def copies(self) -> Any:  # noqa: ANN401 - as the forward
        """What the last run gave."""
        leaves = list(self._leaves)
        for own, places in self._outputs:
            new = [torch.empty_like(each) for each in own]
            torch._foreach_copy_(new, own)
            for place, each in zip(places, new, strict=True):
                leaves[place] = each
        return pytree.tree_unflatten(leaves, self._form)


def _by_dtype(leaves: Sequence[Any]) -> list[tuple[list[Tensor], list[int]]]:
    """The tensors among ``leaves`` and their places; those of one dtype are copied in one launch."""
    groups: dict[torch.dtype, tuple[list[Tensor], list[int]]] = {}
    for place, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            own, places = groups.setdefault(leaf.dtype, ([], []))
            own.append(leaf)
            places.append(place)
    return list(groups.values())


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

    recording: ClassVar[bool] = False
    """Whether any of them is recording now."""

    @property
    def recorded(self) -> int:
        """Graphs so far."""
        return sum(graph is not None for graph in self._graphs.values())

    def __call__(self, current: CachedPass, *inputs: Any) -> Any:  # noqa: ANN401 - as the forward
        """Run the forward; where it cannot be recorded, it runs as it is.

        What is no tensor among the inputs is part of the key, a function too.
        """
        if Captured.recording:
            return self._forward(current, *inputs)
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
        graph.copy_in(given)
        graph.replay()
        return graph.copies()

    def _recorded(self, current: CachedPass, leaves: Sequence[Any], form: pytree.TreeSpec) -> _Graph | None:
        own = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        inputs, tensors = pytree.tree_unflatten(own, form)

        def run() -> Any:  # noqa: ANN401 - as the forward
            current.use(tensors)
            return self._forward(current, *inputs)

        before = [each.clone() for each in self._moved()]
        Captured.recording = True
        try:
            outputs, replay = self._record(run)
        except RuntimeError as error:
            _log.warning("a step cannot be captured, it runs as it is: %s", " ".join(str(error).split())[:300])
            return None
        finally:
            Captured.recording = False
            for each, old in zip(self._moved(), before, strict=True):
                each.copy_(old)
            current.use(pytree.tree_unflatten(leaves, form)[1])
        return _Graph([leaf for leaf in own if isinstance(leaf, Tensor)], outputs, replay)
