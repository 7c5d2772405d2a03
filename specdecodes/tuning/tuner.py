"""Find the best mode, tree and size for a target and its drafters on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from specdecodes.benchmark.stats import Interval, Pair, bootstrap_ratio, speed_ratio
from specdecodes.core.decoder import Decoder, Generation
from specdecodes.core.load import load
from specdecodes.plugins.trees.optimise import Measurements, optimise
from specdecodes.plugins.trees.shape import TreeShape
from specdecodes.tuning.costs import Costs, Shape, measure_costs, timing_shapes
from specdecodes.tuning.ranks import RankTracer, Trace, acceptance, accepted_lengths, trace_ranks
from specdecodes.tuning.recipe import Recipe, target_facts

Say = Callable[[str], None]

REPEATS = 2
"""Answers of each candidate to each held-out prompt; the fastest counts."""

ROUNDS = 3
"""Of measuring acceptance where the last round's best tree starts its steps."""


@dataclass(frozen=True)
class TuneSettings:
    """What is tuned, and how long it may take.

    Attributes:
        target, tokenizer, dtype, device, trust_remote_code, compile: as for :func:`specdecodes.load`.
        drafts: what ``draft=`` may name, each tried; None stands for a mode's own drafter.
        max_new_tokens: per answer. sampling: temperature and so on; greedy by default.
        max_nodes, max_depth, width: limits of trees: nodes (root included), levels, children of a node.
    """

    target: Any = "embedded"
    drafts: Sequence[str | None] = (None,)
    tokenizer: Any = None
    dtype: str | None = None
    device: str | None = None
    trust_remote_code: bool = False
    compile: bool = False
    max_new_tokens: int = 96
    sampling: Mapping[str, Any] = field(default_factory=dict)
    max_nodes: int = 32
    max_depth: int = 8
    width: int = 4

    def __post_init__(self) -> None:
        limits = (("max_new_tokens", 8), ("max_nodes", 3), ("max_depth", 1), ("width", 1))
        for name, least in limits:
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if not self.drafts:
            raise ValueError("drafts: expected at least one, got none")


@dataclass(frozen=True)
class Candidate:
    """One way to decode: predicted from ranks and costs, then measured.

    Attributes:
        draft, mode, settings: as for :func:`specdecodes.load`. name: for people, such as "a chain of 3".
        predicted_cost: of a step, in plain steps. predicted_tau: on the prompts that the shape was chosen on. None for
            trees whose shape changes from step to step.
        tau, speedup, interval: measured on other prompts; the interval is a bootstrap 95 % interval over prompts.
    """

    draft: str | None
    mode: str
    settings: Mapping[str, Any]
    name: str
    nodes: int
    predicted_cost: float | None
    predicted_tau: float | None
    tau: float = 0.0
    speedup: float = 0.0
    interval: Interval | None = None

    @property
    def predicted(self) -> float | None:
        """The predicted speed-up."""
        known = self.predicted_tau is not None and self.predicted_cost is not None
        return self.predicted_tau / self.predicted_cost if known else None  # type: ignore[operator]

    @property
    def cost(self) -> float:
        """The measured cost of a step, in plain steps."""
        return self.tau / self.speedup


@dataclass(frozen=True)
class Tuned:
    """What came out: candidates, best first, and the measurements per draft that they were chosen from."""

    candidates: list[Candidate]
    measured: dict[str, Measurements]
    costs: dict[str, Costs]
    sentence: str


