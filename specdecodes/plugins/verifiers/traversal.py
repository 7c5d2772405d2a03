"""Judge a tree from its leaves to its root, path by path instead of token by token."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from specdecodes.core.sampling import Rng
from specdecodes.core.tree import Tree
from specdecodes.plugins.verifiers.base import WalkingVerifier
from specdecodes.plugins.verifiers.residual import acceptance, without


class Traversal(WalkingVerifier):
    """Traversal verification: leaves first, a path by its joint probability (Weng et al. 2025, arXiv 2505.12398).

    A node has a *mass*, the probability that the path which is kept runs through it, given what was drafted: 1 at the
    root, min(1, mass * p(x) / q(x)) at a child x of a node with target distribution p and draft distribution q. For
    the children of a node in draw order: judge what hangs below x; if that rejects x as well, the node is left with

        r = max(mass * p - q, 0),   mass = sum(r) / (sum(r) + 1 - mass),   p = r / sum(r),

    and q loses x where siblings were drawn without replacement. When no child is left, the node itself is accepted
    with its mass, and the bonus is drawn from its p.

    Why it is lossless: let S = sum(min(mass * p, q)), the chance that a node keeps its next child, which by induction
    is that child's mass averaged over q. Then mass = S + (1 - S) * sum(r) / (1 - S), as it must be, and whoever goes
    on from the node emits x with min(mass * p, q)(x) + r(x) = mass * p(x). A rejection leaves the same mass and p
    whatever x was, so that the next sibling, from q or from q without x, meets the same problem again: independent
    draws and draws without replacement are both judged rightly, in trees of any shape.

    Of a path whose early tokens fit badly and whose later ones fit well this accepts more than judging token by token.
    """

    lossless = True
    needs_draft_probs = True
    draws: tuple[str, ...] = ("without_replacement", "iid")

    def walk(
        self, logp: Tensor, children: Sequence[Sequence[int]], tree: Tree, row: int, rng: Rng
    ) -> tuple[list[int], int]:
        """See the class."""
        assert tree.logq is not None  # declared by needs_draft_probs and checked by load
        logq, tokens = tree.logq[row], tree.tokens[row].tolist()

        def judge(node: int, mass: float) -> tuple[list[int], int] | None:
            """The path from ``node`` on with its bonus; None: rejected, with all below."""
            if mass <= 0:
                return None
            p = logp[node].exp()
            q = logq[node].to(p.dtype).exp() if children[node] else p
            for child in children[node]:
                token = tokens[child]
                kept = judge(child, acceptance(mass * float(p[token]), float(q[token])))
                if kept is not None:
                    return [node, *kept[0]], kept[1]
                mass, p = left_over(mass, p, q)
                if tree.draws == "without_replacement":
                    q = without(q, token)
            return ([node], rng.categorical(p)) if mass >= 1 or rng.bernoulli(mass) else None

        kept = judge(0, 1.0)
        assert kept is not None  # the root's mass stays 1
        return kept


def left_over(mass: float, p: Tensor, q: Tensor) -> tuple[float, Tensor]:
    """Mass and target distribution [V] of a node that has rejected a child drawn from ``q`` [V]."""
    rest = (mass * p - q).clamp(min=0)
    total = float(rest.sum())
    if total > 0:
        return total / (total + (1 - mass)), rest / total  # in this order: exactly 1 where the mass is
    # Below mass 1 all of the node's mass went to its children, and no path ends here. With mass 1, p == q up to
    # rounding, and this rejection has probability 0.
    return float(mass >= 1), p
