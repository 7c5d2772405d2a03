"""What the target thinks of given tokens: its logits along them, and their mean log-perplexity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from specdecodes.core.sampling import LogitsPipeline, SamplingParams
from specdecodes.core.tree import Tree
from specdecodes.models.target import Target

CHUNK = 64
"""Tokens that are scored at once; a chain's mask and scan grow with the square of its length."""


@torch.inference_mode()
def logits_along(target: Target, prompt: Tensor, tokens: Sequence[int]) -> Tensor:
    """The logits that predict each of ``tokens`` after ``prompt``: [n, V] in the target's dtype.

    By prefill, score and commit of chains, so by the very passes of a decode.

    Args:
        target: whose caches are overwritten. prompt: int64 [1, L]. tokens: n >= 1 ids.

    Raises:
        ValueError: more positions than the model allows.
    """
    target.check_room(prompt.shape[0], prompt.shape[1], len(tokens))
    rows = [target.prefill(prompt)]
    for chunk in torch.tensor([tokens[:-1]], dtype=torch.long, device=target.device).split(CHUNK, dim=1):
        if nodes := chunk.shape[1]:
            path = torch.arange(nodes, device=target.device)[None]
            rows.append(target.score(Tree(chunk, path - 1))[0])
            target.commit(path)
    return torch.cat(rows)


def log_perplexity(target: Target, params: SamplingParams, prompt: Tensor, tokens: Sequence[int]) -> float:
    """Mean negative log-likelihood of ``tokens`` after ``prompt`` under the target, in nats per token.

    At the temperature of ``params`` (greedy: 1) and with its repetition penalty. Truncation (top-k, top-p, min-p) is
    left out: at its edge a token that was drawn may fall outside by rounding, and its likelihood would be zero. Modes
    of one law have the same expectation under any likelihood, so that the comparison stands.

    Args:
        target: whose caches are overwritten. params: of the decode. prompt: int64 [1, L]. tokens: n >= 1 ids.
    """
    whole = replace(params, temperature=params.temperature or 1.0, top_k=0, top_p=1.0, min_p=0.0)
    pipeline = LogitsPipeline(whole)
    ids = prompt[0].tolist()
    prefixes = [[*ids, *tokens[:count]] for count in range(len(tokens))] if pipeline.needs_prefix else None
    logp = pipeline(logits_along(target, prompt, tokens).double(), prefixes)
    chosen = torch.tensor(list(tokens), device=logp.device)[:, None]
    return -float(logp.gather(1, chosen).mean())
