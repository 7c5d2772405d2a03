"""Whether a mode's greedy answer is the baseline's, and if not, whether rounding explains it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specdecodes.benchmark.records import Mismatch
from specdecodes.benchmark.stats import first_mismatch
from specdecodes.core.sampling import LogitsPipeline, SamplingParams
from specdecodes.models.target import Target

TOLERANCE = 1e-4
"""Logits closer than this may change places in float32; half precision: :func:`tolerance`."""


def tolerance(dtype: torch.dtype, best: float) -> float:
    """How far below the best logit a token may lie and still have won by rounding.

    1e-4 in float32 and float64; in half precision four units in the last place of the best logit (ours: what two
    forwards of different shape differ by on models of a few billion parameters).
    """
    if dtype in (torch.float32, torch.float64):
        return TOLERANCE
    return 4 * torch.finfo(dtype).eps * max(1.0, abs(best))


@torch.inference_mode()
def compare(
    target: Target, params: SamplingParams, prompt: Tensor, baseline: Sequence[int], answer: Sequence[int]
) -> Mismatch | None:
    """None for equal answers; else one prefill of the common prefix tells how close the target's call was.

    Args:
        target: whose caches may be overwritten. prompt: int64 [1, L]. baseline, answer: new token ids.
    """
    position = first_mismatch(baseline, answer)
    if position is None:
        return None
    prefix = torch.tensor([[*prompt[0].tolist(), *baseline[:position]]], device=target.device)
    scores = LogitsPipeline(params)(target.prefill(prefix), prefix.tolist())[0]
    best, second = scores.topk(2).values.tolist()
    tokens = tuple(answer[position] if position < len(answer) else None for answer in (baseline, answer))
    chosen = [best - float(scores[token]) for token in tokens if token is not None]
    return Mismatch(
        position=position,
        tokens=(tokens[0], tokens[1]),
        gap=best - second,
        shortfall=max(chosen) if len(chosen) == 2 else None,
        tolerance=tolerance(target.dtype, best),
    )
