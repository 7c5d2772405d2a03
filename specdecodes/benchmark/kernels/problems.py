"""Inputs for every op, of the shapes and dtypes that a score or a commit hands over, and the op called as they call it.

Letters: as in ``costs``. One row (B = 1).
"""

from __future__ import annotations

import weakref
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from specdecodes.benchmark.kernels.costs import Widths
from specdecodes.benchmark.shapes import AttentionSizes, DeltaSizes, Mamba2Sizes, Product, S6Sizes
from specdecodes.core.tree import Topology
from specdecodes.kernels import causal_conv, choice, mamba2_scan
from specdecodes.kernels.gated_delta import normalize
from specdecodes.kernels.linear.packed import pack, packed_linear, unpack
from specdecodes.kernels.tree_attention import tree_attention as attend
from specdecodes.models.cache import AttentionRows
from specdecodes.models.masks import behind_prefix
from specdecodes.models.recurrences.gated_delta import DeltaInputs, GatedDeltaLayer, GatedDeltaStack
from specdecodes.models.recurrences.kimi_delta import KimiDeltaLayer
from specdecodes.models.recurrences.layer import PendingPath, RecurrentLayer
from specdecodes.models.recurrences.mamba2 import PENDING, Mamba2Inputs, Mamba2Layer, Mamba2Stack
from specdecodes.models.recurrences.s6 import S6Inputs, S6Layer
from specdecodes.models.recurrences.stack import RecurrentStack

LONGEST_PATH = 4
"""Nodes that are committed, where the tree has as many."""
EXACT_ROWS = 4096
"""Outputs of a weight that are computed in float64 at once."""


@dataclass(frozen=True)
class Where:
    """What a problem is made for: device, the model's dtype, committed tokens, a chain instead of a random tree."""

    device: torch.device
    dtype: torch.dtype
    context: int = 1024
    chain: bool = False

    @property
    def widths(self) -> Widths:
        """Bytes of an element."""
        return Widths.of(self.dtype)


Outputs = Sequence[Tensor]


@dataclass(frozen=True)
class Problem:
    """One call of an op.

    Attributes:
        run: the op; some work in place, on inputs that stay bounded however often they run.
        exact: what the first ``run`` returns, in float64 by the plain form; called before it.
        given: the inputs, by the names that peers' adapters read.
    """

    run: Callable[[], Outputs]
    exact: Callable[[], Outputs]
    given: dict[str, Any] = field(default_factory=dict)


class Numbers:
    """Normal random numbers that depend on ``parts`` only, for the device."""

    def __init__(self, where: Where, *parts: object) -> None:
        self.where = where
        self.source = torch.Generator(where.device).manual_seed(zlib.crc32(repr(parts).encode()))

    def model(self, *shape: int) -> Tensor:
        """In the model's dtype."""
        return torch.randn(*shape, generator=self.source, device=self.where.device, dtype=self.where.dtype)

    def state(self, *shape: int) -> Tensor:
        """In the dtype of states."""
        kind = mamba2_scan.compute_dtype(self.where.dtype)
        return torch.randn(*shape, generator=self.source, device=self.where.device, dtype=kind)


def topology(count: int, where: Where) -> Topology:
    """Of a random tree, the same for the same count; or of a chain."""
    source = torch.Generator().manual_seed(count)
    above = [i - 1 if where.chain else int(torch.randint(i, (1,), generator=source)) for i in range(1, count)]
    return Topology(torch.tensor([[-1, *above]], device=where.device))


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


