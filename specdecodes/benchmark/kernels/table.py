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

TOGETHER = {
    "scan + conv + replay": ("mamba2_tree", "tree_conv", "mamba2_commit"),
    "replay in scan and conv": ("mamba2_replay_tree", "replay_conv", "mamba2_defer"),
}
"""What a state-space model adds to a step that scores a tree, in two ways: two ops of one layer, one of all layers."""
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
    """Of one shape's rows: a line for every way of :data:`TOGETHER` and form of ours, and peer, that has all of it."""
    found = {(row.nodes, row.form, row.op): row for row in rows if row.seconds is not None}
    ways: list[tuple[str, list[Row]]] = []
    for nodes, form in dict.fromkeys((nodes, form) for nodes, form, _ in found):
        for way, ops in TOGETHER.items():
            parts = [found[nodes, form, op] for op in ops if (nodes, form, op) in found]
            if len(parts) == len(ops):
                ways.append((way, parts))
    for way, ours in ways:
        for _, theirs in ways:
            peer = theirs[0].form.startswith("peer:") and not ours[0].form.startswith("peer:")
            if peer and ours[0].nodes == theirs[0].nodes:
                yield _compared(way, ours, theirs)


def _compared(way: str, ours: Sequence[Row], theirs: Sequence[Row]) -> str:
    shape, nodes = ours[0].shape, ours[0].nodes
    layers = SHAPES[shape].sizes[Mamba2Sizes].layers

    def seconds(parts: Sequence[Row]) -> float:
        *of_layer, of_all = (row.seconds or 0.0 for row in parts)
        return layers * sum(of_layer) + of_all

    times = ", ".join(f"{parts[0].form} {seconds(parts) * 1e6:.2f} us" for parts in (ours, theirs))
    goal = f" (goal: {GOALS[shape, nodes]:g})" if (shape, nodes) in GOALS else ""
    captured = all(row.captured for row in (*ours, *theirs))
    return (
        f"{way} of {layers} layers, {nodes} nodes: {times}: {seconds(theirs) / seconds(ours):.2f} times as fast"
        f"{goal}, {'all' if captured else 'not all'} in CUDA graphs"
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
