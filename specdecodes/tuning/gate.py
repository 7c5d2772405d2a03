"""Draft only while it pays: the running estimate behind ``mode="auto"``, and the two parts that obey it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch

from specdecodes.core.tree import Proposal, Tree, Verdict
from specdecodes.hookspecs import hookimpl
from specdecodes.plugin import Hooks
from specdecodes.plugins.drafters.none import Nothing
from specdecodes.plugins.trees.static import Root

if TYPE_CHECKING:
    from specdecodes.core.decoder import Generation
    from specdecodes.core.state import DecodeState

WEIGHT = 1 / 64
"""Of the newest step in the running mean; accepted lengths scatter so much that a quicker mean closes by chance."""
PAUSES = (64, 512)
"""Plain steps before drafting is tried again: the first time, and at most; each vain try doubles them."""
TRIAL = 8
"""Drafted steps of such a try. With a step that costs twice a plain one it costs at most an eighth of the pause."""


@dataclass
class Estimate:
    """Whether drafting pays: its mean tokens per step against what its step costs in plain steps.

    It counts tokens and never reads a clock, so that a run takes the same steps again.

    Attributes:
        cost: of a drafted step, in plain steps. mean: running mean of the tokens of drafted steps.
        left: plain steps before the next try; 0 while drafting. The very first step is plain, so that what has to be
            compiled for plain steps is compiled by the first answer and not when drafting pauses.
        trial: steps of the try before it is judged. pause: the length of the next pause.
    """

    cost: float
    mean: float
    left: int = 1
    trial: int = 0
    pause: int = PAUSES[0]

    @property
    def speedup(self) -> float:
        """The running estimate."""
        return self.mean / self.cost

    def drafted(self, tokens: int) -> None:
        """A drafted step gave so many tokens."""
        if self.trial:
            self.trial -= 1
            self.mean += (tokens - self.mean) / (TRIAL - self.trial)
        else:
            self.mean += WEIGHT * (tokens - self.mean)
        if self.trial:
            return
        if self.speedup < 1:
            self.left, self.pause = self.pause, min(2 * self.pause, PAUSES[1])
        else:
            self.pause = PAUSES[0]

    def went_on_plainly(self) -> None:
        """A plain step; after the last of a pause comes a try, judged by itself."""
        self.left -= 1
        if not self.left and self.pause > PAUSES[0]:
            self.trial = TRIAL


class Gate:
    """One :class:`Estimate` per way of sampling, kept across answers.

    Args:
        cost, tau: of a drafted step, as the tuner measured them.
    """

    def __init__(self, cost: float, tau: float) -> None:
        self._estimates: defaultdict[tuple[float, ...], Estimate] = defaultdict(lambda: Estimate(cost, tau))

    def estimate(self, state: DecodeState) -> Estimate:
        """The one for this generation's sampling parameters."""
        params = state.params
        key = (params.temperature, params.top_k, params.top_p, params.min_p, params.repetition_penalty)
        return self._estimates[key]


class GatedDrafter:
    """``drafter`` while the gate is open; while it is closed it does not even hear of the prompt."""

    def __init__(self, drafter: Any, gate: Gate) -> None:  # noqa: ANN401 - components have no base class
        self.drafter = drafter
        self.gate = gate
        self.has_probs: bool = drafter.has_probs
        self.has_marginals: bool = getattr(drafter, "has_marginals", False)
        self.capturable = False
        self._hooks = Hooks({"drafter": drafter}, phases=("propose",))
        self._nothing = Nothing()
        self._started: WeakSet[DecodeState] = WeakSet()

    @hookimpl
    def propose(self, state: DecodeState) -> Proposal:
        """The drafter's proposal, or an empty one."""
        if self.gate.estimate(state).left:
            return self._nothing
        if state not in self._started:
            self._started.add(state)
            self._hooks.generation_started(state)
        return self._hooks.propose(state)

    @hookimpl
    def commit_state(self, state: DecodeState, tree: Tree, verdict: Verdict) -> None:
        """Count the step, and pass it on to a drafter that takes part in this generation."""
        estimate = self.gate.estimate(state)
        if state in self._started:
            self._hooks.commit_state(state, tree, verdict)
        if estimate.left:
            estimate.went_on_plainly()
        else:
            estimate.drafted(len(state.path_of(verdict, tree)[0].nodes))

    @hookimpl
    def step_finished(self, state: DecodeState, tree: Tree, verdict: Verdict) -> None:
        """Pass it on."""
        if state in self._started:
            self._hooks.step_finished(state, tree, verdict)

    @hookimpl
    def generation_finished(self, state: DecodeState, generation: Generation) -> None:
        """Pass it on."""
        if state in self._started:
            self._hooks.generation_finished(state, generation)


class GatedTree:
    """``builder`` while the gate is open; while it is closed the root alone, which decodes plainly."""

    def __init__(self, builder: Any, gate: Gate) -> None:  # noqa: ANN401
        self.builder = builder
        self.gate = gate
        self.draws: tuple[str, ...] = builder.draws
        self.needs_marginals: bool = builder.needs_marginals
        self.capturable = False
        self.chain: bool = builder.chain
        self.max_nodes: int = builder.max_nodes
        self.max_depth: int = builder.max_depth
        self._hooks = Hooks({"tree": builder}, phases=("build_tree",))
        self._root = Root()

    @hookimpl
    def build_tree(self, state: DecodeState, proposal: Proposal) -> Tree:
        """The builder's tree, or a root that no drafter has run."""
        if not self.gate.estimate(state).left:
            return self._hooks.build_tree(state, proposal)
        return replace(self._root.build_tree(state, proposal), slots=torch.full_like(state.root, -1))
