"""The three objects that travel between the hooks of one decode step: Proposal, Tree, Verdict.

Letters: B batch rows, T tree nodes (node 0 is the root, parents come first), D path length, V vocabulary,
n slots asked about at once, K children per node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import pad

from specdecodes.core.transfer import sent


@runtime_checkable
class Proposal(Protocol):
    """A drafter's answer for one step: a distribution over the next token at every slot that was expanded.

    A slot is a node of the drafter's own tree; slot 0 is the root and has been run. All tensors live on the
    target's device; token ids are the target's.
    """

    marginals: Tensor | None
    """Per-depth log-probabilities [B, depth, V] of a parallel drafter, float32; None for all others.

    A drafter that can run a whole step as one captured graph has an attribute ``in_one`` in such a step, until it is
    asked anything else: ``proposal.in_one(build, *inputs)`` gives what ``build(proposal, *inputs)`` would, tensors in
    any nest of tuples. ``build`` stays the same function from step to step, draws nothing and reads no value on the
    host; all that differs between steps is in ``inputs``, tensors. Who draws makes its noise before
    (:meth:`Rng.noise`), in ``dtype``, another attribute there. None or absent: the proposal is asked as it is.
    """

    def topk(self, slots: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The ``k`` best next tokens at ``slots`` [B, n]: tokens (int64) and log-probabilities (float32), [B, n, k].

        Best first. A drafter with fewer than ``k`` candidates fills up with token -1 and log-probability -inf;
        a tree builder leaves those out. A drafter that has a number of candidates at every slot may say so in an
        attribute ``at_least``, which spares the builder a look at what it got.
        """

    def logq(self, slots: Tensor) -> Tensor:
        """The processed draft log-probabilities at ``slots`` [B, n]: float32 [B, n, V]."""

    def expand(self, slots: Tensor, tokens: Tensor) -> Tensor:
        """Run ``tokens`` [B, n] as children of ``slots`` [B, n]; returns their new slots [B, n]."""


@runtime_checkable
class HostProposal(Protocol):
    """A proposal that looks candidates up on the host, one slot at a time and without running anything.

    A builder that decides on the host what to ask next need not ask a :class:`Proposal` that is also one of these
    level by level.
    """

    def candidates(self, row: int, slot: int, k: int) -> Sequence[tuple[int, float]]:
        """At most ``k`` (token, probability above 0) at ``slot`` of a row, best first."""

    def enter(self, row: int, slot: int, token: int) -> int:
        """The new slot of ``token`` below ``slot``."""


