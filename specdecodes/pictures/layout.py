"""Where everything in the picture of a tree stands: depth to the right, leaves one below the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from specdecodes.core.parents import children_of, depths_of

FONT = 12
"""Size of the letters, in pixels of the picture."""
CELL = 7.4
"""Width of a letter of a monospaced font of that size."""
LINE, BOX = 30, 22
"""Height of a row of nodes, and of the box of one."""
INSET, GAP, MARGIN = 8, 28, 10
"""Space left and right of a label, between two columns of boxes, around the picture."""


@dataclass(frozen=True)
class Label:
    """What stands in a node's box.

    Attributes:
        text: in full strength. note: behind it, muted. title: shown to whoever points at the box.
        kind: how it is coloured: plain, root, accepted, rejected, cut or bonus.
    """

    text: str
    note: str = ""
    kind: str = "plain"
    title: str = ""


@dataclass(frozen=True)
class Box:
    """A node: its rectangle (left, top, width; the height is ``BOX``) and its label."""

    left: int
    top: int
    width: int
    label: Label

    @property
    def middle(self) -> tuple[float, int]:
        """The centre."""
        return self.left + self.width / 2, self.top + BOX // 2


@dataclass(frozen=True)
class Edge:
    """From the right side of a parent's box by way of ``bend`` (an x) to the left side of a child's."""

    start: tuple[int, int]
    bend: int
    end: tuple[int, int]
    kind: str


@dataclass(frozen=True)
class Caption:
    """A line of text that begins at ``left`` and stands on ``baseline``."""

    left: int
    baseline: int
    text: str


@dataclass(frozen=True)
class Picture:
    """Everything to draw, in pixels from the top left.

    Attributes:
        boxes: in the order of the nodes. edges: in the order of drawing, what is rejected below the rest.
    """

    width: int
    height: int
    boxes: list[Box]
    edges: list[Edge]
    captions: list[Caption]


def lay_out(parents: Sequence[int], labels: Sequence[Label], *, headline: str = "", depths: bool = False) -> Picture:
    """Place the nodes of one tree so that no two overlap and no edge crosses a box.

    A parent stands half-way between its first and its last child. Boxes of one depth are equally wide.

    Args:
        parents: -1 at the root, parents first, siblings in order; T nodes. labels: one per node.
        headline: a line above the tree. depths: whether the columns are headed by their depths.
    """
    levels = depths_of(parents)
    columns = _columns(levels, labels, depths)
    rows = _rows(parents)
    top = MARGIN + LINE * (bool(headline) + depths)
    boxes = []
    for node, label in enumerate(labels):
        left, width = columns[levels[node]]
        boxes.append(Box(left, round(top + rows[node] * LINE + (LINE - BOX) / 2), width, label))
    edges = [_edge(boxes[parent], boxes[node]) for node, parent in enumerate(parents) if parent >= 0]
    edges.sort(key=lambda edge: edge.kind != "rejected")
    captions = [Caption(MARGIN, MARGIN + 2 * LINE // 3, headline)] if headline else []
    if depths:
        baseline = top - LINE // 3
        captions += [Caption(left, baseline, _head(depth)) for depth, (left, _) in enumerate(columns)]
    right = max(sum(columns[-1]), MARGIN + math.ceil(CELL * cell_len(headline)))
    return Picture(right + MARGIN, round(top + (max(rows) + 1) * LINE + MARGIN), boxes, edges, captions)


def row(labels: Sequence[Label]) -> Picture:
    """Boxes side by side without edges: a legend."""
    boxes: list[Box] = []
    left = MARGIN
    for label in labels:
        boxes.append(Box(left, MARGIN, _width([label]), label))
        left += boxes[-1].width + MARGIN
    return Picture(left, BOX + 2 * MARGIN, boxes, [], [])


def _width(labels: Sequence[Label], head: str = "") -> int:
    """Of boxes that hold any of the labels, below ``head``."""
    texts = [head, *(f"{label.text} {label.note}".rstrip() for label in labels)]
    return math.ceil(max(map(cell_len, texts)) * CELL) + 2 * INSET


def _columns(levels: Sequence[int], labels: Sequence[Label], depths: bool) -> list[tuple[int, int]]:
    """Left side and width of the boxes of every depth."""
    columns = []
    left = MARGIN
    for depth in range(max(levels) + 1):
        there = [label for label, level in zip(labels, levels, strict=True) if level == depth]
        columns.append((left, _width(there, _head(depth) if depths else "")))
        left += columns[-1][1] + GAP
    return columns


def _rows(parents: Sequence[int]) -> list[float]:
    """Every leaf gets a row of its own, in the order of the drawing; the others follow from their children."""
    children = children_of(parents)
    rows = [0.0] * len(parents)
    waiting, leaves = [0], 0
    while waiting:
        node = waiting.pop()
        waiting += reversed(children[node])
        if not children[node]:
            rows[node] = leaves
            leaves += 1
    for node in range(len(parents) - 1, -1, -1):  # children come after their parents
        if children[node]:
            rows[node] = (rows[children[node][0]] + rows[children[node][-1]]) / 2
    return rows


def _edge(parent: Box, child: Box) -> Edge:
    start = (parent.left + parent.width, parent.middle[1])
    return Edge(start, child.left - GAP // 2, (child.left, child.middle[1]), child.label.kind)


def _head(depth: int) -> str:
    return f"depth {depth}"
