"""The potential score: how good drafters would be for a target, before anything is decoded with them.

Per drafter: the divergence of its distribution from the target's, the acceptance vector by depth and rank, and the
tokens per step that a chain of its tokens would get. Measured by teacher forcing along answers of the target itself
(what a drafter meets in a decode), or along the data set's own text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from specdecodes import assets
from specdecodes.benchmark.likelihood import logits_along
from specdecodes.benchmark.probe import Probe, Probed, visits
from specdecodes.benchmark.replay import Recording, replay_one
from specdecodes.benchmark.settings import plain_value, short_name
from specdecodes.core.decoder import Decoder
from specdecodes.core.load import load
from specdecodes.core.sampling import LogitsPipeline, SamplingParams
from specdecodes.data import EMBEDDED, check_range, texts

FORMAT = "specdecodes.score/1"

ON = ("answers", "text")

DEFAULT_COUNT = 24
"""Texts that are scored where nobody says how many."""

DEFINITIONS = {
    "kl": "mean over positions of KL(target || draft), nats per token, at the temperature (at 1 where that is 0), over "
    "the tokens to which the draft gives any probability",
    "unknown": "mean mass of the target's distribution on all other tokens",
    "overlap": "mean over positions of sum_x min(p(x), q(x)) = 1 - total variation: the expected acceptance of a token "
    "that the draft samples (Leviathan et al. 2023, theorem 3.5 and corollary 3.6)",
    "tau": "expected tokens per step, bonus included, of a chain of `depth` drafted tokens: greedy verification at "
    "temperature 0; above it rejection sampling, or token matching where the draft has no probabilities. Tokens over "
    "the sum of the probabilities that a step starts at each place. On text: an estimate, as if the chain's accepted "
    "tokens were the text's: at every place it is what the target is expected to take of the draft there",
    "greedy": "greedy[d][k]: the share of the steps in which the target's best token is the draft's candidate of rank "
    "k + 1 at depth d + 1, of those that get there: the tokens above are candidates and the target's best",
    "sampled": "the same for a token that the target draws at the temperature; the tokens above are candidates. Steps "
    "are weighted as a chain visits them",
    "reached": "the expected number of steps that get to each depth",
    "measured_tau": "tokens per step, bonus included, of mode sd with that chain on the same prompts",
}


@dataclass(frozen=True)
class ScoreSettings:
    """What is scored; the command line's flags have the same names.

    Attributes:
        target, tokenizer, device, dtype, trust_remote_code: as for :func:`specdecodes.load`.
        drafts: drafters as ``draft`` of :func:`specdecodes.load`; none: those that ship with the embedded target.
        max_length: as for :func:`specdecodes.load`; a text or answer that does not fit is left out.
        dataset, split, field: see :func:`specdecodes.data.texts`.
        start, end, limit: the texts numbered from ``start`` to before ``end`` (counted from 0), of those the first
            ``limit`` (None: all up to ``end``, 24 without one).
        on: ``answers`` takes the texts as prompts, and the target's answers to them are what is scored; ``text``
            scores the texts themselves.
        temperature: of the target's answers and of both distributions; 0 is greedy.
        max_tokens: tokens scored of each text or answer. prompt_tokens: a longer prompt is cut to its first ones.
        depth, ranks: of the acceptance vectors; ``depth`` is also the chain's.
        chat: whether prompts go through the chat template (None: where there is one).
        measure: also decode the same prompts with each drafter (mode ``sd``).
        seed: of the sampled answers.
    """

    target: Any = "embedded"
    drafts: Sequence[Any] = ()
    tokenizer: Any = None
    device: str | None = None
    dtype: str | None = None
    trust_remote_code: bool = False
    max_length: int | None = None
    dataset: str = EMBEDDED
    split: str | None = None
    field: str | None = None
    start: int = 0
    end: int | None = None
    limit: int | None = None
    on: str = "answers"
    temperature: float = 1.0
    max_tokens: int = 128
    prompt_tokens: int = 256
    depth: int = 4
    ranks: int = 8
    chat: bool | None = None
    measure: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_range(self.start, self.end)
        for name, least in (("limit", 1), ("max_tokens", 2), ("prompt_tokens", 1), ("depth", 1), ("ranks", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        if self.on not in ON:
            raise ValueError(f"on: expected {' or '.join(ON)}, got {self.on!r}")
        if self.on == "text" and (self.measure or self.chat is not None):
            name = "measure" if self.measure else "chat"
            raise ValueError(f"{name}: expected on='answers', got on='text', which has no prompts; leave one out")
        self.params(0)
        if not self.drafts:
            if self.target != "embedded":
                raise ValueError("draft: expected at least one drafter to score, got none; name one with --draft")
            object.__setattr__(self, "drafts", (assets.DEFAULT_DRAFT, *assets.DRAFTS))

    def params(self, index: int) -> SamplingParams:
        """How the answer to text number ``index`` is decoded."""
        return SamplingParams(self.max_tokens, self.temperature, seed=self.seed + index)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; loaded objects by their names."""
        return {name: plain_value(getattr(self, name)) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class DraftScore:
    """One drafter's numbers; :data:`DEFINITIONS` says what each is.

    Attributes:
        draft: as it was named. probabilities: whether it has any; without, kl, unknown and overlap are not defined.
        greedy, sampled: [depth][rank]; sampled is None at temperature 0. The reached ones: [depth].
        texts: per text: tokens, expected steps, and the means of kl and overlap.
    """

    draft: str
    probabilities: bool
    kl: float | None
    unknown: float | None
    overlap: float | None
    tau: float
    greedy: list[list[float]]
    greedy_reached: list[float]
    sampled: list[list[float]] | None
    sampled_reached: list[float] | None
    texts: list[dict[str, Any]]
    measured_tau: float | None = None


@dataclass(frozen=True)
class Score:
    """All drafters, the best first; ``texts`` and ``tokens`` were scored, ``skipped`` says why others were not."""

    settings: dict[str, Any]
    dtype: str
    texts: int
    tokens: int
    skipped: list[str]
    drafts: list[DraftScore]
    format: str = FORMAT
    definitions: dict[str, str] = field(default_factory=lambda: dict(DEFINITIONS))

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Passage:
    """Token ids: a ``prompt`` [1, L] and the m >= 2 tokens after it; ``index`` is the text's number."""

    index: int
    prompt: Tensor
    tokens: list[int]


def score(settings: ScoreSettings, *, load: Callable[..., Decoder] = load) -> Score:
    """Score the drafters of ``settings``.

    Args:
        settings: what to score. load: makes decoders, as :func:`specdecodes.load` does.

    Raises:
        ValueError: bad input, or nothing that could be scored.
    """
    source = texts(
        settings.dataset,
        split=settings.split,
        field=settings.field,
        start=settings.start,
        end=settings.end,
        limit=DEFAULT_COUNT if settings.end is None and settings.limit is None else settings.limit,
        first_turn=settings.on == "answers",
    )
    common = {name: getattr(settings, name) for name in ("device", "dtype", "trust_remote_code", "max_length")}
    plain = load(settings.target, mode="naive", tokenizer=settings.tokenizer, **common)
    if plain.tokenizer is None:
        raise ValueError("tokenizer: expected one beside the target, got none; name one with --tokenizer")
    names = [short_name(draft) for draft in settings.drafts]
    drafters = [_Drafter(settings, plain, draft, load) for draft in settings.drafts]
    skipped: list[str] = []
    count = tokens = 0
    with torch.inference_mode():
        for passage in _passages(settings, plain, source, skipped):
            logp = _log_probabilities(settings, plain, passage)
            for drafter in drafters:
                drafter.add(passage, logp)
            count, tokens = count + 1, tokens + len(passage.tokens) - 1
    if not count:
        raise ValueError(f"dataset {settings.dataset!r}: expected a text that can be scored, got none; {skipped[-1]}")
    scored = [drafter.score(name) for name, drafter in zip(names, drafters, strict=True)]
    dtype = str(plain.target.dtype).removeprefix("torch.")
    return Score(settings.to_json(), dtype, count, tokens, skipped, sorted(scored, key=lambda d: -d.tau))


def _passages(settings: ScoreSettings, plain: Decoder, source: Iterator[str], skipped: list[str]) -> Iterator[Passage]:
    """What is scored, text by text; ``skipped`` gets a line for each text that cannot be."""
    take = _answer if settings.on == "answers" else _text
    for index, text in enumerate(source, settings.start):
        try:
            passage = take(settings, plain, index, text)
        except ValueError as error:
            skipped.append(f"text {index + 1}: {error}")
            continue
        if len(passage.tokens) < 2:
            skipped.append(f"text {index + 1}: expected at least 2 tokens to score, got {len(passage.tokens)}")
            continue
        yield passage


def _answer(settings: ScoreSettings, plain: Decoder, index: int, text: str) -> Passage:
    """The target's answer to ``text``, decoded by itself."""
    prompt = plain.encode(plain.as_prompt(text, chat=settings.chat, most=settings.prompt_tokens))
    generation = plain.generate(prompt, **vars(settings.params(index)))
    return Passage(index, prompt, generation.tokens[0])


def _text(settings: ScoreSettings, plain: Decoder, index: int, text: str) -> Passage:
    """The first token of ``text`` as the prompt, and what follows."""
    ids = plain.encode(text)[:, : settings.max_tokens + 1]
    plain.target.check_room(ids.shape[0], ids.shape[1], 0)
    return Passage(index, ids[:, :1], ids[0, 1:].tolist())


def _log_probabilities(settings: ScoreSettings, plain: Decoder, passage: Passage) -> Tensor:
    """The target's log-probabilities of each token of the passage: float64 [m, V], at temperature 1 where it is 0."""
    logits = logits_along(plain.target, passage.prompt, passage.tokens).double()
    return LogitsPipeline(settings.params(0))(logits).log_softmax(-1)


class _Drafter:
    """One drafter, what was noted along each passage, and what its decodes emitted."""

    def __init__(self, settings: ScoreSettings, plain: Decoder, draft: Any, load: Callable[..., Decoder]) -> None:  # noqa: ANN401
        self.settings = settings
        chain = load(
            plain.target.model,
            draft,
            "sd",
            tokenizer=plain.tokenizer,
            trust_remote_code=settings.trust_remote_code,
            max_length=settings.max_length,
            depth=settings.depth,
        )
        self.chain = chain
        assembly = chain.greedy
        assert not isinstance(assembly, str)  # a chain with the greedy verifier fits every drafter
        self.drafter = assembly.hooks.manager.get_plugin("drafter")
        assert self.drafter is not None
        self.vocab_size, self.device = plain.target.vocab_size, plain.target.device
        self.probe = Probe(settings.depth, settings.ranks, bool(self.drafter.has_probs), settings.on == "answers")
        self.found: list[tuple[int, Probed]] = []
        self.emitted = self.steps = 0

    def add(self, passage: Passage, logp: Tensor) -> None:
        """Probe along one passage, and decode its prompt where that is asked for."""
        recording = Recording(passage.tokens, self.vocab_size, self.device)
        self.probe.begin(passage.tokens, logp)
        params = SamplingParams(len(passage.tokens), self.settings.temperature)
        replay_one(self.drafter, self.probe, passage.prompt[0].tolist(), recording, params)
        self.found.append((passage.index, self.probe.end()))
        if self.settings.measure:
            lengths = self.chain.generate(passage.prompt, **vars(self.settings.params(passage.index))).accept_lengths
            self.emitted, self.steps = self.emitted + sum(lengths), self.steps + len(lengths)

    def score(self, name: str) -> DraftScore:
        """The numbers of all passages together."""
        found = [probed for _, probed in self.found]
        sampling = self.settings.temperature > 0
        greedy_visits = [visits(probed.chain_greedy) for probed in found]
        sampled_visits = [visits(probed.chain_sampled) for probed in found]
        taken = sampled_visits if sampling else greedy_visits
        places, steps = sum(len(own) for own in taken), sum(float(own.sum()) for own in taken)
        greedy = acceptance(found, greedy_visits, "greedy")
        sampled = acceptance(found, sampled_visits, "sampled") if sampling else (None, None)
        return DraftScore(
            draft=name,
            probabilities=self.probe.has_probs,
            kl=_mean(found, "kl"),
            unknown=_mean(found, "unknown"),
            overlap=_mean(found, "overlap"),
            tau=places / steps,
            greedy=greedy[0],
            greedy_reached=greedy[1],
            sampled=sampled[0],
            sampled_reached=sampled[1],
            texts=[
                {
                    "text": index,
                    "tokens": len(own),
                    "steps": float(own.sum()),
                    "kl": _mean([probed], "kl"),
                    "overlap": _mean([probed], "overlap"),
                }
                for (index, probed), own in zip(self.found, taken, strict=True)
            ],
            measured_tau=self.emitted / self.steps if self.steps else None,
        )


def acceptance(found: Sequence[Probed], weights: Sequence[Tensor], kind: str) -> tuple[list[list[float]], list[float]]:
    """The acceptance vectors [depth][rank] and how many steps reach each depth.

    Args:
        found: what was noted along each answer. weights: how often a step starts at each place, float64 [n] each.
        kind: ``greedy`` or ``sampled``.
    """
    hits: Tensor | float = 0.0
    reached: Tensor | float = 0.0
    for probed, weight in zip(found, weights, strict=True):
        above = getattr(probed, f"on_{kind}").double().cumprod(1)
        above = torch.cat([torch.ones_like(above[:, :1]), above[:, :-1]], 1) * probed.valid * weight[:, None]
        reached = reached + above.sum(0)
        hits = hits + (above[..., None] * getattr(probed, kind)).sum(0)
    assert isinstance(hits, Tensor) and isinstance(reached, Tensor)
    share = torch.where(reached[:, None] > 0, hits / reached[:, None], 0.0)
    return share.tolist(), reached.tolist()


def _mean(found: Sequence[Probed], name: str) -> float | None:
    """The mean over all places of one field of the divergences."""
    rows = [getattr(probed.divergence, name) for probed in found if probed.divergence is not None]
    mean = float(torch.cat(rows).mean()) if rows else None
    return mean if mean is None or math.isfinite(mean) else None