@dataclass(frozen=True, eq=False)
class Tree:
    """A tree of drafted tokens below the last accepted one.

    Attributes:
        tokens: int64 [B, T]; node 0 is the root, the last accepted token, which no cache holds yet.
        parents: int64 [B, T]; ``parents[:, 0] == -1`` and ``parents[:, i] < i``. Siblings stand in draw order.
        num_nodes: int64 [B] (None: all T). Nodes from there on are padding: parent 0, never a parent, never accepted.
        slots: int64 [B, T] or None: the drafter's slot of each node, -1 where the drafter has not run it.
        logq: float32 [B, T, V] or None: row i is the draft distribution that the children of node i were drawn
            from (its values at nodes without children mean nothing).
        draws: how children came about: ``none`` (chosen by score), ``iid`` or ``without_replacement``.
        topology: what follows from ``parents``, where the builder has it already (a static shape builds it once).
    """

    tokens: Tensor
    parents: Tensor
    num_nodes: Tensor | None = None
    slots: Tensor | None = None
    logq: Tensor | None = None
    draws: str = "none"
    topology: Topology | None = None

    @classmethod
    def checked(
        cls,
        tokens: Tensor,
        parents: Tensor,
        num_nodes: Tensor | None = None,
        slots: Tensor | None = None,
        logq: Tensor | None = None,
        draws: str = "none",
        *,
        vocab_size: int | None = None,
    ) -> Tree:
        """Build a tree from what a user passes in, reading (and so synchronising on) every value.

        Raises:
            ValueError: a shape, dtype or value that breaks the contract above; the message names the field,
                what was expected and what came.
        """
        _check_ids("tokens", tokens)
        _check_ids("parents", parents)
        if tokens.shape != parents.shape:
            raise ValueError(
                f"Tree.parents: expected the shape of tokens {tuple(tokens.shape)}, got {tuple(parents.shape)}"
            )
        rows, count = tokens.shape
        num_nodes = torch.full((rows,), count, device=tokens.device) if num_nodes is None else num_nodes
        if num_nodes.shape != (rows,) or num_nodes.dtype != torch.long:
            raise ValueError(
                f"Tree.num_nodes: expected int64 of shape ({rows},), got {num_nodes.dtype} {tuple(num_nodes.shape)}"
            )
        for row in range(rows):
            _check_row(row, parents[row].tolist(), int(num_nodes[row]), count)
        _check_range("tokens", tokens, 0, vocab_size)
        if slots is not None and slots.shape != tokens.shape:
            raise ValueError(
                f"Tree.slots: expected the shape of tokens {tuple(tokens.shape)}, got {tuple(slots.shape)}"
            )
        if logq is not None and (logq.ndim != 3 or logq.shape[:2] != tokens.shape):
            raise ValueError(f"Tree.logq: expected [{rows}, {count}, V], got {tuple(logq.shape)}")
        if draws not in DRAWS:
            raise ValueError(f"Tree.draws: expected one of {', '.join(DRAWS)}, got {draws!r}")
        return cls(tokens, parents, num_nodes, slots, logq, draws)

    @property
    def shape(self) -> tuple[int, int]:
        """(B, T)."""
        return self.tokens.shape[0], self.tokens.shape[1]

    def count(self, row: int = 0) -> int:
        """How many nodes of a row are not padding; reads (and so synchronises on) ``num_nodes`` where there is any."""
        return self.tokens.shape[1] if self.num_nodes is None else int(self.num_nodes[row])

    @cached_property
    def structure(self) -> Topology:
        """What follows from the parents alone: ancestors, depths, paths."""
        return self.topology if self.topology is not None else Topology(self.parents)

    @cached_property
    def real(self) -> Tensor:
        """Bool [B, T]: which nodes are not padding."""
        rows, count = self.shape
        if self.num_nodes is None:
            return torch.ones(rows, count, dtype=torch.bool, device=self.tokens.device)
        return torch.arange(count, device=self.tokens.device) < self.num_nodes[:, None]


MAX_NODES = 4096
"""Nodes of a tree at most: far more than pay, few enough for their mask and their logits to fit into memory."""


def check_size(name: str, count: int) -> None:
    """Refuse a tree of more than ``MAX_NODES`` nodes; ``name`` is the setting that asks for it.

    Raises:
        ValueError: too many.
    """
    if count > MAX_NODES:
        raise ValueError(f"{name}: expected a tree of at most {MAX_NODES} nodes, got {count}; choose a smaller one")


DRAWS = ("none", "iid", "without_replacement")
"""How the children of a node came about: chosen by score, drawn independently, drawn without replacement."""


