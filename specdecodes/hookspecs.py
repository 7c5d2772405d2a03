"""Every hook of specdecodes with its contract: when it fires, what it gets, what None means.

Discovery hooks are called once per process, phase and event hooks on the plugin manager of one decoder.
Letters: B batch rows, T tree nodes, D path length, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from specdecodes.core.decoder import Generation
    from specdecodes.core.state import DecodeState
    from specdecodes.core.tree import Proposal, Tree, Verdict
    from specdecodes.plugin import Registry

hookspec = pluggy.HookspecMarker("specdecodes")
hookimpl = pluggy.HookimplMarker("specdecodes")


class Discovery:
    """Called once per process, on what the entry-point group ``specdecodes`` names and on the built-ins alike."""

    @hookspec
    def register_components(self, registry: Registry) -> None:
        """Add components: ``registry.add(kind, name, factory)``.

        Fires when :func:`specdecodes.registry` is first asked for. The return value is ignored.
        """


class Phases:
    """The four phases of a decode step, in order, on every step until all rows are finished."""

    @hookspec(firstresult=True)
    def propose(self, state: DecodeState) -> Proposal:  # type: ignore[empty-body]
        """Run the drafter over what it has not run yet and return a proposal, which may also do that when it is asked.

        Fires first in a step. ``state.root`` [B, 1] is decided but in no cache. Never decides the tree's shape.
        Exactly one implementation per decoder; None is not an answer (the facade raises).
        """

    @hookspec(firstresult=True)
    def build_tree(self, state: DecodeState, proposal: Proposal) -> Tree:  # type: ignore[empty-body]
        """Spend the node budget: ask the proposal level by level, keep children, return a tree [B, T].

        Fires after ``propose``. Children that were drawn at random are never dropped or re-ordered afterwards.
        Exactly one implementation per decoder; None is not an answer.
        """

    @hookspec(firstresult=True)
    def verify(self, state: DecodeState, tree: Tree) -> Verdict:  # type: ignore[empty-body]
        """Score the tree with one forward of the target (``state.target.score(tree)`` -> [B, T, V]) and accept a path.

        Fires after ``build_tree``. The verdict's path [B, D] starts with the root and holds no padding node.
        Exactly one implementation per decoder; None is not an answer.
        """

    @hookspec
    def commit_state(self, state: DecodeState, tree: Tree, verdict: Verdict) -> None:
        """Move caches and states to the end of the accepted path; the root is committed even if no draft was accepted.

        Fires after ``verify``, with the verdict already clipped to end of text and ``max_new_tokens``. Called on
        every implementation, the state back-end (``tryfirst``) before the drafter. Returns nothing.
        """


class Events:
    """For observers: nothing that they return or do may change the tokens."""

    @hookspec
    def generation_started(self, state: DecodeState) -> None:
        """Fires once per generation, after the prefill, before the first step; ``state.tokens`` holds one per row."""

    @hookspec
    def step_finished(self, state: DecodeState, tree: Tree, verdict: Verdict) -> None:
        """Fires at the end of every step, after ``state.advance``; ``verdict`` is the clipped one."""

    @hookspec
    def generation_finished(self, state: DecodeState, generation: Generation) -> None:
        """Fires once, when every row is finished and ``generation`` is complete; not when a stream is abandoned."""


PHASES = ("propose", "build_tree", "verify", "commit_state")
EVENTS = ("generation_started", "step_finished", "generation_finished")
RETURNS = {"propose": "Proposal", "build_tree": "Tree", "verify": "Verdict"}
