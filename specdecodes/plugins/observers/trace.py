"""What every step drafted, token by token, and what became of it."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from specdecodes.core.tree import Tree, Verdict
from specdecodes.hookspecs import hookimpl

if TYPE_CHECKING:
    from specdecodes.core.decoder import Generation
    from specdecodes.core.state import DecodeState


KINDS = ("root", "accepted", "rejected", "bonus", "cut")
"""What a node of a :class:`Step` may be."""


@dataclass(frozen=True)
class Step:
    """One step's tree, padding left out, with the bonus token as a last child of the last accepted node.

    Attributes:
        tokens: token ids. parents: -1 at the root, parents first, siblings in draw order.
        kinds: ``root`` (decided before the step), ``accepted``, ``rejected``, ``cut`` (accepted, but the answer had
            ended: end of text, a stop string, ``max_new_tokens``) or ``bonus`` (none where the answer ended before).
    """

    tokens: list[int]
    parents: list[int]
    kinds: list[str]


class StepObserver:
    """Base of what looks at every step: :meth:`seen` gets it, copied to the host. Row 0 only."""

    def __init__(self, context: object = None) -> None:
        pass

    @hookimpl(wrapper=True)
    def verify(self, state: DecodeState) -> Generator[None, Verdict, Verdict]:
        """Keep the verdict as it is before the end of the answer cuts it."""
        verdict = yield
        state.extras["uncut"] = verdict
        return verdict

    @hookimpl
    def step_finished(self, state: DecodeState, tree: Tree) -> None:
        """Look at the step."""
        self.seen(state, step_of(tree, state.extras["uncut"], state.accept_lengths[-1]))

    def seen(self, state: DecodeState, step: Step) -> None:
        """Called after every step; it is the ``len(state.accept_lengths)``-th."""
        raise NotImplementedError


class Trace(StepObserver):
    """Puts every step's tree and what became of its nodes into ``Generation.extras["steps"]``, a list of ``Step``.

    Every step is copied to the host: for looking at, not for measuring. Row 0 only.
    """

    @hookimpl
    def generation_started(self, state: DecodeState) -> None:
        """Start from nothing."""
        state.extras["steps"] = []

    def seen(self, state: DecodeState, step: Step) -> None:
        """Keep the step, once if several observers do."""
        state.extras["steps"][len(state.accept_lengths) - 1 :] = [step]

    @hookimpl
    def generation_finished(self, state: DecodeState, generation: Generation) -> None:
        """Hand the steps over."""
        generation.extras["steps"] = state.extras["steps"]


def step_of(tree: Tree, verdict: Verdict, emitted: int) -> Step:
    """Row 0 of a step.

    Args:
        tree: what was drafted. verdict: what was accepted of it, before the end of the answer cut it.
        emitted: how many tokens the answer got.
    """
    count = tree.count()
    tokens, parents = tree.tokens[0, :count].tolist(), tree.parents[0, :count].tolist()
    path = [node for node in verdict.path[0].tolist() if node >= 0]
    kinds = ["root"] + ["rejected"] * (count - 1)
    for place, node in enumerate(path[1:], 1):
        kinds[node] = "accepted" if place <= emitted else "cut"
    if emitted == len(path):  # the accepted tokens and one more
        return Step([*tokens, int(verdict.bonus[0])], [*parents, path[-1]], [*kinds, "bonus"])
    return Step(tokens, parents, kinds)


def headline(number: int, kinds: Sequence[str]) -> str:
    """A step's outcome in words, from the kinds of its nodes (see :class:`Step`)."""
    accepted, bonus = kinds.count("accepted"), kinds.count("bonus")
    drafted = len(kinds) - 1 - bonus
    outcome = f"{accepted} of {drafted} drafted tokens accepted" if drafted else "no draft"
    return f"step {number}: {outcome}, {accepted + bonus} emitted"
