"""The embedded pair: a small hybrid target and its drafters, shipped with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

DRAFTS = ("mamba2",)
"""Draft models that were trained for the embedded target."""

NAMES = ("embedded", *DRAFTS)
"""What ``target=`` and ``draft=`` may name."""

DEFAULT_DRAFT = "ngram"
"""The drafter of ``sd`` and ``stree`` on the embedded target: the faster one on a CPU."""

DEFAULT_MODEL = "mamba2"
"""The draft model of the embedded target, where a drafter wants one and none is named."""

NGRAM_TABLE = "ngram.safetensors"


def folder(name: str) -> Path:
    """Where an asset lies: ``embedded`` is the target; see :data:`DRAFTS` for the rest."""
    return Path(__file__).parent / ("target" if name == "embedded" else name)


def ngram_table() -> Path:
    """The static back-off table of the embedded target."""
    return Path(__file__).parent / NGRAM_TABLE


def measured(drafter: str) -> Path:
    """What the tree ``optimal`` needs: acceptance and cost of ``ngram`` or of a draft of :data:`DRAFTS`."""
    return Path(__file__).parent / "measured" / f"{drafter}.json"


def recipe(compiled: bool) -> Path:
    """What ``mode="auto"`` does with the embedded target where nobody has tuned."""
    return Path(__file__).parent / "measured" / f"auto-{'compiled' if compiled else 'eager'}.json"


_STATIC = ("static", "growmap", "bigram-widen")
"""Tree builders that start from the same static shape."""

SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "ngram": {
        **{key: {"tree": "3,2.1.0,1.0.0,1,1,1,1"} for key in _STATIC},
        "best-first": {"max_nodes": 11, "depth": 8, "topk": 4, "width": 2},
        "beam": {"width": 2, "depth": 4},
        "optimal": {"measured": str(measured("ngram"))},
    },
    "mamba2": {
        **{key: {"tree": "4,2,1"} for key in _STATIC},
        "best-first": {"max_nodes": 8, "depth": 4, "topk": 4, "width": 2},
        "beam": {"width": 2, "depth": 3},
        "optimal": {"measured": str(measured("mamba2"))},
    },
}
"""Per drafter and tree builder, what was fast on a CPU: few passes of a draft model, many nodes of an index."""
