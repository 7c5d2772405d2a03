"""Any drafter, tree, verifier and state back-end that fit together give the tokens of plain decoding.

On the embedded pair in float32, for every pair of components that an allowed combination holds (a pairwise-covering
array). What is allowed is what ``load`` makes of the components' declarations. A lossless verifier gives plain
decoding's greedy tokens at temperature 0, and just above it too, where the target's distribution is its best token;
token matching gives plain decoding's tokens of the same seed at any temperature, where nothing else is drawn.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from specdecodes import hookimpl, load, registry
from specdecodes.core.decoder import Assembly, Decoder, Generation
from specdecodes.core.state import DecodeState
from specdecodes.models.loading import load_model, load_tokenizer
from specdecodes.plugin import Context
from specdecodes.plugins.drafters.datastore import Datastore
from specdecodes.plugins.verifiers.base import MatchingVerifier
from specdecodes.testing import LiteralDrafter, LiteralProposal

PROMPT = "1 + 1 = 2. 2 + 2 = 4. 3 + 3 ="
"""The answer repeats itself in places, so that indices find something."""

LENGTH = 24
GAP = 0.05
COLD = {"temperature": GAP / 25, "seed": 3}
"""Where the target's two best logits are ``GAP`` apart, all but the best have probabilities below exp(-25)."""

WARM = {"temperature": 0.8, "seed": 5}
KINDS = ("drafter", "tree", "verifier", "state")
HEDGING = "hedging"
"""Stands in for what no built-in drafter is: one with per-depth marginals, and never sure of itself."""


class Combination(NamedTuple):
    """One component of each of ``KINDS``."""

    drafter: str
    tree: str
    verifier: str
    state: str

    @property
    def pairs(self) -> set[tuple[tuple[str, str], ...]]:
        return set(combinations(zip(KINDS, self, strict=True), 2))


def names(kind: str) -> list[str]:
    return [c.name for c in registry().components() if (c.kind, c.owner) == (kind, "specdecodes")]


DRAFTERS = [*names("drafter"), HEDGING]
VERIFIERS = [name for name in names("verifier") if registry().get("verifier", name).lossless]


class Hedging(LiteralDrafter):
    """The next token of ``text`` or one of two others, equally likely; every fifth time three others."""

    has_marginals = True

    def __init__(self, text: Sequence[int], vocab_size: int) -> None:
        super().__init__(self._logits)
        self._text = text
        self._vocab_size = vocab_size

    def _logits(self, prefix: tuple[int, ...]) -> Tensor:
        place = len(prefix)
        first = self._text[place] if place < len(self._text) else 0
        first += place % 5 == 4
        logits = torch.full((self._vocab_size,), -torch.inf)
        logits[[token % self._vocab_size for token in (first, first + 1, first + 2)]] = 0.0
        return logits

    @hookimpl
    def propose(self, state: DecodeState) -> LiteralProposal:
        return LiteralProposal(self.rule, state, depth=5)


class Bench:
    """The embedded pair, loaded once, with what its components need."""

    def __init__(self, folder: Path) -> None:
        cpu = torch.device("cpu")
        self.target = load_model("embedded", "target", cpu, torch.float32)
        self.draft = load_model("mamba2", "draft", cpu, torch.float32)
        self.prompt = load_tokenizer("embedded", None)(PROMPT, return_tensors="pt")["input_ids"]
        self.plain = load(self.target, mode="naive")
        self.greedy = self.decode(self.plain).tokens
        self.warm = self.decode(self.plain, **WARM).tokens
        self.text = [*self.prompt[0].tolist(), *self.greedy[0]]
        vocab_size = self.plain.target.vocab_size
        self.hedging = Hedging(self.text, vocab_size)
        # Pieces that overlap: most of the answer is found in them, and some of it is not.
        store = folder / "datastore.safetensors"
        Datastore.build([self.text[at : at + 9] for at in range(0, len(self.text), 7)], vocab_size).save(store)
        self.settings: dict[str, dict[str, Any]] = {"rest": {"datastore": str(store)}}
        """What components need that cannot be made with their defaults."""

    def decode(self, decoder: Decoder, **sampling: Any) -> Generation:
        return decoder.generate(self.prompt, max_new_tokens=LENGTH, ignore_eos=True, **sampling)

    def load(self, chosen: Combination) -> Decoder:
        """By name, as a user would."""
        settings = {key: value for name in chosen for key, value in self.settings.get(name, {}).items()}
        return self._load(self.hedging if chosen.drafter == HEDGING else chosen.drafter, *chosen[1:], **settings)

    @cached_property
    def components(self) -> dict[tuple[str, str], Any]:
        """Every component once: what is allowed does not depend on what it has decoded."""
        context = Context(self.plain.target, draft=self.draft)
        made: dict[tuple[str, str], Any] = {("drafter", HEDGING): self.hedging}
        for component in (registry().get(kind, name) for kind in KINDS for name in names(kind)):
            key = component.kind, component.name
            try:
                made[key] = component.factory(context, **self.settings.get(component.name, {}))
            except ValueError as error:
                pytest.fail(f"{key}: its defaults do not do, and the table has no settings for it: {error}")
        return made

    @cached_property
    def outcomes(self) -> dict[tuple[str, str, str], list[Decoder | str]]:
        """Per drafter, tree and verifier, at the temperatures that this one serves: a decoder, or why there is none."""
        return {
            three: [self._outcome(kind, *three) for kind in self.components["verifier", three[2]].serves]
            for three in product(DRAFTERS, names("tree"), VERIFIERS)
        }

    @cached_property
    def allowed(self) -> list[Combination]:
        return [
            Combination(*three, state)
            for three, outcomes in self.outcomes.items()
            if any(isinstance(outcome, Decoder) for outcome in outcomes)
            for state in names("state")
        ]

    @cached_property
    def rows(self) -> list[Combination]:
        return covering(self.allowed)

    def _outcome(self, kind: str, *three: str) -> Decoder | str:
        try:
            decoder = self._load(*(self.components[part] for part in zip(KINDS, (*three, "replay"), strict=True)))
        except ValueError as error:
            return str(error)
        assembly = getattr(decoder, kind)
        return decoder if isinstance(assembly, Assembly) else str(assembly)

    def _load(self, *parts: Any, **settings: Any) -> Decoder:
        hooks = dict(zip(("propose", "build_tree", "verify", "commit_state"), parts, strict=True))
        return load(self.target, self.draft, "stree", **hooks, **settings)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


