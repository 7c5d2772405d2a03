"""What a drafter offers along known tokens, from every place and down to a depth.

Letters: n places where a step may start (every token of an answer but its last is a root there), D depths, K ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specdecodes.core.state import DecodeState
from specdecodes.core.tree import Proposal, Tree
from specdecodes.hookspecs import hookimpl
from specdecodes.plugins.trees.static import Root


@dataclass(frozen=True)
class Divergence:
    """How far a drafter's distribution q is from the target's p at the n places; float64 [n] on the host.

    Attributes:
        kl: sum_x p(x) log(p(x) / q(x)) in nats, over the tokens that q knows, p renormalised there.
        overlap: sum_x min(p(x), q(x)), which is 1 minus their total variation distance.
        unknown: the mass of p on tokens to which q gives none.
    """

    kl: Tensor
    overlap: Tensor
    unknown: Tensor


@dataclass(frozen=True)
class Probed:
    """What was offered along one answer; places past its end are 0. All on the host.

    Attributes:
        valid: bool [n, D]: the answer has a token at this depth below this place.
        greedy: float64 [n, D, K]: 1 where the target's best token is the drafter's k-th candidate.
        sampled: float64 [n, D, K]: the target's probability of the k-th candidate.
        on_greedy, on_sampled: bool [n, D]: the answer's token is among the K candidates; for greedy it is also the
            target's best.
        chain_greedy, chain_sampled: float64 [n, D]: the probability that a chain's token stands here, for greedy
            verification and for sampling: along an answer of the target, given that the answer's token comes out;
            along any other text, of whatever the draft proposes after the same tokens.
        divergence: None where the drafter has no probabilities.
    """

    valid: Tensor
    greedy: Tensor
    sampled: Tensor
    on_greedy: Tensor
    on_sampled: Tensor
    chain_greedy: Tensor
    chain_sampled: Tensor
    divergence: Divergence | None


class Probe(Root):
    """A tree builder that asks about the coming tokens of a known answer and then drafts nothing.

    Each step commits one token, so that the drafter is asked at every place of the answer, with the context that it
    would have there in a decode.

    Args:
        depth, ranks: D and K. has_probs: the drafter's.
        answers: whether the known tokens are the target's own. Those of a text that it finds unlikely say little about
            the tokens that come out instead: min(1, q / p) is often 1 where both are small.
    """

    def __init__(self, depth: int, ranks: int, has_probs: bool, answers: bool = True) -> None:
        self.depth = self.max_slots = depth
        self.ranks = ranks
        self.has_probs = has_probs
        self.answers = answers

    def begin(self, answer: Sequence[int], logp: Tensor) -> None:
        """Prepare for an answer of m tokens.

        Args:
            answer: its tokens. logp: float64 [m, V]: the target's log-probabilities that predict each of them.
        """
        n, shape = len(answer) - 1, (len(answer) - 1, self.depth)
        self._answer = list(answer)
        self._logp = logp
        self._best = logp.argmax(-1).tolist()
        self._place = 0
        wide = (*shape, self.ranks)
        self._valid, self._on_greedy, self._on_sampled = (torch.zeros(shape, dtype=torch.bool) for _ in range(3))
        self._greedy, self._sampled = (torch.zeros(wide, dtype=torch.float64) for _ in range(2))
        self._chain_greedy, self._chain_sampled = (torch.zeros(shape, dtype=torch.float64) for _ in range(2))
        self._kl, self._overlap, self._unknown = (torch.zeros(n, dtype=torch.float64) for _ in range(3))

    def end(self) -> Probed:
        """What was noted since :meth:`begin`."""
        divergence = Divergence(self._kl, self._overlap, self._unknown) if self.has_probs else None
        return Probed(
            self._valid,
            self._greedy,
            self._sampled,
            self._on_greedy,
            self._on_sampled,
            self._chain_greedy,
            self._chain_sampled,
            divergence,
        )

    @hookimpl
    def build_tree(self, state: DecodeState, proposal: Proposal) -> Tree:
        """Ask along the answer, one slot after the other; the root alone is the tree."""
        place = self._place
        coming = self._answer[place + 1 : place + 1 + self.depth]
        for depth, (slot, candidates) in enumerate(offered(state, proposal, coming, self.ranks)):
            logq = proposal.logq(slot)[0, 0].double() if self.has_probs else None
            self._note(place, depth, coming[depth], candidates, logq)
        self._place += 1
        return super().build_tree(state, proposal)

    def _note(self, place: int, depth: int, token: int, candidates: list[int], logq: Tensor | None) -> None:
        at = place, depth
        logp, best = self._logp[place + 1 + depth], self._best[place + 1 + depth]
        tokens = torch.tensor(candidates)
        known = tokens >= 0
        self._valid[at] = True
        self._greedy[at] = (tokens == best).double()
        probs = logp[tokens.clamp(min=0).to(logp.device)].exp().cpu()
        self._sampled[at] = torch.where(known, probs, 0.0)
        self._on_sampled[at] = token in candidates
        self._on_greedy[at] = token in candidates and token == best
        self._chain_greedy[at] = candidates[0] == best and (token == best or not self.answers)
        self._chain_sampled[at] = self._stands(candidates[0], token, logp, logq)
        if depth == 0 and logq is not None:
            self._kl[place], self._overlap[place], self._unknown[place] = divergence(logp, logq)

    def _stands(self, first: int, token: int, logp: Tensor, logq: Tensor | None) -> float:
        """See ``chain_sampled``; ``first`` is the best candidate (-1: none), ``token`` the known one."""
        if logq is None:  # token matching: a draw from the target equals the one candidate
            chance = float(logp[first].exp()) if first >= 0 else 0.0
            return float(first == token) if self.answers else chance
        # Rejection sampling: a chain draws x and keeps it with mass min(p, q)(x), of the mass p(x) with which x comes.
        if self.answers:
            return float((logq[token] - logp[token]).exp().clamp(max=1.0))
        return float(torch.minimum(logp.exp(), logq.exp()).sum())


def offered(
    state: DecodeState, proposal: Proposal, coming: Sequence[int], k: int
) -> Iterator[tuple[Tensor, list[int]]]:
    """Ask a proposal for one row along the ``coming`` tokens.

    Yields:
        Per token, the slot [1, 1] where it may come next, and the ``k`` candidates there (-1: none), best first. The
        token is run when the next one is asked for.
    """
    slot = torch.zeros_like(state.root)
    for depth, token in enumerate(coming):
        yield slot, proposal.topk(slot, k)[0][0, 0].tolist()
        if depth + 1 < len(coming):
            slot = proposal.expand(slot, torch.full_like(state.root, token))


def divergence(logp: Tensor, logq: Tensor) -> tuple[float, float, float]:
    """Kullback-Leibler divergence, overlap and unknown mass (see :class:`Divergence`) of two float64 rows [V]."""
    p, known = logp.exp(), logq > float("-inf")
    mass = p[known].sum()
    ratio = torch.where(p[known] > 0, p[known] * (logp[known] - logq[known]), 0.0)
    kl = float(ratio.sum() / mass - mass.log()) if float(mass) > 0 else float("inf")
    return max(0.0, kl), float(torch.minimum(p, logq.exp()).sum()), max(0.0, float(1 - mass))


def visits(chain: Tensor) -> Tensor:
    """The probability that a decode step starts at each place, given the answer: float64 [n].

    With chains of D tokens that stand with the probabilities ``chain`` [n, D], a step from place i that accepts a
    tokens ends with the answer's next one, and the next step starts at i + a + 1. For rejection sampling this is exact
    (ours): along an answer x, accepting x_1 to x_a and then emitting x_{a+1} has the joint mass
    min(p, q)(x_1) ... min(p, q)(x_a) * (p - min(p, q))(x_{a+1}), of p(x_1) ... p(x_{a+1}). The sum over the places is
    the expected number of steps.
    """
    n, depth = chain.shape
    rows = chain.tolist()
    found = [1.0] + [0.0] * (n + depth)
    for place in range(n):
        alive = found[place]
        for ahead, stands in enumerate(rows[place], 1):
            found[place + ahead] += alive * (1 - stands)
            alive *= stands
        found[place + depth + 1] += alive
    return torch.tensor(found[:n], dtype=torch.float64)
