"""Sampling parameters, logit processing and randomness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

if TYPE_CHECKING:
    from specdecodes.core.tree import Tree


_SMALLEST, _LARGEST = 1e-10, 1e10
"""What a logit may be divided by and multiplied with; beyond, float32 overflows and no token has a probability."""


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen and when to stop.

    Attributes:
        max_new_tokens: exact upper bound on emitted tokens.
        temperature: 0 is greedy; 1e-10 to 1e10: logits are divided by it.
        top_k: keep the k best (0: all). top_p: keep the smallest set with this mass, in (0, 1]. min_p: drop what is
            below this share of the best, in [0, 1).
        repetition_penalty: > 1 discourages tokens of the node's own prefix (prompt included); 1 is off; 1e-10 to 1e10.
        seed: reproduces a sampled run bit for bit; None draws a fresh one.
        ignore_eos: do not stop at end of text. stop: strings that end the answer (left out of ``text``).
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            if not _is_number(value := getattr(self, name)):
                raise ValueError(f"{name}: expected a number, got {value!r}")
        span = f"{_SMALLEST:g} to {_LARGEST:g}"
        warm = _SMALLEST <= self.temperature <= _LARGEST
        checks: Sequence[tuple[str, bool, str]] = (
            ("max_new_tokens", _is_int(self.max_new_tokens) and self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.greedy or warm, f"0 (greedy) or {span}"),
            ("top_k", _is_int(self.top_k) and self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "a number in (0, 1]"),
            ("min_p", 0 <= self.min_p < 1, "a number in [0, 1)"),
            ("repetition_penalty", _SMALLEST <= self.repetition_penalty <= _LARGEST, f"{span} (1 is off)"),
            ("seed", self.seed is None or (_is_int(self.seed) and 0 <= self.seed < 2**63), "0 to 2**63 - 1"),
        )
        for name, good, expected in checks:
            if not good:
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)}")
        if isinstance(self.stop, str) or not all(isinstance(s, str) and s for s in self.stop):
            raise ValueError(f"stop: expected a sequence of non-empty strings, got {self.stop!r}")

    @property
    def greedy(self) -> bool:
        """Whether the best token is taken instead of drawing one."""
        return self.temperature == 0


def _is_int(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


PREFIX_FREE = (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    MinPLogitsWarper,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
"""Processors that look at the scores alone, so that all nodes go through them at once."""


class LogitsPipeline:
    """transformers' logits processors in their usual order, applied to every node of a tree.

    Works in float32 (float64 stays float64) on a copy: the caller's logits are never changed.

    Args:
        params: what to build processors from. extra: processors that come before those.

    Attributes:
        key: what tells it from others, where the scores alone and ``params`` decide; None where something else does.
    """

    def __init__(self, params: SamplingParams, extra: LogitsProcessorList | None = None) -> None:
        self.greedy = params.greedy
        alone = not extra and params.repetition_penalty == 1.0
        warps = None if params.greedy else (params.temperature, params.top_k, params.top_p, params.min_p)
        self.key = (params.greedy, warps) if alone else None
        processors = LogitsProcessorList(extra or [])
        if params.repetition_penalty != 1.0:
            processors.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
        if not params.greedy:
            if params.temperature != 1.0:
                processors.append(TemperatureLogitsWarper(float(params.temperature)))
            if params.top_k:
                processors.append(TopKLogitsWarper(params.top_k))
            if params.top_p < 1.0:
                processors.append(TopPLogitsWarper(params.top_p))
            if params.min_p:
                processors.append(MinPLogitsWarper(params.min_p))
        last = max((i for i, each in enumerate(processors) if type(each) not in PREFIX_FREE), default=-1)
        # transformers annotates its processors with the old per-dtype tensor classes, which no tensor is.
        self._by_prefix: Any = LogitsProcessorList(processors[: last + 1])
        self._warpers: Any = LogitsProcessorList(processors[last + 1 :])

    @property
    def passes(self) -> bool:
        """Whether scores are the logits themselves."""
        return self.greedy and not self._by_prefix and not self._warpers

    @property
    def needs_prefix(self) -> bool:
        """Whether a processor looks at the tokens before a node."""
        return len(self._by_prefix) > 0

    def __call__(self, logits: Tensor, prefixes: Sequence[Sequence[int]] | None = None) -> Tensor:
        """Process ``logits`` [n, V], one prefix per row where :attr:`needs_prefix`.

        Returns:
            Greedy: scores whose order is what counts (not normalised). Sampling: log-probabilities.
        """
        scores = logits if logits.dtype == torch.float64 else logits.float()
        if self._by_prefix:
            assert prefixes is not None  # our own callers: see DecodeState.process
            rows = []
            for row, prefix in enumerate(prefixes):
                ids = torch.tensor([prefix], dtype=torch.long, device=scores.device)
                rows.append(self._by_prefix(ids, scores[row : row + 1].clone()))
            scores = torch.cat(rows)
        if self._warpers:
            nothing = torch.empty(scores.shape[0], 0, dtype=torch.long, device=scores.device)
            scores = self._warpers(nothing, scores if self._by_prefix else scores.clone())
        return scores if self.greedy else scores.log_softmax(-1)


def best_tokens(scores: Tensor) -> Tensor:
    """The best token of every row of ``scores`` [..., V], the first of equals: int64 [...]."""
    # On a CPU torch's argmax takes ten times as long as numpy's: 31 us against 3 us for [13, 4096].
    if scores.device.type == "cpu" and scores.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(scores.detach().numpy().argmax(-1))
    return scores.argmax(-1)


def node_prefixes(history: Sequence[Sequence[int]], tree: Tree) -> list[list[int]]:
    """The token prefix of every node, itself included: B * T lists; ``history`` holds each row's ids up to the root."""
    paths = tree.structure.paths.tolist()
    tokens = tree.tokens.tolist()
    return [
        [*history[row], *(tokens[row][node] for node in path[1:] if node >= 0)]
        for row, row_paths in enumerate(paths)
        for path in row_paths
    ]


