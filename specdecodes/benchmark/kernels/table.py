"""The rows as tables, one per shape."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from specdecodes.benchmark.kernels.measure import Row
from specdecodes.benchmark.kernels.timing import Roofline
from specdecodes.benchmark.shapes import SHAPES

COUNTED = ("MB", "MFLOP", "launches", "bound by", "roofline us")
MEASURED = ("us", "of roofline", "GB/s", "GFLOP/s", "error")


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
