"""Other projects' prefill kernels: called as they are documented, left alone where they do not serve or refuse.

None of them runs without a GPU, so that stand-ins take their places: they check what they are given and compute in
plain torch.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from specdecodes.kernels import causal_conv, gated_delta, installed, kimi_delta, mamba2_scan
from specdecodes.kernels.gated_delta import naive as delta
from specdecodes.kernels.installed import Kernel
from specdecodes.kernels.switch import SWITCH
from specdecodes.models.target import Target

from ..models.families import make, prompt_of
from .stand_in import StandIn

KERNELS = {"conv": installed.CONV, "mamba2": installed.MAMBA2, "delta": installed.GATED_DELTA}
F32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> dict[str, Kernel]:
    """The kernels as on import, serving on any device."""
    names = ("CONV", "MAMBA2", "GATED_DELTA", "KIMI_DELTA", "ATTENTION")
    made = {name: replace(getattr(installed, name)) for name in names}
    for name, kernel in made.items():
        monkeypatch.setattr(installed, name, kernel)
    decide = Kernel.decide
    monkeypatch.setattr(Kernel, "decide", lambda kernel, device, dtype: decide(kernel, "cuda", dtype))
    return made


def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str | None = None) -> Tensor:
    """``causal_conv1d_fn``: [B, C, T] and [C, W], zeros on the left."""
    assert x.is_contiguous() and 2 <= weight.shape[1] <= 4 and activation in (None, "silu", "swish")
    y = torch.nn.functional.conv1d(x, weight[:, None], bias, padding=weight.shape[1] - 1, groups=weight.shape[0])
    y = y[..., : x.shape[-1]]
    return y if activation is None else torch.nn.functional.silu(y)


def mamba2(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    *,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
) -> tuple[Tensor, Tensor]:
    """``mamba_chunk_scan_combined`` without bias or softplus, one token after the other; y in the dtype of x."""
    assert return_final_states and x.is_contiguous() and chunk_size > 0
    rows, length, heads, head_dim = x.shape
    state = torch.zeros(rows, heads, head_dim, B.shape[3]) if initial_states is None else initial_states.float()
    B, C = (each.float().repeat_interleave(heads // B.shape[2], dim=2) for each in (B, C))
    ys = []
    for t in range(length):
        step = dt[:, t].float()
        state = state * (step * A).exp()[..., None, None]
        state = state + (x[:, t].float() * step[..., None])[..., None] * B[:, t, :, None]
        ys.append((state @ C[:, t, :, :, None])[..., 0] + (0 if D is None else D[:, None] * x[:, t].float()))
    return torch.stack(ys, dim=1).to(x.dtype), state


def rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, *, initial_state: Tensor, output_final_state: bool
) -> tuple[Tensor, Tensor]:
    """``chunk_gated_delta_rule`` (g [B, T, H]) and ``chunk_kda`` (g [B, T, H, K]), one token after the other."""
    assert output_final_state and q.dtype == k.dtype == v.dtype == beta.dtype
    state = initial_state.clone()
    decays = g[..., None] if g.ndim == 3 else g
    ys = [delta.step_(state, q[:, t], k[:, t], v[:, t], decays[:, t], beta[:, t]) for t in range(q.shape[1])]
    return torch.stack(ys, dim=1).to(v.dtype), state


def test_where_each_of_them_serves(fresh: dict[str, Kernel], monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = fresh["MAMBA2"]
    assert kernel.decide("cuda", BF16) == ("naive", "plain torch: mamba-ssm is not installed")
    kernel = replace(kernel)
    StandIn(kernel, mamba2, monkeypatch)
    assert kernel.decide("cuda", BF16).form == "mamba-ssm"
    assert kernel.decide("cuda", F32).why == "plain torch; mamba-ssm is less exact in float32"
    with torch.no_grad():
        assert kernel.serves("cuda", BF16)
    with torch.enable_grad():
        assert not kernel.serves("cuda", BF16), "ours give gradients"
    monkeypatch.setenv(SWITCH, "naive")
    assert kernel.decide("cuda", BF16) == ("naive", f"{SWITCH}=naive")


@pytest.mark.parametrize("name", KERNELS)
def test_a_cpu_has_none_of_them(name: str) -> None:
    assert KERNELS[name].decide("cpu", BF16).form == "naive"


def test_one_that_does_not_import_is_left_alone(fresh: dict[str, Kernel], monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = fresh["CONV"]
    monkeypatch.setitem(sys.modules, kernel.module, ModuleType(kernel.module))  # without the function
    why = kernel.decide("cuda", BF16).why
    assert why.startswith("plain torch: causal-conv1d does not import: ") and "causal_conv1d_fn" in why


@torch.no_grad()
@pytest.mark.parametrize("activation", ["silu", None])
@pytest.mark.parametrize("width", [2, 4, 5])
def test_conv(fresh: dict[str, Kernel], monkeypatch: pytest.MonkeyPatch, width: int, activation: str | None) -> None:
    ours = causal_conv.naive.sequence_conv
    stand_in = StandIn(fresh["CONV"], conv, monkeypatch)
    x, weight, bias = torch.randn(2, 6, 9)[..., 1:], torch.randn(6, width), torch.randn(6)
    found = causal_conv.sequence_conv(x, weight, bias, activation)
    torch.testing.assert_close(found, ours(x, weight, bias, activation))
    assert stand_in.calls == (width <= 4), "causal-conv1d has up to 4 taps"


@torch.no_grad()
def test_mamba2(fresh: dict[str, Kernel], monkeypatch: pytest.MonkeyPatch) -> None:
    x, dt, A = torch.randn(1, 70, 4, 8, dtype=BF16), torch.rand(1, 70, 4), -torch.rand(4)
    B, C, D = torch.randn(1, 70, 2, 5, dtype=BF16), torch.randn(1, 70, 2, 5, dtype=BF16), torch.rand(4)
    state = torch.randn(1, 4, 8, 5)
    ours = mamba2_scan.naive.chunk_scan(x, dt, A, B, C, D, state)
    stand_in = StandIn(fresh["MAMBA2"], mamba2, monkeypatch)
    found = mamba2_scan.chunk_scan(x, dt, A, B, C, D, state)
    assert stand_in.calls == 1
    for theirs, mine in zip(found, ours, strict=True):
        assert theirs.dtype == mine.dtype
        torch.testing.assert_close(theirs, mine, rtol=2e-2, atol=2e-2)


@torch.no_grad()
@pytest.mark.parametrize(("name", "decays"), [("GATED_DELTA", 1), ("KIMI_DELTA", 8)])
def test_delta_rules(fresh: dict[str, Kernel], monkeypatch: pytest.MonkeyPatch, name: str, decays: int) -> None:
    q, k = (delta.normalize(torch.randn(1, 21, 3, 8)) for _ in range(2))
    v, g, beta = torch.randn(1, 21, 3, 6, dtype=BF16), -torch.rand(1, 21, 3, decays), torch.rand(1, 21, 3)
    before = torch.randn(1, 3, 8, 6)
    scan = gated_delta.tree_scan if decays == 1 else kimi_delta.tree_scan
    mine = before.clone()
    ours = delta.sequence_scan(q, k, v, g, beta, mine, scan)
    stand_in = StandIn(fresh[name], rule, monkeypatch)
    theirs = before.clone()
    found = gated_delta.sequence_scan(q, k, v, g, beta, theirs, scan, installed=fresh[name])
    assert stand_in.calls == 1 and found.dtype == ours.dtype
    torch.testing.assert_close(found, ours, rtol=3e-2, atol=3e-2)
    torch.testing.assert_close(theirs, mine, rtol=3e-2, atol=3e-2)


@torch.no_grad()
def test_one_that_refuses_is_not_asked_again(fresh: dict[str, Kernel], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Tensor:
        raise RuntimeError("head dim 7 is not\nsupported")

    stand_in = StandIn(fresh["CONV"], refuse, monkeypatch)
    x, weight = torch.randn(1, 3, 5), torch.randn(3, 4)
    for _ in range(2):
        found = causal_conv.sequence_conv(x, weight, None, "silu")
        torch.testing.assert_close(found, causal_conv.naive.sequence_conv(x, weight, None, "silu"))
    assert stand_in.calls == 1
    why = fresh["CONV"].decide("cuda", F32).why
    assert why == "plain torch: causal-conv1d refused: RuntimeError: head dim 7 is not supported"


@pytest.mark.parametrize(
    ("family", "name", "function"), [("bamba", "MAMBA2", mamba2), ("qwen3_5", "GATED_DELTA", rule)]
)
def test_a_prefill_goes_through_them(
    fresh: dict[str, Kernel], monkeypatch: pytest.MonkeyPatch, family: str, name: str, function: Any
) -> None:
    model, prompt = make(family).to(BF16), prompt_of(40, "installed")
    ours = Target(model).prefill(prompt)
    fresh.update({each: replace(old) for each, old in fresh.items()})
    for each, kernel in fresh.items():
        monkeypatch.setattr(installed, each, kernel)
    monkeypatch.setattr("specdecodes.models.recurrences.gated_delta.GatedDeltaLayer.installed", fresh["GATED_DELTA"])
    used = [StandIn(fresh["CONV"], conv, monkeypatch), StandIn(fresh[name], function, monkeypatch)]
    theirs = Target(model).prefill(prompt)
    assert all(stand_in.calls >= 2 for stand_in in used), "once for every mixer"
    torch.testing.assert_close(theirs.float(), ours.float(), rtol=0.1, atol=0.1)
