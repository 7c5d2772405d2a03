"""What takes the place of another project's module where that is not installed."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from specdecodes.kernels.installed import Kernel


class StandIn:
    """A module of another project with one function, which counts its calls."""

    def __init__(self, kernel: Kernel, function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.function = function
        module = ModuleType(kernel.module)
        setattr(module, kernel.name, self)
        parts = kernel.module.split(".")
        for count in range(1, len(parts)):
            monkeypatch.setitem(sys.modules, ".".join(parts[:count]), ModuleType(parts[count - 1]))
        monkeypatch.setitem(sys.modules, kernel.module, module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.function(*args, **kwargs)
