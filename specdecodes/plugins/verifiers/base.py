"""What every verifier shares: score the tree, process the logits, accept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specdecodes.core.sampling import Rng
from specdecodes.core.tree import Tree, Verdict
from specdecodes.hookspecs import hookimpl

if TYPE_CHECKING:
    from specdecodes.core.state import DecodeState


class Verifier:
    """Base class; a subclass supplies :meth:`accept` and declares what it is.

    Attributes:
        lossless: the emitted tokens are distributed as the target's own.
        serves: ``greedy`` (temperature 0, scores come unnormalised) and/or ``sampling``.
        draws: the ways of coming by children that it can judge, best first (see ``Tree.draws``).
        chain_only: no node may have siblings. needs_draft_probs: the tree must carry ``logq``.
    """

    lossless = False
    serves: tuple[str, ...] = ("sampling",)
    draws: tuple[str, ...] = ("none", "iid", "without_replacement")
    chain_only = False
    needs_draft_probs = False
    capturable = False

    def __init__(self, context: object = None) -> None:
        pass

    @hookimpl
    def verify(self, state: DecodeState, tree: Tree) -> Verdict:
        """One forward of the target over the tree, its logits processed like the draft's, then the rule."""
        logp = state.process(state.target.score(tree), tree)
        return self.accept(logp, tree, state.rng)

    def accept(self, logp: Tensor, tree: Tree, rng: Rng) -> Verdict:
        """Apply the rule.

        Args:
            logp: the target's log-probabilities after each node [B, T, V] (greedy: scores, not normalised).
            tree: what was drafted. rng: ``bernoulli`` and ``categorical`` are the only randomness.
        """
        raise NotImplementedError


class WalkingVerifier(Verifier):
    """A rule that walks down from the root, row by row: :meth:`walk` says which child it enters and how it ends."""

    def accept(self, logp: Tensor, tree: Tree, rng: Rng) -> Verdict:
        """See the base; the walk is on the host."""
        paths, bonuses = [], []
        for row in range(tree.shape[0]):
            path, bonus = self.walk(logp[row], children_of(tree, row), tree, row, rng)
            paths.append(path)
            bonuses.append(bonus)
        return verdict_of(paths, bonuses, tree)

    def walk(
        self, logp: Tensor, children: Sequence[Sequence[int]], tree: Tree, row: int, rng: Rng
    ) -> tuple[list[int], int]:
        """Walk one row: ``logp`` [T, V], ``children`` per node in draw order; returns (path from the root, bonus)."""
        raise NotImplementedError


def children_of(tree: Tree, row: int) -> list[list[int]]:
    """The children of every node of a row, in draw order, padding left out."""
    parents = tree.parents[row].tolist()
    count = len(parents) if tree.num_nodes is None else int(tree.num_nodes[row])
    children: list[list[int]] = [[] for _ in parents]
    for node in range(1, count):
        children[parents[node]].append(node)
    return children


def verdict_of(paths: Sequence[Sequence[int]], bonuses: Sequence[int], tree: Tree) -> Verdict:
    """Pack the walks of all rows, padded to the tree's deepest path."""
    width = max(int(tree.structure.paths.shape[-1]), *(len(path) for path in paths))
    device = tree.tokens.device
    padded = [[*path, *([-1] * (width - len(path)))] for path in paths]
    return Verdict(
        torch.tensor(padded, device=device),
        torch.tensor([len(path) - 1 for path in paths], device=device),
        torch.tensor(list(bonuses), device=device),
    )
