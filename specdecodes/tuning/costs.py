"""What a step costs on this machine: plain, with T nodes, and with so many levels of drafting.

Everything is measured in the decode loop: a forward timed on its own finds its weights in the processor's caches,
which the drafter and the target in turn evict from each other.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specdecodes.core.decoder import Decoder, Generation


@dataclass(frozen=True)
class Shape:
    """A static tree whose step is timed: ``spec`` as ``--tree`` takes it, with ``nodes`` T and ``levels`` below."""

    spec: str
    nodes: int
    levels: int


@dataclass(frozen=True)
class Costs:
    """Seconds of the parts of a step.

    Attributes:
        plain: a step of plain decoding.
        score: tree nodes T to scoring, accepting, committing and the host's work.
        draft: drafting, whatever the tree. level: each further level that is drafted. node: each drafted node.
    """

    plain: float
    score: Mapping[int, float]
    draft: float
    level: float
    node: float

    def curve(self) -> dict[int, float]:
        """T to the cost of a step in plain steps, levels of drafting left out; 1: plain decoding.

        Neighbours that the clock's noise has put in the wrong order share their mean: larger trees cost no less.
        """
        own = [
            (nodes, (seconds + self.draft + self.node * (nodes - 1)) / self.plain)
            for nodes, seconds in sorted(self.score.items())
        ]
        return {1: 1.0, **dict(zip((nodes for nodes, _ in own), _rising([cost for _, cost in own]), strict=True))}

    @property
    def per_level(self) -> float:
        """The cost of a level of drafting in plain steps."""
        return self.level / self.plain


def timing_shapes(max_nodes: int, max_depth: int) -> list[Shape]:
    """Chains, whose cost tells that of a level, and stars, whose cost tells that of a node; up to ``max_nodes``."""
    chains = [Shape(",".join(["1"] * depth), depth + 1, depth) for depth in (1, 2, 4, 7) if depth <= max_depth]
    sizes = [size for size in (4, 8, 12, 16, 24, 32, 48, 64, 96, 128) if size < max_nodes]
    stars = [Shape(str(size - 1), size, 1) for size in [*sizes, max_nodes] if size > 2]
    return [shape for shape in chains if shape.nodes <= max_nodes] + stars


def measure_costs(
    plain: Decoder, trees: Mapping[Shape, Decoder], prompts: Sequence[Tensor], *, tokens: int, rounds: int = 2
) -> Costs:
    """Decode ``prompts`` with plain decoding and every tree in alternation, and fit the parts of a step.

    Args:
        plain, trees: decoders of one target and drafter. prompts: int64 [1, L] each.
        tokens: new tokens per answer; the end of the text is ignored. rounds: how often; the first is the warm-up's.

    Raises:
        ValueError: no prompt, fewer than two shapes, or less than one round.
    """
    if not prompts or len(trees) < 2 or rounds < 1:
        raise ValueError(
            f"costs: expected prompts, at least two shapes and one round, got {len(prompts)} prompts, "
            f"{len(trees)} shapes and {rounds} rounds"
        )
    for decoder in (plain, *trees.values()):
        _answer(decoder, prompts[0], tokens)
    steps: dict[Shape | None, list[dict[str, float]]] = {shape: [] for shape in (None, *trees)}
    for _ in range(rounds):
        for prompt in prompts:
            for shape, decoder in ((None, plain), *trees.items()):
                steps[shape].append(_per_step(_answer(decoder, prompt, tokens)))
    medians = {
        shape: {part: statistics.median(step[part] for step in found) for part in found[0]}
        for shape, found in steps.items()
    }
    base = medians.pop(None)
    shapes = [shape for shape in medians if shape is not None]
    draft, level, node = _fit_drafting([(shape, medians[shape]["draft"]) for shape in shapes])
    score: dict[int, list[float]] = {}
    for shape in shapes:
        score.setdefault(shape.nodes, []).append(medians[shape]["score"])
    return Costs(
        plain=base["draft"] + base["score"],
        score={nodes: statistics.mean(found) for nodes, found in sorted(score.items())},
        draft=draft,
        level=level,
        node=node,
    )


def _answer(decoder: Decoder, prompt: Tensor, tokens: int) -> Generation:
    return decoder.generate(prompt, max_new_tokens=tokens, ignore_eos=True)


def _per_step(generation: Generation) -> dict[str, float]:
    """Seconds per step of drafting and of everything else."""
    count = max(len(generation.accept_lengths), 1)
    seconds = generation.timings
    draft = seconds["propose"] + seconds["build"]
    return {"draft": draft / count, "score": (seconds["decode"] - draft) / count}


def _rising(values: Sequence[float]) -> list[float]:
    """The closest values, in least squares, that never fall: neighbours in the wrong order are pooled."""
    pools: list[tuple[float, int]] = []
    for value in values:
        mean, size = value, 1
        while pools and pools[-1][0] > mean:
            before, count = pools.pop()
            mean, size = (before * count + mean * size) / (count + size), count + size
        pools.append((mean, size))
    return [mean for mean, size in pools for _ in range(size)]


def _fit_drafting(found: Sequence[tuple[Shape, float]]) -> tuple[float, float, float]:
    """Least squares of seconds = draft + level * (levels - 1) + node * (nodes - 1), none of them below 0."""
    rows = torch.tensor([[1.0, s.levels - 1.0, s.nodes - 1.0] for s, _ in found], dtype=torch.float64)
    seconds = torch.tensor([second for _, second in found], dtype=torch.float64)
    best = min(_non_negative_fits(rows, seconds), key=lambda fit: fit[0])
    draft, level, node = best[1]
    return draft, level, node


def _non_negative_fits(rows: Tensor, seconds: Tensor) -> Iterator[tuple[float, list[float]]]:
    """(squared error, coefficients) of the fit over every subset of columns whose coefficients are not negative."""
    count = rows.shape[1]
    for subset in range(1 << count):
        columns = [column for column in range(count) if subset >> column & 1]
        coefficients = torch.zeros(count, dtype=torch.float64)
        if columns:
            coefficients[columns] = torch.linalg.lstsq(rows[:, columns], seconds, driver="gelsd").solution
        if bool((coefficients >= 0).all()):
            error = float((rows @ coefficients - seconds).square().sum())
            yield error, coefficients.tolist()
