"""Kimi delta attention: plain torch so far; a faster form is chosen here."""

from specdecodes.kernels.kimi_delta.naive import CHUNK, tree_scan

__all__ = ["CHUNK", "tree_scan"]
