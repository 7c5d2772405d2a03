"""Small target and draft laws that try every corner of an acceptance rule, and trees drawn from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from torch import Tensor

from specdecodes.core.sampling import Rng
from specdecodes.core.tree import Topology, Tree
from specdecodes.testing.toys import numbers

CASES = (
    "random",
    "equal laws",
    "nearly equal laws",
    "disjoint supports",
    "tokens that the target never takes",
    "tokens that the draft never takes",
    "a target of one token",
    "a draft of one token",
    "both cut to their two best tokens",
    "both cut to their nucleus",
)


@dataclass(frozen=True)
class Laws:
    """Logits [V] of target and draft after a path (the tokens below the root), float64; -inf: impossible."""

    vocab: int
    target: Callable[[tuple[int, ...]], Tensor]
    draft: Callable[[tuple[int, ...]], Tensor]


def laws_of(case: str, vocab: int) -> Laws:
    """The laws of one of ``CASES``; they differ from path to path."""

    @cache
    def pair(path: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        target, draft = (
            torch.randn(2, vocab, generator=numbers(case, vocab, path), dtype=torch.float64) * 1.5
        ).unbind()
        at = sum(path) % vocab
        one = torch.arange(vocab) == at
        half = (torch.arange(vocab) + at) % 2 == 0
        if case == "equal laws":
            return target, target
        if case == "nearly equal laws":
            return target, target + 1e-7 * draft
        if case == "disjoint supports":
            return target.masked_fill(half, -torch.inf), draft.masked_fill(~half, -torch.inf)
        if case == "tokens that the target never takes":
            return target.masked_fill(half, -torch.inf), draft
        if case == "tokens that the draft never takes":
            return target, draft.masked_fill(half, -torch.inf)
        if case == "a target of one token":
            return target.masked_fill(~one, -torch.inf), draft
        if case == "a draft of one token":
            return target, draft.masked_fill(~one, -torch.inf)
        if case == "both cut to their two best tokens":
            return tuple(x.masked_fill(x < x.topk(2)[0][-1], -torch.inf) for x in (target, draft))  # type: ignore[return-value]
        if case == "both cut to their nucleus":
            # Of another size after every path, and with room for tokens that only one of the two keeps.
            return tuple(x.masked_fill(_outside_nucleus(x, 0.75), -torch.inf) for x in (target, draft))  # type: ignore[return-value]
        return target, draft

    return Laws(vocab, lambda path: pair(path)[0], lambda path: pair(path)[1])


def _outside_nucleus(logits: Tensor, mass: float) -> Tensor:
    """Which tokens [V] top-p sampling drops: those that the better ones before them reach ``mass`` without."""
    p, order = logits.softmax(-1).sort(descending=True)
    return (p.cumsum(-1) - p >= mass)[order.argsort()]


def draw_tree(parents: Sequence[int], laws: Laws, rng: Rng, draws: str) -> Tree:
    """A tree [1, T] of this shape whose children come from the draft as ``draws`` says; the root's token is 0.

    Where the draft has fewer tokens than a node has children, the rest and what hangs below become padding.
    ``draws = none`` takes the best and the worst tokens in turn: any choice by score must be judged rightly.
    """
    tokens, logq = {0: 0}, {}
    paths: dict[int, tuple[int, ...]] = {0: ()}
    for node in range(len(parents)):
        children = [child for child in range(len(parents)) if parents[child] == node]
        if node not in paths or not children:
            continue
        law = laws.draft(paths[node]).log_softmax(-1)
        logq[node] = law
        if draws == "none":
            order = law.argsort(descending=True).tolist()
            drawn = [order.pop(0 if place % 2 == 0 else -1) if order else -1 for place in range(len(children))]
        else:
            drawn = rng.draws(law.exp()[None], len(children), draws == "iid")[0].tolist()
        for child, token in zip(children, drawn, strict=True):
            if token >= 0:
                tokens[child], paths[child] = token, (*paths[node], token)
    kept = sorted(paths)
    place = {node: i for i, node in enumerate(kept)}
    uniform = torch.zeros(laws.vocab, dtype=torch.float64).log_softmax(-1)
    shape = (-1, *(place[parents[node]] for node in kept[1:]))
    tree = Tree(
        torch.tensor([[tokens[node] for node in kept]]),
        _topology(shape).parents,
        torch.tensor([len(kept)]),
        torch.full((1, len(kept)), -1),
        torch.stack([logq.get(node, uniform) for node in kept])[None],
        draws,
        _topology(shape),
    )
    return with_padding(tree, len(parents), 0)


def with_padding(tree: Tree, count: int, token: int) -> Tree:
    """``tree`` [1, T] with padding nodes of this ``token`` up to ``count`` nodes."""
    extra = count - tree.shape[1]
    if extra <= 0:
        return tree
    assert tree.slots is not None and tree.logq is not None and tree.num_nodes is not None
    pad = torch.nn.functional.pad
    topology = _topology((*tree.parents[0].tolist(), *[0] * extra))
    return Tree(
        pad(tree.tokens, (0, extra), value=token),
        topology.parents,
        tree.num_nodes,
        pad(tree.slots, (0, extra), value=-1),
        pad(tree.logq, (0, 0, 0, extra), value=float("nan")),
        tree.draws,
        topology,
    )


@lru_cache(maxsize=1024)
def _topology(parents: tuple[int, ...]) -> Topology:
    return Topology(torch.tensor([parents]))
