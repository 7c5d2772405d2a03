"""Conformance checks: does a component keep the contract of its hook? A third party's test is one line.

    from specdecodes.testing import check_tree_builder

    def test_contract():
        check_tree_builder(MyBuilder)

Every check takes a component or a factory (a class or a function that is called with a Context and settings), builds
its own tiny models, and raises an AssertionError that says which clause of the contract was broken. What a component
raises itself comes through, with a note of what was being checked.
"""

from specdecodes.testing.decoding import check_mode, check_observer
from specdecodes.testing.drafter import check_drafter
from specdecodes.testing.enumeration import EnumeratingRng, explore, total_variation
from specdecodes.testing.literal import LiteralDrafter, LiteralProposal, LiteralTarget
from specdecodes.testing.state_backend import check_state_backend
from specdecodes.testing.toys import toy_bigrams, toy_context, toy_model
from specdecodes.testing.tree_builder import check_tree_builder
from specdecodes.testing.verifier import check_verifier

__all__ = [
    "EnumeratingRng",
    "LiteralDrafter",
    "LiteralProposal",
    "LiteralTarget",
    "check_drafter",
    "check_mode",
    "check_observer",
    "check_state_backend",
    "check_tree_builder",
    "check_verifier",
    "explore",
    "total_variation",
    "toy_bigrams",
    "toy_context",
    "toy_model",
]
