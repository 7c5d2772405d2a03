"""Accept what the target would have chosen itself."""

from __future__ import annotations

import torch
from torch import Tensor

from specdecodes.core.sampling import Rng, best_tokens
from specdecodes.core.tree import Tree, Verdict
from specdecodes.plugins.verifiers.base import Verifier, standing_depths


class Greedy(Verifier):
    """Accept the longest path on which every token is the target's best; the bonus is its best after that."""

    lossless = True
    serves = ("greedy",)
    capturable = True

    def accept(self, logp: Tensor, tree: Tree, rng: Rng) -> Verdict:
        """No loop over nodes and no synchronisation: a node stands if it and all above it match."""
        best = best_tokens(logp)
        structure = tree.structure
        depth = standing_depths(tree, tree.tokens == best.gather(1, tree.parents.clamp(min=0)))
        num_accepted, last = depth.max(dim=1)
        rows = torch.arange(last.shape[0], device=last.device)
        return Verdict(structure.paths[rows, last], num_accepted, best[rows, last])
