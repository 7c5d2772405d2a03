"""Decoders are made once per model and settings, follow its weights, and go with it."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import specdecodes
from specdecodes.core.decoder import Decoder
from specdecodes.integration import CustomGenerate, method
from specdecodes.integration.pool import KEPT, pool_of
from specdecodes.testing.toys import toy_model, toy_prompt

PROMPT = toy_prompt(5)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Decoder]]:
    """The decoders that calls had to make."""
    decoders: list[Decoder] = []
    load = method.load

    def counted(*arguments: Any, **settings: Any) -> Decoder:
        decoders.append(load(*arguments, **settings))
        return decoders[-1]

    monkeypatch.setattr(method, "load", counted)
    yield decoders
    decoders.clear()


def own_model(family: str = "bamba") -> PreTrainedModel:
    return copy.deepcopy(toy_model(family))


def run(model: PreTrainedModel, generate: CustomGenerate | None = None, **settings: Any) -> list[list[int]]:
    generate = generate or specdecodes.custom_generate("ngram", "suffix")
    settings = {"max_new_tokens": 8, "do_sample": False, **settings}
    found: list[list[int]] = model.generate(PROMPT, custom_generate=generate, **settings).tolist()
    return found


def test_calls_with_the_same_settings_share_a_decoder(made: list[Decoder]) -> None:
    model, draft = own_model(), toy_model("mamba2")
    for tree in ("2,1", "3,1.1.1"):
        for _ in range(3):  # a method of its own for every call, as in the README
            run(model, specdecodes.custom_generate("stree", draft, tree=tree))
    assert len(made) == 2
    run(model, specdecodes.custom_generate("stree", toy_model("mamba2", seed=1), tree="2,1"))
    assert len(made) == 3
    run(own_model(), specdecodes.custom_generate("stree", draft, tree="2,1"))
    assert len(made) == 4


def test_a_model_keeps_few_decoders(made: list[Decoder]) -> None:
    model = own_model()
    for depth in range(1, KEPT + 3):
        run(model, specdecodes.custom_generate("ngram", "suffix", depth=depth))
    assert [entry[2] for entry in pool_of(model).entries] == made[-KEPT:]


def test_decoders_go_with_their_model() -> None:
    generate = specdecodes.custom_generate("stree", toy_model("mamba2"), tree="2,1")
    model = own_model()
    run(model, generate)
    found = weakref.ref(model), weakref.ref(pool_of(model).entries[0][2].target)
    del model
    gc.collect()
    assert [each() for each in found] == [None, None]
    assert run(own_model(), generate), "the method outlives the model"


def test_calls_leave_nothing_behind() -> None:
    model, generate = own_model(), specdecodes.custom_generate("ngram", "suffix")

    def tensors() -> int:
        gc.collect()
        return sum(type(each) is Tensor for each in gc.get_objects())

    run(model, generate)
    run(model, generate)
    before = tensors()
    for _ in range(3):
        run(model, generate)
    assert tensors() == before


@pytest.mark.parametrize("change", ["in place", "cast"])
def test_new_weights_are_used(change: str, made: list[Decoder]) -> None:
    model, generate = own_model(), specdecodes.custom_generate("ngram", "suffix")
    before = run(model, generate)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    if change == "cast":
        model.double()
    after = run(model, generate)
    assert after != before
    assert after == model.generate(PROMPT, max_new_tokens=8, do_sample=False).tolist()
    assert len(made) == 2 and len(pool_of(model).entries) == 1, "the old one is thrown away"


def test_copies_and_pickles_have_no_decoders() -> None:
    model = own_model()
    run(model)
    for copied in (copy.deepcopy(model), copy.copy(pool_of(model)), pickle.loads(pickle.dumps(pool_of(model)))):
        pool = pool_of(copied) if isinstance(copied, PreTrainedModel) else copied
        assert pool.entries == [] and pool is not pool_of(model)
    assert "_specdecodes_decoders" not in model.state_dict()
    assert len(pool_of(model).entries) == 1


def test_a_call_inside_a_call_has_its_own_decoder(made: list[Decoder]) -> None:
    model, generate = own_model(), specdecodes.custom_generate("ngram", "suffix")
    alone, inner = run(model, generate), []

    def criterion(ids: Tensor, scores: Any, **_: Any) -> Tensor:
        inner.append(run(model, generate))
        return torch.tensor([False])

    assert run(model, generate, stopping_criteria=[criterion]) == alone
    assert inner == [alone] * 8
    assert len(made) == 2


def test_a_call_that_fails_gives_its_decoder_up(made: list[Decoder]) -> None:
    model, generate = own_model(), specdecodes.custom_generate("ngram", "suffix")

    def criterion(ids: Tensor, scores: Any, **_: Any) -> Tensor:
        raise ArithmeticError

    alone = run(model, generate)
    with pytest.raises(ArithmeticError):
        run(model, generate, stopping_criteria=[criterion])
    assert run(model, generate) == alone
    assert len(made) == 2


def test_training_goes_on_as_it_was() -> None:
    model = own_model()
    model.train()
    model.get_input_embeddings().eval()
    expected = run(own_model())
    assert run(model) == expected
    assert model.training and not model.get_input_embeddings().training
    assert all(module.training for module in model.modules() if module is not model.get_input_embeddings())