def linear(products: Sequence[Product], count: int, where: Where, numbers: Numbers, packed: bool) -> Problem:
    """Products of T rows with weights; ``packed``: from copies that were laid out once (``kernels/linear``)."""
    weights = [numbers.model(out, features).mul_(features**-0.5) for out, features in products]
    rows = [numbers.model(count, features) for _, features in products]

    def exact() -> Outputs:
        return [
            torch.cat([x.double() @ part.double().T for part in weight.split(EXACT_ROWS)], dim=1)
            for x, weight in zip(rows, weights, strict=True)
        ]

    if not packed:
        return Problem(lambda: [F.linear(x, weight) for x, weight in zip(rows, weights, strict=True)], exact)
    calls = [(x, None, pack(weight), len(weight)) for x, weight in zip(rows, weights, strict=True)]

    def run() -> Outputs:
        return [packed_linear(*call) for call in calls]

    for call in calls:
        weakref.finalize(run, unpack, call[2])
    return Problem(run, exact)


def kv_gather(sizes: AttentionSizes, count: int, where: Where, numbers: Numbers) -> Problem:
    """Move the accepted rows of all attention layers to where the committed ones end."""
    n, s, length = numbers, sizes, path_length(count)
    layers = []
    for _ in range(s.layers):
        rows = AttentionRows(where.context + count)
        like = n.model(1, s.kv_heads, 1, s.head_dim)
        rows.reserve(where.context + count, like, like)
        assert rows.keys is not None and rows.values is not None
        rows.keys.normal_(generator=n.source)
        rows.values.normal_(generator=n.source)
        layers.append(rows)
    source = torch.linspace(0, count - 1, length, device=where.device).long() + where.context
    target = torch.arange(length, device=where.device) + where.context

    def run() -> Outputs:
        for rows in layers:
            rows.move(source, target)
        end = where.context + length
        return [each[:, :, where.context : end] for rows in layers for each in _kept(rows)]

    def exact() -> Outputs:
        return [each.index_select(2, source).double() for rows in layers for each in _kept(rows)]

    return Problem(run, exact)


def tree_attention(sizes: AttentionSizes, count: int, where: Where, numbers: Numbers) -> Problem:
    """Attention of T nodes over the committed rows and each other: split in two, or stock sdpa under our mask."""
    n, s, visible = numbers, sizes, where.context + count
    q = n.model(1, s.heads, count, s.head_dim)
    k, v = (n.model(1, s.kv_heads, visible, s.head_dim) for _ in range(2))
    tree = topology(count, where)
    mask = behind_prefix(tree.mask(where.dtype), where.context, visible)
    module: Any = SimpleNamespace(num_key_value_groups=s.heads // s.kv_heads, is_causal=False)

    def exact() -> Outputs:
        keys, values = (each.double().repeat_interleave(s.heads // s.kv_heads, dim=1) for each in (k, v))
        scores = q.double() @ keys.mT * s.head_dim**-0.5 + behind_prefix(
            tree.mask(torch.float64), where.context, visible
        )
        return ((scores.softmax(-1) @ values).transpose(1, 2),)

    lengths = torch.tensor([where.context], device=where.device)
    scale = s.head_dim**-0.5

    def run() -> Outputs:
        if choice.serves("triton", where.device.type, where.dtype):
            return (attend(q, k, v, lengths, tree.ancestors, scale),)
        return (sdpa_attention_forward(module, q, k, v, mask, scaling=scale)[0],)

    return Problem(run, exact)


def path_length(count: int) -> int:
    """Nodes of a tree that are committed."""
    return min(count, LONGEST_PATH)


def error(problem: Problem) -> float:
    """Largest difference from float64 over the largest value; what is not finite counts as infinite."""
    expected = [each.double() for each in problem.exact()]
    found = problem.run()
    gaps = [_gap(ours.double(), exact) for ours, exact in zip(found, expected, strict=True)]
    return max(gap if gap == gap else float("inf") for gap in gaps)


def _gap(ours: Tensor, exact: Tensor) -> float:
    return float((ours - exact).abs().max() / exact.abs().max().clamp(min=torch.finfo(torch.float64).tiny))


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


def _kept(rows: AttentionRows) -> tuple[Tensor, Tensor]:
    assert rows.keys is not None and rows.values is not None
    return rows.keys, rows.values
