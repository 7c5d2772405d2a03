"""The static tree that measurements say is best."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from specdecodes import assets
from specdecodes.plugins.trees.optimise import Measurements, optimise
from specdecodes.plugins.trees.static import Static

if TYPE_CHECKING:
    from specdecodes.plugin import Context


class Optimal(Static):
    """Keep the static shape with the best predicted speed-up, from measured acceptance and cost (Sequoia).

    ``measured``: path of a JSON file (see :meth:`Measurements.read`); "" for the n-gram drafter's on the embedded pair
    (assets/README.md), which fits nothing else well. ``acceptance`` (by child rank, or one row per depth), ``cost``
    (by number of nodes) and ``draft_cost`` (per level) stand in for what the file says. ``max_nodes``: at most this
    many, root included (None: as many as have a measured cost). ``depth``: at most this many levels.

    Attributes:
        optimum: the shape with its predicted tokens per step and speed-up.
    """

    def __init__(
        self,
        context: Context | None = None,
        *,
        measured: str = "",
        acceptance: list[float] | list[list[float]] | None = None,
        cost: dict[int, float] | None = None,
        draft_cost: float | None = None,
        max_nodes: int | None = None,
        depth: int = 8,
    ) -> None:
        found = Measurements.read(Path(measured) if measured else assets.measurements("ngram"))
        if acceptance is not None or cost is not None or draft_cost is not None:
            found = Measurements.checked(
                found.acceptance if acceptance is None else acceptance,
                found.cost if cost is None else cost,
                found.draft_cost if draft_cost is None else draft_cost,
            )
        if depth < 1:
            raise ValueError(f"depth: expected at least 1, got {depth}")
        self.optimum = optimise(found, max_nodes=max_nodes, max_depth=depth)
        self._use(self.optimum.shape, context)
