"""Targets and drafters whose logits are literals: a function of the token prefix, no weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from specdecodes.core.sampling import LogitsPipeline
from specdecodes.core.state import DecodeState
from specdecodes.core.tree import Tree
from specdecodes.hookspecs import hookimpl
from specdecodes.testing.contract import expect

Rule = Callable[[tuple[int, ...]], Tensor]
"""The logits [V] after a token prefix (prompt included)."""


class LiteralTarget:
    """Stands in for :class:`specdecodes.Target`: prefill, score and commit over a rule instead of a model.

    Unlike a model it is strict: what is committed must be a path of real nodes of the tree scored last.

    Attributes:
        committed: per row, the committed tokens.
    """

    def __init__(
        self, rule: Rule, vocab_size: int, *, eos_ids: Sequence[int] = (), dtype: torch.dtype = torch.float64
    ) -> None:
        self.vocab_size = vocab_size
        self.eos_ids = list(eos_ids)
        self.dtype = dtype
        self.device = torch.device("cpu")
        self.committed: list[list[int]] = []
        self.backend: Any = None
        self.step_in_place = False
        self._rule = rule
        self._known: dict[tuple[int, ...], Tensor] = {}
        self._scored: Tree | None = None

    @property
    def length(self) -> int:
        """Committed tokens of row 0."""
        return len(self.committed[0])

    def check_room(self, rows: int, prompt: int, new: int) -> None:
        """There is always room."""

    def logits(self, prefix: Sequence[int]) -> Tensor:
        """The logits [V] after ``prefix``."""
        key = tuple(prefix)
        if key not in self._known:
            self._known[key] = self._rule(key).to(self.dtype)
        return self._known[key]

    def prefill(self, ids: Tensor, **_: Any) -> Tensor:
        """Forget everything, commit ``ids`` [B, L]; logits [B, V]."""
        self.committed = ids.tolist()
        self._scored = None
        return torch.stack([self.logits(row) for row in self.committed])

    def score(self, tree: Tree) -> Tensor:
        """Logits [B, T, V] after every node, each along its own path."""
        self._scored = tree
        paths = tree.structure.paths.tolist()
        tokens = tree.tokens.tolist()
        rows = []
        for before, row, ids in zip(self.committed, paths, tokens, strict=True):
            prefixes = [[*before, *(ids[node] for node in path if node >= 0)] for path in row]
            rows.append(torch.stack([self.logits(prefix) for prefix in prefixes]))
        return torch.stack(rows)

    def commit(self, path: Tensor, nodes: Sequence[int] | None = None) -> None:
        """Append the tokens of ``path`` [B, D], padded with -1.

        Raises:
            AssertionError: no tree scored since the last commit, or not a path of real nodes.
        """
        tree = self._scored
        expect(tree is not None, "commit: no tree has been scored since the last commit")
        assert tree is not None
        for row, nodes in enumerate(path.tolist()):
            self.committed[row] += [int(tree.tokens[row, node]) for node in real_path(tree, row, nodes)]
        self._scored = None


def real_path(tree: Tree, row: int, nodes: Sequence[int]) -> list[int]:
    """``nodes`` without the padding on the right.

    Raises:
        AssertionError: not a path of real nodes from the root.
    """
    length = next((i for i, node in enumerate(nodes) if node < 0), len(nodes))
    path = list(nodes[:length])
    expect(all(node == -1 for node in nodes[length:]), f"path {list(nodes)}: expected -1 after its end only")
    expect(path and path[0] == 0, f"path {list(nodes)}: expected the root (node 0) first, accepted drafts or not")
    parents = tree.parents[row].tolist()
    count = tree.count(row)
    for above, node in pairwise(path):
        expect(node < len(parents), f"path {path}: the tree has {len(parents)} nodes")
        expect(node < count, f"path {path}: node {node} is padding (the tree has {count} nodes) and is never accepted")
        expect(parents[node] == above, f"path {path}: node {node} is a child of {parents[node]}, not of {above}")
    return path


class LiteralDrafter:
    """Drafts by a rule; it reads what was committed from the state and has nothing to commit itself."""

    has_probs = True
    capturable = False

    def __init__(self, rule: Rule, *, candidates: int | None = None) -> None:
        self.rule = rule
        self.candidates = candidates

    @hookimpl
    def propose(self, state: DecodeState) -> LiteralProposal:
        """A proposal after everything emitted."""
        return LiteralProposal(self.rule, state, candidates=self.candidates)


class LiteralProposal:
    """A proposal over a rule. A slot is known by its path: the tokens below the root.

    Args:
        candidates: :meth:`topk` knows no more than this many; None: all that are possible.
        depth: levels of :attr:`marginals`, taken along the most likely path; 0: none.

    Attributes:
        slots: per row, the path of every slot.
    """

    def __init__(self, rule: Rule, state: DecodeState, *, candidates: int | None = None, depth: int = 0) -> None:
        self._rule = rule
        self._before = [tuple(row) for row in state.history]
        self._pipeline: LogitsPipeline = state.pipeline
        self._candidates = candidates
        self.slots: list[list[tuple[int, ...]]] = [[()] for _ in self._before]
        self.marginals: Tensor | None = None
        if depth:
            self.marginals = torch.stack([self._marginals(row, depth) for row in range(len(self._before))])

    def distribution(self, row: int, path: tuple[int, ...]) -> Tensor:
        """The processed log-probabilities [V] after the root and ``path``."""
        prefix = self._before[row] + path
        scores = self._pipeline(self._rule(prefix)[None], [prefix])
        return (scores.log_softmax(-1) if self._pipeline.greedy else scores)[0]

    def logq(self, slots: Tensor) -> Tensor:
        """See :meth:`Proposal.logq`."""
        return torch.stack(
            [
                torch.stack([self.distribution(row, self.slots[row][slot]) for slot in asked])
                for row, asked in enumerate(slots.tolist())
            ]
        )

    def topk(self, slots: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """See :meth:`Proposal.topk`; what is impossible is no candidate."""
        rows = self.logq(slots)
        logq, tokens = rows.topk(min(k, rows.shape[-1]), dim=-1)
        place = torch.arange(logq.shape[-1])
        limit = k if self._candidates is None else self._candidates
        none = (logq == -torch.inf) | (place >= limit)
        extra = k - logq.shape[-1]
        tokens = torch.nn.functional.pad(tokens.masked_fill(none, -1), (0, extra), value=-1)
        return tokens, torch.nn.functional.pad(logq.masked_fill(none, -torch.inf), (0, extra), value=-torch.inf)

    def expand(self, slots: Tensor, tokens: Tensor) -> Tensor:
        """See :meth:`Proposal.expand`."""
        new = []
        for row, (above, below) in enumerate(zip(slots.tolist(), tokens.tolist(), strict=True)):
            first = len(self.slots[row])
            self.slots[row] += [(*self.slots[row][slot], token) for slot, token in zip(above, below, strict=True)]
            new.append(list(range(first, len(self.slots[row]))))
        return torch.tensor(new)

    def _marginals(self, row: int, depth: int) -> Tensor:
        path: tuple[int, ...] = ()
        rows = []
        for _ in range(depth):
            rows.append(self.distribution(row, path))
            path = (*path, int(rows[-1].argmax()))
        return torch.stack(rows)