class Rng:
    """The only source of randomness of builders and verifiers; a test replaces it to enumerate every outcome."""

    def __init__(self, seed: int | None = None, device: torch.device | str = "cpu") -> None:
        self.generator = torch.Generator(device=device)
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)

    def bernoulli(self, probability: float) -> bool:
        """True with this probability."""
        return float(self.uniform(())) < probability

    def categorical(self, probs: Tensor) -> int:
        """An index drawn from ``probs`` [V] (non-negative, any scale, not all zero)."""
        return int(torch.multinomial(probs, 1, generator=self.generator))

    def choose(self, scores: Tensor) -> int:
        """The next token: drawn from the log-probabilities ``scores`` [V]."""
        return self.categorical(scores.exp())

    def draws(self, probs: Tensor, count: int, replacement: bool) -> Tensor:
        """``count`` indices per row of ``probs`` [n, V], in draw order: int64 [n, count].

        Without replacement a row may have fewer than ``count`` positive entries; the rest is filled with -1.
        """
        if replacement and count > 1:
            return torch.multinomial(probs, count, replacement=True, generator=self.generator)
        return first_arrivals(probs, self.noise(probs.shape, probs.dtype), count)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Independent numbers from 0 up to 1, float64."""
        return torch.rand(tuple(shape), generator=self.generator, device=self.generator.device, dtype=torch.float64)

    def noise(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Independent numbers with a standard exponential distribution, for :func:`first_arrivals`."""
        empty = torch.empty(tuple(shape), dtype=dtype, device=self.generator.device)
        return empty.exponential_(generator=self.generator)


def first_arrivals(probs: Tensor, noise: Tensor, count: int) -> Tensor:
    """The draws without replacement that exponential ``noise`` stands for: int64 [n, count], see :meth:`Rng.draws`.

    Tokens arrive after a time of ``noise / probs``; the order of arrival is that of sequential draws.

    Args:
        probs, noise: [n, V].
    """
    arrival = torch.where(probs > 0, noise / probs, torch.inf)
    times, tokens = arrival.topk(min(count, probs.shape[-1]), dim=-1, largest=False, sorted=True)
    tokens = tokens.masked_fill(times.isinf(), -1)
    return torch.nn.functional.pad(tokens, (0, count - tokens.shape[-1]), value=-1)


class Best(Rng):
    """Takes the place of randomness at temperature 0, for rules that serve both kinds of temperature."""

    def choose(self, scores: Tensor) -> int:
        """The best of ``scores`` [V], normalised or not; the first of equals."""
        return int(best_tokens(scores[None]))
