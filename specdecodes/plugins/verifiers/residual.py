"""Rejection sampling against the residual distribution: chains, independent siblings, siblings without replacement."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specdecodes.core.sampling import Rng
from specdecodes.core.tree import Tree
from specdecodes.plugins.verifiers.base import WalkingVerifier


class Residual(WalkingVerifier):
    """Base of the three rules below.

    At a node with target distribution p and draft distribution q, for its children x in draw order:
    accept x with probability min(1, p(x) / q(x)); else p becomes norm(max(p - q, 0)), and without replacement
    q loses x and is renormalised, as it was when the next sibling was drawn. If all are rejected, draw from p.
    """

    lossless = True
    needs_draft_probs = True
    renormalise = False

    def walk(
        self, logp: Tensor, children: Sequence[Sequence[int]], tree: Tree, row: int, rng: Rng
    ) -> tuple[list[int], int]:
        """See the class."""
        assert tree.logq is not None  # declared by needs_draft_probs and checked by load
        tokens = tree.tokens[row].tolist()
        path = [0]
        while True:
            node = path[-1]
            p = logp[node].exp()
            accepted = None
            if children[node]:
                q = tree.logq[row, node].to(p.dtype).exp()
                for child in children[node]:
                    token = tokens[child]
                    if rng.bernoulli(acceptance(float(p[token]), float(q[token]))):
                        accepted = child
                        break
                    p = normalised((p - q).clamp(min=0), p)
                    if self.renormalise:
                        q = without(q, token)
            if accepted is None:
                return path, rng.categorical(p)
            path.append(accepted)


class Rejection(Residual):
    """Speculative sampling on a chain (Leviathan et al. 2023, algorithm 1; Chen et al. 2023).

    ``block`` judges the same chains and accepts at least as many tokens on average; mode ``sd`` keeps this rule, the
    one that its name stands for.
    """

    draws = ("iid", "without_replacement")
    chain_only = True


class MultiStep(Residual):
    """Residual sampling over siblings drawn independently (SpecInfer: Miao et al. 2024, section 4.3)."""

    draws = ("iid",)


class WithoutReplacement(Residual):
    """Residual sampling over siblings drawn without replacement (Sequoia: Chen et al. 2024, algorithm 2).

    ``traversal`` judges the same trees and accepts at least as many tokens on average; modes ``stree`` and ``sequoia``
    keep this rule, the one of their papers made exact.
    """

    draws = ("without_replacement",)
    renormalise = True


def acceptance(p: float, q: float) -> float:
    """min(1, p / q): how probably a token is accepted that was drawn with probability q and is wanted with p."""
    # q = 0 cannot be drawn; a caller's tree that claims it was is judged by the target alone.
    return min(1.0, p / q) if q > 0 else float(p > 0)


def normalised(values: Tensor, fallback: Tensor) -> Tensor:
    """``values`` [V] with sum 1; ``fallback`` where they are all 0."""
    total = values.sum()
    # An empty residual means p == q up to rounding, where a rejection has probability 0.
    return values / total if float(total) > 0 else fallback


def without(q: Tensor, token: int) -> Tensor:
    """The draft distribution ``q`` [V] of the next sibling, once ``token`` has been drawn without replacement."""
    left = q.index_fill(0, torch.tensor([token], device=q.device), 0.0)
    return normalised(left, left)
