"""Accept what the target finds plausible enough."""

from __future__ import annotations

import torch
from torch import Tensor

from specdecodes.core.sampling import Rng, best_tokens
from specdecodes.core.tree import Tree, Verdict
from specdecodes.plugins.verifiers.base import Verifier, standing_depths


class Typical(Verifier):
    """Typical acceptance, lossy: what is likely enough for its entropy (Medusa: Cai et al. 2024, section 2.3.1).

    A drafted token x after a node with target distribution p and entropy H (nats) is accepted where

        p(x) > min(epsilon, delta * exp(-H)),

    and the longest path on which every token is accepted wins, of equals the one that the target finds most probable.
    The bonus is the target's best token: the paper takes the first token of a step greedily and accepts it whatever it
    is, and a step's first token, our root, is the bonus of the step before. So nothing is drawn at all. At temperature
    0 only the best token has any probability and the rule is plain greedy acceptance (as in the paper), which is why
    it serves sampling alone.

    ``epsilon``: the hard threshold, 0 to 1. ``delta``: the entropy's, above 0; the paper sets it to sqrt(epsilon).
    """

    def __init__(self, context: object = None, *, epsilon: float = 0.09, delta: float = 0.3) -> None:
        if not 0 < epsilon <= 1:
            raise ValueError(f"epsilon: expected a probability above 0, at most 1, got {epsilon}")
        if not delta > 0:
            raise ValueError(f"delta: expected a number above 0, got {delta}")
        self.epsilon = epsilon
        self.delta = delta

    def accept(self, logp: Tensor, tree: Tree, rng: Rng) -> Verdict:
        """See the class; no loop over nodes and no synchronisation."""
        structure = tree.structure
        rows = torch.arange(tree.shape[0], device=logp.device)
        above = tree.parents.clamp(min=0)
        entropy = torch.special.entr(logp.exp()).sum(-1)
        threshold = (self.delta * torch.exp(-entropy)).clamp(max=self.epsilon)
        drafted = logp[rows[:, None], above, tree.tokens]
        depth = standing_depths(tree, drafted.exp() > threshold.gather(1, above))
        drafted = drafted.masked_fill(depth < 1, 0.0)  # the root, and what falls: an impossible one would make nan
        on_path = (structure.ancestors.to(drafted.dtype) @ drafted[..., None]).squeeze(-1)
        num_accepted = depth.amax(dim=1)
        last = on_path.masked_fill(depth < num_accepted[:, None], -torch.inf).argmax(dim=1)
        return Verdict(structure.paths[rows, last], num_accepted, best_tokens(logp[rows, last]))
