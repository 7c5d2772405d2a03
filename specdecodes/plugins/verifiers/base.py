"""What every verifier shares: score the tree, process the logits, accept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from specdecodes.core.host_path import numbers_of
from specdecodes.core.parents import children_of
from specdecodes.core.sampling import Best, LogitsPipeline, Rng, first_arrivals
from specdecodes.core.transfer import sent
from specdecodes.core.tree import Tree, Verdict
from specdecodes.hookspecs import hookimpl

if TYPE_CHECKING:
    from specdecodes.core.state import DecodeState


class Verifier:
    """Base class; a subclass supplies :meth:`accept` and declares what it is.

    Attributes:
        lossless: the emitted tokens are distributed as the target's own.
        serves: ``greedy`` (temperature 0, scores come unnormalised) and/or ``sampling``.
        capturable: :meth:`judge` draws nothing beyond its noise and reads no value on the host.
        draws: the ways of coming by children that it can judge, best first (see ``Tree.draws``).
        chain_only: no node may have siblings. needs_draft_probs: the tree must carry ``logq``.
    """

    lossless = False
    serves: tuple[str, ...] = ("sampling",)
    draws: tuple[str, ...] = ("none", "iid", "without_replacement")
    chain_only = False
    needs_draft_probs = False
    capturable = False

    _pipeline: LogitsPipeline

    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)
        # A subclass with another rule inherits a ``judge`` that is not its own.
        changes = {"verify", "accept", "walk", "otherwise"} & vars(cls).keys()
        if changes and not {"judge", "capturable"} & vars(cls).keys():
            cls.capturable = False

    def __init__(self, context: object = None) -> None:
        pass

    @hookimpl
    def verify(self, state: DecodeState, tree: Tree) -> Verdict:
        """One forward of the target over the tree, its logits processed like the draft's, then the rule."""
        judges = getattr(state.target, "judges", False)  # what plays a target does not
        if self.capturable and judges and state.pipeline.key is not None:
            return self._by_tensors(state, tree)
        logp = state.process(state.target.score(tree), tree)
        return self.accept(logp, tree, self.source(state))

    def source(self, state: DecodeState) -> Rng:
        """The ``rng`` that ``accept`` gets."""
        return state.rng

    def _by_tensors(self, state: DecodeState, tree: Tree) -> Verdict:
        target, self._pipeline = state.target, state.pipeline
        dtype = torch.float64 if target.dtype == torch.float64 else torch.float32
        noise = self.noise(state.rng, (*tree.shape, target.vocab_size), dtype)
        logq = tree.logq if self.needs_draft_probs else None
        logits, found = target.score_and_judge(tree, self._judge, state.pipeline.key, logq, *noise)
        *fields, numbers, scores = found
        return state.judged_as(Verdict(*fields), logits, scores, numbers)

    def _judge(
        self, logits: Tensor, tree: Tree, key: object, logq: Tensor | None, *noise: Tensor
    ) -> tuple[Tensor, ...]:
        """The rule as part of a run, for all pipelines of this ``key``: a verdict's fields and numbers, scores."""
        scores = self._pipeline(logits.flatten(0, 1)).view(logits.shape)
        tree = replace(tree, logq=logq)
        verdict = self.judge(scores, tree, *noise)
        return verdict.path, verdict.num_accepted, verdict.bonus, numbers_of(verdict, tree), scores

    def noise(self, rng: Rng, shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, ...]:
        """What :meth:`judge` draws with; ``shape``: of the scores, [B, T, V]. Here: nothing."""
        return ()

    def judge(self, logp: Tensor, tree: Tree, *noise: Tensor) -> Verdict:
        """:meth:`accept` from tensors alone; here for rules that draw nothing.

        Other rules have the same law both ways, but do not draw the same tokens.
        """
        return self.accept(logp, tree, Best())

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
            children = children_of(tree.parents[row, : tree.count(row)].tolist())
            path, bonus = self.walk(logp[row], children, tree, row, rng)
            paths.append(path)
            bonuses.append(bonus)
        return verdict_of(paths, bonuses, tree)

    def walk(
        self, logp: Tensor, children: Sequence[Sequence[int]], tree: Tree, row: int, rng: Rng
    ) -> tuple[list[int], int]:
        """Walk one row: ``logp`` [T, V], ``children`` per node in draw order; returns (path from the root, bonus)."""
        raise NotImplementedError


