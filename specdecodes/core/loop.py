"""The decode loop. It knows no mode, no model and no component by name."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from specdecodes.core.state import DecodeState
from specdecodes.core.tree import Verdict
from specdecodes.plugin import Hooks


@torch.inference_mode()
def steps(hooks: Hooks, state: DecodeState) -> Iterator[Verdict]:
    """Run decode steps until every row is finished; yields what each accepted, when its tokens are final."""
    while not state.finished:
        proposal = hooks.propose(state)
        tree = hooks.build_tree(state, proposal)
        verdict = hooks.verify(state, tree)
        verdict = state.clip(verdict, tree)
        hooks.commit_state(state, tree, verdict)
        state.advance(verdict)
        hooks.step_finished(state, tree, verdict)
        yield verdict
