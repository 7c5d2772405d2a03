"""From the host to a device, without waiting for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def sent(values: Any, device: torch.device) -> Tensor:  # noqa: ANN401 - numbers in any nest of lists, or a tensor
    """``values`` (numbers in lists, or a tensor on the CPU) on ``device``.

    ``torch.tensor(values, device=...)`` first waits until a GPU has done all that it was given; out of page-locked
    memory the copy takes its turn on the stream.
    """
    made = values if isinstance(values, Tensor) else torch.tensor(values)
    return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made.to(device)
