"""Draft from the target's own runners-up: what it ranked best after each token, the last time it scored it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from specdecodes.hookspecs import hookimpl
from specdecodes.plugins.drafters.index import IndexDrafter, by_rank

if TYPE_CHECKING:
    from specdecodes.core.state import DecodeState
    from specdecodes.core.tree import Tree, Verdict
    from specdecodes.plugin import Context


class TokenRecycling(IndexDrafter):
    """Draft the tokens that the target last ranked best after each token; no model.

    The adjacency matrix of token recycling (Luo et al. 2024, arXiv 2408.08696, section 3): its row of a token holds the
    ``width`` best next tokens, best first, by the target's scores at the last scored node with that token, accepted or
    not. A node's candidates are the row of its token. Rows that were never written have none, so only written ones
    take memory.

    ``warm``: keep the matrix across requests, as the paper does; otherwise every request starts with an empty one.

    An index on the host: 1 us per question of one slot; taking the ``width`` best of the scores costs 40 us a step at 8
    nodes and a vocabulary of 4,096.
    """

    def __init__(self, context: Context, *, width: int = 8, warm: bool = False) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width: expected at least 1 candidate per token, got {width}")
        self.width = width
        self._matrix: dict[int, list[int]] | None = {} if warm else None

    def index(self) -> Followers:
        """See the base."""
        return Followers({} if self._matrix is None else self._matrix)

    @hookimpl
    def commit_state(self, state: DecodeState, tree: Tree, verdict: Verdict) -> None:
        """Write the rows of all tokens that were scored; of a token's nodes the last one counts.

        What the logits processors cut off is no candidate.
        """
        if state.scores is None:
            return
        scores, best = state.scores.topk(min(self.width, state.scores.shape[-1]), dim=-1)
        missing = best.masked_fill(scores.isneginf(), -1)
        for row, index in enumerate(self._indices[state]):
            count = tree.count(row)
            index.matrix.update(zip(tree.tokens[row, :count].tolist(), missing[row].tolist(), strict=False))


class Followers:
    """The matrix as seen by one row of a generation; a node is its token.

    Attributes:
        matrix: token to the best next tokens, best first, -1 where there are fewer. length: tokens taken in.
    """

    def __init__(self, matrix: dict[int, list[int]]) -> None:
        self.matrix = matrix
        self.length = 0
        self.root = -1

    def extend(self, tokens: Sequence[int]) -> None:
        """See :class:`Index`."""
        self.length += len(tokens)
        if tokens:
            self.root = tokens[-1]

    def child(self, node: int, token: int) -> int:
        """See :class:`Index`."""
        return token

    def best(self, node: int, k: int) -> list[tuple[int, float]]:
        """The row of the token, by rank."""
        return by_rank(token for token in self.matrix.get(node, ())[:k] if token >= 0)
