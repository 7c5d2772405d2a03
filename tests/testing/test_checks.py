"""The checks pass what ships and catch every mutant, saying what is wrong."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from specdecodes import registry
from specdecodes.models.cache import AttentionRows
from specdecodes.models.placement import Placement
from specdecodes.models.target import Target
from specdecodes.plugin import Mode, Registry
from specdecodes.plugins.drafters.datastore import Datastore
from specdecodes.plugins.states.replay import Replay
from specdecodes.testing import (
    check_drafter,
    check_mode,
    check_observer,
    check_state_backend,
    check_tree_builder,
    check_verifier,
    decoding,
    toy_bigrams,
    toy_context,
)
from specdecodes.testing.toys import VOCAB, toy_prompt

from . import mutants

CHECKS = {
    "drafter": check_drafter,
    "tree": check_tree_builder,
    "verifier": check_verifier,
    "state": check_state_backend,
    "observer": check_observer,
}
NEEDS = {
    "bigram-widen": {"bigrams": toy_bigrams(24)},
    "commonsense": {"bigrams": toy_bigrams()},
    "rest": {"datastore": Datastore.build([toy_prompt(200)[0].tolist()], VOCAB)},
}
"""Settings without which a component does not come on a toy target; trees are checked with 24 tokens."""

LONG = ("merge", "multi-step", "token-match", "traversal", "without-replacement", "reforward", "show-trees", "trace")
"""Left out of the short run: what they are made of is checked with the others too, and laws by enumeration."""

SHIPPED = [
    pytest.param(kind, name, marks=pytest.mark.slow if name in LONG else ())
    for kind in CHECKS
    for name in registry().names(kind)
]
BROKEN = [
    (kind, mutant, says)
    for kind, found in (
        ("drafter", mutants.DRAFTERS),
        ("tree", mutants.TREE_BUILDERS),
        ("verifier", mutants.VERIFIERS),
        ("state", mutants.STATES),
        ("observer", mutants.OBSERVERS),
    )
    for mutant, says in found.items()
]


@pytest.mark.parametrize(("kind", "name"), SHIPPED)
def test_shipped_components_pass(kind, name):
    context = {"context": toy_context(vocab_size=24)} if name == "bigram-widen" else {}
    CHECKS[kind](registry().get(kind, name).factory, **context, **NEEDS.get(name, {}))


@pytest.mark.slow
@pytest.mark.parametrize("mode", registry().names("mode"))
def test_shipped_modes_pass(mode, mode_settings):
    check_mode(mode, **NEEDS.get(mode, {}), **mode_settings(mode))


@pytest.mark.parametrize("tree", ["1", "4", "1,1,1", "2,1.0,1", "2,0.2,1.1", "3,2.1,2.1,3", "2,2.2,1.1.1.1"])
def test_static_trees_of_any_shape_pass(tree):
    check_tree_builder(registry().get("tree", "static").factory, tree=tree)


@pytest.mark.parametrize("mutant", [mutants.Sound, mutants.SoundWithHistory, mutants.Rejecting])
def test_what_mutants_are_made_of_passes(mutant):
    (check_verifier if mutant is mutants.Rejecting else check_drafter)(mutant)


@pytest.mark.parametrize(("kind", "mutant", "says"), [pytest.param(*b, id=f"{b[0]}-{b[1].__name__}") for b in BROKEN])
def test_mutants_are_caught(kind, mutant, says):
    with pytest.raises(AssertionError) as caught:
        CHECKS[kind](mutant)
    message = str(caught.value)
    assert says in message
    assert mutant.__name__ in message or "rng" in message
    assert "never called" not in message


def test_index_for_depth_is_caught(monkeypatch):
    place = Placement.place

    def by_index(self, *given, **named):
        positions, mask, slots = place(self, *given, **named)
        return slots[None].expand_as(positions), mask, slots

    monkeypatch.setattr(Placement, "place", by_index)
    with pytest.raises(
        AssertionError, match=r"after the prefill, the logits of node 2 .* differ from sequential decoding"
    ):
        check_state_backend(Replay)


def test_keys_left_where_they_were_are_caught(monkeypatch):
    monkeypatch.setattr(AttentionRows, "move", lambda self, source, target: None)
    with pytest.raises(AssertionError, match="after step 2, which accepted 2 drafted tokens"):
        check_state_backend(Replay)


def test_a_window_moved_by_scoring_is_caught(monkeypatch):
    score = Target.score

    def moves(self, tree):
        logits = score(self, tree)
        for layer in self.cache.recurrent.values():
            layer.window.copy_(layer.window.roll(-1, -1))
        return logits

    monkeypatch.setattr(Target, "score", moves)
    with pytest.raises(AssertionError, match="scoring must not move the state"):
        check_state_backend(Replay)


def test_a_broken_mode_is_caught(monkeypatch):
    from specdecodes import plugins
    from specdecodes.core import load

    class SecondBest(mutants.Greedy):
        def accept(self, logp, tree, rng):
            return super().accept(-logp, tree, rng)

    components = Registry()
    plugins.register_components(components)
    components.add("verifier", "worst", SecondBest)
    components.add("mode", "broken", Mode("none", "root", "worst", ("token-match",)))
    for module in (load, decoding):
        monkeypatch.setattr(module, "registry", lambda: components)
    with pytest.raises(AssertionError, match="mode 'broken' on a tiny bamba: greedy tokens differ from plain decoding"):
        check_mode("broken")


@pytest.mark.slow
def test_components_and_factories_are_both_accepted():
    context = toy_context("llama", "bamba")
    drafter = registry().get("drafter", "model").factory(context)
    check_drafter(drafter, context=context)
    check_tree_builder(registry().get("tree", "static").factory(context, tree="2,1.1"))
    check_tree_builder(partial(registry().get("tree", "static").factory, tree="2"))
    check_verifier(registry().get("verifier", "greedy").factory())
    with pytest.raises(AssertionError, match="settings are for factories"):
        check_tree_builder(registry().get("tree", "chain").factory(context), depth=2)


def test_what_a_component_raises_comes_through_with_a_note():
    class Crashes(mutants.TokenMatch):
        def accept(self, logp, tree, rng):
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside") as caught:
        check_verifier(Crashes)
    assert any("verifier Crashes" in note for note in caught.value.__notes__)


@pytest.mark.slow
def test_checks_leave_the_global_generator_alone():
    before = torch.random.get_rng_state()
    check_drafter(mutants.Sound)
    check_tree_builder(registry().get("tree", "static").factory)
    check_verifier(registry().get("verifier", "token-match").factory)
    assert torch.equal(before, torch.random.get_rng_state())
