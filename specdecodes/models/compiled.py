"""Forwards through ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

GRAPHS = 64
"""Graphs of one forward at least: one per tree size."""


def compiled(method: Callable[..., Any]) -> Callable[..., Any]:
    """A bound method, compiled: one graph for all calls whose tensors have the same sizes.

    Dynamo keeps graphs by code object and finds the right one by guards: on every module and weight of the model, half
    a millisecond a step. With a code object of its own all Python objects are always the same ones.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    function = method.__func__  # type: ignore[attr-defined]
    own = FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
    return torch.compile(
        MethodType(own, method.__self__),  # type: ignore[attr-defined]
        dynamic=False,
        fullgraph=True,
        options={"guard_filter_fn": _guards_on_tensors},
    )


def _guards_on_tensors(entries: Sequence[Any]) -> list[bool]:
    """Keep what can change from call to call: activations and caches, which of them are one tensor, sizes, modes."""
    kinds = ("DUPLICATE_INPUT", "SHAPE_ENV", "GLOBAL_STATE", "GRAD_MODE")
    return [
        entry.guard_type in kinds or (entry.guard_type == "TENSOR_MATCH" and not isinstance(entry.value, nn.Parameter))
        for entry in entries
    ]
