"""Draft the target's own predictions: Jacobi iteration, with a pool of n-grams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from specdecodes.core.sampling import best_tokens
from specdecodes.hookspecs import hookimpl
from specdecodes.plugins.drafters.index import IndexDrafter, by_rank

if TYPE_CHECKING:
    from specdecodes.core.state import DecodeState
    from specdecodes.core.tree import Tree, Verdict
    from specdecodes.plugin import Context

Node = tuple[int, int, int]
"""How far below the root it is, and the last two tokens (-1: none)."""


class Jacobi(IndexDrafter):
    """Draft what the target predicted in the last steps, at rejected nodes too; no model.

    Guesses: let x_1, x_2, ... be the first rejected child of the last accepted node, its first child, and so on, and
    y_i the target's best token after x_i, which scoring computed anyway. With the bonus as the new root, y_1, y_2, ...
    are guesses for the tokens after it: the same positions, one iteration on (Jacobi decoding: Santilli et al. 2023,
    arXiv 2305.10427). They hold by position, whatever the path.

    Pool: what the target predicted last after the same two tokens, and after the same one, at any scored node; the
    text itself counts too. These are the n-grams of lookahead decoding (Fu et al. 2024, arXiv 2402.02057), gathered
    from the trees that are scored anyway instead of a lookahead branch.

    Candidates: two tokens matched, one token matched, the guess; the token itself where there is none, since an
    iteration has to start somewhere. (On a target that was not trained for Jacobi decoding a guess is seldom right: on
    the embedded pair it alone gives 1.07 tokens per step, this order 2.01, the guess before the matches 1.82.)

    There are no ``Proposal.marginals``: a guess is one token without a distribution.
    """

    def __init__(self, context: Context) -> None:
        super().__init__()

    def index(self) -> Guesses:
        """See the base."""
        return Guesses()

    @hookimpl
    def commit_state(self, state: DecodeState, tree: Tree, verdict: Verdict) -> None:
        """Take in what the target predicted after every scored node."""
        if state.scores is None:
            return
        predictions = best_tokens(state.scores).tolist()
        tokens, parents, path = tree.tokens.tolist(), tree.parents.tolist(), verdict.path.tolist()
        for row, index in enumerate(self._indices[state]):
            count = tree.count(row)
            last = max(node for node in path[row])  # parents come first
            index.learn(tokens[row][:count], parents[row][:count], predictions[row], last)


class Guesses:
    """The guesses and the pool of one row.

    Attributes:
        guesses: for the tokens after the root. pool: the last one or two tokens to the next one. length: tokens taken
            in. last: the last two of them.
    """

    def __init__(self) -> None:
        self.guesses: list[int] = []
        self.pool: dict[int | tuple[int, int], int] = {}
        self.length = 0
        self.last = (-1, -1)

    @property
    def root(self) -> Node:
        """See :class:`Index`."""
        return 0, *self.last

    def extend(self, tokens: Sequence[int]) -> None:
        """See :class:`Index`; the text itself goes into the pool."""
        before, last = self.last
        for token in tokens:
            self._pool(before, last, token)
            before, last = last, token
        self.last = (before, last)
        self.length += len(tokens)

    def learn(self, tokens: Sequence[int], parents: Sequence[int], predictions: Sequence[int], last: int) -> None:
        """Take in the target's best token after every node of a scored tree.

        Args:
            tokens, parents: of the nodes. predictions: after them. last: the accepted node that is furthest down.
        """
        self.guesses = []
        for node, (token, parent) in enumerate(zip(tokens, parents, strict=True)):
            self._pool(tokens[parent] if node else self.last[0], token, predictions[node])
            if parent == last:  # its first child, or the first child of that, and so on
                self.guesses.append(predictions[node])
                last = node

    def child(self, node: Node, token: int) -> Node:
        """See :class:`Index`."""
        return node[0] + 1, node[2], token

    def best(self, node: Node, k: int) -> list[tuple[int, float]]:
        """The candidates by rank; see :class:`Jacobi`."""
        depth, before, last = node
        found = [self.pool[key] for key in ((before, last), last) if key in self.pool]
        if depth < len(self.guesses):
            found.append(self.guesses[depth])
        return by_rank(found or [last])[:k]

    def _pool(self, before: int, last: int, token: int) -> None:
        if last >= 0:
            self.pool[last] = token
            if before >= 0:
                self.pool[before, last] = token
