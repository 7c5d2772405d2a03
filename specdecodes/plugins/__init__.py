"""The built-in components, registered through the same hook as anybody's."""

from __future__ import annotations

from specdecodes.hookspecs import hookimpl
from specdecodes.plugin import Registry
from specdecodes.plugins.drafters.cascade import Cascade
from specdecodes.plugins.drafters.jacobi import Jacobi
from specdecodes.plugins.drafters.merge import Merge
from specdecodes.plugins.drafters.model import ModelDrafter
from specdecodes.plugins.drafters.ngram import Ngram
from specdecodes.plugins.drafters.none import Nothing
from specdecodes.plugins.drafters.rest import Rest
from specdecodes.plugins.drafters.suffix import Suffix
from specdecodes.plugins.drafters.token_recycling import TokenRecycling
from specdecodes.plugins.modes import MODES
from specdecodes.plugins.observers.show_trees import ShowTrees
from specdecodes.plugins.observers.timing import Timing
from specdecodes.plugins.observers.trace import Trace
from specdecodes.plugins.states.copy import StateCopy
from specdecodes.plugins.states.reforward import Reforward
from specdecodes.plugins.states.replay import Replay
from specdecodes.plugins.trees.beam import Beam
from specdecodes.plugins.trees.best_first import BestFirst
from specdecodes.plugins.trees.best_first_sampled import BestFirstSampled
from specdecodes.plugins.trees.bigram_widen import BigramWiden
from specdecodes.plugins.trees.growmap import Growmap
from specdecodes.plugins.trees.marginal import Marginal
from specdecodes.plugins.trees.optimal import Optimal
from specdecodes.plugins.trees.static import Chain, Root, Static
from specdecodes.plugins.verifiers.block import Block
from specdecodes.plugins.verifiers.commonsense import Commonsense
from specdecodes.plugins.verifiers.entropy_gate import EntropyGate
from specdecodes.plugins.verifiers.greedy import Greedy
from specdecodes.plugins.verifiers.residual import MultiStep, Rejection, WithoutReplacement
from specdecodes.plugins.verifiers.token_match import TokenMatch
from specdecodes.plugins.verifiers.traversal import Traversal
from specdecodes.plugins.verifiers.typical import Typical


@hookimpl
def register_components(registry: Registry) -> None:
    """Register everything that ships with specdecodes."""
    registry.add("drafter", "none", Nothing)
    registry.add("drafter", "model", ModelDrafter)
    registry.add("drafter", "ngram", Ngram)
    registry.add("drafter", "suffix", Suffix)
    registry.add("drafter", "token-recycling", TokenRecycling)
    registry.add("drafter", "jacobi", Jacobi)
    registry.add("drafter", "rest", Rest)
    registry.add("drafter", "cascade", Cascade)
    registry.add("drafter", "merge", Merge)
    registry.add("tree", "root", Root)
    registry.add("tree", "chain", Chain)
    registry.add("tree", "static", Static)
    registry.add("tree", "bigram-widen", BigramWiden)
    registry.add("tree", "growmap", Growmap)
    registry.add("tree", "beam", Beam)
    registry.add("tree", "best-first", BestFirst)
    registry.add("tree", "best-first-sampled", BestFirstSampled)
    registry.add("tree", "marginal", Marginal)
    registry.add("tree", "optimal", Optimal)
    registry.add("verifier", "greedy", Greedy)
    registry.add("verifier", "token-match", TokenMatch)
    registry.add("verifier", "rejection", Rejection)
    registry.add("verifier", "multi-step", MultiStep)
    registry.add("verifier", "without-replacement", WithoutReplacement)
    registry.add("verifier", "block", Block)
    registry.add("verifier", "traversal", Traversal)
    registry.add("verifier", "typical", Typical)
    registry.add("verifier", "entropy-gate", EntropyGate)
    registry.add("verifier", "commonsense", Commonsense)
    registry.add("state", "replay", Replay)
    registry.add("state", "copy", StateCopy)
    registry.add("state", "reforward", Reforward)
    registry.add("observer", "timing", Timing)
    registry.add("observer", "trace", Trace)
    registry.add("observer", "show-trees", ShowTrees)
    for name, (mode, aliases) in MODES.items():
        registry.add("mode", name, mode, aliases=aliases)
