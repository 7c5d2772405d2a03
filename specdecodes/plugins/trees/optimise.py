"""The best tree for a measured acceptance and a measured cost: Sequoia's dynamic programme.

Chen et al., arXiv 2402.12374, section 4.1. With the children of every node in draw order, let ``a[d][k]`` be the
probability that child k of an accepted node at depth d is accepted, given that its k earlier siblings were not. Then
``p[d][k] = a[d][k] (1 - a[d][0]) ... (1 - a[d][k-1])`` is the probability that the path goes on through child k, a
node is reached with the product of p along its path, and a step over a tree emits

    tau = sum of these products over all nodes, the root (1, the bonus token) included.

The speed-up over plain decoding is ``tau c(1) / (c(T) + depth * draft_cost)``. The programme finds the best tau for
every number of nodes T and every depth exactly, then the best speed-up among them.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specdecodes.benchmark.journal import replace
from specdecodes.plugins.trees.shape import TreeShape

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Measurements:
    """What the best tree depends on; built by :meth:`checked` or :meth:`read`.

    Attributes:
        acceptance: [D, K]: ``a[d][k]`` above; nodes deeper than D - 1 have the last row, children beyond K none.
        cost: number of tree nodes T (root included) to the cost of scoring and committing such a tree, in any one
            unit; holds T = 1, a plain step. Between two measured T it is interpolated, beyond the last unknown.
        draft_cost: cost of drafting one level, in the same unit.
    """

    acceptance: tuple[tuple[float, ...], ...]
    cost: Mapping[int, float]
    draft_cost: float = 0.0

    @classmethod
    def checked(cls, acceptance: Any, cost: Any, draft_cost: Any = 0.0) -> Measurements:  # noqa: ANN401 - user input
        """Take what a user or a file gives.

        Args:
            acceptance: K probabilities for all depths, or D rows of K. cost: T (also as a string) to a number above 0.

        Raises:
            ValueError: of another form; the message names the field.

        Warns:
            UserWarning: the cost falls somewhere although the tree grows; the message says where.
        """
        if not _is_number(draft_cost) or not draft_cost >= 0:
            raise ValueError(f"draft_cost: expected 0 or more per level, in the unit of cost, got {draft_cost!r}")
        curve = _curve(cost)
        falls = [
            f"c({b}) = {curve[b]:g} is below c({a}) = {curve[a]:g}" for a, b in pairwise(curve) if curve[b] < curve[a]
        ]
        if falls:
            warnings.warn(
                f"cost: expected a curve that does not fall as the tree grows, but {'; '.join(falls)}; "
                "used as it is, measure again on a quiet machine",
                stacklevel=2,
            )
        return cls(_rows(acceptance), curve, float(draft_cost))

    @classmethod
    def read(cls, path: Path) -> Measurements:
        """Read ``{"acceptance": [...], "cost": {"1": ..., "8": ...}, "draft_cost": ...}``; other keys are ignored.

        Raises:
            ValueError: no such file, not JSON, a missing field, or see :meth:`checked`.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"measured: cannot read {path}: {error.strerror}") from error
        except ValueError as error:
            raise ValueError(f"measured: {path}: expected JSON, got {error}") from error
        missing = [name for name in ("acceptance", "cost") if not isinstance(values, dict) or name not in values]
        if missing:
            raise ValueError(
                f'measured: {path}: expected {{"acceptance": [...], "cost": {{"1": ...}}, "draft_cost": ...}}, '
                f"got no {' and no '.join(missing)}"
            )
        try:
            return cls.checked(values["acceptance"], values["cost"], values.get("draft_cost", 0.0))
        except ValueError as error:
            raise ValueError(f"measured: {path}: {error}") from error

    def write(self, path: Path, **notes: Any) -> None:
        """Write the file that :meth:`read` reads, replaced as a whole; ``notes`` say where it comes from."""
        cost = {str(nodes): value for nodes, value in self.cost.items()}
        values = {**notes, "acceptance": self.acceptance, "cost": cost, "draft_cost": self.draft_cost}
        replace(path, [json.dumps(values, indent=1).encode(), b"\n"])

    def cost_of(self, nodes: int) -> float:
        """The cost of a tree of ``nodes`` nodes, at most the largest measured."""
        return float(np.interp(nodes, list(self.cost), list(self.cost.values())))


@dataclass(frozen=True)
class Optimum:
    """The best tree.

    Attributes:
        shape: without levels where plain decoding is best. nodes: root included.
        tau: predicted tokens per step, bonus included.
        speedup: predicted, over plain decoding.
    """

    shape: TreeShape
    nodes: int
    tau: float
    speedup: float


def optimise(
    measured: Measurements, *, max_nodes: int | None = None, max_depth: int = 16, max_children: int | None = None
) -> Optimum:
    """The tree with the highest predicted speed-up, exactly, among all with at most these nodes, levels and children.

    Args:
        max_nodes: root included; None, or more than that: the largest number whose cost was measured.
        max_depth: levels below the root. max_children: of one node (1: chains); None: as many as were measured.

    Raises:
        ValueError: a limit below 1.
    """
    limits = {"max_nodes": max_nodes, "max_depth": max_depth, "max_children": max_children}
    for name, value in limits.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    budget = min(max_nodes or max(measured.cost), max(measured.cost))
    programme = _Programme(measured.acceptance, budget, max_children)
    plain = measured.cost_of(1)
    best = Optimum(TreeShape(()), 1, 1.0, 1.0)
    chosen = (0, 1)
    for depth in range(1, max_depth + 1):
        taus = programme.solve(0, depth).value
        for nodes in range(depth + 1, budget + 1):
            tau = float(taus[nodes])
            speedup = tau * plain / (measured.cost_of(nodes) + depth * measured.draft_cost)
            if tau > -math.inf and speedup > best.speedup:
                best, chosen = Optimum(best.shape, nodes, tau, speedup), (depth, nodes)
    return Optimum(programme.shape(*chosen), best.nodes, best.tau, best.speedup)


