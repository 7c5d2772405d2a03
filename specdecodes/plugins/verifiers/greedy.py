"""Accept what the target would have chosen itself."""

from __future__ import annotations

from torch import Tensor

from specdecodes.core.sampling import Rng, best_tokens
from specdecodes.core.tree import Tree, Verdict
from specdecodes.plugins.verifiers.base import Verifier, followed


class Greedy(Verifier):
    """Accept the longest path on which every token is the target's best; the bonus is its best after that."""

    lossless = True
    serves = ("greedy",)
    capturable = True

    def accept(self, logp: Tensor, tree: Tree, rng: Rng) -> Verdict:
        """No loop over nodes and no synchronisation: a node stands if it and all above it match."""
        best = best_tokens(logp)
        return followed(tree, tree.tokens == best.gather(1, tree.parents.clamp(min=0)), best)
