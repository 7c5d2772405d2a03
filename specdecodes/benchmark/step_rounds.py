"""Rounds of plain steps and trees on one model, and what comes out of them, for :mod:`specdecodes.benchmark.step`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor
from transformers import PreTrainedModel

from specdecodes.benchmark.kernels.timing import measure_roofline
from specdecodes.benchmark.shapes import shape_named
from specdecodes.benchmark.step_device import device_share
from specdecodes.benchmark.step_ways import Stock, Way, build_model, random_ids, seconds, weight_count
from specdecodes.core.decoder import Decoder, Generation
from specdecodes.core.load import load
from specdecodes.models.loading import parse_device, parse_dtype

NODES = (1, 4, 8, 13, 16, 32, 64, 128)
COPIES = 10
"""Large copies, of which the fastest counts."""
NEW_TOKENS = 64
"""Of an answer of the whole decode steps."""
DECODE_TREE = "3,2.1,2.1,3"
"""STree's 13 nodes, for the whole decode steps."""


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        shape: a name of :data:`specdecodes.benchmark.shapes.SHAPES`. layers: keep so many of its layers (None: all).
        nodes: tree sizes. context: committed tokens under every measurement. rounds: of which the median counts.
        compile: measure compiled steps beside the eager ones. draft: the drafter of the whole decode steps.
    """

    shape: str = "embedded"
    layers: int | None = None
    nodes: Sequence[int] = NODES
    context: int = 256
    rounds: int = 30
    compile: bool = False
    draft: str = "ngram"
    device: str | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        shape_named(self.shape)
        for name in ("layers", "context", "rounds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name}: expected at least 1, got {value}")
        if not self.nodes or min(self.nodes) < 1:
            raise ValueError(f"--nodes: expected tree sizes of at least 1, got {list(self.nodes)}")


@dataclass(frozen=True)
class Row:
    """A tree of ``nodes`` nodes, scored and committed one way.

    Attributes:
        score_ms, commit_ms: medians. plain_steps: both together over the run's plain step, median over rounds;
            low, high: its quartiles. own_plain_steps: over the plain step of the same way.
    """

    way: str
    nodes: int
    score_ms: float
    commit_ms: float
    plain_steps: float
    low: float
    high: float
    own_plain_steps: float


@dataclass
class Found:
    """What came out.

    Attributes:
        weight_bytes: of the weights that a step reads, the rows of the input embedding left out.
        copied: bytes a second of a large copy, read and written; floor_ms: what the weights take at that speed, in
            their dtype.
        plain_ms: one-token steps by way, medians. plain: the fastest of them, the unit of the ratios.
        kept_bytes: what scoring keeps of a tree for its commit, per node and recurrent layer.
        first_round_seconds: of one step of every size, by way: what compiling them takes, where that is done.
        decode: per way, milliseconds of the parts of a whole step of ``stree``.
        gpu: on CUDA, per way, how much of such a step the GPU works (see ``step_device.device_share``).
    """

    shape: str
    parameters: int
    weight_bytes: int
    copied: float
    floor_ms: float
    dtype: str
    device: str
    plain_ms: dict[str, float]
    plain: str
    rows: list[Row]
    kept_bytes: float | None
    first_round_seconds: dict[str, float]
    decode: dict[str, dict[str, float]] = field(default_factory=dict)
    gpu: dict[str, dict[str, float]] = field(default_factory=dict)


def measure(settings: Settings, say: Callable[[str], None] = lambda line: None) -> Found:
    """Measure one shape.

    Raises:
        ValueError: a device, dtype or drafter that does not exist, or a model that fails the self-test.
    """
    device = parse_device(settings.device)
    model = build_model(settings.shape, settings.layers, device, parse_dtype(settings.dtype, device))
    names = ("eager", "compiled") if settings.compile else ("eager",)
    ways = [Way(name, model, settings.nodes, settings.context) for name in names]
    stock = Stock(model, ways[0].prompt)
    say("warm-up")
    warm_up = {way.name: seconds(partial(_round, way, settings.nodes), device) for way in ways}
    plain, trees = _rounds(ways, stock, settings, say)
    fastest = min(plain, key=lambda name: statistics.median(plain[name]))
    say("decode steps")
    decoders = {name: _decoder(model, settings, compile=name == "compiled") for name in names}
    ids = random_ids(ways[0].target.vocab_size, settings.context, device)
    weight_bytes = weight_count(model)[0] * model.dtype.itemsize
    copied = measure_roofline(device, model.dtype, COPIES).bandwidth
    return Found(
        shape=settings.shape,
        parameters=sum(each.numel() for each in model.parameters()),
        weight_bytes=weight_bytes,
        copied=copied,
        floor_ms=weight_bytes / copied * 1e3,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(device),
        plain_ms={name: statistics.median(found) * 1e3 for name, found in plain.items()},
        plain=fastest,
        rows=[_row(*key, found, plain[fastest], plain[key[0]]) for key, found in trees.items()],
        first_round_seconds=warm_up,
        kept_bytes=ways[0].kept_bytes(max(settings.nodes)),
        decode={name: decode_step(decoder, ids) for name, decoder in decoders.items()},
        gpu={
            name: device_share(lambda: len(_answer(decoder, ids).accept_lengths))  # noqa: B023 - called at once
            for name, decoder in decoders.items()
            if device.type == "cuda"
        },
    )


def _rounds(
    ways: Sequence[Way], stock: Stock, settings: Settings, say: Callable[[str], None]
) -> tuple[dict[str, list[float]], dict[tuple[str, int], list[tuple[float, float]]]]:
    """Seconds per round: of a plain step by way, and of scoring and committing by way and number of nodes."""
    for way in ways:
        _round(way, settings.nodes)  # a compiled way has a second graph, for key lengths that change
    plain: dict[str, list[float]] = {each: [] for each in (stock.name, *(way.name for way in ways))}
    trees: dict[tuple[str, int], list[tuple[float, float]]] = {(w.name, n): [] for w in ways for n in settings.nodes}
    for number in range(settings.rounds):
        say(f"round {number + 1} of {settings.rounds}")
        plain[stock.name].append(stock.plain())
        for way in ways:
            step, found = _round(way, settings.nodes)
            plain[way.name].append(step)
            for nodes, both in found.items():
                trees[way.name, nodes].append(both)
    return plain, trees


def _decoder(model: PreTrainedModel, settings: Settings, *, compile: bool) -> Decoder:
    """``stree`` with 13 nodes.

    Raises:
        ValueError: no such drafter, or one that does not fit the model.
    """
    # Only the embedded target has default drafters of its own, and only a model with a vocabulary in common can draft.
    return load(model, settings.draft, mode="stree", tree=DECODE_TREE, compile=compile)


def _answer(decoder: Decoder, ids: Tensor) -> Generation:
    return decoder.generate(ids, max_new_tokens=NEW_TOKENS, ignore_eos=True)


def decode_step(decoder: Decoder, ids: Tensor) -> dict[str, float]:
    """Milliseconds per step of decoding after ``ids``: draft, verify, commit, host; and its tokens per step."""
    answers = [_answer(decoder, ids) for _ in range(4)]
    steps = sum(len(answer.accept_lengths) for answer in answers[1:])
    parts = {name: sum(each.timings[name] for each in answers[1:]) / steps * 1e3 for name in answers[0].timings}
    return {
        "draft": parts["propose"] + parts["build"],
        "verify": parts["verify"],
        "commit": parts["commit"],
        "host": parts["host"],
        "tau": statistics.mean(answer.tau for answer in answers[1:]),
    }


def _round(way: Way, sizes: Sequence[int]) -> tuple[float, dict[int, tuple[float, float]]]:
    way.restart()
    return way.plain(), {nodes: way.tree(nodes) for nodes in sizes}


def _row(
    way: str, nodes: int, found: Sequence[tuple[float, float]], plain: Sequence[float], own: Sequence[float]
) -> Row:
    ratios = [sum(both) / unit for both, unit in zip(found, plain, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return Row(
        way=way,
        nodes=nodes,
        score_ms=statistics.median(score for score, _ in found) * 1e3,
        commit_ms=statistics.median(commit for _, commit in found) * 1e3,
        plain_steps=statistics.median(ratios),
        low=low,
        high=high,
        own_plain_steps=statistics.median(sum(s) / unit for s, unit in zip(found, own, strict=True)),
    )
