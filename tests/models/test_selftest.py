"""The self-test at load: every family passes it, and every mistake it exists for is refused."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from specdecodes.core.tree import Topology
from specdecodes.kernels.causal_conv.naive import window_conv
from specdecodes.models import masks, passes
from specdecodes.models.cache import AttentionRows
from specdecodes.models.passes import TreePass
from specdecodes.models.placement import Placement
from specdecodes.models.recurrences import mamba2
from specdecodes.models.recurrences.mamba2 import Mamba2Stack
from specdecodes.models.recurrences.stack import RecurrentStack
from specdecodes.models.selftest import FLOORS, self_test
from specdecodes.models.target import Target

from .configs import FAMILIES, LIFTED, MORE, each
from .families import gap, make, prompt_of, shared, stock_path


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in MORE else []) for name in FAMILIES]
)
def test_every_family_passes(name: str) -> None:
    target, began = Target(shared(name)), time.perf_counter()
    report = self_test(target)
    elapsed = time.perf_counter() - began
    assert report.family == shared(name).config.model_type
    assert report.dtype == torch.float32
    assert report.max_error < 1e-4 <= report.tolerance
    assert elapsed / 2 < report.seconds <= elapsed  # a bound in seconds would measure the machine


@pytest.mark.parametrize("name", each(LIFTED))
def test_float64_passes_without_lifted_casts(name: str) -> None:
    assert self_test(Target(shared(name, torch.float64))).max_error < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["mamba2", "bamba", "falcon_h1", "zamba2", "llama", "mistral"])
def test_half_types_pass(name: str, dtype: torch.dtype) -> None:
    report = self_test(Target(make(name, dtype)))
    assert 0 < report.max_error < report.tolerance


def test_leaves_no_trace() -> None:
    model = shared("bamba")
    target = Target(model)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    self_test(target)
    assert torch.equal(torch.get_rng_state(), before)
    assert target.length == 0
    assert not target.step_in_place
    assert all(mixer.chunk_size == 8 for mixer in model.modules() if hasattr(mixer, "A_log"))
    assert all(mixer.time_step_limit == (0.0, math.inf) for mixer in model.modules() if hasattr(mixer, "A_log"))
    prompt = prompt_of(5)
    assert gap(target.prefill(prompt)[0], stock_path(model, prompt[0].tolist()).logits) < 1e-4


def test_mixers_are_restored() -> None:
    model = make("mamba2")
    for mixer in model.modules():
        if hasattr(mixer, "A_log"):
            mixer.chunk_size, mixer.time_step_limit = 256, (0.0, 5.0)
    self_test(Target(model))
    limits = {(m.chunk_size, m.time_step_limit) for m in model.modules() if hasattr(m, "A_log")}
    assert limits == {(256, (0.0, 5.0))}


def _conv_ignores_tree(patch: pytest.MonkeyPatch) -> None:
    def windows(self: Topology, width: int) -> Tensor:
        nodes = torch.arange(self.parents.shape[1])[:, None]
        return (nodes + torch.arange(width) + 1)[None]

    patch.setattr(Topology, "windows", windows)


def _place(patch: pytest.MonkeyPatch, change: Callable[[tuple[Tensor, Any, Tensor]], Any]) -> None:
    place = Placement.place
    patch.setattr(Placement, "place", lambda self, *given, **named: change(place(self, *given, **named)))


def _index_for_depth(patch: pytest.MonkeyPatch) -> None:
    _place(patch, lambda placed: (placed[2][None], *placed[1:]))


def _no_mask(patch: pytest.MonkeyPatch) -> None:
    _place(patch, lambda placed: (placed[0], torch.zeros_like(placed[1]), placed[2]))


def _boolean_mask(patch: pytest.MonkeyPatch) -> None:
    _place(patch, lambda placed: (placed[0], placed[1] == 0, placed[2]))


def _scan_ignores_tree(patch: pytest.MonkeyPatch) -> None:
    aim = TreePass.aim

    def chain(self: TreePass, topology: Topology, widths: Iterable[int]) -> None:
        aim(self, topology, widths)
        self.ancestors = torch.ones_like(topology.ancestors).tril()

    patch.setattr(TreePass, "aim", chain)


def _no_jump(patch: pytest.MonkeyPatch) -> None:
    for stack in (Mamba2Stack, RecurrentStack):
        patch.setattr(stack, "jump", lambda *_: None)


def _no_gather(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(AttentionRows, "move", lambda *_: None)


def _jump_forgets_window(patch: pytest.MonkeyPatch) -> None:
    jump = Mamba2Stack.jump

    def mutant(self: Mamba2Stack, *args: Any) -> None:
        windows = [layer.window.clone() for layer in self.layers if layer.window is not None]
        jump(self, *args)
        for layer, window in zip(self.layers, windows, strict=True):
            assert layer.window is not None
            layer.window.copy_(window)

    patch.setattr(Mamba2Stack, "jump", mutant)


def _levels_of_another_tree(patch: pytest.MonkeyPatch) -> None:
    levels = Topology.levels.func  # type: ignore[attr-defined]
    patch.setattr(Topology, "levels", property(lambda self: [(nodes, 0 * nodes) for nodes, _ in levels(self)]))


def _no_window(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(masks, "_inside", lambda mask, *_: mask)


def _step_forgets_window(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(passes, "advance_conv", lambda window, x, *rest: window_conv(window, *rest))


def _no_skip(patch: pytest.MonkeyPatch) -> None:
    scan = mamba2.tree_scan
    patch.setattr(mamba2, "tree_scan", lambda x, dt, A, B, C, D, *rest: scan(x, dt, A, B, C, None, *rest))


MISTAKES = [
    (_conv_ignores_tree, "mamba2", "first tree"),
    (_conv_ignores_tree, "falcon_h1", "first tree"),
    (_scan_ignores_tree, "bamba", "first tree"),
    (_scan_ignores_tree, "nemotron_h", "first tree"),
    (_no_skip, "zamba2", "first tree, node 0"),
    (_index_for_depth, "llama", "first tree, node 2"),
    (_index_for_depth, "bamba", "first tree, node 2"),
    (_no_mask, "qwen2", "first tree"),
    (_no_mask, "granitemoehybrid", "first tree"),
    (_boolean_mask, "qwen3", "first tree"),  # what eager attention silently gets wrong
    (_no_jump, "mamba2", "tree after a commit, node 0"),
    (_no_jump, "zamba2", "tree after a commit, node 0"),
    (_jump_forgets_window, "mamba2-groups", "tree after a commit, node 0"),
    (_no_gather, "mistral", "tree after a commit, node 0"),
    (_no_gather, "falcon_h1", "tree after a commit, node 0"),
    (_levels_of_another_tree, "mamba", "first tree, node 3"),
    (_no_jump, "zamba", "tree after a commit, node 0"),
    (_scan_ignores_tree, "qwen3_5", "first tree, node 2"),
    (_no_jump, "kimi_linear", "tree after a commit, node 0"),
    (_no_jump, "lfm2", "tree after a commit, node 0"),
    (_no_window, "mistral-window", "first tree, node 0"),
    (_no_window, "gemma2", "first tree, node 0"),
    (_index_for_depth, "gpt2", "first tree, node 2"),
    (_no_gather, "deepseek_v3", "tree after a commit, node 0"),
    (_step_forgets_window, "mamba2", "plain step after a commit, node 0"),
]


@pytest.mark.parametrize(("mistake", "name", "place"), MISTAKES, ids=lambda value: getattr(value, "__name__", value))
def test_refuses(
    mistake: Callable[[pytest.MonkeyPatch], None], name: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Target(shared(name))
    mistake(monkeypatch)
    with pytest.raises(ValueError, match="is refused") as refusal:
        self_test(target)
    message = str(refusal.value)
    assert "\n" not in message
    assert message.startswith(f"model: {shared(name).config.model_type} (torch.float32) is refused: {place}")
    assert "expected at most" in message


@pytest.mark.parametrize("mistake", [_conv_ignores_tree, _no_jump, _no_mask, _index_for_depth])
def test_refuses_in_bfloat16(mistake: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target(make("bamba", torch.bfloat16))
    mistake(monkeypatch)
    with pytest.raises(ValueError, match="is refused"):
        self_test(target)


def test_refuses_broken_weights() -> None:
    model = make("llama")
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    with pytest.raises(ValueError, match="its own logits are not finite"):
        self_test(Target(model))


def test_tolerance_counts_in_standard_deviations() -> None:
    model = make("qwen2")
    small = self_test(Target(model)).tolerance
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(10)
    assert self_test(Target(model)).tolerance == pytest.approx(10 * small, rel=1e-3)
    assert small == pytest.approx(FLOORS[torch.float32], rel=0.3)
