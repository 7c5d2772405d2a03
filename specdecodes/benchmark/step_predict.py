"""What the published figures of a card allow a step: bytes and FLOPs counted, nothing run.

The sum, over the ops of a model, of the larger of moving and computing (:mod:`specdecodes.benchmark.kernels.costs`).
Weights are read once, whatever the number of nodes. Launches are counted; their time is not in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from specdecodes.benchmark.kernels import costs
from specdecodes.benchmark.kernels.costs import Cost, Widths
from specdecodes.benchmark.kernels.timing import published
from specdecodes.benchmark.shapes import AttentionSizes, DeltaSizes, Mamba2Sizes, S6Sizes, Shape
from specdecodes.benchmark.step_ways import leftmost, weight_count


@dataclass(frozen=True)
class Predicted:
    """The least that a step can take: scoring ``nodes`` nodes and committing a path; ``nodes`` 1: plain decoding.

    Attributes:
        bytes, flops, launches: of all ops together. milliseconds: without the launches. plain_steps: of the same card.
    """

    nodes: int
    bytes: int
    flops: int
    launches: int
    milliseconds: float
    plain_steps: float


def predict(shape: Shape, nodes: int, card: str, dtype: torch.dtype, context: int) -> Predicted:
    """One step on a card of :data:`specdecodes.benchmark.kernels.timing.PUBLISHED`.

    Raises:
        ValueError: a model with experts, of which a step reads as many as its nodes happen to choose.
    """
    experts = [name for name in vars(shape.config()) if "experts" in name and getattr(shape.config(), name)]
    if experts:
        raise ValueError(
            f"--predict: expected a shape without experts, got {experts[0]} in {shape.about}; name another --shape"
        )
    roofline = published(card, dtype)
    least, plain = (list(_costs(shape, count, dtype, context)) for count in (nodes, 1))
    seconds, unit = (sum(map(roofline.predict, each)) for each in (least, plain))
    return Predicted(
        nodes=nodes,
        bytes=sum(each.bytes for each in least),
        flops=sum(each.flops for each in least),
        launches=sum(each.launches for each in least),
        milliseconds=seconds * 1e3,
        plain_steps=seconds / unit,
    )


def _costs(shape: Shape, nodes: int, dtype: torch.dtype, context: int) -> Iterator[Cost]:
    """Of every op of a step; a plain one moves its states while it scores and commits nothing."""
    w, length = Widths.of(dtype), len(leftmost(nodes))
    weights, products = weight_count(shape.skeleton)
    yield Cost(weights * w.model, 2 * weights * nodes, launches=products)
    for sizes in shape.sizes.values():
        if isinstance(sizes, AttentionSizes):
            yield _times(sizes.layers, costs.tree_attention(sizes, nodes, context, w))
            if nodes > 1:
                yield costs.kv_gather(sizes, length, w)
            continue
        conv = costs.tree_conv(sizes, nodes, w)
        if isinstance(sizes, Mamba2Sizes) and nodes == 1:
            scan = costs.mamba2_step(sizes, w)
        elif isinstance(sizes, Mamba2Sizes):  # the path that the step before accepted goes in front of the tree
            scan, conv = (each(sizes, nodes, length, w) for each in (costs.mamba2_replay_tree, costs.replay_conv))
            yield costs.mamba2_defer(sizes, length, w)
        else:
            scan = (
                costs.delta_tree(sizes, nodes, w) if isinstance(sizes, DeltaSizes) else costs.s6_tree(sizes, nodes, w)
            )
            # The states are read for the scan and, once more, read and written for the commit.
            state = _state_bytes(sizes, w)
            if nodes > 1 and isinstance(sizes, DeltaSizes):
                yield costs.delta_commit(sizes, length, w)
            else:
                yield Cost(sizes.layers * state * (1 if nodes == 1 else 2), 0, launches=0 if nodes == 1 else 1)
        yield _times(sizes.layers, conv)
        yield _times(sizes.layers, scan)


def _state_bytes(sizes: DeltaSizes | S6Sizes, w: Widths) -> int:
    if isinstance(sizes, DeltaSizes):
        return sizes.heads * sizes.key_dim * sizes.value_dim * w.state
    return sizes.channels * sizes.state_dim * w.state


def _times(layers: int, cost: Cost) -> Cost:
    return Cost(layers * cost.bytes, layers * cost.flops, layers * cost.launches)
