"""The static tree that measurements say is best."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from specdecodes import assets
from specdecodes.core.settings import SettingWarning
from specdecodes.plugins.trees.drafted import check_positive
from specdecodes.plugins.trees.optimise import Measurements, optimise
from specdecodes.plugins.trees.static import Static

if TYPE_CHECKING:
    from specdecodes.plugin import Context


class Optimal(Static):
    """Keep the static shape with the best predicted speed-up, from measured acceptance and cost (Sequoia).

    ``measured``: path of a JSON file (see :meth:`Measurements.read`); "" for that of the embedded pair, which fits
    no other. ``acceptance`` (by child rank; or one row per depth; or one block per number of detours), ``cost`` (by
    number of nodes) and ``draft_cost`` (per level, in the unit of ``cost``) stand in for what the file says.
    ``max_nodes``: at most this many, root included (None: as many as have a measured cost). ``depth``: at most this
    many levels.

    Attributes:
        optimum: the shape with its predicted tokens per step and speed-up.
    """

    def __init__(
        self,
        context: Context | None = None,
        *,
        measured: str = "",
        acceptance: list[float] | list[list[float]] | list[list[list[float]]] | None = None,
        cost: dict[int, float] | None = None,
        draft_cost: float | None = None,
        max_nodes: int | None = None,
        depth: int = 8,
    ) -> None:
        given = measured or (acceptance is not None and cost is not None)
        if context is not None and not getattr(context.target, "is_embedded", False) and not given:
            warnings.warn(
                "optimal: expected measurements of this pair, got none; those of the embedded pair stand in, "
                "whose best tree may be a bad one here; pass measured=FILE, or acceptance and cost",
                SettingWarning,
                stacklevel=2,
            )
        found = Measurements.read(Path(measured) if measured else assets.measured("ngram"))
        if (acceptance, cost, draft_cost) != (None, None, None):
            other_unit = cost is not None and draft_cost is None
            found = Measurements.checked(
                found.acceptance if acceptance is None else acceptance,
                found.cost if cost is None else cost,
                0.0 if other_unit else found.draft_cost if draft_cost is None else draft_cost,
            )
        check_positive(depth=depth)
        self.optimum = optimise(found, max_nodes=max_nodes, max_depth=depth)
        self._use(self.optimum.shape, context)
