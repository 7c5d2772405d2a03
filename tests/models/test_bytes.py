"""What back-ends keep per tree node, counted in allocated bytes, against the formulas of STree (section 4.3)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from specdecodes.models.passes import TreePass
from specdecodes.models.target import Target
from specdecodes.plugins.states.base import StateBackend
from specdecodes.plugins.states.copy import StateCopy
from specdecodes.plugins.states.reforward import Reforward
from specdecodes.plugins.states.replay import Replay

from .configs import FAMILIES, RECURRENT, each
from .families import make, prompt_of, tree_of


def kept_bytes(kept: Any) -> int:
    """Allocated bytes behind all tensors in nested tuples and lists; memory that is shared counts once."""
    found: dict[int, int] = {}

    def collect(part: Any) -> None:
        if isinstance(part, Tensor):
            found[part.untyped_storage().data_ptr()] = part.untyped_storage().nbytes()
        else:
            for inner in part:
                collect(inner)

    collect(kept)
    return sum(found.values())


def formula(backend: type[StateBackend], name: str, mixer: nn.Module, itemsize: int) -> int:
    """Bytes per node of one stock mixer; a state is float32 in every model that is not float64."""
    if backend is Reforward:
        return 0
    recurrence = FAMILIES[name].recurrence
    conv = next(module for module in mixer.modules() if isinstance(module, nn.Conv1d))
    channels, width = conv.in_channels, conv.kernel_size[0]
    kept, state = {"mamba2": mamba2, "s6": s6, "delta": delta, "conv": lambda *_: (0, 0)}[recurrence](mixer, itemsize)
    if backend is Replay:
        return channels * itemsize + kept
    return width * channels * itemsize + state * 4


def mamba2(mixer: nn.Module, itemsize: int) -> tuple[int, int]:
    """A step size per head; bytes, and numbers of a state."""
    return mixer.num_heads * itemsize, mixer.num_heads * mixer.head_dim * mixer.ssm_state_size


def s6(mixer: nn.Module, itemsize: int) -> tuple[int, int]:
    """A step size per channel, and one input direction per scan."""
    heads = getattr(mixer, "n_mamba_heads", 1)
    return (mixer.intermediate_size + heads * mixer.ssm_state_size) * itemsize, mixer.A_log.numel()


def delta(mixer: nn.Module, itemsize: int) -> tuple[int, int]:
    """A key in the model's dtype, a correction and log decays in float32, per head."""
    if hasattr(mixer, "forget_gate"):  # Kimi: a decay per key channel
        heads, key, value, decays = mixer.num_heads, mixer.head_dim, mixer.head_dim, mixer.head_dim
    else:
        heads, key, value, decays = mixer.num_v_heads, mixer.head_k_dim, mixer.head_v_dim, 1
    return heads * (key * itemsize + value * 4 + decays * 4), heads * key * value


@pytest.mark.parametrize("backend", [Replay, StateCopy, Reforward], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", each(RECURRENT))
def test_kept_bytes_equal_the_formula(name: str, dtype: torch.dtype, backend: type[StateBackend]) -> None:
    target = Target(make(name, dtype), backend=backend())
    mixers = [module for module in target.model.modules() if any(isinstance(m, nn.Conv1d) for m in module.children())]
    per_node = sum(formula(backend, name, mixer, dtype.itemsize) for mixer in mixers)
    assert len(mixers) >= 2
    target.prefill(prompt_of(5))
    assert backend.bytes_per_node(target) == per_node
    for shape in ("single", "stree", "deep"):
        tree = tree_of(shape)
        target.score(tree)
        assert kept_bytes(target.kept) == per_node * tree.shape[1], shape
        kept_elsewhere = [
            tensor
            for current in target._passes.values()
            if isinstance(current, TreePass)
            for tensor in (*current.convs.values(), *current.scans.values())
        ]
        assert not kept_elsewhere
    target.commit(torch.tensor([[0]]))
    assert kept_bytes(target.kept) == 0


def test_replay_keeps_far_less_than_copy() -> None:
    target = Target(make("mamba2"))
    target.prefill(prompt_of(5))
    assert StateCopy.bytes_per_node(target) > 8 * Replay.bytes_per_node(target)
    assert Reforward.bytes_per_node(target) == 0


def test_attention_alone_keeps_nothing() -> None:
    for backend in (Replay(), StateCopy(), Reforward()):
        target = Target(make("llama"), backend=backend)
        target.prefill(prompt_of(5))
        target.score(tree_of("stree"))
        assert kept_bytes(target.kept) == 0
        assert backend.bytes_per_node(target) == 0
