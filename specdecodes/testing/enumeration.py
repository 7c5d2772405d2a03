"""Every outcome of a random procedure, with its probability: the procedure is run once per outcome."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from specdecodes.core.sampling import Rng

Result = TypeVar("Result")

SLACK = 1e-9
"""How far beyond [0, 1] rounding may take a probability."""


class EnumeratingRng(Rng):
    """Takes the choices of ``script`` and, beyond it, the first possible one; remembers what else was possible.

    Attributes:
        weight: probability of the choices taken so far.
    """

    def __init__(self, script: Sequence[int] = ()) -> None:
        super().__init__(seed=0)  # nothing is drawn from it
        self.script = script
        self.weight = 1.0
        self._taken: list[int] = []
        self._options: list[int] = []

    def bernoulli(self, probability: float) -> bool:
        """See :class:`Rng`."""
        if not -SLACK <= probability <= 1 + SLACK:
            raise AssertionError(f"rng.bernoulli: expected a probability in [0, 1], got {probability}")
        probability = min(max(float(probability), 0.0), 1.0)
        return bool(self._choose([1.0 - probability, probability]))

    def categorical(self, probs: Tensor) -> int:
        """See :class:`Rng`."""
        if probs.ndim != 1:
            raise AssertionError(f"rng.categorical: expected probabilities [V], got shape {tuple(probs.shape)}")
        return self._choose(probs.tolist())

    def draws(self, probs: Tensor, count: int, replacement: bool) -> Tensor:
        """See :class:`Rng`: one token after the other, renormalised in between without replacement."""
        rows = []
        for row in probs.tolist():
            drawn: list[int] = []
            for _ in range(count):
                left = row if replacement else [0.0 if i in drawn else w for i, w in enumerate(row)]
                drawn.append(self._choose(left) if any(w > 0 for w in left) else -1)
            rows.append(drawn)
        return torch.tensor(rows, dtype=torch.long, device=probs.device).view(len(rows), count)

    def next_script(self) -> list[int] | None:
        """The choices of the next outcome, depth first; None after the last."""
        taken, options = list(self._taken), list(self._options)
        while taken and taken[-1] + 1 == options[-1]:
            taken.pop()
            options.pop()
        return [*taken[:-1], taken[-1] + 1] if taken else None

    def _choose(self, weights: Sequence[float]) -> int:
        total = math.fsum(weights)
        if not (all(w >= 0 for w in weights) and 0 < total < math.inf):  # nan must not pass
            raise AssertionError(f"rng: expected non-negative weights, not all of them zero, got {list(weights)}")
        possible = [i for i, weight in enumerate(weights) if weight > 0]
        place = len(self._taken)
        pick = self.script[place] if place < len(self.script) else 0
        if pick >= len(possible):
            raise AssertionError(
                "the same choices led to other probabilities: rng must be the only source of randomness"
            )
        self._taken.append(pick)
        self._options.append(len(possible))
        self.weight *= weights[possible[pick]] / total
        return possible[pick]


def explore(run: Callable[[EnumeratingRng], Result]) -> Iterator[tuple[float, Result]]:
    """(probability, result) of every outcome of ``run``, whose only randomness is the rng that it is given."""
    script: list[int] | None = []
    while script is not None:
        rng = EnumeratingRng(script)
        result = run(rng)
        yield rng.weight, result
        script = rng.next_script()


Tokens = tuple[int, ...]
Law = Mapping[Tokens, float]
"""Probability of every sequence of tokens."""


def sequence_law(emitted: Law, next_law: Callable[[Tokens], Sequence[float]], length: int) -> dict[Tokens, float]:
    """The law of the first ``length`` tokens when what was ``emitted`` is continued with ``next_law(prefix)``.

    ``sequence_law({(): 1.0}, p, n)`` is the law of plain decoding with p.
    """
    result: dict[Tokens, float] = {}
    for prefix, weight in emitted.items():
        level = {prefix[:length]: weight}
        for _ in range(length - len(prefix)):
            level = {
                (*sequence, token): mass * share
                for sequence, mass in level.items()
                for token, share in enumerate(next_law(sequence))
                if share > 0
            }
        for sequence, mass in level.items():
            result[sequence] = result.get(sequence, 0.0) + mass
    return result


def total_variation(law: Law, other: Law) -> float:
    """Half the sum of absolute differences: 0 for equal laws, 1 for disjoint ones."""
    return 0.5 * math.fsum(abs(law.get(key, 0.0) - other.get(key, 0.0)) for key in {*law, *other})
