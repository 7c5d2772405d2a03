"""Problems of recurrent mixers: scans, convs and commits of trees (see ``problems``). Letters: as in ``costs``."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from specdecodes.benchmark.kernels.problems import Numbers, Outputs, Problem, Where, path_length, topology
from specdecodes.benchmark.shapes import DeltaSizes, Mamba2Sizes, S6Sizes
from specdecodes.core.tree import Topology
from specdecodes.kernels import causal_conv, mamba2_scan
from specdecodes.kernels.gated_delta import normalize
from specdecodes.models.recurrences.gated_delta import DeltaInputs, GatedDeltaLayer, GatedDeltaStack
from specdecodes.models.recurrences.kimi_delta import KimiDeltaLayer
from specdecodes.models.recurrences.layer import PendingPath, RecurrentLayer
from specdecodes.models.recurrences.mamba2 import PENDING, Mamba2Inputs, Mamba2Layer, Mamba2Stack
from specdecodes.models.recurrences.s6 import S6Inputs, S6Layer
from specdecodes.models.recurrences.stack import RecurrentStack


def mamba2_tree(sizes: Mamba2Sizes, count: int, where: Where, numbers: Numbers) -> Problem:
    """Score the nodes of a tree in one mixer."""
    n, s = numbers, sizes
    x = n.model(1, count, s.heads, s.head_dim)
    B, C = (n.model(1, count, s.groups, s.state_dim) for _ in range(2))
    dt = n.model(1, count, s.heads)
    inputs = Mamba2Inputs(x, dt, F.softplus(n.state(*dt.shape) - 1), -n.state(s.heads).exp(), B, C, n.state(s.heads))
    return _scored(Mamba2Layer, n.state(1, s.heads, s.head_dim, s.state_dim), inputs, topology(count, where))


def mamba2_step(sizes: Mamba2Sizes, where: Where, numbers: Numbers) -> Problem:
    """Plain decoding's op in one mixer."""
    n, s = numbers, sizes
    state = n.state(1, s.heads, s.head_dim, s.state_dim)
    given = {
        "x": n.model(1, s.heads, s.head_dim),
        "dt": F.softplus(n.state(1, s.heads) - 1),
        "A": -n.state(s.heads).exp(),
        "B": n.model(1, s.groups, s.state_dim),
        "C": n.model(1, s.groups, s.state_dim),
        "D": n.state(s.heads),
    }

    def exact() -> Outputs:
        return (mamba2_scan.step_(state.double(), **{name: each.double() for name, each in given.items()}),)

    return Problem(lambda: (mamba2_scan.step_(state, **given),), exact, {**given, "state": state})


def mamba2_commit(sizes: Mamba2Sizes, count: int, where: Where, numbers: Numbers) -> Problem:
    """Move the windows and states of all mixers along a path of at most ``LONGEST_PATH`` of a tree's nodes.

    From the raw inputs that a score of the tree kept.
    """
    n, s = numbers, sizes
    layers = [
        Mamba2Layer(
            index,
            window=n.model(1, s.channels, s.taps),
            state=n.state(1, s.heads, s.head_dim, s.state_dim),
            weight=n.model(s.channels, s.taps) * s.taps**-0.5,
            bias=n.model(s.channels),
            activation="silu",
            A=-n.state(s.heads).exp(),
            dt_bias=n.state(s.heads) - 1,
            groups=s.groups,
        )
        for index in range(s.layers)
    ]
    inputs, dt = n.model(s.layers, 1, count, s.channels), n.model(s.layers, 1, count, s.heads)
    return _committed(Mamba2Stack, layers, count, where, inputs, dt)


