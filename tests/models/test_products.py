"""Which linear layers are packed, when the copy is used, and that it follows the weights."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
from torch import Tensor, nn

from specdecodes.kernels.linear import packed
from specdecodes.models import products
from specdecodes.models.products import PackedLinear
from specdecodes.models.target import Target

from .families import make, prompt_of

pytestmark = pytest.mark.skipif(not packed.available(torch.float32), reason="this build has no oneDNN")

FAMILY = "bamba"


def _layers(model: nn.Module) -> list[PackedLinear]:
    return [module for module in model.modules() if isinstance(module, PackedLinear)]


def _count_products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The handles of all packed products from now on."""
    seen: list[int] = []
    plain = packed.packed_linear

    def count(x: Tensor, bias: Tensor | None, handle: int, out_features: int) -> Tensor:
        seen.append(handle)
        return plain(x, bias, handle, out_features)

    monkeypatch.setattr("specdecodes.models.passes.packed_linear", count)
    return seen


def test_a_pass_uses_every_copy_and_nobody_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt = make(FAMILY), prompt_of(9, "products")
    seen = _count_products(monkeypatch)
    with torch.no_grad():
        before = model(prompt).logits
    target = Target(model)
    with torch.no_grad():
        assert torch.equal(model(prompt).logits, before)
    assert seen == []
    target.prefill(prompt)
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert sorted(set(seen)) == sorted(layer.handle for layer in _layers(model))
    assert len(_layers(model)) == len(linear) > 5


def test_training_goes_on_with_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt = make(FAMILY), prompt_of(9, "products")
    Target(model)
    seen = _count_products(monkeypatch)
    model(prompt, labels=prompt).loss.backward()
    assert seen == []
    assert all(layer.weight.grad is not None for layer in _layers(model))


def test_the_copies_follow_the_weights() -> None:
    model, prompt = make(FAMILY), prompt_of(9, "products")
    target = Target(model)
    before = target.prefill(prompt)
    handles = [layer.handle for layer in _layers(model)]
    with torch.no_grad():
        for layer in _layers(model):
            layer.weight.mul_(1.1)
        expected = model(prompt).logits[:, -1]
    after = target.prefill(prompt)
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(after, before, atol=1e-2)
    assert [layer.handle for layer in _layers(model)] == handles  # compiled graphs hold them


def test_a_deep_copy_of_a_model_has_copies_of_its_own() -> None:
    model, prompt = make(FAMILY), prompt_of(9, "products")
    target = Target(model)
    before = target.prefill(prompt)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    Target(other).prefill(prompt)
    assert torch.equal(target.prefill(prompt), before)
    assert not {layer.handle for layer in _layers(model)} & {layer.handle for layer in _layers(other)}


def test_two_targets_share_one_copy() -> None:
    model = make(FAMILY)
    Target(model)
    before = len(packed._packed)
    Target(model)
    assert len(packed._packed) == before


def test_copies_go_with_their_model() -> None:
    gc.collect()
    before = len(packed._packed)
    model = make(FAMILY)
    target = Target(model)
    assert len(packed._packed) > before
    del model, target
    gc.collect()
    assert len(packed._packed) == before


def test_a_model_that_becomes_float64_is_plain_again() -> None:
    model, prompt = make(FAMILY), prompt_of(9, "products")
    Target(model)
    model.double()
    logits = Target(model).prefill(prompt)
    assert not _layers(model)
    assert logits.dtype == torch.float64


def test_weights_beyond_the_limit_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "PACK_LIMIT", 1000)
    model = make(FAMILY)
    Target(model)
    assert not _layers(model)


def test_a_subclass_of_linear_keeps_its_own_product() -> None:
    class Scaled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    model = make(FAMILY)
    model.lm_head.__class__ = Scaled
    Target(model)
    assert type(model.lm_head) is Scaled


def test_the_model_can_be_pickled_and_its_state_dict_is_the_same() -> None:
    model = make(FAMILY)
    names = list(model.state_dict())
    Target(model)
    assert list(model.state_dict()) == names
    layer = pickle.loads(pickle.dumps(_layers(model)[0]))
    x = torch.randn(2, layer.in_features)
    torch.testing.assert_close(layer(x), x @ layer.weight.T)
