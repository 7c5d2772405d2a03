"""One row of the result: an op in one form on one shape, or a peer's kernel in its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from specdecodes.benchmark.kernels import problems
from specdecodes.benchmark.kernels.ops import FORMS, OPS, forced
from specdecodes.benchmark.kernels.peers import Loaded
from specdecodes.benchmark.kernels.problems import Numbers, Problem, Where
from specdecodes.benchmark.kernels.timing import Roofline, timed
from specdecodes.benchmark.shapes import SHAPES

CACHE = {"cpu": 64 << 20, "cuda": 256 << 20}
"""Bytes that the calls of one repeat take together, so that none finds its inputs in a cache: another layer's were."""
MOST_COPIES = 16
FAILURES = (RuntimeError, AssertionError, TypeError, ValueError, AttributeError, ImportError, KeyError, OSError)
"""What a peer's kernel may end in; then its row says so and the others go on."""


@dataclass(frozen=True)
class Case:
    """An op on a shape, for a number of nodes."""

    shape: str
    op: str
    nodes: int


@dataclass(frozen=True)
class Row:
    """What was counted, predicted and, where ``seconds`` is not None, measured.

    ``form``: of ours, or ``peer:NAME``. ``error``: relative, against float64. ``note``: what went wrong.
    """

    shape: str
    op: str
    nodes: int
    form: str
    bytes: int
    flops: int
    launches: int
    predicted_seconds: float
    bound: str
    seconds: float | None = None
    least: float | None = None
    most: float | None = None
    captured: bool = False
    copies: int = 0
    error: float | None = None
    note: str = ""


def cases(shapes: Sequence[str], ops: Sequence[str], counts: Sequence[int]) -> list[Case]:
    """Every op that a shape has, at every number of nodes at which it differs."""
    return [
        Case(shape, op, count)
        for shape in shapes
        for op in ops
        if OPS[op].takes(SHAPES[shape]) is not None
        for count in OPS[op].nodes(counts)
    ]


def forms_of(case: Case, where: Where, wanted: Sequence[str]) -> list[str]:
    """The forms, among ``wanted``, that run here."""
    op = OPS[case.op]
    return [form for form in FORMS if form in wanted and op.serves(form, op.takes(SHAPES[case.shape]), where)]


def predicted(case: Case, where: Where, roofline: Roofline, form: str = "predicted") -> Row:
    """What the roofline says; nothing is run."""
    op = OPS[case.op]
    cost = op.cost(op.takes(SHAPES[case.shape]), case.nodes, where)
    counted = (cost.bytes, cost.flops, cost.launches)
    return Row(case.shape, case.op, case.nodes, form, *counted, roofline.predict(cost), roofline.bound(cost))


def measured(case: Case, where: Where, form: str, roofline: Roofline, repeats: int) -> Row:
    """Time one of our forms."""
    row = predicted(case, where, roofline, form)
    with forced(form), torch.inference_mode():
        return _timed(row, list(_problems(row, where, form)), where, repeats)


def measured_peer(case: Case, where: Where, loaded: Loaded, roofline: Roofline, repeats: int) -> Row:
    """Time a peer's kernel on the inputs that ours get: those of a chain, if it knows no trees."""
    row = predicted(case, where, roofline, f"peer:{loaded.name}")
    where = replace(where, chain=loaded.peer.chain)
    try:
        with torch.inference_mode():
            made = [loaded.bound(each) for each in _problems(row, where, "naive")]
            return _timed(row, made, where, repeats)
    except FAILURES as error:
        said = " ".join(str(error).split()) or type(error).__name__
        return replace(row, note=f"{row.form} failed: {said[:200]}")


def _problems(row: Row, where: Where, form: str) -> Iterator[Problem]:
    op = OPS[row.op]
    for copy in range(min(MOST_COPIES, -(-CACHE[where.device.type] // row.bytes))):
        numbers = Numbers(where, row.op, row.nodes, copy)
        yield op.build(op.takes(SHAPES[row.shape]), row.nodes, where, numbers, form)


def _timed(row: Row, made: Sequence[Problem], where: Where, repeats: int) -> Row:
    gap = problems.error(made[0])
    timing = timed([each.run for each in made], where.device, repeats)
    return replace(row, error=gap, copies=len(made), **vars(timing))
