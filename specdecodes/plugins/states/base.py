"""What every state back-end shares."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from specdecodes.hookspecs import hookimpl

if TYPE_CHECKING:
    from specdecodes.core.state import DecodeState
    from specdecodes.core.tree import Tree, Verdict
    from specdecodes.models.target import Target


class StateBackend:
    """Chooses what ``Target.score`` keeps (``keep``) and moves the recurrent state of an accepted path.

    ``keep`` is ``inputs`` (of the ops), ``states`` (a window and a state per node) or ``nothing``.
    """

    keep = "nothing"
    capturable = False

    def move(self, target: Target, path: Tensor) -> None:
        """Move all recurrent layers of ``target`` along ``path`` [B, D] (padded with -1) of the tree scored last."""
        raise NotImplementedError

    @hookimpl(tryfirst=True)
    def commit_state(self, state: DecodeState, tree: Tree, verdict: Verdict) -> None:
        """Commit on the target: recurrent states through :meth:`move`, attention rows by gathering."""
        state.target.commit(verdict.path, state.path_of(verdict, tree)[0].nodes)

    @staticmethod
    def bytes_per_node(target: Target) -> int:
        """Bytes that scoring keeps per tree node, all recurrent layers together (STree 2025, section 4.3)."""
        return 0
