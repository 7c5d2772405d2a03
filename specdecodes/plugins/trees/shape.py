"""Static tree shapes: how many children each node of each level has."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TreeShape:
    """A fixed shape, level by level.

    Attributes:
        levels: for each level, the number of children of every node of the level above, in order; a node without
            children counts as 0 and trailing zeros may be left out. ``((3,), (2, 1), (2, 1), (3,))`` is STree's
            tree of 13 nodes (arXiv 2505.14969).
    """

    levels: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        width = 1
        for depth, counts in enumerate(self.levels, 1):
            if len(counts) > width:
                raise ValueError(
                    f"tree: level {depth} gives children to {len(counts)} nodes, but the level above has only {width}"
                )
            if any(count < 0 for count in counts) or sum(counts) == 0:
                raise ValueError(
                    f"tree: level {depth}: expected counts of 0 or more and at least one child, got {counts}"
                )
            width = sum(counts)

    @classmethod
    def parse(cls, spec: str) -> TreeShape:
        """Read ``3,2.1,2.1,3`` (levels by commas, nodes of a level by dots) or the path of a JSON growmap.

        Raises:
            ValueError: malformed; the message shows the expected form.
        """
        if spec.endswith(".json"):
            return cls.from_growmap(Path(spec))
        if not re.fullmatch(r"\d+(\.\d+)*(,\d+(\.\d+)*)*", spec):
            raise ValueError(
                f"tree: expected levels like '3,2.1,2.1,3' (commas between levels, dots between the nodes of a level) "
                f"or the path of a .json growmap, got {spec!r}"
            )
        return cls(tuple(tuple(int(count) for count in level.split(".")) for level in spec.split(",")))

    @classmethod
    def chain(cls, depth: int) -> TreeShape:
        """A chain of ``depth`` drafted tokens."""
        if depth < 1:
            raise ValueError(f"depth: expected at least 1 drafted token, got {depth}")
        return cls(((1,),) * depth)

    @classmethod
    def from_growmap(cls, path: Path) -> TreeShape:
        """Read ``{"successors": [[children of node 0], [children of node 1], ...]}``; node 0 is the root.

        Raises:
            ValueError: no such file, not JSON, a cycle, a node with two parents, a second root, children out of order.
        """
        try:
            successors = json.loads(path.read_text(encoding="utf-8"))["successors"]
        except OSError as error:
            raise ValueError(f"tree: cannot read the growmap {path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'tree: growmap {path}: expected JSON {{"successors": [[1, 2], ...]}}, got {error!r}'
            ) from error
        return cls(_levels(successors, str(path)))

    @cached_property
    def parents(self) -> tuple[int, ...]:
        """Parent of every node in breadth-first order, -1 for the root."""
        parents = [-1]
        above = [0]
        for counts in self.levels:
            level = []
            for node, count in zip(above, counts, strict=False):
                for _ in range(count):
                    level.append(len(parents))
                    parents.append(node)
            above = level
        return tuple(parents)

    @property
    def depth(self) -> int:
        """Levels below the root."""
        return len(self.levels)

    @property
    def is_chain(self) -> bool:
        """Whether no node has a sibling."""
        return all(counts == (1,) for counts in self.levels)


def _levels(successors: Any, where: str) -> tuple[tuple[int, ...], ...]:  # noqa: ANN401 - what a file held
    if not isinstance(successors, list) or not successors or not all(isinstance(node, list) for node in successors):
        raise ValueError(f"tree: growmap {where}: expected a list of children per node, got {successors!r}")
    count = len(successors)
    parent: dict[int, int] = {}
    for node, children in enumerate(successors):
        for child in children:
            if not isinstance(child, int) or not 0 <= child < count:
                raise ValueError(f"tree: growmap {where}: node {node} has child {child!r}; expected 1 to {count - 1}")
            if child <= node:
                raise ValueError(
                    f"tree: growmap {where}: node {node} has child {child}; "
                    "children must come after their parent (no cycles)"
                )
            if child in parent:
                raise ValueError(f"tree: growmap {where}: node {child} has two parents, {parent[child]} and {node}")
            parent[child] = node
    orphans = [node for node in range(1, count) if node not in parent]
    if orphans:
        raise ValueError(f"tree: growmap {where}: node {orphans[0]} is a second root; expected one root (node 0)")
    levels: list[tuple[int, ...]] = []
    above = [0]
    while any(successors[node] for node in above):
        levels.append(tuple(len(successors[node]) for node in above))
        above = [child for node in above for child in successors[node]]
    if not levels:
        raise ValueError(f"tree: growmap {where}: expected at least one child of the root")
    return tuple(levels)
