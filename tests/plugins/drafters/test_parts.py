"""Drafters that are made of others: who is asked where, what a part has run, and how candidates are put together."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from specdecodes import hookimpl, load
from specdecodes.core.sampling import SamplingParams
from specdecodes.core.state import DecodeState
from specdecodes.core.tree import Tree, Verdict
from specdecodes.models import slots as slots_module
from specdecodes.models.target import Target
from specdecodes.plugin import Context
from specdecodes.plugins.drafters.cascade import Cascade
from specdecodes.plugins.drafters.merge import Merge
from specdecodes.plugins.drafters.model import ModelDrafter
from specdecodes.plugins.drafters.ngram import Ngram
from specdecodes.testing import check_drafter, toy_model
from specdecodes.testing.state_backend import stock_logits
from specdecodes.testing.toys import FAMILIES, numbers, toy_context, toy_prompt

from .histories import context, found_at, slots_of, state_of

VOCAB = 48


class Table:
    """Candidates by last token: {token: [(next token, probability)]}; remembers what it was told."""

    has_probs = False
    marginals = None

    def __init__(self, table: Any):
        self.table = table
        self.calls: list[Any] = []

    @hookimpl
    def generation_started(self, state):
        self.calls.append("started")

    @hookimpl
    def propose(self, state):
        self.calls.append("propose")
        self.tokens = [int(state.root)]
        return self

    def topk(self, slots, k):
        rows = [(self.table.get(self.tokens[slot], []) + [(-1, 0.0)] * k)[:k] for slot in slots[0].tolist()]
        tokens = torch.tensor([[[token for token, _ in row] for row in rows]])
        return tokens, torch.tensor([[[math.log(p) if p else -math.inf for _, p in row] for row in rows]])

    def logq(self, slots):
        raise ValueError("none")

    def expand(self, slots, tokens):
        first = len(self.tokens)
        self.tokens += tokens[0].tolist()
        self.calls.append(tokens[0].tolist())
        return torch.arange(first, len(self.tokens))[None]

    @hookimpl
    def commit_state(self, state, tree, verdict):
        self.calls.append(("commit", tree.slots[0].tolist()))

    @hookimpl
    def step_finished(self, state, tree, verdict):
        self.calls.append("finished")

    @hookimpl
    def generation_finished(self, state, generation):
        self.calls.append("ended")


def made_of(factory, *parts, **settings):
    """``factory`` over ready-made parts, called "0", "1", ..."""
    return factory(replace(context(VOCAB), maker=lambda kind, name: parts[int(name)]), **settings)


def cascade(*tables):
    first, second = (Table(table) for table in tables)
    return made_of(Cascade, first, second, first="0", second="1"), first, second


def test_the_second_is_asked_only_where_the_first_has_nothing():
    drafter, first, second = cascade({1: [(2, 0.5)], 2: [(3, 0.5)]}, {1: [(9, 0.5)], 3: [(4, 0.5), (5, 0.25)]})
    state = state_of([7, 1])
    proposal = drafter.propose(state)
    assert found_at(proposal, 0) == [2] and second.calls == []
    one, other = proposal.expand(slots_of(0, 0), slots_of(2, 8))[0].tolist()
    tokens, logq = proposal.topk(slots_of(one, other), 2)
    assert tokens.tolist() == [[[3, -1], [-1, -1]]]
    assert logq[0, 0].exp().tolist() == [0.5, 0.0]
    below = int(proposal.expand(slots_of(one), slots_of(3)))
    tokens, logq = proposal.topk(slots_of(0, below), 2)
    assert tokens.tolist() == [[[2, -1], [4, 5]]]
    assert logq[0, 1].exp().tolist() == [0.5, 0.25]
    assert second.calls == ["propose", [8], [2], [3]], "the node asked about, and later what lies above another"
    assert first.calls == ["propose", [2, 8], [3]]


def test_every_part_gets_the_tree_with_its_own_slots():
    drafter, first, second = cascade({1: [(2, 0.5)], 2: [(3, 0.5)]}, {})
    state = state_of([7, 1])
    drafter.generation_started(state)
    for asks_second in (True, False):
        proposal = drafter.propose(state)
        one, two = proposal.expand(slots_of(0, 0), slots_of(9, 2))[0].tolist()
        proposal.topk(slots_of(*((two, one) if asks_second else (two,))), 1)
        slots = slots_of(0, one, two, -1)
        tree = Tree(torch.tensor([[1, 9, 2, 3]]), torch.tensor([[-1, 0, 0, 2]]), slots=slots)
        verdict = Verdict(torch.tensor([[0, 2]]), torch.tensor([1]), torch.tensor([1]))
        drafter.commit_state(state, tree, verdict)
        drafter.step_finished(state, tree, verdict)
        assert tree.slots is slots
    drafter.generation_finished(state, None)
    assert first.calls == [
        "started", "propose", [2, 9], ("commit", [0, 2, 1, -1]), "finished",
        "propose", [2], ("commit", [0, -1, 1, -1]), "finished", "ended",
    ]  # fmt: skip
    assert second.calls == [
        "started", "propose", [9], ("commit", [0, 1, -1, -1]), "finished", ("commit", [-1, -1, -1, -1]), "finished",
        "ended",
    ]  # fmt: skip


def test_merged_candidates_are_a_mixture_and_no_token_comes_twice():
    one = Table({1: [(2, 0.6), (3, 0.3)], 2: [(5, 0.5)]})
    other = Table({1: [(3, 0.6), (4, 0.2)]})
    drafter = made_of(Merge, one, other, drafters="0, 1")
    proposal = drafter.propose(state_of([7, 1]))
    tokens, logq = proposal.topk(slots_of(0), 4)
    assert tokens.tolist() == [[[3, 2, 4, -1]]]
    assert logq[0, 0].exp().tolist() == pytest.approx([0.45, 0.3, 0.1, 0.0])
    assert found_at(proposal, 0, 2) == [3, 2]
    slots = proposal.expand(slots_of(0, 0), slots_of(2, 9))
    assert proposal.topk(slots, 1)[0].tolist() == [[[5], [-1]]]
    weighted = made_of(Merge, one, other, drafters="0,1", weights="9,1").propose(state_of([7, 1]))
    assert found_at(weighted, 0) == [2, 3, 4]


def test_a_drafter_with_probabilities_counts_twice():
    one, other = Table({1: [(2, 0.5)]}), Table({1: [(3, 0.4)]})
    other.has_probs = True
    drafter = made_of(Merge, one, other, drafters="0,1")
    tokens, logq = drafter.propose(state_of([7, 1])).topk(slots_of(0), 2)
    assert tokens.tolist() == [[[3, 2]]]
    assert logq[0, 0].exp().tolist() == pytest.approx([0.4 * 2 / 3, 0.5 / 3])


def test_there_is_no_distribution():
    drafter, _, _ = cascade({}, {})
    assert not drafter.has_probs
    with pytest.raises(ValueError, match="no distribution over the vocabulary"):
        drafter.propose(state_of([1])).logq(slots_of(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"drafters": "ngram"}, "drafters: expected two or more names like 'ngram,model', got 'ngram'"),
        ({"drafters": "ngram,"}, "drafters: expected two or more names"),
        ({"drafters": "ngram,ngrams"}, "unknown drafter 'ngrams'; did you mean 'ngram'"),
        ({"weights": "1"}, "weights: expected 2 numbers above 0, one per drafter, like '1,2', got '1'"),
        ({"weights": "1,0"}, "weights: expected 2 numbers above 0"),
        ({"weights": "1,x"}, "weights: expected 2 numbers above 0"),
        ({"weights": "1,nan"}, "weights: expected 2 numbers above 0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Merge(toy_context(), **settings)


def test_parts_get_their_settings_and_no_drafter_holds_itself():
    target, draft = toy_model("bamba"), toy_model("mamba2", seed=1)
    decoder = load(target, draft, propose="cascade", first="ngram", second="model", max_order=2, max_slots=9)
    drafter = next(p for p in decoder.greedy.hooks.manager.get_plugins() if isinstance(p, Cascade))
    first, second = drafter.drafters
    assert isinstance(first, Ngram) and first.max_order == 2
    assert isinstance(second, ModelDrafter) and second.runner.max_slots == 9
    with pytest.raises(ValueError, match="unknown setting 'max_orders'; did you mean 'max_order'"):
        load(target, draft, propose="cascade", first="ngram", max_orders=2)
    with pytest.raises(ValueError, match=r"drafter 'merge': expected parts other than itself, got .*'cascade' > "):
        load(target, draft, propose="merge", drafters="ngram,cascade", second="merge")
    nested = load(target, draft, propose="merge", drafters="suffix,cascade")
    plain = load(target, mode="naive")
    prompt = toy_prompt(9)
    assert nested.generate(prompt, max_new_tokens=30).tokens == plain.generate(prompt, max_new_tokens=30).tokens


@pytest.mark.parametrize(
    ("drafter", "settings"),
    [
        (Cascade, {}),
        (Merge, {}),
        pytest.param(Cascade, dict(first="ngram"), marks=pytest.mark.slow),
        pytest.param(Cascade, dict(first="model", second="ngram"), marks=pytest.mark.slow),
        pytest.param(Merge, dict(drafters="ngram,suffix,model", weights="1,1,4"), marks=pytest.mark.slow),
    ],
)
def test_the_contract_and_what_goes_through_it(drafter, settings):
    check_drafter(drafter, **settings)


@torch.inference_mode()
@pytest.mark.parametrize("single", [0, 2, 99])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_was_not_asked_for_many_steps_catches_up(family, single, monkeypatch):
    """Its distributions are those of its stock model over all tokens, whether it was asked before or not."""
    monkeypatch.setattr(slots_module, "MAX_SINGLE", single)
    model = toy_model(family, seed=1)
    index = Table({})
    part = ModelDrafter(Context(Target(toy_model("llama")), draft=model))
    drafter = made_of(Cascade, index, part, first="0", second="1")
    state = DecodeState(Target(toy_model("llama")), toy_prompt(5), SamplingParams(max_new_tokens=500))
    state.first(torch.nn.functional.one_hot(torch.tensor([5]), VOCAB).float())
    drafter.generation_started(state)
    source = numbers("waiting", family)
    forwards = count_forwards(part.runner, monkeypatch)
    waiting = 0
    for steps in (0, 1, 0, 3, 7, 0):
        for _ in range(steps):  # the index answers everything: 2 tokens accepted, and the bonus
            path = torch.randint(3, VOCAB, (3,), generator=source).tolist()
            index.table = {token: [(3, 0.5)] for token in range(VOCAB)}
            proposal = drafter.propose(state)
            one = int(proposal.expand(slots_of(0), slots_of(path[0])))
            proposal.topk(slots_of(0, one), 1)
            accept(drafter, state, [int(state.root), *path[:2]], [0, one, -1], path[2])
        forwards.clear()
        index.table = {}
        proposal = drafter.propose(state)
        slot = int(proposal.expand(slots_of(0), slots_of(7)))
        found = proposal.topk(slots_of(0, slot), 3)
        waiting += 3 * steps
        assert forwards == [*([waiting] if waiting > single else [1] * waiting), 1, 1], "what waits, the root, the slot"
        waiting = 1  # 8, which is accepted below without having been run
        logits = stock_logits(model, [state.history[0], [*state.history[0], 7]])
        logq, tokens = logits.log_softmax(-1).topk(3, dim=-1)
        assert torch.equal(found[0][0], tokens)
        assert torch.allclose(found[1][0], logq, atol=1e-4)
        accept(drafter, state, [int(state.root), 7, 8], [0, slot, -1], 9)


def count_forwards(runner, monkeypatch):
    """The lengths of the forwards that ``runner`` runs from here on."""
    seen: list[int] = []
    call = runner._call

    def counting(kwargs, positions):
        seen.append(kwargs["input_ids"].shape[1])
        return call(kwargs, positions)

    monkeypatch.setattr(runner, "_call", counting)
    return seen


def accept(drafter, state, tokens, slots, bonus):
    """Accept the whole chain ``tokens``."""
    nodes = list(range(len(tokens)))
    tree = Tree(torch.tensor([tokens]), torch.tensor([[node - 1 for node in nodes]]), slots=torch.tensor([slots]))
    verdict = Verdict(torch.tensor([nodes]), torch.tensor([len(nodes) - 1]), torch.tensor([bonus]))
    verdict = state.clip(verdict, tree)
    drafter.commit_state(state, tree, verdict)
    state.advance(verdict)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        dict(propose="cascade"),
        dict(propose="cascade", first="ngram"),
        dict(propose="merge"),
        dict(propose="merge", drafters="suffix,model,ngram"),
        dict(propose="cascade", first="jacobi", second="merge", drafters="suffix,model"),  # the second is never asked
        dict(propose="cascade", second="merge", drafters="token-recycling,model"),
    ],
)
@pytest.mark.parametrize(
    "family", ["bamba", *(pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES if family != "bamba")]
)
def test_decodes_are_those_of_the_target(family, settings):
    target, draft = toy_model(family, dtype=torch.float64), toy_model("mamba2", seed=1, dtype=torch.float64)
    decoder, plain = load(target, draft, "stree", **settings), load(target, mode="naive")
    for sampling in ({}, {"temperature": 1.0, "seed": 3}):
        for length in (1, 11):
            prompt = toy_prompt(length, VOCAB, family)
            out = decoder.generate(prompt, max_new_tokens=40, **sampling)
            assert out.tokens == plain.generate(prompt, max_new_tokens=40, **sampling).tokens
