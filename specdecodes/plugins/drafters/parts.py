"""A drafter that is made of others: their hooks, and which of its slots each of them has run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from specdecodes.hookspecs import hookimpl
from specdecodes.plugin import Hooks
from specdecodes.plugins.drafters.index import Candidates

if TYPE_CHECKING:
    from specdecodes.core.decoder import Generation
    from specdecodes.core.state import DecodeState
    from specdecodes.core.tree import Proposal, Tree, Verdict
    from specdecodes.plugin import Context


class CompositeDrafter:
    """Base class; a subclass supplies :meth:`combine`.

    The parts are drafters by name, made with those of the decoder's settings that they take. A part runs only the nodes
    at which it is asked (and what lies between them and the root), and of a step in which it is not asked nothing at
    all; what it has not run of the accepted path it catches up on when it is asked next. One row (B = 1).

    Attributes:
        drafters: the parts, in the order named.
    """

    has_probs = False
    capturable = False

    def __init__(self, context: Context, names: Sequence[str]) -> None:
        self.drafters = [context.make("drafter", name) for name in names]
        self._hooks = [Hooks({"drafter": drafter}, phases=("propose",)) for drafter in self.drafters]
        self._last: WeakKeyDictionary[DecodeState, list[PartProposal]] = WeakKeyDictionary()

    @property
    def max_slots(self) -> int | None:
        """Nodes that every part may run in a step, the root included; None where no part says."""
        rooms = [room for drafter in self.drafters if (room := getattr(drafter, "max_slots", None)) is not None]
        return min(rooms, default=None)

    def combine(self, parts: Sequence[PartProposal]) -> CompositeProposal:
        """The proposal of one step; ``parts`` have run nothing yet."""
        raise NotImplementedError

    @hookimpl
    def generation_started(self, state: DecodeState) -> None:
        """Pass it on."""
        self._begin(state)  # as a part of another one it may hear of commits before it is first asked
        for hooks in self._hooks:
            hooks.generation_started(state)

    @hookimpl
    def propose(self, state: DecodeState) -> CompositeProposal:
        """Nothing is run before a part is asked."""
        return self.combine(self._begin(state))

    def _begin(self, state: DecodeState) -> list[PartProposal]:
        lineage = [(-1, -1)]
        self._last[state] = [PartProposal(hooks, state, lineage) for hooks in self._hooks]
        return self._last[state]

    @hookimpl
    def commit_state(self, state: DecodeState, tree: Tree, verdict: Verdict) -> None:
        """Every part gets the tree with its own slots."""
        assert tree.slots is not None
        slots = tree.slots[0].tolist()
        for part in self._last[state]:
            own = torch.tensor([[part.own.get(slot, -1) for slot in slots]], device=tree.slots.device)
            part.hooks.commit_state(state, replace(tree, slots=own), verdict)

    @hookimpl
    def step_finished(self, state: DecodeState, tree: Tree, verdict: Verdict) -> None:
        """Pass it on."""
        for hooks in self._hooks:
            hooks.step_finished(state, tree, verdict)

    @hookimpl
    def generation_finished(self, state: DecodeState, generation: Generation) -> None:
        """Pass it on."""
        for hooks in self._hooks:
            hooks.generation_finished(state, generation)


class PartProposal:
    """What one part has run in one step.

    Attributes:
        lineage: per slot of the whole, the slot above it and its token; shared by all parts.
        own: slot of the whole to slot of the part, for what the part has run.
    """

    def __init__(self, hooks: Hooks, state: DecodeState, lineage: list[tuple[int, int]]) -> None:
        self.hooks = hooks
        self.lineage = lineage
        self.own: dict[int, int] = {}
        self._state = state
        self._proposal: Proposal | None = None

    def topk(self, slots: Sequence[int], k: int) -> tuple[Tensor, Tensor]:
        """As :meth:`Proposal.topk`, at slots of the whole [n]: [1, n, k] each; runs what it has to."""
        if self._proposal is None:
            self._proposal = self.hooks.propose(self._state)
            self.own[0] = 0
        while missing := self._missing(slots):
            above = [self.own[self.lineage[slot][0]] for slot in missing]
            new = self._proposal.expand(self._tensor(above), self._tensor([self.lineage[slot][1] for slot in missing]))
            self.own.update(zip(missing, new[0].tolist(), strict=True))
        return self._proposal.topk(self._tensor([self.own[slot] for slot in slots]), k)

    def _missing(self, slots: Sequence[int]) -> list[int]:
        """What can be run now, because it lies right below what has been, of all that ``slots`` need."""
        found = []
        for slot in slots:
            below = -1
            while slot not in self.own:
                below, slot = slot, self.lineage[slot][0]
            if below >= 0:
                found.append(below)
        return list(dict.fromkeys(found))

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor([values], device=self._state.root.device)


class CompositeProposal(Candidates):
    """Candidates from several parts by slot; a subclass supplies :meth:`topk`."""

    def __init__(self, parts: Sequence[PartProposal]) -> None:
        self.parts = parts
        self._lineage = parts[0].lineage

    def topk(self, slots: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """See :meth:`Proposal.topk`."""
        raise NotImplementedError

    def expand(self, slots: Tensor, tokens: Tensor) -> Tensor:
        """New slots [1, n] for ``tokens`` [1, n] below ``slots`` [1, n]; a part runs them when it is asked there."""
        first = len(self._lineage)
        self._lineage.extend(zip(slots[0].tolist(), tokens[0].tolist(), strict=True))
        return torch.arange(first, len(self._lineage), device=slots.device)[None]