def covering(allowed: Sequence[Combination]) -> list[Combination]:
    """Some of ``allowed`` that hold every pair: next comes what has most new pairs, then what has rarer ones."""
    pairs = {combination: combination.pairs for combination in allowed}
    left = set().union(*pairs.values())
    seen: Counter[Any] = Counter()
    rows = []
    while left:
        rows.append(max(allowed, key=lambda each: (len(pairs[each] & left), -sum(seen[pair] for pair in pairs[each]))))
        seen.update(pairs[rows[-1]])
        left -= pairs[rows[-1]]
    return rows


def held(rows: Sequence[Combination]) -> set[Any]:
    return set().union(*(row.pairs for row in rows))


@pytest.mark.slow
def test_a_covering_array_is_complete_and_small() -> None:
    every = [Combination(*map(str, row)) for row in product(range(4), range(3), range(3), range(2))]
    rows = covering(every)
    assert held(rows) == held(every)
    assert 4 * 3 <= len(rows) <= 15
    some = [row for row in every if (row.drafter, row.tree) != ("0", "1")]
    assert held(covering(some)) == held(some) < held(every)


@pytest.mark.slow
def test_every_pair_and_every_component_is_covered(bench: Bench) -> None:
    assert held(bench.rows) == held(bench.allowed)
    for place, (kind, expected) in enumerate(
        zip(KINDS, (DRAFTERS, names("tree"), VERIFIERS, names("state")), strict=True)
    ):
        assert sorted({row[place] for row in bench.rows}) == sorted(expected), f"a {kind} that fits nothing"


@pytest.mark.slow
def test_what_does_not_fit_is_refused_by_its_declarations(bench: Bench) -> None:
    refused = [(three, why) for three, found in bench.outcomes.items() for why in found if isinstance(why, str)]
    assert refused
    for three, why in refused:
        name = type(bench.components["verifier", three[2]]).__name__
        assert re.search(rf"verifier {name}: (it (judges|needs)|the tree builder (needs|draws from)) ", why), (
            three,
            why,
        )


@pytest.mark.slow
def test_the_target_is_sure_of_every_token(bench: Bench) -> None:
    logits = bench.target(torch.tensor([bench.text])).logits[0, bench.prompt.shape[1] - 1 : -1]
    best, second = logits.topk(2, dim=-1).values.unbind(-1)
    assert (best - second).min() > GAP, "choose another prompt: rounding could change what is best"


@pytest.mark.slow
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_the_tokens_are_those_of_plain_decoding(drafter: str, bench: Bench) -> None:
    chains = []
    for row in (row for row in bench.rows if row.drafter == drafter):
        decoder = bench.load(row)
        verifier = registry().get("verifier", row.verifier).factory
        runs: list[tuple[dict[str, Any], list[list[int]]]] = []
        if "greedy" in verifier.serves:
            runs.append(({}, bench.greedy))
        if "sampling" in verifier.serves:
            runs.append((COLD, bench.greedy))
            if issubclass(verifier, MatchingVerifier) and decoder.sampling.draws == "none":
                runs.append((WARM, bench.warm))
        for sampling, expected in runs:
            generation = bench.decode(decoder, **sampling)
            assert generation.tokens == expected, f"{row}, {sampling or 'greedy'}"
            if row.tree == "chain":
                chains.append(generation.tau)
    assert drafter == "none" or 1 < max(chains) < 5, "it should be right sometimes and wrong sometimes"
