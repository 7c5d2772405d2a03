"""Sample from the target, and go on as long as the sample was drafted."""

from __future__ import annotations

import torch
from torch import Tensor

from specdecodes.core.sampling import Rng
from specdecodes.core.tree import Tree, Verdict
from specdecodes.plugins.verifiers.base import MatchingVerifier, chosen, first_of_siblings, followed


class TokenMatch(MatchingVerifier):
    """Draw from the target at each node and follow the child that equals the draw; lossless whatever was drafted."""

    lossless = True
    capturable = True

    def noise(self, rng: Rng, shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, ...]:
        """For a draw at every node."""
        return (rng.noise(shape, dtype),)

    def judge(self, logp: Tensor, tree: Tree, *noise: Tensor) -> Verdict:
        """See the base; a draw after every node, whether it is reached or not."""
        choices = chosen(logp.exp(), *noise)
        hits = tree.tokens == choices.gather(1, tree.parents.clamp(min=0))
        return followed(tree, first_of_siblings(tree, hits), choices)