class Topology:
    """Everything that follows from a tree's parents [B, T]; a static tree builds it once and shares it.

    No Python loop over nodes: ancestors come from repeated squaring of the parent relation, log2(T) products.
    """

    _source: Topology | None = None
    """On another device, where what is asked for later comes from."""

    def __init__(self, parents: Tensor, depth: int | None = None) -> None:
        """``depth``: at least that of the deepest node, where it is known: then nothing is read for ``paths``."""
        self.parents = parents
        count, device = parents.shape[1], parents.device
        nodes = torch.arange(count, device=device)
        # reach[b, i, j]: j is i or an ancestor of i
        reach = torch.eye(count, device=device) + (parents[..., None] == nodes)
        for _ in range(max(count - 1, 1).bit_length()):
            reach = (reach @ reach).clamp_(max=1.0)
        self.ancestors = reach > 0.5
        """bool [B, T, T]: ``ancestors[b, i, j]`` iff j is i itself or above it."""
        self.depths = self.ancestors.sum(-1) - 1
        """int64 [B, T]: 0 at the root."""
        if depth is not None:
            self.__dict__["paths"] = self._paths(_roomy(depth + 1))

    @classmethod
    def of(
        cls,
        parents: Tensor,
        ancestors: Tensor,
        depths: Tensor,
        paths: Tensor | None = None,
        windows: Mapping[int, Tensor] | None = None,
        masks: Mapping[torch.dtype, Tensor] | None = None,
        children: Tensor | None = None,
    ) -> Topology:
        """From what another one has worked out: see :meth:`parts`."""
        found = cls.__new__(cls)
        found.parents, found.ancestors, found.depths = parents, ancestors, depths
        found.__dict__.update(_windows=dict(windows or {}), _masks=dict(masks or {}))
        found.__dict__.update({} if paths is None else {"paths": paths})
        found.__dict__.update({} if children is None else {"children": children})
        return found

    def parts(self) -> tuple[Any, ...]:
        """All that has been worked out so far, for :meth:`of`."""
        paths, children = (self.__dict__.get(name) for name in ("paths", "children"))
        return self.parents, self.ancestors, self.depths, paths, dict(self._windows), dict(self._masks), children

    def view(
        self, widths: tuple[int, ...], dtype: torch.dtype | None, *, paths: bool = False, children: bool = False
    ) -> Topology:
        """One of these parts alone, in few shapes for trees of one size: what a captured run reads.

        Args:
            widths: of convs. dtype: of a mask (None: without one). paths, children: whether these are among it; paths
                with a number of columns that is a power of two.
        """
        key = (widths, dtype, paths, children)
        found = self._views.get(key)
        if found is None:
            missing = _roomy(self.paths.shape[-1]) - self.paths.shape[-1] if paths else 0
            wide = pad(self.paths, (0, missing), value=-1) if missing else self.paths if paths else None
            windows = {width: self.windows(width) for width in widths}
            masks = {} if dtype is None else {dtype: self.mask(dtype)}
            below = self.children if children else None
            found = Topology.of(self.parents, self.ancestors, self.depths, wide, windows, masks, below)
            self._views[key] = found
        return found

    def to(self, device: torch.device) -> Topology:
        """The same on another device, to which finished tensors are copied: nothing is computed or read there."""
        parents, ancestors, depths, paths = (
            sent(each, device) for each in (self.parents, self.ancestors, self.depths, self.paths)
        )
        found = Topology.of(parents, ancestors, depths, paths)
        found._source = self
        return found

    @cached_property
    def paths(self) -> Tensor:
        """int64 [B, T, D]: nodes from the root to each node, right-padded with -1; D: deepest depth + 1 or more."""
        return self._paths(int(self.depths.max()) + 1)

    def _paths(self, width: int) -> Tensor:
        rows, count = self.parents.shape
        nodes = torch.arange(count, device=self.parents.device)
        paths = torch.full((rows, count, count + 1), -1, dtype=torch.long, device=self.parents.device)
        # Each ancestor j of i stands at position depth(j); everything else goes to the spare last column.
        column = torch.where(self.ancestors, self.depths[:, None, :], count)
        paths.scatter_(2, column, nodes.expand(rows, count, count))
        return pad(paths[..., :width], (0, max(width - count - 1, 0)), value=-1)

    @cached_property
    def children(self) -> Tensor:
        """int64 [B, T, K]: the children of each node in draw order, padded with -1; reads (and synchronises).

        Padding nodes are the root's last children here.
        """
        if self._source is not None:
            return sent(self._source.children, self.parents.device)
        rows, count = self.parents.shape
        rank = (self.parents[:, :, None] == self.parents[:, None, :]).tril(-1).sum(-1)
        most = int(rank.max()) + 1
        place = torch.where(self.parents < 0, count * most, self.parents * most + rank)  # the root's is a spare one
        table = torch.full((rows, count * most + 1), -1, dtype=torch.long, device=self.parents.device)
        nodes = torch.arange(count, device=self.parents.device).expand(rows, count)
        return table.scatter_(1, place, nodes)[:, :-1].view(rows, count, most)

    @cached_property
    def levels(self) -> list[tuple[Tensor, Tensor]]:
        """Per depth from 1 on, the nodes and their parents, int64 [n] each, counted over all rows (row * T + node).

        Reads the depths (and so synchronises). The roots are ``row * T``.
        """
        count = self.parents.shape[1]
        offset = torch.arange(0, self.parents.numel(), count, device=self.parents.device)[:, None]
        depths, parents = self.depths.flatten(), (self.parents + offset).flatten()
        order = depths.argsort(stable=True)
        nodes = order.split(torch.bincount(depths).tolist())[1:]
        return [(level, parents[level]) for level in nodes]

    def windows(self, width: int) -> Tensor:
        """int64 [B, T, width]: where a causal conv of ``width`` taps reads, newest last.

        Indices point into ``width`` cached inputs (0 oldest) followed by the T nodes, so node i is ``width + i``.
        """
        cached = self._windows.get(width)
        if cached is None and self._source is not None:
            cached = self._windows[width] = sent(self._source.windows(width), self.parents.device)
        if cached is None:
            node = torch.arange(self.parents.shape[1], device=self.parents.device).expand_as(self.parents)
            columns = []
            for _ in range(width):
                columns.append(node + width)
                above = self.parents.gather(1, node.clamp(min=0))
                # Above the root (-1) come the cached inputs -1, -2, ...: one further back per tap.
                node = torch.where(node >= 0, above, node - 1)
            cached = self._windows[width] = torch.stack(columns[::-1], dim=-1)
        return cached

    def mask(self, dtype: torch.dtype) -> Tensor:
        """Additive attention mask among the nodes [B, 1, T, T]: 0 on a node's own path, else the lowest value."""
        cached = self._masks.get(dtype)
        if cached is None:
            lowest = torch.finfo(dtype).min
            cached = torch.zeros(self.ancestors.shape, dtype=dtype, device=self.parents.device)
            cached = self._masks[dtype] = cached.masked_fill_(~self.ancestors, lowest)[:, None]
        return cached

    @cached_property
    def _windows(self) -> dict[int, Tensor]:
        return {}

    @cached_property
    def _masks(self) -> dict[torch.dtype, Tensor]:
        return {}

    @cached_property
    def _views(self) -> dict[tuple[Any, ...], Topology]:
        return {}

    @cached_property
    def all_nodes(self) -> Tensor:
        """Int64 [B]: T, the number of nodes of a tree without padding."""
        rows, count = self.parents.shape
        return torch.full((rows,), count, device=self.parents.device)


