"""Everything that a test makes lies on the device that ``SPECDECODES_TEST_DEVICE`` names, drawn from the same numbers.

For running the tests of the Triton kernels where they are compiled and not interpreted: see ``tests/cuda``.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

DEVICE = torch.device(os.environ.get("SPECDECODES_TEST_DEVICE", "cpu"))


class OnDevice(TorchFunctionMode):
    """Puts what is made without a device onto ``device``; what a generator of the CPU draws is drawn there first."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.makes = _device_constructors()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        drawn = isinstance(kwargs.get("generator"), torch.Generator) and kwargs["generator"].device.type == "cpu"
        if func in self.makes and kwargs.get("device") is None:
            if drawn:
                return func(*args, **{**kwargs, "device": "cpu"}).to(self.device)
            kwargs["device"] = self.device
        elif drawn and args and isinstance(args[0], Tensor):
            made = func(args[0].cpu(), *args[1:], **kwargs)
            return args[0].copy_(made) if func.__name__.endswith("_") else made.to(self.device)
        return func(*args, **kwargs)
