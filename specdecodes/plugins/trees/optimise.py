"""The best tree for a measured acceptance and a measured cost: Sequoia's dynamic programme.

Chen et al., arXiv 2402.12374, section 4.1. With the children of every node in draw order, let ``a[k]`` be the
probability that child k of an accepted node is accepted, given that its k earlier siblings were not. Then
``p[k] = a[k] (1 - a[0]) ... (1 - a[k-1])`` is the probability that the path goes on through child k, a node is reached
with the product of p along its path, and a step over a tree emits

    tau = sum of these products over all nodes, the root (1, the bonus token) included.

The paper lets a depend on the rank k alone. Here it may also depend on the node's depth and on its detours: how many
nodes of its path are not their parent's first child. Where a draft is right once it is right again, and first children
are where it was right: on the embedded pair, predictions by rank and depth fall short by up to 9 %, with detours they
are within 2 % on the trees they were measured with.

The speed-up over plain decoding is ``tau c(1) / (c(T) + depth * draft_cost)``. The programme finds the best tau for
every number of nodes T and every depth exactly, then the best speed-up among them.
"""

from __future__ import annotations

import json
import math
import reprlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specdecodes.benchmark.journal import read_json, replace
from specdecodes.core.settings import SettingWarning
from specdecodes.plugins.trees.drafted import check_positive
from specdecodes.plugins.trees.shape import TreeShape

Floats = NDArray[np.float64]
Acceptance = tuple[tuple[tuple[float, ...], ...], ...]


