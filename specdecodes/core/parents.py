"""What follows from the parents of one tree, as lists on the host: for counting and drawing, not for the hot path.

``parents`` are those of one row without padding: -1 at the root (node 0), parents first, siblings in draw order.
"""

from __future__ import annotations

from collections.abc import Sequence


def children_of(parents: Sequence[int]) -> list[list[int]]:
    """The children of every node, in draw order."""
    children: list[list[int]] = [[] for _ in parents]
    for node, parent in enumerate(parents):
        if parent >= 0:
            children[parent].append(node)
    return children


def depths_of(parents: Sequence[int]) -> list[int]:
    """The depth of every node, 0 at the root."""
    depths: list[int] = []
    for parent in parents:
        depths.append(depths[parent] + 1 if parent >= 0 else 0)
    return depths


def ranks_of(parents: Sequence[int]) -> list[int]:
    """The place of every node among its siblings, the first is 1; 0 at the root."""
    ranks = [0] * len(parents)
    for siblings in children_of(parents):
        for rank, node in enumerate(siblings, 1):
            ranks[node] = rank
    return ranks
