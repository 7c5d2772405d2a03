"""What dynamic builders share: drafted nodes with their scores on the host, and a padded tree made of them.

Shapes that change from step to step are decided on the host: one copy of the candidates per level, then plain Python
on some dozens of numbers, which costs less than as many small tensor operations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specdecodes.core.transfer import sent
from specdecodes.core.tree import MAX_NODES, Proposal, Tree, topology_of

if TYPE_CHECKING:
    from specdecodes.core.state import DecodeState


class Drafted:
    """The drafted nodes of one row, parents first, siblings in the order in which they were added.

    Attributes:
        tokens, parents: per node; node 0 is the root.
        scores: per node, what it is ranked by, never above its parent's.
        slots: per node, the drafter's slot, -1 where it has not run the node.
    """

    def __init__(self, root: int, score: float) -> None:
        self.tokens = [root]
        self.parents = [-1]
        self.scores = [score]
        self.slots = [0]

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, parent: int, token: int, score: float) -> None:
        """Append a node."""
        self.tokens.append(token)
        self.parents.append(parent)
        self.scores.append(score)
        self.slots.append(-1)

    def best(self, nodes: Iterable[int], count: int) -> list[int]:
        """The ``count`` best of ``nodes`` in rising order; of equals the earlier: no child comes without its parent."""
        return sorted(sorted(nodes, key=self.scores.__getitem__, reverse=True)[:count])


def widths(*, depth: int, topk: int, width: int) -> list[int]:
    """How many nodes are run at most on each level that has children, from the root's on, by :func:`levels`."""
    return [min(width, topk**level) for level in range(depth)]


def levels(
    state: DecodeState, proposal: Proposal, rows: Sequence[Drafted], *, depth: int, topk: int, width: int
) -> Iterator[list[list[int]]]:
    """Draft level by level: the ``topk`` best children of the ``width`` best nodes of the level above.

    A node's score is the log-probability of its path, the root's 0.

    Args:
        rows: what is drafted so far, the root alone; grows by every candidate.

    Yields:
        Per row, the ``width`` best new nodes in rising order. They are run when the next level is asked for.
    """
    asked, slots = [[0]] * len(rows), torch.zeros_like(state.root)
    for level in range(depth):
        tokens, logq = proposal.topk(slots, topk)
        chosen = []
        for row, above, *candidates in zip(rows, asked, tokens.tolist(), logq.tolist(), strict=True):
            first = len(row)
            # The slots beyond ``above`` repeat one of it (see expand).
            for parent, children, below in zip(above, *candidates, strict=False):
                for token, value in zip(children, below, strict=True):
                    if token >= 0:  # rounding may put a certain token above 0
                        row.add(parent, token, row.scores[parent] + min(value, 0.0))
            chosen.append(row.best(range(first, len(row)), width))
        yield chosen
        if level + 1 == depth or not any(chosen):
            return
        slots = expand(state, proposal, rows, chosen, min(width, topk ** (level + 1)))
        asked = chosen


def expand(
    state: DecodeState, proposal: Proposal, rows: Sequence[Drafted], chosen: Sequence[Sequence[int]], count: int
) -> Tensor:
    """Run the ``chosen`` nodes of every row and note their slots.

    Always ``count`` per row, so that shapes stay the same: a row with fewer runs its first one (or its root) again.

    Returns:
        The new slots: int64 [B, count].
    """
    above, tokens = [], []
    for row, nodes in zip(rows, chosen, strict=True):
        again = nodes[0] if nodes else 0
        filled = [*nodes, *[again] * (count - len(nodes))]
        above.append([row.slots[max(row.parents[node], 0)] for node in filled])
        tokens.append([row.tokens[node] for node in filled])
    places = sent([above, tokens], state.root.device)
    slots = proposal.expand(places[0], places[1])
    for row, nodes, new in zip(rows, chosen, slots.tolist(), strict=True):
        for node, slot in zip(nodes, new, strict=False):
            row.slots[node] = slot
    return slots


def assemble(
    state: DecodeState,
    rows: Sequence[Drafted],
    kept: Sequence[Sequence[int]],
    max_nodes: int,
    logq: Tensor | None = None,
) -> Tree:
    """The tree of the ``kept`` nodes, padded to ``max_nodes``.

    Args:
        kept: per row, the root and some of its nodes in rising order, each with its parent.
        logq: float32 [B, T, V] by place in ``kept``, or None (see ``Tree.logq``).
    """
    tokens, slots, parents = [], [], []
    for row, nodes in zip(rows, kept, strict=True):
        place = {node: i for i, node in enumerate(nodes)}
        extra = max_nodes - len(nodes)
        tokens.append([*(row.tokens[node] for node in nodes), *[0] * extra])
        slots.append([*(row.slots[node] for node in nodes), *[-1] * extra])
        parents.append((-1, *(place[row.parents[node]] for node in nodes[1:]), *[0] * extra))
    device = state.root.device
    topology = topology_of(tuple(parents), device)
    both = sent([tokens, slots], device)
    counts = [len(nodes) for nodes in kept]
    num_nodes = None if min(counts) == max_nodes else sent(counts, device)
    return Tree(both[0], topology.parents, num_nodes, both[1], logq, state.draws, topology)


def check_positive(**settings: int) -> None:
    """Refuse a setting below 1, or one that no tree can need.

    Raises:
        ValueError: names the setting.
    """
    for name, value in settings.items():
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
        if value > MAX_NODES:
            raise ValueError(f"{name}: expected at most {MAX_NODES}, got {value}")