@dataclass(frozen=True)
class Measurements:
    """What the best tree depends on; built by :meth:`checked` or :meth:`read`.

    Attributes:
        acceptance: [C, D, K]: ``a[k]`` above at nodes with c detours and depth d (0: the root); beyond C - 1 and D - 1
            the last ones hold. A node has at most K children.
        cost: number of tree nodes T (root included) to the cost of scoring and committing such a tree, in any one
            unit; holds T = 1, a plain step. Between two measured T it is interpolated, beyond the last unknown.
        draft_cost: cost of drafting one level, in the same unit.
    """

    acceptance: Acceptance
    cost: Mapping[int, float]
    draft_cost: float = 0.0

    @classmethod
    def checked(cls, acceptance: Any, cost: Any, draft_cost: Any = 0.0) -> Measurements:  # noqa: ANN401 - user input
        """Take what a user or a file gives.

        Args:
            acceptance: K probabilities, or D lists of K, or C lists of D lists of K.
            cost: T (also as a string) to a number above 0.

        Raises:
            ValueError: of another form; the message names the field.

        Warns:
            SettingWarning: the cost falls somewhere although the tree grows; the message says where.
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
                SettingWarning,
                stacklevel=2,
            )
        return cls(_blocks(acceptance), curve, float(draft_cost))

    def with_acceptance(self, acceptance: Any) -> Measurements:  # noqa: ANN401 - user input
        """The same costs with another ``acceptance``; see :meth:`checked`."""
        return replace_fields(self, acceptance=_blocks(acceptance))

    @classmethod
    def read(cls, path: Path) -> Measurements:
        """Read ``{"acceptance": [...], "cost": {"1": ..., "8": ...}, "draft_cost": ...}``; other keys are ignored.

        Raises:
            ValueError: no such file, not JSON, a missing field, or see :meth:`checked`.
        """
        values = read_json(path, "measured", "name a file that holds acceptance and cost, such as a recipe")
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
        lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in values.items())
        replace(path, [f"{{\n{lines}\n}}\n".encode()])

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
    check_positive(**{name: value for name, value in limits.items() if value is not None})
    budget = min(max_nodes or max(measured.cost), max(measured.cost))
    programme = _Programme(measured.acceptance, budget, max_children)
    plain = measured.cost_of(1)
    best = Optimum(TreeShape(()), 1, 1.0, 1.0)
    chosen = (0, 1)
    for depth in range(1, max_depth + 1):
        taus = programme.solve(0, 0, depth).value
        for nodes in range(depth + 1, budget + 1):
            tau = float(taus[nodes])
            speedup = tau * plain / (measured.cost_of(nodes) + depth * measured.draft_cost)
            if tau > -math.inf and speedup > best.speedup:
                best, chosen = Optimum(best.shape, nodes, tau, speedup), (depth, nodes)
    return Optimum(programme.shape(*chosen), best.nodes, best.tau, best.speedup)


def expected_tokens(shape: TreeShape, acceptance: Acceptance) -> float:
    """Predicted tokens per step of ``shape``, bonus included (tau above); see :class:`Measurements`."""
    through = _Through(acceptance)
    reach, depths, detours, ranks = [1.0], [0], [0], [0]
    for parent in shape.parents[1:]:
        rank, row = ranks[parent], through.at(depths[parent], detours[parent])
        reach.append(reach[parent] * (float(row[rank]) if rank < len(row) else 0.0))
        depths.append(depths[parent] + 1)
        detours.append(detours[parent] + (rank > 0))
        ranks[parent] += 1
        ranks.append(0)
    return math.fsum(reach)


class _Through:
    """Probability that the path goes on through child k: ``a[k]`` and none of the earlier ones."""

    def __init__(self, acceptance: Acceptance, max_children: int | None = None) -> None:
        a = np.asarray(acceptance, dtype=np.float64)
        none_before = np.concatenate([np.ones_like(a[..., :1]), np.cumprod(1 - a, axis=-1)[..., :-1]], axis=-1)
        self._values = (a * none_before)[..., :max_children]

    def place(self, depth: int, detours: int) -> tuple[int, int]:
        """Nodes with the same place have the same probabilities."""
        return min(depth, self._values.shape[1] - 1), min(detours, self._values.shape[0] - 1)

    def at(self, depth: int, detours: int) -> Floats:
        """[K] at a node of this depth with so many detours."""
        depth, detours = self.place(depth, detours)
        return np.asarray(self._values[detours, depth])


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
    """Best subtrees by where their top is, levels left and number of nodes."""

    def __init__(self, acceptance: Acceptance, budget: int, max_children: int | None) -> None:
        self._through = _Through(acceptance, max_children)
        self._known: dict[tuple[int, int, int], _Solution] = {}
        self._nothing = np.full(budget + 1, -np.inf)
        self._nothing[0] = 0.0
        sizes = np.arange(budget + 1)
        # [n, m]: what is left of n nodes for later siblings when the first takes m; where negative, impossible
        self._rest = sizes[:, None] - sizes[None, :]

    def solve(self, depth: int, detours: int, levels: int) -> _Solution:
        """All subtrees whose top is at ``depth`` after ``detours``, with at most ``levels`` levels below it."""
        key = (*self._through.place(depth, detours), levels)
        if key not in self._known:
            self._known[key] = self._solve(depth, detours, levels)
        return self._known[key]

    def _solve(self, depth: int, detours: int, levels: int) -> _Solution:
        siblings = self._nothing  # of child k and later ones, by their nodes
        first = []
        chances = self._through.at(depth, detours).tolist() if levels else []
        for k, chance in reversed(list(enumerate(chances))):
            below = self.solve(depth + 1, detours + (k > 0), levels - 1).value
            child = np.where(np.isfinite(below), chance * np.where(np.isfinite(below), below, 0.0), -np.inf)
            total = child[None, :] + np.where(self._rest >= 0, siblings[self._rest.clip(0)], -np.inf)
            first.append(total.argmax(axis=1))
            siblings = np.maximum(total.max(axis=1), self._nothing)
        return _Solution(np.concatenate([[-np.inf], 1.0 + siblings[:-1]]), first[::-1])

    def shape(self, levels: int, nodes: int) -> TreeShape:
        """The best tree of this size with at most these levels."""
        counts: list[tuple[int, ...]] = []
        above = [(nodes, 0)]
        for depth in range(levels):
            below = [self._split(depth, detours, levels - depth, size) for size, detours in above]
            if not any(below):
                break
            counts.append(tuple(len(children) for children in below))
            above = [child for children in below for child in children]
        return TreeShape(tuple(counts))

    def _split(self, depth: int, detours: int, levels: int, nodes: int) -> list[tuple[int, int]]:
        """(nodes, detours) of each child of a subtree's top."""
        first, left = self.solve(depth, detours, levels).first, nodes - 1
        children: list[tuple[int, int]] = []
        while left:
            k = len(children)
            size = int(first[k][left])
            children.append((size, detours + (k > 0)))
            left -= size
        return children


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _blocks(acceptance: Any) -> Acceptance:  # noqa: ANN401
    try:
        values = np.array(acceptance)
    except ValueError:  # rows of different lengths
        values = np.empty(0)
    if values.dtype.kind not in "if" or not 1 <= values.ndim <= 3 or not values.size or not _probable(values):
        raise ValueError(
            "acceptance: expected probabilities by child rank, [0.6, 0.3, ...], one such row of the same length per "
            f"depth, or such rows per number of detours, got {reprlib.repr(acceptance)}"
        )
    rows = values.reshape(*[1] * (3 - values.ndim), *values.shape).tolist()
    return tuple(tuple(tuple(float(a) for a in row) for row in block) for block in rows)


def _probable(values: NDArray[Any]) -> bool:
    return bool(((values >= 0) & (values <= 1)).all())  # nan is neither


def _curve(cost: Any) -> dict[int, float]:  # noqa: ANN401
    try:
        curve = {int(nodes): value for nodes, value in cost.items()}
    except (AttributeError, TypeError, ValueError):
        curve = {}
    if 1 not in curve or min(curve) < 1 or not all(_is_number(value) and value > 0 for value in curve.values()):
        raise ValueError(
            "cost: expected positive costs by number of tree nodes, 1 (a plain step) among them, such as "
            f"{{1: 6.1, 8: 7.9, 13: 9.0}}, got {reprlib.repr(cost)}"
        )
    return {nodes: float(curve[nodes]) for nodes in sorted(curve)}