def _roomy(width: int) -> int:
    """The next power of two."""
    return 1 << (width - 1).bit_length()


@lru_cache(maxsize=1024)  # at 64 nodes one takes some 30 kB
def topology_of(parents: tuple[tuple[int, ...], ...], device: torch.device) -> Topology:
    """The topology of these parents (one tuple per row), built once."""
    found = Topology(torch.tensor(parents, device="cpu"))
    return found if device.type == "cpu" else found.to(device)


@dataclass(frozen=True, eq=False)
class Verdict:
    """What the target accepted of a tree.

    Attributes:
        path: int64 [B, D]: accepted node ids from the root (always first), right-padded with -1.
        num_accepted: int64 [B]: accepted drafted tokens, so ``path`` holds ``num_accepted + 1`` nodes.
        bonus: int64 [B]: the token after the path, the next root: from the target's own distribution, or, where
            ``DecodeState.clip`` cut the path, the drafted token that ended the row.
    """

    path: Tensor
    num_accepted: Tensor
    bonus: Tensor


def _check_ids(name: str, ids: Tensor) -> None:
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.dtype != torch.long or 0 in ids.shape:
        got = f"{ids.dtype} of shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"Tree.{name}: expected a non-empty int64 tensor [B, T], got {got}")


def _check_range(name: str, ids: Tensor, low: int, high: int | None) -> None:
    if int(ids.min()) < low or (high is not None and int(ids.max()) >= high):
        bound = f"{low} to {high - 1}" if high is not None else f"at least {low}"
        raise ValueError(f"Tree.{name}: expected token ids {bound}, got {int(ids.min())} to {int(ids.max())}")


def _check_row(row: int, parents: list[int], num_nodes: int, count: int) -> None:
    if not 1 <= num_nodes <= count:
        raise ValueError(f"Tree.num_nodes: row {row}: expected 1 to {count}, got {num_nodes}")
    if parents[0] != -1:
        raise ValueError(f"Tree.parents: row {row}: expected -1 at the root (node 0), got {parents[0]}")
    for node in range(1, count):
        parent = parents[node]
        if node >= num_nodes:
            if parent != 0:
                raise ValueError(f"Tree.parents: row {row}: padding node {node} must have parent 0, got {parent}")
        elif parent == -1:
            raise ValueError(
                f"Tree.parents: row {row}: node {node} is a second root; expected a parent from 0 to {node - 1}"
            )
        elif not 0 <= parent < node:
            raise ValueError(
                f"Tree.parents: row {row}: node {node} has parent {parent}; expected 0 to {node - 1} "
                "(parents come first, no cycles)"
            )
