"""Prefill through other projects' kernels where they are installed; ours serve where one is missing or refuses.

They serve sequences, which is what they were made for; trees, steps and jumps are ours. Nothing here is needed: the
extra ``cuda`` installs causal-conv1d and flash-attn; mamba-ssm and flash-linear-attention are used where somebody has
them.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from specdecodes.kernels.choice import Choice
from specdecodes.kernels.switch import SWITCH, wanted

HALVES = (torch.bfloat16, torch.float16)

_log = logging.getLogger(__name__)


@dataclass
class Kernel:
    """A function of another project.

    Attributes:
        project: its name on PyPI. module, name: where the function is.
        dtypes: those in which it is as exact as ours; products of float32 go through TF32 in the others' scans.
        otherwise: what serves instead.
        refused: why it is not called any more, once a call has failed.
    """

    project: str
    module: str
    name: str
    dtypes: tuple[torch.dtype, ...] = HALVES
    otherwise: str = "plain torch"
    refused: str | None = field(default=None, init=False)

    @cached_property
    def _found(self) -> Callable[..., Any] | str:
        """The function, or why there is none."""
        try:
            function: Callable[..., Any] = getattr(importlib.import_module(self.module), self.name)
        except ModuleNotFoundError as error:
            return f"{self.project} is not installed" if self.module.startswith(str(error.name)) else str(error)
        except (ImportError, AttributeError, OSError, RuntimeError) as error:
            return f"{self.project} does not import: {' '.join(str(error).split())}"
        return function

    def decide(self, device: str, dtype: torch.dtype) -> Choice:
        """Whether it serves sequences on a device type in a dtype, and why."""
        if wanted() == "naive":
            return Choice("naive", f"{SWITCH}=naive")
        if device != "cuda":
            return Choice("naive", f"{self.otherwise}; {self.project} is for CUDA")
        if dtype not in self.dtypes:
            name = str(dtype).removeprefix("torch.")
            return Choice("naive", f"{self.otherwise}; {self.project} is less exact in {name}")
        why = self.refused or (self._found if isinstance(self._found, str) else None)
        if why is not None:
            return Choice("naive", f"{self.otherwise}: {why}")
        return Choice(self.project, f"{self.module}.{self.name}")

    def serves(self, device: str, dtype: torch.dtype) -> bool:
        """Whether to call it: see :meth:`decide`; never where a gradient is wanted, which ours give."""
        return not torch.is_grad_enabled() and self.decide(device, dtype).form == self.project

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the function's own
        """What the function answers, or None where it refuses: then, and from now on, ours serve."""
        assert not isinstance(self._found, str)
        try:
            return self._found(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - whatever a version of another project may raise
            self.refused = f"{self.project} refused: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            _log.info("%s", self.refused)
            return None


CONV = Kernel("causal-conv1d", "causal_conv1d", "causal_conv1d_fn", (torch.float32, *HALVES))
MAMBA2 = Kernel("mamba-ssm", "mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined")
GATED_DELTA = Kernel("flash-linear-attention", "fla.ops.gated_delta_rule", "chunk_gated_delta_rule")
KIMI_DELTA = Kernel("flash-linear-attention", "fla.ops.kda", "chunk_kda")
ATTENTION = Kernel("flash-attn", "flash_attn", "flash_attn_func", otherwise="transformers' sdpa or eager")
