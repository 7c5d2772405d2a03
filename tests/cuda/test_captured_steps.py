"""Captured steps on a GPU: the tokens of eager steps, and one wait a step."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch

from specdecodes import load
from specdecodes.core import host_path
from specdecodes.core.decoder import Decoder
from specdecodes.core.loop import steps
from specdecodes.core.sampling import LogitsPipeline, SamplingParams
from specdecodes.testing.toys import toy_model, toy_prompt

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

MODES = ["naive", "sd", "stree", "dynamic", "beam", "sequoia", "ngram"]
FAMILIES = ["bamba", "mamba2", "llama"]


def decoder(mode: str, family: str, compile: bool) -> Decoder:
    """With the target as its own draft, so that long paths are accepted."""
    model = deepcopy(toy_model(family)).to("cuda")
    draft = {"naive": None, "ngram": "ngram"}.get(mode, model)
    return load(model, draft, mode, compile=compile, max_length=256)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", MODES)
def test_the_tokens_of_eager_steps(mode: str, family: str) -> None:
    captured, eager = (decoder(mode, family, compile) for compile in (True, False))
    assert captured.target.captures and not eager.target.captures
    for length in (9, 60):
        found, expected = (
            each.generate(toy_prompt(length).to("cuda"), max_new_tokens=80, ignore_eos=True)
            for each in (captured, eager)
        )
        assert found.tokens == expected.tokens
        assert found.accept_lengths == expected.accept_lengths


@pytest.mark.parametrize("mode", MODES)
def test_sampled_tokens_are_those_of_eager_steps(mode: str) -> None:
    both = [decoder(mode, "bamba", compile) for compile in (True, False)]
    settings: dict[str, Any] = dict(max_new_tokens=40, ignore_eos=True, temperature=0.9, top_p=0.9, seed=5)
    first, again, eager = (
        each.generate(toy_prompt(9).to("cuda"), **settings).tokens for each in (both[0], both[0], both[1])
    )
    assert first == again == eager


@pytest.mark.parametrize("mode", MODES)
def test_a_captured_step_waits_once(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else waits for the GPU is an error, between the first step and the last."""
    ours = decoder(mode, "bamba", compile=True)
    prompt, params = toy_prompt(9).to("cuda"), SamplingParams(max_new_tokens=60, ignore_eos=True)
    ours.generate(prompt, max_new_tokens=60, ignore_eos=True)  # records all graphs
    state, assembly, _ = ours.start(prompt, params, LogitsPipeline(params), eos_ids=[])
    read, waits = host_path.read, 0

    def once(*given: Any) -> Any:
        nonlocal waits
        waits += 1
        torch.cuda.set_sync_debug_mode("default")
        try:
            return read(*given)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    monkeypatch.setattr(host_path, "read", once)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in steps(assembly.hooks, state):
            pass
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert waits == len(state.accept_lengths) > 1
