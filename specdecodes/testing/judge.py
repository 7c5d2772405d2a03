"""A capturable verifier's ``judge``: the law of ``accept`` from noise, and nothing read on the host."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from specdecodes.core.sampling import Rng
from specdecodes.core.tree import Topology, Tree, Verdict
from specdecodes.testing.contract import during, expect
from specdecodes.testing.enumeration import explore, total_variation
from specdecodes.testing.laws import Laws, draw_tree, laws_of, with_padding

CASES = ("random", "disjoint supports", "both cut to their two best tokens")
SHAPES: tuple[tuple[int, ...], ...] = ((-1,), (-1, 0, 1, 2), (-1, 0, 0, 0), (-1, 0, 0, 1, 1), (-1, 0, 0, 1, 3))
VOCAB, TIMES = 4, 5_000
LIMIT = 0.06
"""Total variation between a law and ``TIMES`` outcomes of it; there are some ten outcomes of a tree."""


def check_judge(verifier: Any, name: str) -> None:  # noqa: ANN401
    """Compare the law of ``judge`` with that of ``accept`` on drawn trees.

    Raises:
        AssertionError: names the broken clause.
    """
    for draws in verifier.draws:
        for parents in SHAPES:
            if verifier.chain_only and any(parents.count(node) > 1 for node in parents):
                continue
            for case in CASES:
                what = f"{name}.judge, children drawn {draws}, parents {list(parents)}, {case}"
                with during(what):
                    laws = laws_of(case, VOCAB)
                    drawn = draw_tree(parents, laws, Rng(len(parents)), draws)
                    tree = with_padding(drawn, len(parents) + 1, int(laws.target(()).argmax()))
                    logp = _scores(tree, laws)
                    expected = _law(verifier, logp, tree)
                    distance = total_variation(_by_noise(verifier, logp, tree, case == CASES[0]), expected)
                expect(
                    distance < LIMIT,
                    f"{what}: over {TIMES} draws of its noise it is {distance:.3g} in total variation away from accept",
                )


def _scores(tree: Tree, laws: Laws) -> Tensor:
    """Log-probabilities [1, T, V] after every node."""
    ids, paths = tree.tokens[0].tolist(), tree.structure.paths[0].tolist()
    rows = [laws.target(tuple(ids[node] for node in path if node > 0)) for path in paths]
    return torch.stack(rows).log_softmax(-1)[None]


def _law(verifier: Any, logp: Tensor, tree: Tree) -> dict[tuple[int, ...], float]:  # noqa: ANN401
    """Of ``accept``, by enumeration."""
    law: defaultdict[tuple[int, ...], float] = defaultdict(float)

    def accept(rng: Rng) -> Verdict:
        verdict: Verdict = verifier.accept(logp, tree, rng)
        return verdict

    for weight, verdict in explore(accept):
        law[_outcomes(verdict)[0]] += weight
    return law


def _by_noise(verifier: Any, logp: Tensor, tree: Tree, trace: bool) -> dict[tuple[int, ...], float]:  # noqa: ANN401
    """The outcomes of many rows of one tree, each with noise of its own; ``trace``: traced first, as no look can be."""
    parts = [value.expand(TIMES, *value.shape[1:]) for value in (tree.tokens, tree.parents, tree.num_nodes, tree.logq)]  # type: ignore[union-attr]
    tokens, parents, num_nodes, logq = parts
    structure = tree.structure.view((), None, paths=True, children=True)
    wide = [getattr(structure, part).expand(TIMES, -1, -1) for part in ("ancestors", "paths", "children")]
    depths = structure.depths.expand(TIMES, -1)
    topology = Topology.of(parents, wide[0], depths, wide[1], children=wide[2])
    many = Tree(tokens, parents, num_nodes, None, logq, tree.draws, topology)
    noise = verifier.noise(Rng(7), (TIMES, *logp.shape[1:]), logp.dtype)

    def judge(logp: Tensor, tokens: Tensor, *noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        verdict = verifier.judge(logp, replace(many, tokens=tokens), *noise)
        return verdict.path, verdict.num_accepted, verdict.bonus

    given = (logp.expand(TIMES, -1, -1), tokens, *noise)
    try:
        run = make_fx(judge)(*given) if trace else judge
    except RuntimeError as error:
        name = type(verifier).__name__
        raise AssertionError(f"verifier {name}: judge reads a value on the host, which no run can: {error}") from None
    verdict = Verdict(*run(*given))
    counts = Counter(_outcomes(verdict))
    return {outcome: count / TIMES for outcome, count in counts.items()}


def _outcomes(verdict: Verdict) -> list[tuple[int, ...]]:
    """Per row the nodes of the path, and the bonus."""
    rows = zip(verdict.path.tolist(), verdict.bonus.tolist(), strict=True)
    return [(*(node for node in path if node >= 0), -1 - bonus) for path, bonus in rows]
