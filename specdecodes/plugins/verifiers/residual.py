"""Rejection sampling against the residual distribution: chains, independent siblings, siblings without replacement."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specdecodes.core.sampling import Rng
from specdecodes.core.tree import Tree, Verdict
from specdecodes.plugins.verifiers.base import WalkingVerifier, chosen, first_of_siblings, followed


class Residual(WalkingVerifier):
    """Base of the three rules below.

    At a node with target distribution p and draft distribution q, for its children x in draw order:
    accept x with probability min(1, p(x) / q(x)); else p becomes norm(max(p - q, 0)), and without replacement
    q loses x and is renormalised, as it was when the next sibling was drawn. If all are rejected, draw from p.
    """

    lossless = True
    needs_draft_probs = True
    capturable = True
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

    def noise(self, rng: Rng, shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, ...]:
        """For a decision about every node, and a draw after it."""
        return rng.uniform(shape[:2]), rng.noise(shape, dtype)

    def judge(self, logp: Tensor, tree: Tree, *noise: Tensor) -> Verdict:
        """See the base; every node is decided about, whether it is reached or not."""
        uniform, exponential = noise
        chances, rest = self.chances(logp, tree)
        return followed(tree, first_of_siblings(tree, uniform < chances), chosen(rest, exponential))

    def chances(self, logp: Tensor, tree: Tree) -> tuple[Tensor, Tensor]:
        """The rule at all nodes at once, from tensors alone.

        Returns:
            How probably each node is accepted once its parent is and its earlier siblings are not [B, T] (the root's
            means nothing); what is left of p after all children of each node have been rejected [B, T, V].
        """
        assert tree.logq is not None
        p = logp.exp()
        q = tree.logq.to(p.dtype).exp()
        chances = torch.zeros_like(p[..., 0])
        for child in tree.structure.children.unbind(-1):
            there = child >= 0 if tree.num_nodes is None else (child >= 0) & (child < tree.num_nodes[:, None])
            node = torch.where(there, child, 0)  # no node has the root as its child
            token = tree.tokens.gather(1, node)[..., None]
            at_p, at_q = p.gather(-1, token), q.gather(-1, token)
            chance = torch.where(at_q > 0, (at_p / at_q).clamp(max=1.0), (at_p > 0).to(p.dtype))
            chances = chances.scatter(1, node, chance[..., 0])
            p = torch.where(there[..., None], _normalised((p - q).clamp(min=0), p), p)
            if self.renormalise:
                left = q.scatter(-1, token, 0.0)
                q = torch.where(there[..., None], _normalised(left, left), q)
        return chances, p


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


def _normalised(values: Tensor, fallback: Tensor) -> Tensor:
    """:func:`normalised` of [B, T, V], which reads nothing."""
    total = values.sum(-1, keepdim=True)
    return torch.where(total > 0, values / total, fallback)


def without(q: Tensor, token: int) -> Tensor:
    """The draft distribution ``q`` [V] of the next sibling, once ``token`` has been drawn without replacement."""
    left = q.index_fill(0, torch.tensor([token], device=q.device), 0.0)
    return normalised(left, left)
