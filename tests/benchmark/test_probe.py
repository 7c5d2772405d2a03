"""What a drafter offers along an answer, and how many steps a chain would take: against literals and exact sums."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from specdecodes.benchmark.probe import Probe, Probed, divergence, visits
from specdecodes.benchmark.replay import Recording, replay, replay_one
from specdecodes.core.sampling import SamplingParams
from specdecodes.plugins.drafters.ngram import Ngram
from specdecodes.plugins.trees.static import Chain
from specdecodes.testing import LiteralDrafter, toy_context
from specdecodes.testing.toys import numbers

VOCAB, DEPTH, RANKS = 7, 3, 2


def rule(prefix: tuple[int, ...]) -> Tensor:
    """Logits that depend on the last two tokens."""
    return torch.randn(VOCAB, generator=numbers("draft", prefix[-2:]), dtype=torch.float64) * 2


def probe(prompt: list[int], answer: list[int], logp: Tensor, temperature: float) -> Probed:
    found = Probe(DEPTH, RANKS, has_probs=True)
    found.begin(answer, logp)
    params = SamplingParams(len(answer), temperature)
    replay_one(LiteralDrafter(rule), found, prompt, Recording(answer, VOCAB), params)
    return found.end()


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.5])
def test_everything_at_every_place_and_depth(temperature: float) -> None:
    prompt, answer = [3, 4], torch.randint(VOCAB, (9,), generator=numbers("answer")).tolist()
    logp = (torch.randn(9, VOCAB, generator=numbers("target"), dtype=torch.float64) * 2).log_softmax(-1)
    found = probe(prompt, answer, logp, temperature)
    assert found.divergence is not None
    hits = 0
    for place, depth in itertools.product(range(8), range(DEPTH)):
        at = place + 1 + depth
        assert bool(found.valid[place, depth]) == (at < 9)
        if at >= 9:
            assert not found.greedy[place, depth].any() and not found.on_sampled[place, depth]
            continue
        logq = (rule((*prompt, *answer[:at])) / (temperature or 1.0)).log_softmax(-1)
        p, q, best, token = logp[at].exp(), logq.exp(), int(logp[at].argmax()), answer[at]
        offered = logq.topk(RANKS).indices.tolist()
        hits += token in offered
        assert found.greedy[place, depth].tolist() == [float(c == best) for c in offered]
        assert found.sampled[place, depth].tolist() == pytest.approx([float(p[c]) for c in offered])
        assert bool(found.on_sampled[place, depth]) == (token in offered)
        assert bool(found.on_greedy[place, depth]) == (token in offered and token == best)
        assert float(found.chain_greedy[place, depth]) == float(offered[0] == token == best)
        assert float(found.chain_sampled[place, depth]) == pytest.approx(min(1.0, float(q[token] / p[token])), rel=1e-5)
        if depth == 0:
            assert float(found.divergence.kl[place]) == pytest.approx(float((p * (logp[at] - logq)).sum()), abs=1e-5)
            assert float(found.divergence.overlap[place]) == pytest.approx(float(torch.minimum(p, q).sum()), abs=1e-6)
    assert 0 < hits < 8 * DEPTH  # otherwise little was tested


@pytest.mark.slow
@pytest.mark.parametrize("has_probs", [True, False])
@pytest.mark.parametrize("text", [[2] * 400, [0, 1, 2, 1] * 100], ids=["unlikely", "mixed"])
def test_a_text_that_the_target_would_not_write_flatters_no_drafter(text: list[int], has_probs: bool) -> None:
    """Laws that are the same everywhere give the tokens per step of a decode, whatever the text says."""
    p, q = torch.tensor([[0.70, 0.29, 0.01], [0.30, 0.60, 0.10]], dtype=torch.float64)
    found = Probe(DEPTH, RANKS, has_probs, answers=False)
    found.begin(text, p.log().expand(len(text), 3))
    drafter = LiteralDrafter(lambda prefix: q.log())
    replay_one(drafter, found, [1], Recording(text, 3), SamplingParams(len(text), 1.0))
    probed = found.end()
    stands = float(torch.minimum(p, q).sum()) if has_probs else 0.29
    tau = sum(stands**d for d in range(DEPTH + 1))
    assert len(text) / float(visits(probed.chain_sampled).sum()) == pytest.approx(tau, rel=0.01)
    assert not probed.chain_greedy.any(), "the draft's best token is never the target's"
    flattering = Probe(DEPTH, RANKS, has_probs)
    flattering.begin(text, p.log().expand(len(text), 3))
    replay_one(drafter, flattering, [1], Recording(text, 3), SamplingParams(len(text), 1.0))
    if has_probs and set(text) == {2}:
        assert len(text) / float(visits(flattering.end().chain_sampled).sum()) > 1.4 * tau


def rows(*probs: list[float]) -> list[Tensor]:
    return [torch.tensor(p, dtype=torch.float64).log() for p in probs]


@pytest.mark.parametrize(
    ("p", "q", "kl", "overlap", "unknown"),
    [
        ([0.5, 0.25, 0.25], [0.5, 0.25, 0.25], 0.0, 1.0, 0.0),
        ([0.5, 0.5, 0.0], [0.25, 0.25, 0.5], math.log(2), 0.5, 0.0),
        ([1.0, 0.0], [0.5, 0.5], math.log(2), 0.5, 0.0),
        ([0.6, 0.2, 0.2], [0.75, 0.25, 0.0], 0.0, 0.8, 0.2),  # the rest of p is q
        ([0.0, 1.0], [1.0, 0.0], math.inf, 0.0, 1.0),
    ],
)
def test_divergence_by_hand(p: list[float], q: list[float], kl: float, overlap: float, unknown: float) -> None:
    assert divergence(*rows(p, q)) == pytest.approx((kl, overlap, unknown), abs=1e-12)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_expected_steps_of_rejection_sampling_are_exact(depth: int) -> None:
    """Summed over all answers, against a sum over everything that can happen in a decode."""
    size, length = 3, 5
    source = numbers("chain law")
    p, q = torch.randn(2, size, size, generator=source, dtype=torch.float64).softmax(-1)  # after the last token
    q[0] = torch.tensor([0.0, 1.0, 0.0])  # a truncated draft
    p[2] = q[2]

    def steps_from(last: int, left: int) -> float:
        return 1 + in_step(last, left, depth) if left else 0.0

    def in_step(last: int, left: int, drafts: int) -> float:
        if not left:
            return 0.0
        if not drafts:
            return sum(float(p[last, x]) * steps_from(x, left - 1) for x in range(size))
        both = torch.minimum(p[last], q[last])
        return sum(
            float(both[x]) * in_step(x, left - 1, drafts - 1) + float(p[last, x] - both[x]) * steps_from(x, left - 1)
            for x in range(size)
        )

    expected = 0.0
    for answer in itertools.product(range(size), repeat=length):
        path = [0, *answer]
        mass = math.prod(float(p[a, b]) for a, b in itertools.pairwise(path))
        stands = [min(1.0, float(q[a, b] / p[a, b])) for a, b in itertools.pairwise(path)]
        chain = [[stands[i + d] if i + d < length else 0.0 for d in range(depth)] for i in range(length)]
        expected += mass * float(visits(torch.tensor(chain, dtype=torch.float64)).sum())
    assert expected == pytest.approx(steps_from(0, length), abs=1e-12)


def test_expected_steps_of_an_index_are_those_of_the_replay() -> None:
    """Greedy verification and token matching alike: a candidate stands or falls with the answer's token."""
    context = toy_context("llama", dtype=torch.float64)
    size = context.target.vocab_size
    prompt = [3, 4, 5, 3, 4]
    answer = [5, 3, 4, 5, 9, 9, 3, 4, 5, 3, 9, 9, 3, 4, 7, 7, 7, 7, 7, 7, 7]
    best = torch.nn.functional.one_hot(torch.tensor(answer), size).double()
    found = Probe(4, 3, has_probs=False)
    for temperature in (0.0, 1.0):
        found.begin(answer, (9 * best).log_softmax(-1))
        params = SamplingParams(len(answer), temperature)
        replay_one(Ngram(context, table=""), found, prompt, Recording(answer, size), params)
        probed = found.end()
        assert probed.divergence is None
        (lengths,) = replay(Ngram(context, table=""), Chain(depth=4), [(prompt, answer)], size).accept_lengths
        assert len(lengths) < len(answer) - 5
        assert float(visits(probed.chain_greedy).sum()) == len(lengths)
        assert float(visits(probed.chain_sampled).sum()) == len(lengths)
        first = torch.cat([torch.zeros(1), torch.tensor(lengths).cumsum(0)[:-1]]).long()
        assert visits(probed.chain_greedy).nonzero()[:, 0].tolist() == first.tolist()
