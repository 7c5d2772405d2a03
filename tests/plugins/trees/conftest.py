"""States and proposals for builders, over drafts whose distributions are written down."""

from __future__ import annotations

import pytest
import torch

from specdecodes.core.sampling import SamplingParams
from specdecodes.core.state import DecodeState
from specdecodes.core.tree import Tree
from specdecodes.testing import LiteralProposal, LiteralTarget

VOCAB = 8
ROOT = 7


class Counting(LiteralProposal):
    """Remembers how it was asked."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.asked, self.expanded = [], []

    def topk(self, slots, k):
        self.asked.append((slots.shape[1], k))
        return super().topk(slots, k)

    def expand(self, slots, tokens):
        self.expanded.append(slots.shape[1])
        return super().expand(slots, tokens)


def table(probabilities):
    """A rule from {path of tokens below the root: {token: probability}}; elsewhere every token is as likely."""

    def rule(prefix):
        path = prefix[prefix.index(ROOT) + 1 :]
        if path not in probabilities:
            return torch.zeros(VOCAB, dtype=torch.float64)
        given = probabilities[path]
        assert abs(sum(given.values()) - 1) < 1e-9
        return torch.tensor([given.get(token, 0.0) for token in range(VOCAB)], dtype=torch.float64).log()

    return rule


@pytest.fixture
def ask():
    """``ask(builder, probabilities or rule)``: the tree that it builds, and the proposal that it asked."""

    def build(builder, draft, *, draws="none", rng=None, rows=1, candidates=None, depth=0, kind=Counting):
        rule = table(draft) if isinstance(draft, dict) else draft
        target = LiteralTarget(rule, VOCAB)
        prompts = torch.arange(rows)[:, None]
        params = SamplingParams(temperature=0.0 if draws == "none" else 1.0, seed=0)
        state = DecodeState(target, prompts, params, draws=draws)
        certain = torch.full((rows, VOCAB), -torch.inf, dtype=torch.float64)
        certain[:, ROOT] = 0.0
        state.first(certain)
        if rng is not None:
            state.rng = rng
        proposal = kind(rule, state, candidates=candidates, depth=depth)
        tree = builder.build_tree(state, proposal)
        Tree.checked(tree.tokens, tree.parents, tree.num_nodes, tree.slots, tree.logq, tree.draws, vocab_size=VOCAB)
        assert tree.shape == (rows, builder.max_nodes), "the number of nodes is fixed"
        return tree, proposal

    return build


def paths_of(tree, row=0):
    """The tokens below the root of every real node, in the order of the nodes."""
    tokens = tree.tokens[row].tolist()
    paths = tree.structure.paths[row].tolist()
    return [tuple(tokens[node] for node in path if node > 0) for path in paths[: tree.count(row)]]


@pytest.fixture
def paths():
    """The function above."""
    return paths_of
