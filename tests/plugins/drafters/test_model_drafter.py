"""The model drafter: what it runs, and that every slot is conditioned on its own path."""

from __future__ import annotations

import pytest
import torch

from specdecodes import hookimpl, load
from specdecodes.core.sampling import SamplingParams
from specdecodes.core.state import DecodeState
from specdecodes.core.tree import Tree, Verdict
from specdecodes.models.target import Target
from specdecodes.plugin import Context
from specdecodes.plugins.drafters.merge import Merge
from specdecodes.plugins.drafters.model import ModelDrafter
from specdecodes.testing import toy_model
from specdecodes.testing.state_backend import stock_logits
from specdecodes.testing.toys import FAMILIES, numbers, toy_prompt

VOCAB = 48


class Counter:
    """Tokens that the draft ran, step by step, and how many had been accepted without being run."""

    def __init__(self, runner):
        self.runner = runner
        self.before = runner.tokens_run
        self.steps = []
        self.waiting = [0]

    @hookimpl
    def step_finished(self, state, tree, verdict):
        self.steps.append(self.runner.tokens_run - self.before)
        self.before = self.runner.tokens_run
        accepted = [node for node in verdict.path[0].tolist() if node >= 0]
        self.waiting.append(sum(int(tree.slots[0, node]) < 0 for node in accepted))


