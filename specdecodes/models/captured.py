"""Forwards as CUDA graphs: recorded once for everything that shapes them, replayed with other inputs in their places.

A graph holds addresses and numbers, not names: it reads its inputs where they lay when it was recorded, and a length
that was an int then stays that int for good. So each graph has inputs of its own, into which a call copies what it was
given, and it is kept under a key of all that is baked into it: shapes, dtypes and whatever is no tensor among the
inputs (the pass: what is kept), and where caches and states lie. Another tree of the same size is another
input; another size, length of what attention sees, dtype or cache is another graph.

A run inside a run is part of it: what is captured by itself elsewhere (a forward of a draft) runs as it is there.

Recording runs the forward several times, for real. What it moves in place (a step of plain decoding advances the
states, a commit copies rows of keys and values onto others) is put back afterwards; what a forward writes alike each
time is written again by the replay.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from specdecodes.core.tree import Topology

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


class Leaves:
    """What lies in a nest of tuples, lists, dictionaries and topologies, in a fixed order.

    Attributes:
        tensors: all of them. constants: the places of those that nobody changes, which is what makes up topologies.
        form: shapes and dtypes, what else there is, and how it lies; hashable where that is.
    """

    def __init__(self, nest: Any) -> None:  # noqa: ANN401
        self.tensors: list[Tensor] = []
        self.constants: list[int] = []
        self._form: list[Any] = []
        self._take(nest)
        self.form = tuple(self._form)

    def _take(self, value: Any) -> None:  # noqa: ANN401
        if isinstance(value, Tensor):
            self.tensors.append(value)
            self._form += (value.shape, value.dtype)
        elif isinstance(value, (tuple, list)):
            self._form.append(len(value))
            for each in value:
                self._take(each)
        elif isinstance(value, dict):
            self._form.append(tuple(value))
            for each in value.values():
                self._take(each)
        elif isinstance(value, Topology):
            first = len(self.tensors)
            _, known = _seen(value)
            self.tensors += known.tensors
            self._form.append(known.form)
            self.constants += range(first, len(self.tensors))
        else:
            self._form.append(value)


_of_topologies: WeakKeyDictionary[Topology, tuple[tuple[Any, ...], Leaves]] = WeakKeyDictionary()


def _seen(topology: Topology) -> tuple[tuple[Any, ...], Leaves]:
    """Its parts as they were when it first went into a run, and their leaves; see :meth:`Topology.view`."""
    found = _of_topologies.get(topology)
    if found is None:
        parts = topology.parts()
        found = _of_topologies[topology] = parts, Leaves(parts)
    return found


def rebuilt(nest: Any, tensors: Iterator[Tensor]) -> Any:  # noqa: ANN401
    """``nest`` with other ``tensors`` in place of its own, in the order of :class:`Leaves`."""
    if isinstance(nest, Tensor):
        return next(tensors)
    if isinstance(nest, (tuple, list)):
        parts = [rebuilt(each, tensors) for each in nest]
        return type(nest)(*parts) if hasattr(nest, "_fields") else type(nest)(parts)
    if isinstance(nest, dict):
        return {name: rebuilt(each, tensors) for name, each in nest.items()}
    return Topology.of(*rebuilt(_seen(nest)[0], tensors)) if isinstance(nest, Topology) else nest


class _Graph:
    """One recorded run.

    Args:
        inputs: its own, what they are copied into before it runs, and the places of constants among them.
        outputs: any nest of tensors and numbers, which the next run overwrites. replay: runs it.
    """

    def __init__(self, inputs: Sequence[Tensor], constants: Sequence[int], outputs: Any, replay: Replay) -> None:  # noqa: ANN401
        self.replay = replay
        changing = set(range(len(inputs))).difference(constants)
        self._changing = _by_dtype(inputs, sorted(changing))
        self._constant = _by_dtype(inputs, constants)
        self._last: list[Tensor | None] = [None] * len(inputs)
        self._nest = outputs
        self._outputs = Leaves(outputs).tensors
        self._groups = _by_dtype(self._outputs, range(len(self._outputs)))

    def copy_in(self, given: Sequence[Tensor]) -> None:
        """Let the next run read these."""
        for own, places in self._changing:
            torch._foreach_copy_(own, [given[place] for place in places])
        for own, places in self._constant:
            if any(given[place] is not self._last[place] for place in places):
                torch._foreach_copy_(own, [given[place] for place in places])
                for place in places:
                    self._last[place] = given[place]

    def copies(self) -> Any:  # noqa: ANN401 - as the forward
        """What the last run gave."""
        found = [torch.empty_like(each) for each in self._outputs]
        for own, places in self._groups:
            torch._foreach_copy_([found[place] for place in places], own)
        return rebuilt(self._nest, iter(found))


def _by_dtype(tensors: Sequence[Tensor], places: Iterable[int]) -> list[tuple[list[Tensor], list[int]]]:
    """The ``tensors`` at ``places``, and those; of one dtype each, which are copied in one launch."""
    groups: dict[torch.dtype, tuple[list[Tensor], list[int]]] = {}
    for place in places:
        own, same = groups.setdefault(tensors[place].dtype, ([], []))
        own.append(tensors[place])
        same.append(place)
    return list(groups.values())


class Captured:
    """A forward that is recorded and replayed.

    Args:
        forward: reads what changes from its arguments alone; returns tensors in any nest of tuples.
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

    def __call__(self, *inputs: Any) -> Any:  # noqa: ANN401 - as the forward
        """Run the forward; where it cannot be recorded, it runs as it is.

        What is no tensor among the inputs is part of the key, a pass or a function too.
        """
        if Captured.recording:
            return self._forward(*inputs)
        leaves = Leaves(inputs)
        key = (leaves.form, self._places())
        if key not in self._graphs:
            self._graphs[key] = self._recorded(inputs, leaves)
        graph = self._graphs[key]
        if graph is None:
            return self._forward(*inputs)
        graph.copy_in(leaves.tensors)
        graph.replay()
        return graph.copies()

    def _recorded(self, inputs: tuple[Any, ...], leaves: Leaves) -> _Graph | None:
        own = [each.clone() for each in leaves.tensors]
        before = [each.clone() for each in self._moved()]
        Captured.recording = True
        try:
            outputs, replay = self._record(partial(self._forward, *rebuilt(inputs, iter(own))))
        except RuntimeError as error:
            _log.warning("a step cannot be captured, it runs as it is: %s", " ".join(str(error).split())[:300])
            return None
        finally:
            Captured.recording = False
            for each, old in zip(self._moved(), before, strict=True):
                each.copy_(old)
        return _Graph(own, leaves.constants, outputs, replay)
