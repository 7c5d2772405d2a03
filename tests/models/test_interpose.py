"""Rebound ops serve the pass of their own thread and are stock everywhere else."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from specdecodes.models.interpose import install, serving

from .families import make, prompt_of, shared

OPS = {"causal_conv1d_fn", "causal_conv1d_update", "mamba2_chunk_scan", "mamba2_selective_state_update"}
"""Of the Mamba-2 families."""


class Refusing:
    """A pass that refuses every op; weight products, which a target elsewhere may have packed, stay stock."""

    linear = None

    def __getattr__(self, name: str) -> Any:
        raise LookupError(name)


def logits(name: str) -> Tensor:
    with torch.no_grad():
        return shared(name)(prompt_of(5)).logits


def test_falls_through_to_stock() -> None:
    module = sys.modules[type(shared("mamba2").backbone.layers[0].mixer).__module__]
    assert install(shared("mamba2")) == OPS
    ours = logits("mamba2")
    with pytest.MonkeyPatch.context() as patch:
        for op in OPS:
            patch.setattr(module, op, getattr(module, op).__wrapped__)
        assert torch.equal(logits("mamba2"), ours)


def test_is_installed_once() -> None:
    model = make("bamba")
    install(model)
    module = sys.modules[type(model).__module__]
    before = {op: getattr(module, op) for op in OPS}
    install(model)
    assert before == {op: getattr(module, op) for op in OPS}


def test_serves_its_own_thread_only() -> None:
    install(shared("mamba2"))
    found: list[Tensor] = []
    with serving(Refusing()):
        with pytest.raises(LookupError, match="causal_conv1d_fn"):
            logits("mamba2")
        other = threading.Thread(target=lambda: found.append(logits("mamba2")))
        other.start()
        other.join()
    assert torch.equal(found[0], logits("mamba2"))


def test_the_pass_before_comes_back_after_an_error() -> None:
    install(shared("mamba2"))
    with serving(Refusing()):
        with pytest.raises(KeyError), serving(Refusing()):
            raise KeyError
        with pytest.raises(LookupError):
            logits("mamba2")
    logits("mamba2")


def test_what_a_pass_lacks_stays_stock() -> None:
    install(shared("mamba2"))
    before = logits("mamba2")
    with serving(object()):  # type: ignore[arg-type]  # a pass without any op
        assert torch.equal(logits("mamba2"), before)


def test_attention_models_have_no_ops() -> None:
    assert install(shared("llama")) == set()