def mamba2_replay_tree(sizes: Mamba2Sizes, count: int, where: Where, numbers: Numbers) -> Problem:
    """Score the nodes of a tree in one mixer, whose state moves along the path of the step before on the way."""
    n, s = numbers, sizes
    tree, pending = mamba2_tree(sizes, count, where, numbers).given, _pending(sizes, count, where, numbers)
    dt_bias = n.state(s.heads) - 1
    given = [tree[name] for name in ("x", "steps", "A", "B", "C", "D", "state", "ancestors")]
    given += [n.model(*pending.inputs.shape), pending.kept, pending.length, dt_bias]

    def scanned(*given: Tensor) -> Outputs:
        return mamba2_scan.replay_scan_(*given, shared=s.shared, softplus=True), given[6]

    return Problem(lambda: scanned(*given), lambda: scanned(*(_wide(each, copy=True) for each in given)))


def replay_conv(sizes: Mamba2Sizes, count: int, where: Where, numbers: Numbers) -> Problem:
    """Convolve the nodes of a tree in one mixer, whose window moves along the path of the step before on the way."""
    tree, pending = tree_conv(sizes, count, where, numbers).given, _pending(sizes, count, where, numbers)
    index = topology(count, where).windows(sizes.taps)
    given = [tree["x"], tree["window"], index, tree["weight"], tree["bias"]]

    def convolved(inputs: Tensor, x: Tensor, window: Tensor, *others: Tensor) -> Outputs:
        index, weight, bias = others
        y, path = causal_conv.replay_conv_(x, window, index, weight, bias, "silu", inputs, pending.length)
        return y, path[:, : path_length(count)], window

    return Problem(
        lambda: convolved(pending.inputs, *given),
        lambda: convolved(*(_wide(each, copy=True) for each in (pending.inputs, *given))),
    )


def mamba2_defer(sizes: Mamba2Sizes, count: int, where: Where, numbers: Numbers) -> Problem:
    """What a commit does where the path waits for the next score: gather its inputs, of all mixers."""
    n, s, length = numbers, sizes, path_length(count)
    inputs, dt = n.model(s.layers, 1, count, s.channels), n.model(s.layers, 1, count, s.heads)
    path = torch.arange(length, device=where.device)[None]
    pending = PendingPath.room(s.layers, inputs, PENDING, s.heads)

    def taken() -> Outputs:
        pending.take(path, inputs, dt)
        return pending.inputs[:, :, :length], pending.kept[:, :, :length]

    return Problem(taken, lambda: (inputs[:, :, :length].double(), dt[:, :, :length].double()))


def _pending(sizes: Mamba2Sizes, count: int, where: Where, numbers: Numbers) -> PendingPath:
    """Of one mixer, a path of as many nodes as a tree of ``count`` commits."""
    room = PendingPath.room(1, numbers.model(1, 1, sizes.channels), PENDING, sizes.heads)
    room.inputs.normal_(generator=numbers.source)
    room.kept.normal_(generator=numbers.source)
    room.length.fill_(path_length(count))
    return room.of_layer(0)


def tree_conv(sizes: Mamba2Sizes | DeltaSizes | S6Sizes, count: int, where: Where, numbers: Numbers) -> Problem:
    """Convolve the nodes of a tree in one mixer."""
    n, s = numbers, sizes
    x, window = n.model(1, count, s.channels).mT, n.model(1, s.channels, s.taps)
    weight, bias = n.model(s.channels, s.taps), n.model(s.channels)
    tree = topology(count, where)
    index = tree.windows(s.taps)

    def convolved(kind: torch.dtype) -> Outputs:
        inputs = (x.to(kind), window.to(kind), index, weight.to(kind), bias.to(kind))
        return (causal_conv.tree_conv(*inputs, "silu"),)

    given = {"x": x, "window": window, "weight": weight, "bias": bias, "ancestors": tree.ancestors}
    return Problem(lambda: convolved(where.dtype), lambda: convolved(torch.float64), given)


def delta_tree(sizes: DeltaSizes, count: int, where: Where, numbers: Numbers) -> Problem:
    """Score the nodes of a tree in one mixer of the gated delta rule or of Kimi delta attention."""
    n, s = numbers, sizes
    q, k = (n.model(1, count, s.heads, s.key_dim) for _ in range(2))
    v, beta = n.model(1, count, s.heads, s.value_dim), n.model(1, count, s.heads).sigmoid()
    g = -F.softplus(n.state(1, count, s.heads, s.decays) - 1)
    state = n.state(1, s.heads, s.key_dim, s.value_dim)
    kind = KimiDeltaLayer if s.per_channel else GatedDeltaLayer
    found = _scored(kind, state, DeltaInputs(normalize(q), normalize(k), v, g, beta, k), topology(count, where))
    found.given.update(q=q, k=k)  # as the model has them: peers normalise by themselves
    return found


