"""Sample from the target, and go on as long as the sample was drafted."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from specdecodes.core.sampling import Rng
from specdecodes.core.tree import Tree
from specdecodes.plugins.verifiers.base import WalkingVerifier


class TokenMatch(WalkingVerifier):
    """Draw from the target at each node and follow the child that equals the draw; lossless whatever was drafted."""

    lossless = True

    def walk(
        self, logp: Tensor, children: Sequence[Sequence[int]], tree: Tree, row: int, rng: Rng
    ) -> tuple[list[int], int]:
        """The draw that no child equals is the bonus."""
        tokens = tree.tokens[row].tolist()
        path = [0]
        while True:
            token = rng.categorical(logp[path[-1]].exp())
            match = next((child for child in children[path[-1]] if tokens[child] == token), None)
            if match is None:
                return path, token
            path.append(match)
