"""The tables of :mod:`specdecodes.benchmark.step`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from specdecodes.benchmark.step_predict import Predicted
from specdecodes.benchmark.step_rounds import Found

WIDTH = 120
"""Columns where the output is no terminal."""


def print_found(found: Found, console: Console) -> None:
    """The closing table."""
    steps = ", ".join(f"{name} {value:.3f} ms" for name, value in found.plain_ms.items())
    console.print(f"{found.shape}: {found.parameters / 1e6:.1f}M parameters, {found.dtype}, {found.device}")
    console.print(f"one-token steps: {steps}; a plain step is the fastest, {found.plain}")
    share = found.floor_ms / found.plain_ms[found.plain]
    speed = f"the {found.copied / 1e9:.1f} GB/s of a copy"
    weights = f"{found.weight_bytes / 1e6:.1f} MB, {found.floor_ms:.3f} ms"
    console.print(f"weights: {weights} at {speed}, {share:.0%} of a plain step")
    if "compiled" in found.plain_ms:
        gain = found.plain_ms["eager"] / found.plain_ms["compiled"]
        took, sizes = found.first_round_seconds["compiled"], len({row.nodes for row in found.rows})
        console.print(f"compiled, a plain step is {gain:.2f} times as fast; compiling took {took:.0f} s, {sizes} sizes")
    table = Table("execution", "nodes", "score ms", "commit ms", "plain steps", "quartiles", "own plain steps")
    for row in found.rows:
        cells = (f"{row.score_ms:.3f}", f"{row.commit_ms:.3f}", f"{row.plain_steps:.2f}")
        table.add_row(row.way, str(row.nodes), *cells, f"{row.low:.2f} to {row.high:.2f}", f"{row.own_plain_steps:.2f}")
    console.print(table)
    for way, parts in found.decode.items():
        own = ", ".join(f"{name} {value:.3f}" for name, value in parts.items() if name != "tau")
        console.print(f"a step of stree, 13 nodes, {way}: {own} ms; {parts['tau']:.2f} tokens a step")
    for way, gpu in found.gpu.items():
        told = f"wall {gpu['wall_ms']:.3f}, GPU busy {gpu['busy_ms']:.3f}, idle {gpu['idle_ms']:.3f} ms"
        console.print(f"a step of stree on the GPU, {way}: {told}; {gpu['waits']:.1f} synchronisations")
    if found.kept_bytes is not None:
        console.print(f"kept for the commit: {found.kept_bytes / 1e3:.2f} kB per node and recurrent layer")


def print_predicted(rows: Sequence[Predicted], about: str, console: Console) -> None:
    """What a card allows; ``about``: the model, its dtype, its context and the card."""
    table = Table("nodes", "GB", "GFLOP", "launches", "least ms", "plain steps")
    for row in rows:
        moved, computed = f"{row.bytes / 1e9:.3f}", f"{row.flops / 1e9:.1f}"
        times = (f"{row.milliseconds:.3f}", f"{row.plain_steps:.3f}")
        table.add_row(str(row.nodes), moved, computed, str(row.launches), *times)
    console.print(f"{about}: the least by its published figures, launches counted but not timed; nothing was run")
    console.print(table)
