"""What ``SPECDECODES_TRACE_HOOKS=1`` switches on: a line in the log for every call of a hook."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pluggy

logger = logging.getLogger("specdecodes")


def trace(manager: pluggy.PluginManager) -> None:
    """Log every hook call of ``manager`` with its duration (``SPECDECODES_TRACE_HOOKS=1``)."""
    started: list[float] = []

    def before(name: str, methods: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        started.append(time.perf_counter())

    def after(outcome: Any, name: str, methods: Sequence[Any], kwargs: Mapping[str, Any]) -> None:  # noqa: ANN401
        elapsed = (time.perf_counter() - started.pop()) * 1e3
        callees = ", ".join(method.plugin_name for method in reversed(methods)) or "nobody"
        logger.warning("hook %s -> %s: %.3f ms", name, callees, elapsed)

    manager.add_hookcall_monitoring(before, after)
