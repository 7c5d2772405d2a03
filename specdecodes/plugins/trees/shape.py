"""Static tree shapes: how many children each node of each level has."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from specdecodes.core.parents import children_of
from specdecodes.core.tree import check_size
from specdecodes.plugins.trees.growmap_file import SUFFIXES, read_growmap, write_growmap


@dataclass(frozen=True)
class TreeShape:
    """A fixed shape, level by level.

    Attributes:
        levels: for each level, the number of children of every node of the level above, in order; a node without
            children counts as 0 and trailing zeros are left out. ``((3,), (2, 1), (2, 1), (3,))`` is STree's tree of
            13 nodes (arXiv 2505.14969).
    """

    levels: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        check_size("tree", 1 + sum(map(sum, self.levels)))
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
        object.__setattr__(self, "levels", tuple(_without_trailing_zeros(counts) for counts in self.levels))

    @classmethod
    def parse(cls, spec: str) -> TreeShape:
        """Read ``3,2.1,2.1,3`` (levels by commas, nodes of a level by dots), or a growmap: a path in .json or .pt.

        Raises:
            ValueError: malformed; the message shows the expected form.
        """
        if spec.endswith(SUFFIXES):
            return cls.from_growmap(Path(spec))
        if not re.fullmatch(r"\d+(\.\d+)*(,\d+(\.\d+)*)*", spec):
            raise ValueError(
                f"tree: expected levels like '3,2.1,2.1,3' (commas between levels, dots between the nodes of a level) "
                f"or the path of a growmap ({', '.join(SUFFIXES)}), got {spec!r}"
            )
        return cls(tuple(tuple(int(count) for count in level.split(".")) for level in spec.split(",")))

    @classmethod
    def chain(cls, depth: int) -> TreeShape:
        """A chain of ``depth`` drafted tokens."""
        if depth < 1:
            raise ValueError(f"depth: expected at least 1 drafted token, got {depth}")
        check_size("depth", 1 + depth)
        return cls(((1,),) * depth)

    @classmethod
    def from_growmap(cls, path: Path) -> TreeShape:
        """Read a growmap file, our JSON or Sequoia's ``.pt``; siblings keep their order, nodes are numbered anew.

        Raises:
            ValueError: see :func:`read_growmap`.
        """
        successors = read_growmap(path)
        levels: list[tuple[int, ...]] = []
        above = [0]
        while any(successors[node] for node in above):
            levels.append(tuple(len(successors[node]) for node in above))
            above = [child for node in above for child in successors[node]]
        return cls(tuple(levels))

    def to_growmap(self, path: Path) -> None:
        """Write a growmap file that :meth:`from_growmap` reads, in the format that ``path`` ends in.

        Raises:
            ValueError: see :func:`write_growmap`.
        """
        write_growmap(children_of(self.parents), path)

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
    def spec(self) -> str:
        """The shape as :meth:`parse` reads it: ``3,2.1,2.1,3``."""
        return ",".join(".".join(map(str, counts)) for counts in self.levels)

    @property
    def depth(self) -> int:
        """Levels below the root."""
        return len(self.levels)

    @property
    def is_chain(self) -> bool:
        """Whether no node has a sibling."""
        return all(counts == (1,) for counts in self.levels)


def _without_trailing_zeros(counts: tuple[int, ...]) -> tuple[int, ...]:
    return counts[: max(i for i, count in enumerate(counts) if count) + 1]
