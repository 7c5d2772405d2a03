"""A tree in box-drawing characters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from specdecodes.core.parents import children_of


def branches(parents: Sequence[int]) -> Iterator[tuple[str, int]]:
    """The lines of the drawing, from the root down: what stands before a node, and the node.

    Args:
        parents: of one tree, -1 at the root, parents first.
    """
    children = children_of(parents)
    waiting = [(0, "", "")]  # node, what stands before it, what stands before all below it
    while waiting:
        node, before, below = waiting.pop()
        yield before, node
        last = True
        for child in reversed(children[node]):
            waiting.append((child, below + ("└─ " if last else "├─ "), below + ("   " if last else "│  ")))
            last = False
