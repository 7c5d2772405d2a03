"""Prompt lookup decoding as a plugin of specdecodes."""

from __future__ import annotations

from specdecodes import Mode, hookimpl
from specdecodes.plugin import Registry
from specdecodes_prompt_lookup.drafter import PromptLookup

MODE = Mode(
    propose="prompt-lookup",
    build_tree="chain",
    greedy="greedy",
    sampling=("token-match",),
    settings={"depth": 10},
    help="A chain of what followed the last tokens the first time (prompt lookup decoding).",
)


@hookimpl
def register_components(registry: Registry) -> None:
    """Add the drafter and its mode."""
    registry.add("drafter", "prompt-lookup", PromptLookup)
    registry.add("mode", "prompt-lookup", MODE)