class Tuner:
    """Measures acceptance and costs on ``prompts``, chooses shapes, and measures those on ``held_out``.

    Args:
        settings: see :class:`TuneSettings`. say: is told what goes on, line by line.
    """

    def __init__(self, settings: TuneSettings, say: Say) -> None:
        self.settings = settings
        self.say = say
        self.plain = self._load(
            settings.target, mode="naive", tokenizer=settings.tokenizer, device=settings.device, dtype=settings.dtype
        )

    def encode(self, text: str, length: int) -> Tensor:
        """A prompt, int64 [1, L], through the chat template where there is one, its text cut to ``length`` tokens.

        Raises:
            ValueError: a target without a tokenizer.
        """
        if self.plain.tokenizer is None:
            raise ValueError("tokenizer: expected one beside the target, got none; name one with --tokenizer")
        return self.plain.encode(self.plain.as_prompt(text, most=length))

    def tune(self, prompts: Sequence[Tensor], held_out: Sequence[Tensor]) -> Tuned:
        """Choose and measure.

        Args:
            prompts, held_out: int64 [1, L] each.

        Raises:
            ValueError: fewer than two prompts in one of the two, or what :func:`specdecodes.load` refuses.
        """
        for name, given in (("prompts", prompts), ("held_out", held_out)):
            if len(given) < 2:
                raise ValueError(f"{name}: expected at least two prompts, got {len(given)}; give more questions")
        answers = [self._answer(self.plain, prompt, seed).tokens[0] for seed, prompt in enumerate(prompts)]
        candidates: list[Candidate] = []
        measured: dict[str, Measurements] = {}
        costs: dict[str, Costs] = {}
        for draft in self.settings.drafts:
            name = _name_of(draft)
            self.say(f"drafter {name}: which candidates the target takes")
            traces = self._traces(draft, prompts, answers)
            self.say(f"drafter {name}: what a step costs")
            costs[name] = self._costs(draft, prompts)
            measured[name] = self._measurements(traces, costs[name])
            candidates += self._choose(draft, measured[name], traces)
        self.say(f"{len(candidates)} candidates on {len(held_out)} other prompts")
        candidates = sorted(
            self._measure(candidates, held_out) if candidates else [], key=lambda each: each.speedup, reverse=True
        )
        return Tuned(candidates, measured, costs, sentence_of(candidates))

    def recipe(self, tuned: Tuned, provenance: Mapping[str, Any]) -> Recipe:
        """The best candidate, or plain decoding where none is faster."""
        best = next((each for each in tuned.candidates if each.speedup > 1), None)
        name = _name_of(self.settings.drafts[0] if best is None else best.draft)
        target, chosen = self.plain.target, tuned.measured[name]
        found = {
            "provenance": provenance,
            "candidates": [asdict(candidate) for candidate in tuned.candidates],
            "costs": {name: asdict(costs) for name, costs in tuned.costs.items()},
            "measurements": {name: asdict(measured) for name, measured in tuned.measured.items()},
        }
        return Recipe(
            target=target_facts(target.model),
            mode="naive" if best is None else best.mode,
            draft=None if best is None else best.draft,
            settings={} if best is None else best.settings,
            step_cost=1.0 if best is None else best.cost,
            tau=1.0 if best is None else best.tau,
            dtype=str(target.dtype).removeprefix("torch."),
            compile=self.settings.compile,
            sentence=tuned.sentence,
            acceptance=chosen.acceptance,
            cost={str(nodes): value for nodes, value in chosen.cost.items()},
            draft_cost=chosen.draft_cost,
            found=found,
        )

    def _load(self, target: Any, draft: str | None = None, **settings: Any) -> Decoder:  # noqa: ANN401
        trust, compile = self.settings.trust_remote_code, self.settings.compile
        return load(target, draft, trust_remote_code=trust, compile=compile, **settings)

    def _with(self, draft: str | None, mode: str, **settings: Any) -> Decoder:
        return self._load(self.plain.target.model, draft, mode=mode, tokenizer=self.plain.tokenizer, **settings)

    def _answer(self, decoder: Decoder, prompt: Tensor, seed: int) -> Generation:
        sampling = {
            "max_new_tokens": self.settings.max_new_tokens,
            "ignore_eos": True,
            "seed": seed,
            **self.settings.sampling,
        }
        return decoder.generate(prompt, **sampling)

    def _traces(self, draft: str | None, prompts: Sequence[Tensor], answers: Sequence[list[int]]) -> list[Trace]:
        tracer = RankTracer(depth=self.settings.max_depth, width=self.settings.width)
        # One way of verifying for all drafters: token-match follows the same draws as plain decoding.
        decoder = self._with(draft, "stree", build_tree=tracer)
        return trace_ranks(decoder, tracer, prompts, answers, self.settings.sampling)

    def _costs(self, draft: str | None, prompts: Sequence[Tensor]) -> Costs:
        shapes = timing_shapes(self.settings.max_nodes, self.settings.max_depth)
        trees: dict[Shape, Decoder] = {shape: self._with(draft, "stree", tree=shape.spec) for shape in shapes}
        return measure_costs(self.plain, trees, prompts[:4], tokens=min(self.settings.max_new_tokens, 64))

    def _measurements(self, traces: Sequence[Trace], costs: Costs) -> Measurements:
        """Acceptance where steps over the best tree start, which depends on the acceptance: a few rounds settle it."""
        depth, width = self.settings.max_depth, self.settings.width
        measured = Measurements.checked(acceptance(traces, depth, width), costs.curve(), costs.per_level)
        for _ in range(ROUNDS - 1):  # the costs are checked, and warned of, once
            best = self._best(measured, width)
            found = acceptance(traces, depth, width, shape=best if best.levels else None)
            measured = measured.with_acceptance(found)
        return measured

    def _best(self, measured: Measurements, max_children: int) -> TreeShape:
        return optimise(
            measured,
            max_nodes=self.settings.max_nodes,
            max_depth=self.settings.max_depth,
            max_children=max_children,
        ).shape

    def _choose(self, draft: str | None, measured: Measurements, traces: Sequence[Trace]) -> Iterator[Candidate]:
        """The best chain and the best tree by the dynamic programme, and trees as large that change with every step."""
        best = None
        for max_children in (1, self.settings.width):
            shape = self._best(measured, max_children)
            if not shape.levels or (max_children > 1 and shape.is_chain):
                continue
            best = shape
            yield self._candidate(draft, shape, measured, traces)
        if best is not None and not best.is_chain:
            nodes = len(best.parents)
            settings = {"max_nodes": nodes, "depth": best.depth, "topk": self.settings.width, "width": 2}
            yield Candidate(draft, "dynamic", settings, f"the best {nodes} nodes of each step", nodes, None, None)

    def _candidate(
        self, draft: str | None, shape: TreeShape, measured: Measurements, traces: Sequence[Trace]
    ) -> Candidate:
        nodes = len(shape.parents)
        lengths = accepted_lengths(shape, traces)
        tau = sum(map(sum, lengths)) / sum(map(len, lengths))
        cost = measured.cost_of(nodes) + shape.depth * measured.draft_cost
        if shape.is_chain:
            return Candidate(draft, "sd", {"depth": shape.depth}, f"a chain of {shape.depth}", nodes, cost, tau)
        return Candidate(draft, "stree", {"tree": shape.spec}, f"the tree {shape.spec}", nodes, cost, tau)

    def _measure(self, candidates: Sequence[Candidate], prompts: Sequence[Tensor]) -> Iterator[Candidate]:
        decoders = [self._with(c.draft, c.mode, **c.settings) for c in candidates]
        for decoder in (self.plain, *decoders):
            self._answer(decoder, prompts[0], 0)
        base, *rows = zip(
            *(self._fastest([self.plain, *decoders], prompts[i], i) for i in range(len(prompts))), strict=True
        )
        for candidate, own in zip(candidates, rows, strict=True):
            pairs = [_pair(*both) for both in zip(base, own, strict=True)]
            steps = [length for generation in own for length in generation.accept_lengths]
            yield replace(
                candidate,
                tau=sum(steps) / max(len(steps), 1),
                speedup=speed_ratio(pairs),
                interval=bootstrap_ratio(pairs),
            )

    def _fastest(self, decoders: Sequence[Decoder], prompt: Tensor, seed: int) -> list[Generation]:
        """Each decoder's answer, the fastest of a few in alternation: what else the machine does only ever adds."""
        rounds = [[self._answer(decoder, prompt, seed) for decoder in decoders] for _ in range(REPEATS)]
        return [min(own, key=lambda answer: answer.timings["decode"]) for own in zip(*rounds, strict=True)]


def sentence_of(candidates: Sequence[Candidate]) -> str:
    """The choice in words; candidates come best first."""
    if not candidates:
        return "plain decoding is best here: no chain and no tree is predicted to be faster"
    best = candidates[0]
    if best.speedup <= 1:
        return f"plain decoding beats every tree here: the best, {_described(best)}, reaches {best.speedup:.2f}x"
    other = next((each for each in candidates[1:] if (each.mode == "sd") != (best.mode == "sd")), None)
    rival = "tree" if best.mode == "sd" else "chain"
    if other is None:
        return f"{_described(best)} is best here: {best.speedup:.2f}x"
    return f"{_described(best)} beats every {rival} here: {best.speedup:.2f}x against {other.speedup:.2f}x"


def _described(candidate: Candidate) -> str:
    return candidate.name if candidate.draft is None else f"{candidate.name} from {candidate.draft}"


def _name_of(draft: str | None) -> str:
    return "default" if draft is None else draft


def _pair(base: Generation, own: Generation) -> Pair:
    """Tokens and seconds after the prefill, which is the same on both sides."""
    return Pair(len(base.tokens[0]) - 1, base.timings["decode"], len(own.tokens[0]) - 1, own.timings["decode"])
