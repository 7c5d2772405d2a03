"""Captured forwards without a GPU: what a CUDA graph bakes in, a graph of traced operations bakes in too.

``record`` traces the ATen operations of one run, on the tensors where they lie, with every int as it was; the replay
runs those operations again. A stale length, a tensor that was read elsewhere than from the graph's own inputs, or a
state that recording moved shows as a wrong number, as it would on CUDA.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from specdecodes import Target, load
from specdecodes.core import host_path
from specdecodes.core.decoder import Decoder
from specdecodes.core.loop import steps
from specdecodes.core.sampling import LogitsPipeline, SamplingParams
from specdecodes.core.state import DecodeState
from specdecodes.core.tree import Tree, Verdict
from specdecodes.kernels import choice
from specdecodes.models import captured, target
from specdecodes.models.captured import Captured, Replay
from specdecodes.models.slots import SlotRunner
from specdecodes.plugin import Context
from specdecodes.plugins.drafters import model as model_drafter
from specdecodes.plugins.drafters.model import ModelDrafter
from specdecodes.plugins.states.copy import StateCopy
from specdecodes.plugins.states.reforward import Reforward
from specdecodes.plugins.states.replay import Replay as ReplayBackend
from specdecodes.plugins.verifiers import greedy
from specdecodes.testing.toys import toy_model, toy_prompt

from .test_one_graph import LOOKS, addresses, looks, random_step  # noqa: F401 - a fixture

FAMILIES = ["bamba", "mamba2", "llama"]


def record(function: Callable[[], Any]) -> tuple[Any, Replay]:
    """A recorder: see the module. Like that of CUDA it runs the function before it records."""
    function()
    graph = make_fx(function)()
    outputs = graph()

    def replay() -> None:
        for old, new in zip(*map(pytree.tree_leaves, (outputs, graph())), strict=True):
            if isinstance(old, Tensor):
                old.copy_(new)

    return outputs, replay


@pytest.fixture(autouse=True)
def _plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step on a CPU calls C++ without telling torch; on CUDA it is what plain torch is here."""
    monkeypatch.setattr(choice, "decide", lambda device, dtype: choice.Choice("naive", "traced"))
    # On a CPU it goes through numpy, unseen.
    for module in (greedy, model_drafter):
        monkeypatch.setattr(module, "best_tokens", lambda scores: scores.argmax(-1))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every target made in the test captures its forwards, and a draft has a static cache, as where it is compiled."""
    monkeypatch.setattr(target, "recorder_for", lambda device, compile: record)
    monkeypatch.setattr(model_drafter, "SlotRunner", partial(SlotRunner, max_length=120))


def pair(family: str, **settings: Any) -> tuple[Target, Target]:
    """A target that captures and one that does not, of one model."""
    model = toy_model(family)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, "recorder_for", lambda device, compile: record)
        first = Target(model, max_length=200, **settings)
    return first, Target(model)


def runners(family: str) -> tuple[SlotRunner, SlotRunner]:
    """A draft that captures, where targets do in this test, and one that does not."""
    model = toy_model(family)
    runner = SlotRunner(model, max_slots=6, max_length=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, "recorder_for", lambda device, compile: None)
        return runner, SlotRunner(model, max_slots=6, max_length=100)


def plugins(decoder: Decoder) -> list[Any]:
    """The components that decode greedily."""
    assert not isinstance(decoder.greedy, str)
    return list(decoder.greedy.hooks.manager.get_plugins())


def graphs(each: Callable[..., Any]) -> int:
    assert isinstance(each, Captured)
    return each.recorded


def test_nothing_is_captured_unless_on_cuda_and_asked_for() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert captured.recorder_for(cuda, True) is captured.record_on_cuda
    assert captured.recorder_for(cuda, False) is captured.recorder_for(cpu, True) is None


@pytest.mark.parametrize("backend", [ReplayBackend, StateCopy, Reforward], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("family", FAMILIES)
def test_one_graph_serves_every_tree_of_a_size(family: str, backend: Any) -> None:
    model, eager = pair(family)
    model.backend = backend()  # as ``load`` chooses it, when the target is there
    model.hold_nodes(7)
    for each in (model, eager):
        each.prefill(toy_prompt(20))
    places = addresses(model)
    for seed in range(10):
        tree, path = random_step(7, seed)
        found, expected = (each.score(tree) for each in (model, eager))
        assert float((found - expected).abs().max()) < 1e-4, seed
        for each in (model, eager):
            each.commit(path)
    assert model.length < 64 and addresses(model) == places
    assert graphs(model._forward_tree) == 1
    assert bool(graphs(model._move)) == model.backend.capturable


def test_every_size_length_and_cache_has_its_own() -> None:
    model, eager = pair("bamba")
    for prompt in (toy_prompt(60), toy_prompt(9)):
        for each in (model, eager):
            each.prefill(prompt)
        for seed, nodes in enumerate((7, 5, 7, 5, 7)):
            tree, path = random_step(nodes, seed)
            found, expected = (each.score(tree) for each in (model, eager))
            assert float((found - expected).abs().max()) < 1e-4
            for each in (model, eager):
                each.commit(path)
    # Five and seven nodes, 64 and 128 visible positions; a new prompt lies in the same cache.
    assert graphs(model._forward_tree) <= 4
    before = graphs(model._forward_tree)
    for rows in model.cache.attention.values():  # as if it had been allocated anew
        assert rows.keys is not None and rows.values is not None
        rows.hold(rows.keys.clone(), rows.values)
    tree, _ = random_step(7, 99)
    assert float((model.score(tree) - eager.score(tree)).abs().max()) < 1e-4
    assert graphs(model._forward_tree) == before + 1, "a cache elsewhere is another graph"


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_decoding_advances_its_state_once(family: str) -> None:
    """Recording runs the step several times, and a step moves the state."""
    model, eager = pair(family)
    model.step_in_place = eager.step_in_place = True
    for each in (model, eager):
        each.prefill(toy_prompt(12))
    root = Tree(torch.tensor([[5]]), torch.tensor([[-1]]))
    for _ in range(6):
        found, expected = (each.score(root) for each in (model, eager))
        assert float((found - expected).abs().max()) < 1e-4
        for each in (model, eager):
            each.commit(torch.tensor([[0]]))
        root = Tree(expected[0, -1].argmax()[None, None], torch.tensor([[-1]]))
    assert graphs(model._forward_step) == 1


def test_outputs_outlive_the_next_run() -> None:
    model, _ = pair("bamba")
    model.prefill(toy_prompt(12))
    (first, _), (second, _) = random_step(5, 0), random_step(5, 1)
    before = model.score(first)
    kept = before.clone()
    model.score(second)
    assert torch.equal(before, kept)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_draft_is_captured_too(recorded: None, family: str) -> None:
    runner, eager = runners(family)
    for each in (runner, eager):
        each.prefill(toy_prompt(10))
    for turn in range(4):
        waiting = [3 + turn, 7] if turn % 2 else [5]
        outputs = []
        for each in (runner, eager):
            root = each.catch_up(waiting)
            slots, logits = each.expand(torch.zeros(1, 2, dtype=torch.long), torch.tensor([[4, 9 + turn]]))
            _, deeper = each.expand(slots[:, 1:], torch.tensor([[6]]))
            outputs.append([root, logits, deeper])
            each.move([0, 2])
        for found, expected in zip(*outputs, strict=True):
            assert float((found - expected).abs().max()) < 1e-4, turn
    assert graphs(runner._forward_expand) <= 4, "one and two nodes, a root and what waits before it"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_is_drafted_in_one_run(recorded: None, family: str) -> None:
    """Of any length, whatever waits; what the runner knows afterwards is what it knows after single forwards."""
    runner, eager = runners(family)
    built: list[SlotRunner] = []

    def children(each: SlotRunner, root: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        built.append(each)
        slots, logits = each.expand(torch.zeros(1, 2, dtype=torch.long), tokens)
        return (root, logits, *each.expand(slots[:, 1:], logits[:, 1:].argmax(-1)))

    builds = [partial(children, each) for each in (runner, eager)]
    for each in (runner, eager):
        each.prefill(toy_prompt(50))
    for turn in range(14):
        waiting = [3 + turn + i for i in range((1, 2, 3, 1, 8)[turn % 5])]
        outputs = []
        for each, build in zip((runner, eager), builds, strict=True):
            outputs.append(each.draft(build, waiting, torch.tensor([[4, 9 + turn]])))
            each.move([[0], [0, 2], [0, 2, 3], [0, 1]][turn % 4])
        for found, expected in zip(*outputs, strict=True):
            assert float((found - expected).abs().max()) < 1e-4, turn
        assert (runner.length, runner.tokens_run, runner.num_slots) == (eager.length, eager.tokens_run, eager.num_slots)
    assert runner.length > 64 and graphs(runner._forward_expand) == 0
    # One to three waiting tokens; where it attends, up to 64 visible positions and more.
    assert graphs(runner._draft) <= (3 if family == "mamba2" else 6)
    assert built.count(runner) == 2 * graphs(runner._draft), "otherwise it is replayed"
    assert graphs(runner._move_slots) <= 3, "for paths of a length, or that lie where they belong"


def test_what_was_drafted_in_one_run_can_be_asked_on(recorded: None) -> None:
    drafter, state = drafting()
    proposal = drafter.propose(state)
    assert proposal.in_one is not None
    (tokens,) = proposal.in_one(best_of_root, state.root)
    assert tokens.shape == (1, 1, 2) and proposal.in_one is None
    ran = drafter.runner.tokens_run
    assert torch.equal(proposal.topk(torch.zeros_like(state.root), 2)[0], tokens)
    assert drafter.runner.tokens_run == ran, "the root has been run"
    new = proposal.expand(torch.zeros_like(state.root), tokens[:, 0, :1])
    found = proposal.logq(new)
    asked, other = drafting()
    expected = asked.propose(other)
    slots = expected.expand(torch.zeros_like(state.root), tokens[:, 0, :1])
    assert torch.equal(slots, new)
    assert torch.allclose(found, expected.logq(slots), atol=1e-5)


def test_a_root_that_nobody_asked_about_is_run_before_it_is_committed(recorded: None) -> None:
    drafter, state = drafting()
    before = drafter.runner.length
    drafter.propose(state)
    assert drafter.runner.tokens_run == 0
    tree = Tree(state.root, torch.tensor([[-1]]), slots=torch.zeros_like(state.root))
    drafter.commit_state(state, tree, Verdict(torch.tensor([[0]]), torch.tensor([0]), torch.tensor([4])))
    assert (drafter.runner.tokens_run, drafter.runner.length) == (1, before + 1)


def test_a_tree_without_slots_is_refused() -> None:
    drafter, state = drafting()
    drafter.propose(state)
    tree = Tree(state.root, torch.tensor([[-1]]))
    with pytest.raises(ValueError, match=r"^Tree\.slots: expected the drafter's slot of every node .* got None; "):
        drafter.commit_state(state, tree, Verdict(torch.tensor([[0]]), torch.tensor([0]), torch.tensor([4])))


def test_what_looks_at_prefixes_is_not_drafted_in_one_run(recorded: None) -> None:
    drafter, state = drafting(repetition_penalty=1.3)
    assert drafter.propose(state).in_one is None


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "family"), [("sd", "llama"), ("stree", "bamba"), ("dynamic", "mamba2")])
def test_a_sampled_decode_gives_the_same_tokens(recorded: None, mode: str, family: str) -> None:
    """The noise of a step is made before its run; every setting has graphs of its own."""
    settings = [{"temperature": 0.7, "top_k": 9, "top_p": 0.8}, {"temperature": 1.0}]
    model, draft = toy_model("bamba"), toy_model(family)
    ours = load(model, draft, mode, max_length=120)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, "recorder_for", lambda device, compile: None)
        eager = load(model, draft, mode)
    # On a CPU what is not captured walks, and draws other tokens; this one judges by noise, as on a GPU.
    eager.target.__class__ = type("Judging", (Target,), {"judges": property(lambda self: True)})
    (runner,) = [each.runner for each in plugins(ours) if isinstance(each, ModelDrafter)]
    before = 0
    for warp in settings:
        found, expected = (each.generate(toy_prompt(9), max_new_tokens=20, seed=3, **warp) for each in (ours, eager))
        assert found.tokens == expected.tokens, warp
        assert found.accept_lengths == expected.accept_lengths, warp
        assert graphs(runner._draft) > before, "another pipeline is another graph"
        before = graphs(runner._draft)
    again = ours.generate(toy_prompt(9), max_new_tokens=20, seed=4, temperature=1.0)
    assert again.tokens == eager.generate(toy_prompt(9), max_new_tokens=20, seed=4, temperature=1.0).tokens
    assert graphs(runner._forward_expand) == 0


@pytest.mark.parametrize("captures", [False, True])
def test_nothing_of_a_generation_is_kept(captures: bool, request: pytest.FixtureRequest) -> None:
    if captures:
        request.getfixturevalue("recorded")
    ours = load(toy_model("bamba"), toy_model("mamba2", seed=1), "stree", max_length=120)
    state, assembly, _ = ours.start(
        toy_prompt(9), SamplingParams(max_new_tokens=9), LogitsPipeline(SamplingParams()), eos_ids=[]
    )
    for _ in steps(assembly.hooks, state):
        pass
    gone = weakref.ref(state)
    del state
    gc.collect()
    assert gone() is None
    (drafter,) = [each for each in plugins(ours) if isinstance(each, ModelDrafter)]
    assert drafter._proposal is None


def drafting(**settings: Any) -> tuple[ModelDrafter, DecodeState]:
    """A drafter after the prefill of a target."""
    model = Target(toy_model("bamba"))
    drafter = ModelDrafter(Context(model, draft=toy_model("mamba2", seed=1)))
    state = DecodeState(model, toy_prompt(9), SamplingParams(max_new_tokens=30, seed=0, **settings))
    state.first(model.prefill(state.prompt))
    with torch.inference_mode():
        drafter.generation_started(state)
    return drafter, state


def best_of_root(proposal: Any, root: Tensor) -> tuple[Tensor]:
    return (proposal.topk(torch.zeros_like(root), 2)[0],)


@pytest.mark.parametrize("mode", ["naive", "sd", "stree", "dynamic", "beam", "sequoia"])
def test_a_decode_gives_the_same_tokens(recorded: None, mode: str) -> None:
    model = draft = toy_model("bamba")  # so that long paths are accepted
    ours = load(model, None if mode == "naive" else draft, mode, max_length=120)
    assert isinstance(ours.target._forward_tree, Captured)
    found = ours.generate(toy_prompt(9), max_new_tokens=30)
    drafts = [each.runner for each in plugins(ours) if isinstance(each, ModelDrafter)]
    for runner in drafts:
        assert 1 <= graphs(runner._draft) <= 3, "by what waits: the root, and what was accepted and not run"
        assert graphs(runner._forward_expand) == 0
    if mode == "stree":
        assert graphs(ours.target._move) >= 1, "commits are captured too"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, "recorder_for", lambda device, compile: None)
        plain = load(model, None if mode == "naive" else draft, mode).generate(toy_prompt(9), max_new_tokens=30)
    assert found.tokens == plain.tokens
    assert found.accept_lengths == plain.accept_lengths
    assert mode == "naive" or found.tau > 2


MODES = ["naive", "sd", "stree", "dynamic", "beam", "sequoia", "ngram"]


@pytest.mark.parametrize("mode", MODES)
def test_a_captured_step_is_read_once(
    recorded: None,
    mode: str,
    looks: list[tuple[str, int]],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One small copy to the host: what was accepted, where the drafter has it, and the bonus."""
    draft = {"naive": None, "ngram": "ngram"}.get(mode, toy_model("mamba2"))
    ours = load(toy_model("bamba"), draft, mode, max_length=120)
    settings = SamplingParams(max_new_tokens=30)
    before = ours.generate(toy_prompt(9), max_new_tokens=30)  # records graphs, and works shapes of trees out
    state, assembly, _ = ours.start(toy_prompt(9), settings, LogitsPipeline(settings), eos_ids=ours.target.eos_ids)
    looks.clear()
    for _ in steps(assembly.hooks, state):
        assert [name for name, _ in looks] == ["tolist"], looks
        looks.clear()
    assert state.tokens == before.tokens


