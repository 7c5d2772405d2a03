"""See ``on_device``: before anything is imported that makes tensors."""

from __future__ import annotations

import os

from .on_device import DEVICE, OnDevice

if "SPECDECODES_TEST_DEVICE" in os.environ:
    OnDevice(DEVICE).__enter__()