@pytest.mark.parametrize(
    ("settings", "expanded"),
    [
        (dict(mode="stree"), 5),
        (dict(mode="stree", tree="4"), 0),
        (dict(mode="stree", tree="2,2.2,1.1.1.1"), 6),
        (dict(mode="sd", depth=4), 3),
        (dict(mode="sd", depth=1), 0),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_step_runs_the_expanded_nodes_and_the_catch_up(settings, expanded, temperature):
    """Nodes 0, 1, 2 of STree's tree and so on: what has children. An accepted leaf is run with the next root."""
    decoder = load(toy_model("bamba"), toy_model("bamba"), **settings)
    drafter = next(p for p in decoder.greedy.hooks.manager.get_plugins() if isinstance(p, ModelDrafter))
    counter = Counter(drafter.runner)
    for assembly in (decoder.greedy, decoder.sampling):
        assembly.hooks.manager.register(counter, "counter")
    out = decoder.generate(toy_prompt(9), max_new_tokens=25, temperature=temperature, seed=0)
    assert len(counter.steps) == len(out.accept_lengths)
    assert counter.steps == [waiting + 1 + expanded for waiting in counter.waiting[:-1]]
    assert max(counter.waiting) <= 1


class Drafting:
    """A drafter on its own, driven through random trees and random accepted paths."""

    def __init__(self, family, vocab=VOCAB, target="llama", **params):
        self.model = toy_model(family, vocab_size=vocab, seed=1)
        self.target = Target(toy_model(target))
        self.drafter = ModelDrafter(Context(self.target, draft=self.model))
        self.params = SamplingParams(max_new_tokens=200, **params)
        self.source = numbers("drafting", family, vocab)

    def start(self, length, below):
        self.below = below
        self.state = DecodeState(self.target, toy_prompt(length, below), self.params)
        with torch.inference_mode():
            self.state.first(torch.nn.functional.one_hot(torch.tensor([5]), VOCAB).float() * 90)
            self.drafter.generation_started(self.state)

    @torch.inference_mode()
    def step(self, accept=None, count=9):
        """Grow a random tree node by node, compare every slot's row, accept the path to ``accept`` (None: random)."""
        proposal = self.drafter.propose(self.state)
        parents, slots, tokens = [-1], [0], [int(self.state.root)]
        while len(parents) < count:
            level = [i for i in range(len(parents)) if slots[i] >= 0]
            above = [level[i] for i in torch.randint(len(level), (2,), generator=self.source).tolist()]
            drawn = torch.randint(self.below, (2,), generator=self.source).tolist()
            new = proposal.expand(torch.tensor([[slots[i] for i in above]]), torch.tensor([drawn]))[0].tolist()
            # Now and then a builder keeps a node without running it.
            parents += [*above, above[0]]
            tokens += [*drawn, 3]
            slots += [*new, -1]
        tree = Tree(torch.tensor([tokens]), torch.tensor([parents]), slots=torch.tensor([slots]))
        paths = [[node for node in path if node >= 0] for path in tree.structure.paths[0].tolist()]
        run = [node for node in range(len(slots)) if slots[node] >= 0]
        rows = proposal.logq(torch.tensor([[slots[node] for node in run]]))[0]
        prefixes = [[*self.state.history[0], *(tokens[i] for i in paths[node][1:])] for node in run]
        self._compare(rows, prefixes)
        node = int(torch.randint(len(paths), (1,), generator=self.source)) if accept is None else accept
        accepted = max(paths, key=len) if node < 0 else paths[node]
        bonus = int(torch.randint(self.below, (1,), generator=self.source))
        verdict = Verdict(torch.tensor([accepted]), torch.tensor([len(accepted) - 1]), torch.tensor([bonus]))
        verdict = self.state.clip(verdict, tree)
        self.drafter.commit_state(self.state, tree, verdict)
        self.state.advance(verdict)
        return len(accepted)

    def _compare(self, rows, prefixes):
        logits = stock_logits(self.model, prefixes)
        size = self.target.vocab_size
        if logits.shape[-1] < size:
            logits = torch.cat([logits, torch.full((len(prefixes), size - logits.shape[-1]), -torch.inf)], dim=-1)
        expected = self.state.pipeline(logits[:, :size], prefixes).log_softmax(-1)
        assert rows.shape == expected.shape
        assert torch.equal(rows.isinf(), expected.isinf())
        error = torch.where(expected.isinf(), 0.0, (rows - expected).abs()).max()
        assert float(error) < 1e-4


@pytest.mark.parametrize("length", [1, 12])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_slot_is_conditioned_on_its_own_path(family, length):
    drafting = Drafting(family)
    drafting.start(length, VOCAB)
    accepted = [drafting.step(accept) for accept in (None, 0, -1, None, 0, 0, -1, None)]
    assert max(accepted) > 3
    drafting.start(5, VOCAB)
    drafting.step()


@pytest.mark.parametrize("vocab", [40, 64])
def test_a_vocabulary_padded_to_another_width(vocab):
    drafting = Drafting("mamba2", vocab=vocab)
    drafting.start(6, 40)
    for _ in range(3):
        drafting.step()


def test_tokens_that_a_narrower_draft_does_not_know_only_cost_acceptance():
    target = toy_model("llama", dtype=torch.float64)
    decoder = load(target, toy_model("mamba2", vocab_size=24, seed=1, dtype=torch.float64), "stree")
    prompt = toy_prompt(9)
    out = decoder.generate(prompt, max_new_tokens=30)
    plain = load(target, mode="naive").generate(prompt, max_new_tokens=30)
    assert max(plain.tokens[0]) >= 24 and int(prompt.max()) >= 24
    assert out.tokens == plain.tokens


def test_draft_logits_go_through_the_same_processors():
    drafting = Drafting("llama", temperature=0.7, repetition_penalty=1.4, top_k=5)
    drafting.start(6, VOCAB)
    for _ in range(3):
        drafting.step()


@pytest.mark.parametrize("slots", [5, -1])
def test_fewer_slots_than_the_tree_needs_are_refused_at_load(slots):
    with pytest.raises(ValueError, match=f"max_slots: expected at least 6, .* in a step of this tree, got {slots}; "):
        load(toy_model("llama"), toy_model("llama"), "sd", depth=6, max_slots=slots)
    decoder = load(toy_model("llama"), toy_model("llama"), "sd", depth=6, max_slots=6)
    assert decoder.generate(toy_prompt(4), max_new_tokens=8).tau > 4


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        (dict(mode="dynamic", max_nodes=80, depth=9, topk=12, width=12), 1 + 8 * 12),
        (dict(mode="dynamic", build_tree="best-first-sampled", depth=9, width=12, topk=12, max_nodes=90), 1 + 8 * 12),
        (dict(mode="dynamic", max_nodes=5, depth=5, topk=40, width=40), 1 + 3 * 4),
        (dict(mode="beam", width=11, depth=8), 1 + 7 * 11),
        (dict(mode="sd", depth=70), 70),
        (dict(mode="dynamic", propose="merge", drafters="ngram,model", max_nodes=80, depth=9, topk=12, width=12), 97),
    ],
)
def test_the_draft_has_room_for_any_tree(settings, needed):
    decoder = load(toy_model("llama"), toy_model("llama", seed=1), verify="token-match", **settings)
    drafters = [p for p in decoder.sampling.hooks.manager.get_plugins() if hasattr(p, "drafters")]
    found = [d for p in drafters for d in p.drafters] or decoder.sampling.hooks.manager.get_plugins()
    runner = next(p for p in found if isinstance(p, ModelDrafter)).runner
    assert runner.max_slots == needed
    prompt = toy_prompt(4)
    out = decoder.generate(prompt, max_new_tokens=6, temperature=1.0, seed=3)
    plain = load(toy_model("llama"), mode="naive").generate(prompt, max_new_tokens=6, temperature=1.0, seed=3)
    assert runner.num_slots <= needed
    if decoder.sampling.draws == "none":  # otherwise the tree takes draws of its own
        assert out.tokens == plain.tokens


@pytest.mark.parametrize("part", [ModelDrafter, Merge])
def test_a_ready_drafter_without_room_for_the_tree_is_refused_at_load(part):
    model = toy_model("llama")
    drafter = part(Context(Target(model), draft=model))
    tree = {"mode": "dynamic", "max_nodes": 90, "depth": 9, "topk": 12, "width": 12}
    with pytest.raises(ValueError, match=r"^propose: expected a drafter with room for the 97 nodes .* max_slots 64; "):
        load(model, propose=drafter, **tree)
    load(model, propose=part(Context(Target(model), draft=model, max_slots=97)), **tree)


def test_of_equal_candidates_the_first_is_drafted():
    """As the greedy rule takes it: otherwise a draft that agrees is refused, and bfloat16 has many ties."""
    drafting = Drafting("llama")
    drafting.start(4, VOCAB)
    with torch.inference_mode():
        proposal = drafting.drafter.propose(drafting.state)
    rows = torch.zeros(1, VOCAB)
    rows[0, [7, 11, 30, 31]] = 2.0
    proposal._known = rows.log_softmax(-1)
    tokens, logq = proposal.topk(torch.tensor([[0]]), 1)
    assert tokens.tolist() == [[[7]]]
    assert torch.equal(logq[0, 0], proposal.known[0, [7]])