def delta_commit(sizes: DeltaSizes, count: int, where: Where, numbers: Numbers) -> Problem:
    """As :func:`mamba2_commit`, from keys, corrections and log decays."""
    n, s = numbers, sizes
    kind = KimiDeltaLayer if s.per_channel else GatedDeltaLayer
    layers = [
        kind(
            index,
            window=n.model(1, s.channels, s.taps),
            state=n.state(1, s.heads, s.key_dim, s.value_dim),
            normalizes=True,
        )
        for index in range(s.layers)
    ]
    nodes = (s.layers, 1, count)
    keys, corrections = n.model(*nodes, s.heads, s.key_dim), n.state(*nodes, s.heads, s.value_dim)
    decays = -F.softplus(n.state(*nodes, s.heads, s.decays) - 1)
    return _committed(GatedDeltaStack, layers, count, where, n.model(*nodes, s.channels), keys, corrections, decays)


def s6_tree(sizes: S6Sizes, count: int, where: Where, numbers: Numbers) -> Problem:
    """Score the nodes of a tree in one Mamba-1 mixer."""
    n, s = numbers, sizes
    x, dt = n.model(1, count, s.channels), n.model(1, count, s.channels)
    B, C = (n.model(1, count, s.state_dim) for _ in range(2))
    steps, A = F.softplus(n.state(*dt.shape) - 1), -n.state(s.channels, s.state_dim).exp()
    inputs = S6Inputs(x, dt, steps, A, B, C, None, None, 0)
    state = n.state(1, s.channels, s.state_dim)
    return _scored(S6Layer, state, inputs, topology(count, where), width=s.channels)


def _scored(
    kind: type[RecurrentLayer],
    state: Tensor,
    inputs: Any,  # noqa: ANN401 - the adapter's own
    tree: Topology,
    **fields: Any,
) -> Problem:
    """The scan of a layer whose committed state is ``state``; its window only says how many channels there are."""
    window = state.new_zeros(1, fields.get("width", 0), 1)
    # Levels are read on the host, as a target reads them on a CPU alone.
    levels = tree.levels if state.device.type == "cpu" else None
    scored: Any = SimpleNamespace(ancestors=tree.ancestors, parents=tree.parents, levels=levels)
    layer = kind(0, window=window, state=state, **fields)
    wide = kind(0, window=window, state=state.double(), **fields)
    widened = type(inputs)(*map(_wide, inputs))
    given = {**inputs._asdict(), "state": state, "ancestors": tree.ancestors}
    return Problem(
        lambda: layer.score(inputs, scored, "inputs")[:1], lambda: wide.score(widened, scored, "inputs")[:1], given
    )


def _committed(
    kind: type[RecurrentStack],
    layers: Sequence[RecurrentLayer],
    count: int,
    where: Where,
    *kept: Tensor,
) -> Problem:
    """Move all layers along the first nodes of the tree; ``kept``: what scoring kept, conv inputs first."""
    path = torch.arange(path_length(count), device=where.device)[None]
    wide = [type(layer)(**{name: _wide(value) for name, value in vars(layer).items()}) for layer in layers]
    stack, exact = (kind(each, lambda function: function) for each in (layers, wide))

    def moved(stack: RecurrentStack, *kept: Tensor) -> Outputs:
        stack.jump(path, *kept)
        assert stack.states is not None
        return stack.states, stack.windows

    given = {"stack": stack, "kept": kept, "path": path}
    return Problem(lambda: moved(stack, *kept), lambda: moved(exact, *map(_wide, kept)), given)


def _wide(value: Any, copy: bool = False) -> Any:  # noqa: ANN401 - of any field
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(torch.float64, copy=copy) if floating else value
