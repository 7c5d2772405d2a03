"""The embedded pair: a small hybrid target and its drafters, shipped with the package."""

from __future__ import annotations

from pathlib import Path

DRAFTS = ("mamba2",)
"""Draft models that were trained for the embedded target."""

NAMES = ("embedded", *DRAFTS)
"""What ``target=`` and ``draft=`` may name."""

DEFAULT_DRAFT = "ngram"
"""The drafter of ``sd`` and ``stree`` on the embedded target: the faster one on a CPU."""

SETTINGS = {
    "ngram": {"tree": "3,2.1.0,1.0.0,1,1,1,1"},
    "mamba2": {"tree": "4,2,1"},
}
"""Per drafter, a tree that was fast on a CPU: few passes of a draft model, many nodes of an index."""

NGRAM_TABLE = "ngram.safetensors"


def folder(name: str) -> Path:
    """Where an asset lies: ``embedded`` is the target; see :data:`DRAFTS` for the rest."""
    return Path(__file__).parent / ("target" if name == "embedded" else name)


def ngram_table() -> Path:
    """The static back-off table of the embedded target."""
    return Path(__file__).parent / NGRAM_TABLE
