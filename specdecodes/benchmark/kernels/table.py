"""The rows as tables, one per shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from specdecodes.benchmark.kernels.measure import Row
from specdecodes.benchmark.kernels.timing import Roofline
from specdecodes.benchmark.shapes import SHAPES, Mamba2Sizes

COUNTED = ("MB", "MFLOP", "launches", "bound by", "roofline us")
MEASURED = ("us", "of roofline", "GB/s", "GFLOP/s", "error")

TOGETHER = {"mamba2_tree": "scan", "tree_conv": "conv", "mamba2_commit": "replay"}
"""What a state-space model adds to a step that scores a tree; the first two are of one layer, the last of all."""
GOALS = {("mamba-in-llama-8b", 13): 4.0, ("mamba-in-llama-8b", 64): 2.0}
"""How many times as fast as a peer these ops are to be, by shape and nodes; see benchmark/results/README.md."""


def print_rows(rows: Sequence[Row], roofline: Roofline, console: Console) -> None:
    """Print a table of one shape's rows; what was not measured has no columns."""
    if not rows:
        return
    has_times = any(row.seconds is not None or row.note for row in rows)
    shape = rows[0].shape
    table = Table(title=f"{shape}: {SHAPES[shape].about}", title_justify="left")
    for name in ("op", "nodes", "form") if has_times else ("op", "nodes"):
        table.add_column(name, justify="right" if name == "nodes" else "left", no_wrap=True)
    for name in (*COUNTED, *(MEASURED if has_times else ())):
        table.add_column(name, justify="right")
    for row in rows:
        cells = [row.op, str(row.nodes), *([row.form] if has_times else []), *_counted(row)]
        table.add_row(*cells, *(_measured(row, roofline) if has_times else ()))
    console.print(table)
    for row in rows:
        if row.note:
            console.print(Text(f"{row.op}, {row.nodes} nodes: {row.note}"))


def together(rows: Sequence[Row]) -> Iterator[str]:
    """Of one shape's rows: a line for every form of ours that has all of :data:`TOGETHER`, and peer that has them."""
    found: dict[tuple[int, str], dict[str, Row]] = {}
    for row in rows:
        if row.op in TOGETHER and row.seconds is not None:
            found.setdefault((row.nodes, row.form), {})[row.op] = row
    whole = {key: parts for key, parts in found.items() if len(parts) == len(TOGETHER)}
    for (nodes, form), parts in whole.items():
        for (count, other), peers in whole.items():
            if count == nodes and other.startswith("peer:") and not form.startswith("peer:"):
                yield _compared(nodes, {form: parts, other: peers})


def _compared(nodes: int, parts: dict[str, dict[str, Row]]) -> str:
    shape = next(iter(parts.values()))["mamba2_commit"].shape
    sizes = SHAPES[shape].sizes[Mamba2Sizes]
    # The replay of all layers is one op; the others are called once in each.
    seconds = [
        sum((row.seconds or 0.0) * (1 if op == "mamba2_commit" else sizes.layers) for op, row in each.items())
        for each in parts.values()
    ]
    times = ", ".join(f"{form} {each * 1e6:.2f} us" for form, each in zip(parts, seconds, strict=True))
    goal = f" (goal: {GOALS[shape, nodes]:g})" if (shape, nodes) in GOALS else ""
    captured = all(row.captured for each in parts.values() for row in each.values())
    return (
        f"{' + '.join(TOGETHER.values())} of {sizes.layers} layers, {nodes} nodes: {times}: "
        f"{seconds[1] / seconds[0]:.2f} times as fast{goal}, {'all' if captured else 'not all'} in CUDA graphs"
    )


def describe(roofline: Roofline, name: str) -> str:
    """One line."""
    launch = "" if roofline.launch is None else f", {roofline.launch * 1e6:.2f} us the smallest call"
    speeds = f"{roofline.bandwidth / 1e9:.1f} GB/s, {roofline.peak / 1e9:.1f} GFLOP/s"
    return f"roofline of {name}: {speeds}{launch} ({roofline.source})"


def _counted(row: Row) -> list[str]:
    return [
        f"{row.bytes / 1e6:.3f}",
        f"{row.flops / 1e6:.2f}",
        str(row.launches),
        row.bound,
        f"{row.predicted_seconds * 1e6:.2f}",
    ]


def _measured(row: Row, roofline: Roofline) -> list[str]:
    if row.seconds is None:
        return ["-"] * len(MEASURED)
    bandwidth, speed = row.bytes / row.seconds, row.flops / row.seconds
    return [
        f"{row.seconds * 1e6:.2f}",
        f"{row.predicted_seconds / row.seconds:.0%}",
        f"{bandwidth / 1e9:.1f} ({bandwidth / roofline.bandwidth:.0%})",
        f"{speed / 1e9:.1f} ({speed / roofline.peak:.0%})",
        "-" if row.error is None else f"{row.error:.1e}",
    ]