def expected_tokens(shape: TreeShape, acceptance: Sequence[Sequence[float]]) -> float:
    """Predicted tokens per step of ``shape``, bonus included (tau above); ``acceptance`` as in :class:`Measurements`."""
    through = [_through(row) for row in acceptance]
    reach, ranks, depths = [1.0], [0] * len(shape.parents), [0]
    for parent in shape.parents[1:]:
        depth, rank = depths[parent], ranks[parent]
        ranks[parent] += 1
        row = through[min(depth, len(through) - 1)]
        reach.append(reach[parent] * (float(row[rank]) if rank < len(row) else 0.0))
        depths.append(depth + 1)
    return math.fsum(reach)


@dataclass(frozen=True)
class _Solution:
    """Of all subtrees whose top is at some depth, with some levels below it.

    Attributes:
        value: [n] the best tau with n nodes; -inf where there is none.
        first: per child k, [n] how many of n nodes it takes if it and its later siblings share them best.
    """

    value: Floats
    first: list[NDArray[np.intp]]


class _Programme:
    """Best subtrees by depth of their top, levels left and number of nodes."""

    def __init__(self, acceptance: Sequence[Sequence[float]], budget: int, max_children: int | None) -> None:
        self._through = [_through(row)[:max_children] for row in acceptance]
        self._budget = budget
        self._known: dict[tuple[int, int], _Solution] = {}
        sizes = np.arange(budget + 1)
        # rest[n, m]: nodes left for later siblings when the first takes m of n; where negative, impossible
        self._rest = sizes[:, None] - sizes[None, :]

    def solve(self, depth: int, levels: int) -> _Solution:
        """All subtrees whose top is at ``depth`` and below which there are at most ``levels`` levels."""
        row = min(depth, len(self._through) - 1)
        if (row, levels) not in self._known:
            self._known[row, levels] = self._solve(row, depth, levels)
        return self._known[row, levels]

    def _solve(self, row: int, depth: int, levels: int) -> _Solution:
        nothing = np.full(self._budget + 1, -np.inf)
        nothing[0] = 0.0
        siblings = nothing  # of child k and later ones, by their nodes
        first = []
        if levels:
            below = self.solve(depth + 1, levels - 1).value
            for chance in self._through[row][::-1]:
                child = np.where(np.isfinite(below), chance * np.where(np.isfinite(below), below, 0.0), -np.inf)
                total = child[None, :] + np.where(self._rest >= 0, siblings[self._rest.clip(0)], -np.inf)
                first.append(total.argmax(axis=1))
                siblings = np.maximum(total.max(axis=1), nothing)
        return _Solution(np.concatenate([[-np.inf], 1.0 + siblings[:-1]]), first[::-1])

    def shape(self, levels: int, nodes: int) -> TreeShape:
        """The best tree of this depth and size."""
        counts: list[tuple[int, ...]] = []
        above = [nodes]
        for depth in range(levels):
            sizes = [self._split(depth, levels - depth, size) for size in above]
            if not any(sizes):
                break
            counts.append(tuple(len(children) for children in sizes))
            above = [size for children in sizes for size in children]
        return TreeShape(tuple(counts))

    def _split(self, depth: int, levels: int, nodes: int) -> list[int]:
        """How many nodes each child of a subtree's top has."""
        first, left = self.solve(depth, levels).first, nodes - 1
        sizes: list[int] = []
        while left:
            sizes.append(int(first[len(sizes)][left]))
            left -= sizes[-1]
        return sizes


def _through(row: Sequence[float]) -> Floats:
    """Probability that the path goes on through child k: ``a[k]`` and none of the earlier ones."""
    a = np.asarray(row, dtype=np.float64)
    return a * np.concatenate([[1.0], np.cumprod(1 - a)[:-1]])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _rows(acceptance: Any) -> tuple[tuple[float, ...], ...]:  # noqa: ANN401
    rows = acceptance if isinstance(acceptance, list | tuple) else []
    rows = rows if rows and all(isinstance(row, list | tuple) for row in rows) else [rows]
    good = all(len(row) == len(rows[0]) > 0 and all(_is_number(a) and 0 <= a <= 1 for a in row) for row in rows)
    if not good:
        raise ValueError(
            "acceptance: expected probabilities by child rank, [0.6, 0.3, ...], or one such row of the same length "
            f"per depth, got {acceptance!r}"
        )
    return tuple(tuple(float(a) for a in row) for row in rows)


def _curve(cost: Any) -> dict[int, float]:  # noqa: ANN401
    try:
        curve = {int(nodes): value for nodes, value in cost.items()}
    except (AttributeError, TypeError, ValueError):
        curve = {}
    if 1 not in curve or min(curve) < 1 or not all(_is_number(value) and value > 0 for value in curve.values()):
        raise ValueError(
            "cost: expected positive costs by number of tree nodes, 1 (a plain step) among them, such as "
            f"{{1: 6.1, 8: 7.9, 13: 9.0}}, got {cost!r}"
        )
    return {nodes: float(curve[nodes]) for nodes in sorted(curve)}