class MatchingVerifier(WalkingVerifier):
    """A rule that enters the child that equals the target's own choice; :meth:`otherwise` may enter another one.

    At temperature 0 the target's choice is its best token, above that a draw from its distribution: one per node,
    whoever asks. The choice that nothing was entered for is the bonus.
    """

    def source(self, state: DecodeState) -> Rng:
        """At temperature 0 one that chooses the best."""
        return Best() if state.pipeline.greedy else state.rng

    def walk(
        self, logp: Tensor, children: Sequence[Sequence[int]], tree: Tree, row: int, rng: Rng
    ) -> tuple[list[int], int]:
        """See the class."""
        tokens = tree.tokens[row].tolist()

        @cache
        def choose(node: int) -> int:
            return rng.choose(logp[node])

        def match(node: int) -> int | None:
            return next((child for child in children[node] if tokens[child] == choose(node)), None)

        path = [0]
        while True:
            node = path[-1]
            child = match(node)
            if child is None and children[node]:
                child = self.otherwise(logp[node], node, children[node], tokens, match)
            if child is None:
                return path, choose(node)
            path.append(child)

    def otherwise(
        self,
        scores: Tensor,
        node: int,
        children: Sequence[int],
        tokens: Sequence[int],
        match: Callable[[int], int | None],
    ) -> int | None:
        """Which of the ``children`` of ``node`` is entered although none is the target's choice; None: none.

        Args:
            scores: the target's log-probabilities [V] after ``node`` (greedy: not normalised).
            tokens: of all nodes. match: the child of a node that equals the target's choice there, if there is one.
        """
        return None


def standing_depths(tree: Tree, accepted: Tensor) -> Tensor:
    """The depth of every node that is ``accepted`` (bool [B, T]) with all above it, -1 elsewhere: int64 [B, T].

    The root always stands, padding never.
    """
    structure = tree.structure
    if tree.num_nodes is not None:
        accepted = accepted & tree.real
    accepted = accepted | (structure.depths == 0)
    stands = (structure.ancestors <= accepted[:, None, :]).all(-1)  # <= is "implies"
    return torch.where(stands, structure.depths, -1)


def followed(tree: Tree, enters: Tensor, choices: Tensor) -> Verdict:
    """From the root down as long as a child is entered, then the choice after the last node; reads nothing.

    Args:
        enters: bool [B, T], whether a node is entered from its parent: of siblings one at most, or equal ones.
        choices: int64 [B, T], the bonus after each node.
    """
    num_accepted, last = standing_depths(tree, enters).max(dim=1)
    rows = torch.arange(last.shape[0], device=last.device)
    return Verdict(tree.structure.paths[rows, last], num_accepted, choices[rows, last])


def first_of_siblings(tree: Tree, hits: Tensor) -> Tensor:
    """Which ``hits`` (bool [B, T]) come before all others of the same parent."""
    parents = tree.parents
    earlier = (parents[:, :, None] == parents[:, None, :]).tril(-1)
    return hits & ~(earlier & hits[:, None, :]).any(-1)


def chosen(probs: Tensor, noise: Tensor) -> Tensor:
    """A draw from each of ``probs`` [B, T, V] by exponential ``noise`` of that shape: int64 [B, T], -1 from nothing."""
    return first_arrivals(probs.flatten(0, 1), noise.flatten(0, 1), 1).view(probs.shape[:2])


def verdict_of(paths: Sequence[Sequence[int]], bonuses: Sequence[int], tree: Tree) -> Verdict:
    """Pack the walks of all rows, padded to the tree's deepest path."""
    width = max(int(tree.structure.paths.shape[-1]), *(len(path) for path in paths))
    device = tree.tokens.device
    padded = [[*path, *([-1] * (width - len(path)))] for path in paths]
    return Verdict(
        sent(padded, device),
        sent([len(path) - 1 for path in paths], device),
        sent(list(bonuses), device),
    )
