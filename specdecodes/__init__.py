"""Speculative decoding in which every phase of a decode step is a plugin."""

from specdecodes import hookspecs
from specdecodes.core.decoder import Decoder, Generation
from specdecodes.core.load import load
from specdecodes.core.tree import Proposal, Tree, Verdict
from specdecodes.hookspecs import hookimpl
from specdecodes.integration import custom_generate
from specdecodes.models.target import Target
from specdecodes.plugin import Mode, registry

__version__ = "0.1.0"

__all__ = [
    "Decoder",
    "Generation",
    "Mode",
    "Proposal",
    "Target",
    "Tree",
    "Verdict",
    "custom_generate",
    "hookimpl",
    "hookspecs",
    "load",
    "registry",
]
