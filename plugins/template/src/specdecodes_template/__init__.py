"""A plugin of specdecodes: what it registers."""

from specdecodes import Mode, hookimpl
from specdecodes.plugin import Registry
from specdecodes_template.repeat import Repeat


@hookimpl
def register_components(registry: Registry) -> None:
    """Add the drafter and a mode that drafts a chain with it."""
    registry.add("drafter", "repeat", Repeat)
    registry.add("mode", "repeat", Mode("repeat", "chain", "greedy", ("token-match",), help="A chain of one token."))
