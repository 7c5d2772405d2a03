"""Rebind the ops that transformers' recurrent mixers call, so that a pass of ours can serve them.

Since transformers 5.15 every recurrent mixer calls module-level functions for its convolution and its
scan. :func:`install` replaces those names, process-wide and once per modeling file, by dispatchers that
hand the call to the pass under way in this thread and fall through to the stock function when there is
none, or when it does not serve the op. So is transformers' sdpa, which we serve on a GPU only: for trees, and for
sequences where flash-attn is installed.
Projections, norms, multipliers, experts and all other attention stay stock code.

The pass travels in a ``threading.local``: ``torch.compile`` traces an attribute of it, and cannot trace
a ``contextvars.ContextVar``.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Protocol

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from specdecodes.models.families import RefusedError


class Pass(Protocol):
    """What serves the rebound ops during one forward: a method per op, named after it; what it lacks stays stock.

    ``linear(layer, x)`` serves the weight products of packed layers (see ``models/products.py``), ``sdpa_attention``
    transformers' attention function of that name.
    """

    def causal_conv1d_fn(self, *args: Any, **kwargs: Any) -> Tensor:
        """Convolve [B, C, T]."""


_CONV = ("hidden_states", "weight", "bias", "activation")
_STATE_UPDATE = ("state", "hidden_states", "dt", "A", "B", "C", "D", "dt_bias", "dt_softplus", "z")
_DELTA = ("query", "key", "value", "g", "beta")
_DELTA_MORE = ("initial_state", "output_final_state", "use_qk_l2norm_in_kernel")

OPS: dict[str, tuple[str, ...]] = {
    "causal_conv1d_fn": _CONV,
    "causal_conv1d_update": ("hidden_states", "conv_state", *_CONV[1:]),
    "mamba2_chunk_scan": (
        *("hidden_states", "dt", "A", "B", "C", "chunk_size", "D", "dt_bias", "initial_states"),
        *("dt_softplus", "dt_limit", "return_final_states"),
    ),
    "mamba2_selective_state_update": _STATE_UPDATE,
    "mamba_selective_scan": (
        *("hidden_states", "dt", "A", "B", "C", "D", "z", "delta_bias", "delta_softplus"),
        *("return_last_state", "use_mambapy", "use_associative_scan"),
    ),
    "mamba_selective_state_update": _STATE_UPDATE,
    "torch_chunk_gated_delta_rule": (*_DELTA, "chunk_size", *_DELTA_MORE),
    "torch_recurrent_gated_delta_rule": (*_DELTA, *_DELTA_MORE),
    "chunk_kimi_delta_attention": (*_DELTA, "chunk_size", *_DELTA_MORE),
    "recurrent_kimi_delta_attention": (*_DELTA, *_DELTA_MORE),
}
"""The ops we serve and their parameters in order; a parameter that we do not know might change the result."""


class _Active(threading.local):
    current: Pass | None = None


_active = _Active()
_rebound: dict[str, set[str]] = {}


def under_way() -> Pass | None:
    """The pass that serves this thread, if any."""
    return _active.current


@contextmanager
def serving(current: Pass) -> Iterator[None]:
    """Serve the rebound ops of this thread with ``current`` for the length of the block."""
    before = _active.current
    _active.current = current
    try:
        yield
    finally:
        _active.current = before


def modeling_modules(model: nn.Module) -> list[ModuleType]:
    """The modeling files that the submodules of ``model`` come from, in order of first use."""
    names = dict.fromkeys(type(module).__module__ for module in model.modules())
    return [sys.modules[name] for name in names if name in sys.modules]


ATTENTION = "sdpa"
"""The one attention function of transformers that a pass may serve, as its method ``sdpa_attention``."""


def install(model: nn.Module) -> set[str]:
    """Rebind the ops of all modeling files behind ``model``, and sdpa; returns the names of the ops found there.

    Raises:
        RefusedError: an op's signature is not the one we know, or a recurrent mixer calls none of our ops (a version of
            transformers that we have not seen).
    """
    _check_present(model)
    if not _rebound.setdefault(ATTENTION, set()):
        _rebound[ATTENTION].add(ATTENTION)
        ALL_ATTENTION_FUNCTIONS[ATTENTION] = _dispatcher("sdpa_attention", ALL_ATTENTION_FUNCTIONS[ATTENTION])
    found: set[str] = set()
    for module in modeling_modules(model):
        done = _rebound.setdefault(module.__name__, set())
        for name, expected in OPS.items():
            stock = getattr(module, name, None)
            if not callable(stock):
                continue
            found.add(name)
            if name in done:
                continue
            _check_signature(f"{module.__name__}.{name}", stock, expected)
            setattr(module, name, _dispatcher(name, stock))
            done.add(name)
    return found


def _check_signature(name: str, stock: Callable[..., Any], expected: Sequence[str]) -> None:
    """Refuse an op that does not take exactly the parameters ``expected``, in this order (``**kwargs`` beside them)."""
    every = inspect.signature(stock).parameters.values()
    found = [p.name for p in every if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if found == list(expected):
        return
    missing, unknown = [p for p in expected if p not in found], [p for p in found if p not in expected]
    notes = [f"no {', '.join(missing)}"] * bool(missing) + [f"unknown {', '.join(unknown)}"] * bool(unknown)
    raise RefusedError(
        f"{name}: expected parameters {', '.join(expected)}, got {', '.join(found)} "
        f"({'; '.join(notes) or 'another order'}); this transformers version is not supported"
    )


def _check_present(model: nn.Module) -> None:
    """Refuse a recurrent mixer whose modeling file has no scan of ours: it would keep its state from us."""
    scans = [name for name in OPS if "conv" not in name]
    for module in model.modules():
        file = sys.modules.get(type(module).__module__)
        if hasattr(module, "A_log") and not any(callable(getattr(file, name, None)) for name in scans):
            raise RefusedError(
                f"{type(module).__module__}: expected a scan that {type(module).__name__} calls ({', '.join(scans)}), "
                "got none of them; this transformers version is not supported"
            )


def _dispatcher(name: str, stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)  # keeps inspect.signature truthful
    def dispatch(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the op's own signature
        serve = getattr(_active.current, name, stock)
        return serve(*args, **kwargs)

    return dispatch