@pytest.mark.parametrize("mode", ["naive", "sd", "stree", "dynamic", "ngram"])
def test_a_sampled_step_is_read_once(
    recorded: None,
    mode: str,
    looks: list[tuple[str, int]],  # noqa: F811
) -> None:
    """But that drawn children may be too few, which a static tree asks about."""
    draft = {"naive": None, "ngram": "ngram"}.get(mode, toy_model("mamba2", seed=1))
    ours = load(toy_model("bamba"), draft, mode, max_length=120)
    settings = SamplingParams(max_new_tokens=30, temperature=1.0, seed=0)
    ours.generate(toy_prompt(9), max_new_tokens=30, temperature=1.0, seed=0)
    state, assembly, _ = ours.start(toy_prompt(9), settings, LogitsPipeline(settings), eos_ids=ours.target.eos_ids)
    asks = ["__bool__"] if mode in ("sd", "stree") else []
    looks.clear()
    for _ in steps(assembly.hooks, state):
        assert [name for name, _ in looks] == [*asks, "tolist"], looks
        looks.clear()


@pytest.mark.parametrize("drafter", ["cascade", "merge"])
def test_drafters_in_one_have_slots_of_their_own(drafter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What clipping read has the slots of the tree that was judged, and a part is asked about its own."""
    runners: list[SlotRunner] = []

    class Kept(SlotRunner):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            runners.append(self)

    monkeypatch.setattr(model_drafter, "SlotRunner", Kept)
    for recorder in (record, None):
        monkeypatch.setattr(target, "recorder_for", lambda device, compile, recorder=recorder: recorder)
        made = load(toy_model("bamba"), toy_model("mamba2"), "stree", propose=drafter, max_length=120)
        made.generate(toy_prompt(9), max_new_tokens=40)
    captured_run, eager_run = runners
    assert captured_run.tokens_run == eager_run.tokens_run > 0


def test_trees_of_many_depths_share_graphs() -> None:
    model, eager = pair("bamba")
    verifier, pipeline = greedy.Greedy(), LogitsPipeline(SamplingParams())
    verifier._pipeline = pipeline
    for each in (model, eager):
        each.prefill(toy_prompt(20))
    depths = set()
    for seed in range(12):
        tree, _ = random_step(7, seed)
        tree = tree if seed % 2 else Tree(tree.tokens, tree.parents, torch.tensor([7]))
        depths.add(tree.structure.paths.shape[-1])
        found, expected = (
            each.score_and_judge(tree, verifier._judge, pipeline.key, None)[1] for each in (model, eager)
        )
        deepest = expected[0].shape[1]
        for wide, narrow in zip(found[:3], expected[:3], strict=True):  # paths are padded
            assert torch.equal(wide[:, :deepest] if wide.ndim > 1 else wide, narrow), seed
            assert wide.ndim == 1 or bool((wide[:, deepest:] == -1).all())
        assert float((found[4] - expected[4]).abs().max()) < 1e-4, "scores"
        verdicts = [(Verdict(*each[:3]), each[3]) for each in (found, expected)]
        paths = [host_path.read(verdict, tree, numbers) for verdict, numbers in verdicts]
        assert paths[0] == paths[1], seed
    assert len(depths) >= 3 and graphs(model._forward_tree) <= 2


def test_what_cannot_be_recorded_runs_as_it_is(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def refuse(function: Callable[[], Any]) -> tuple[Any, Replay]:
        function()
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(target, "recorder_for", lambda device, compile: refuse)
    model = toy_model("bamba")
    ours = Target(model, max_length=100)
    monkeypatch.undo()
    eager = Target(model)
    for each in (ours, eager):
        each.step_in_place = True
        each.prefill(toy_prompt(9))
    root = Tree(torch.tensor([[5]]), torch.tensor([[-1]]))
    for _ in range(3):
        found, expected = (each.score(root) for each in (ours, eager))
        assert float((found - expected).abs().max()) < 1e-4
        for each in (ours, eager):
            each.commit(torch.tensor([[0]]))
    assert graphs(ours._forward_step) == 0
    assert caplog.text.count("a step cannot be captured, it runs as it is: operation not permitted") == 1


def test_a_path_that_was_read_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clipping reads the verdict, in one look; back-end and drafter are told what it read."""
    ours = Target(toy_model("bamba"))
    ours.prefill(toy_prompt(9))
    tree, path = random_step(7, 3)
    slots = torch.tensor([[0, 4, -1, 2, 5, 1, 3]])
    tree = Tree(tree.tokens, tree.parents, slots=slots)
    ours.score(tree)
    state = DecodeState(ours, toy_prompt(9), SamplingParams(max_new_tokens=50))
    verdict = Verdict(path, torch.tensor([path.shape[1] - 1]), torch.tensor([4]))
    of_nodes = [each.gather(1, path)[0].tolist() for each in (tree.tokens, slots)]
    expected = [(path[0].tolist(), *of_nodes, 4)]
    assert state.path_of(verdict, tree) == expected, "read, where nobody has read it"
    clipped = state.clip(verdict, tree)
    moved: list[list[int]] = []
    drafter: Any = SimpleNamespace(runner=SimpleNamespace(move=moved.append), _pending=[], _proposal=None)
    with monkeypatch.context() as patch:
        for look in LOOKS:
            patch.setattr(Tensor, look, None)
        assert clipped is verdict and state.path_of(verdict, tree) == expected
        ReplayBackend().commit_state(state, tree, verdict)
        ModelDrafter.commit_state(drafter, state, tree, verdict)
    assert ours.length == 9 + path.shape[1]
    run = [slot for slot in of_nodes[1] if slot >= 0]
    assert moved == [run] and drafter._pending == [*of_nodes[0][len(run) :], 4]
    other = Verdict(torch.tensor([[0, -1]]), torch.tensor([0]), torch.tensor([8]))
    assert state.path_of(other, tree) == [([0], [int(tree.tokens[0, 0])], [0], 8)], "of another verdict"


def test_a_path_that_was_cut_is_known_as_it_was_cut() -> None:
    ours = Target(toy_model("bamba"))
    chain = Tree(torch.tensor([[3, 4, 5, 6]]), torch.tensor([[-1, 0, 1, 2]]))
    state = DecodeState(ours, toy_prompt(9), SamplingParams(max_new_tokens=3))
    state.first(torch.eye(20)[3:4])
    path = torch.tensor([[0, 1, 2, 3]])
    clipped = state.clip(Verdict(path, torch.tensor([3]), torch.tensor([7])), chain)
    assert clipped.path.tolist() == [[0, 1, -1, -1]]
    assert state.path_of(clipped, chain) == [([0, 1], [3, 4], None, 5)]
