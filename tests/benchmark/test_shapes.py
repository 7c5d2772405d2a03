"""The sizes that benchmarks measure, against what the models themselves say."""

from __future__ import annotations

import pytest

from specdecodes.benchmark.shapes import SHAPES, AttentionSizes, DeltaSizes, Mamba2Sizes, S6Sizes, Shape, shape_named

BILLIONS = {
    "embedded": 0.012,
    "hybrid-50m": 0.048,
    "llama-8b": 8.03,
    "mamba-in-llama-3b": 3.35,
    "mamba-in-llama-8b": 8.30,
    "mamba2-2.7b": 2.70,
    "bamba-9b": 9.78,
    "mamba-2.8b": 2.77,
    "qwen3-next": 20.4,
    "kimi-linear": 13.9,
}
each_shape = pytest.mark.parametrize("name", SHAPES)


@each_shape
def test_parameters(name: str) -> None:
    """As published, where the whole model is there."""
    assert SHAPES[name].parameters / 1e9 == pytest.approx(BILLIONS[name], rel=0.03)


@each_shape
def test_sizes_are_those_of_the_modules(name: str) -> None:
    """Channels and taps of every conv, and as many mixers as were counted."""
    shape = SHAPES[name]
    recurrent = [each for kind, each in shape.sizes.items() if kind is not AttentionSizes]
    weights = [w.shape for key, w in shape.skeleton.named_parameters() if "conv1d" in key and key.endswith("weight")]
    if not recurrent:
        assert not weights
        return
    (sizes,) = recurrent
    assert isinstance(sizes, Mamba2Sizes | DeltaSizes | S6Sizes)
    assert sum(w[0] for w in weights) == sizes.layers * sizes.channels
    assert {w[-1] for w in weights} == {sizes.taps}


@each_shape
def test_layers_add_up(name: str) -> None:
    config = SHAPES[name].config()
    counted = sum(each.layers for each in SHAPES[name].sizes.values())
    # Kimi-Linear's latent attention has no sizes here.
    assert config.num_hidden_layers - counted == (1 if name == "kimi-linear" else 0)


def test_products_of_a_layer() -> None:
    inner, hidden, heads = 80 * 64, 2560, 80
    assert SHAPES["mamba2-2.7b"].products == [(2 * inner + 2 * 128 + heads, hidden), (hidden, inner)]
    assert SHAPES["mamba2-2.7b"].head == (50288, hidden)


def test_stree_sizes() -> None:
    """The 8B of STree's paper: 6144 conv channels, of which four heads share x and B."""
    sizes = SHAPES["mamba-in-llama-8b"].sizes[Mamba2Sizes]
    assert sizes == Mamba2Sizes(heads=32, head_dim=128, groups=32, state_dim=128, taps=4, layers=16, shared=4)
    assert sizes.channels == 6144


def test_config_is_fresh() -> None:
    shape = SHAPES["llama-8b"]
    shape.config().num_hidden_layers = 1
    assert shape.config().num_hidden_layers == 32


def test_unknown_shape() -> None:
    assert isinstance(shape_named("embedded"), Shape)
    with pytest.raises(ValueError, match=r"--shape: expected one of bamba-9b, .*, got 'bamba-90b'"):
        shape_named("bamba-90b")
