"""Sequoia's static trees."""

from __future__ import annotations

from typing import TYPE_CHECKING

from specdecodes.plugins.trees.growmap_file import SUFFIXES
from specdecodes.plugins.trees.shape import TreeShape
from specdecodes.plugins.trees.static import Static

if TYPE_CHECKING:
    from specdecodes.plugin import Context


class Growmap(Static):
    """Keep the shape of a growmap file (Sequoia's .pt or JSON), or the one that ``tree`` spells out.

    ``growmap``: path of the file (Chen et al., arXiv 2402.12374); "" for the shape of ``tree`` (see
    :meth:`TreeShape.parse`). Unlike ``static``, drawn children are drawn without replacement, as Sequoia does.
    """

    draws = ("none", "without_replacement")

    def __init__(self, context: Context | None = None, *, growmap: str = "", tree: str = "3,2.1,2.1,3") -> None:
        if growmap and not growmap.endswith(SUFFIXES):
            raise ValueError(
                f"growmap: expected the path of a file that ends in {' or '.join(SUFFIXES)}, got {growmap!r}"
            )
        self._use(TreeShape.parse(growmap or tree), context)
