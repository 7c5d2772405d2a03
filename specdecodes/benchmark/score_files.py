"""What ``specdecodes score`` leaves behind: JSON, CSV and a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from specdecodes.benchmark.journal import replace, replace_json
from specdecodes.benchmark.score import DraftScore, Score

PLOTS = ("svg", "png")

COLUMNS = ("draft", "measure", "depth", "rank", "value")


def write_files(folder: Path, score: Score, session: Mapping[str, Any], plot: str | None) -> list[Path]:
    """Write ``score.json``, ``score.csv`` and ``score.svg`` or ``.png`` into ``folder``; returns their paths.

    Args:
        folder: made where it is missing. score: what was found.
        session: where it comes from (see :func:`specdecodes.benchmark.provenance.provenance`).
        plot: ``svg``, ``png``, or None for no plot.
    """
    drawn = draw(score, plot) if plot is not None else b""  # before anything is written: it may fail
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "score.json", folder / "score.csv"]
    replace_json(paths[0], {"session": dict(session), **score.to_json()})
    replace(paths[1], [to_csv(score).encode()])
    if plot is not None:
        paths.append(folder / f"score.{plot}")
        replace(paths[2], [drawn])
    return paths


def to_csv(score: Score) -> str:
    """One number per line; depth and rank count from 1 and are empty where they mean nothing."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for draft in score.drafts:
        writer.writerows(_numbers(draft))
    return out.getvalue()


def _numbers(draft: DraftScore) -> Iterator[tuple[str, str, int | str, int | str, float | str]]:
    for name in ("tau", "measured_tau", "overlap", "kl", "unknown"):
        value = getattr(draft, name)
        yield draft.draft, name, "", "", "" if value is None else value
    for kind in ("greedy", "sampled"):
        vectors, reached = getattr(draft, kind), getattr(draft, f"{kind}_reached")
        for depth, (shares, count) in enumerate(zip(vectors or [], reached or [], strict=True), 1):
            yield draft.draft, f"{kind} reached", depth, "", count
            for rank, share in enumerate(shares, 1):
                yield draft.draft, kind, depth, rank, share


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def check_plot(plot: str | None) -> None:
    """Refuse a plot that cannot be drawn.

    Raises:
        ValueError: matplotlib is not installed.
    """
    if plot is not None and not can_plot():
        raise ValueError(
            f"plot: expected matplotlib to draw {plot!r} with, got none installed; "
            "pip install 'specdecodes[pictures]', or use --plot none"
        )


def draw(score: Score, kind: str) -> bytes:
    """A bar per drafter (tokens per step), and a map of each one's acceptance by depth and rank.

    Raises:
        ValueError: matplotlib is not installed.
    """
    check_plot(kind)
    from matplotlib.figure import Figure

    drafts = score.drafts
    temperature = score.settings["temperature"]
    figure = Figure(figsize=(4 + 4.2 * len(drafts), 3.6), layout="constrained")
    bars, *maps = figure.subplots(1, 1 + len(drafts))
    names = [draft.draft for draft in drafts]
    bars.barh(names, [draft.tau for draft in drafts], color="tab:blue", label="expected")
    measured = [(draft.measured_tau, draft.draft) for draft in drafts if draft.measured_tau is not None]
    if measured:
        bars.plot(*zip(*measured, strict=True), "k|", markersize=18, markeredgewidth=2, label="measured")
        bars.legend(markerscale=0.5)
    bars.invert_yaxis()
    bars.set_xlabel(f"tokens per step, chain of {score.settings['depth']}, temperature {temperature:g}")
    for axes, draft in zip(maps, drafts, strict=True):
        _draw_map(axes, draft)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=120, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def _draw_map(axes: Any, draft: DraftScore) -> None:  # noqa: ANN401 - matplotlib is optional
    vectors, law = (draft.greedy, "greedy") if draft.sampled is None else (draft.sampled, "sampled")
    axes.imshow(vectors, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for row, shares in enumerate(vectors):
        for column, share in enumerate(shares):
            axes.text(
                column,
                row,
                f"{100 * share:.0f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if share > 0.5 else "black",
            )
    axes.set_xticks(range(len(vectors[0])), range(1, len(vectors[0]) + 1))
    axes.set_yticks(range(len(vectors)), range(1, len(vectors) + 1))
    axes.set(xlabel="rank", ylabel="depth", title=f"{draft.draft}: acceptance, % ({law})")
