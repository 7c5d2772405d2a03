"""The colours of nodes by kind, on a light and on a dark ground."""

from __future__ import annotations

from typing import NamedTuple


class Colours(NamedTuple):
    """Of one kind of node: inside, outline and edge, letters."""

    fill: str
    stroke: str
    ink: str


class Palette(NamedTuple):
    """One ground with the letters that stand on it, and the kinds of nodes."""

    ground: str
    ink: str
    muted: str
    kinds: dict[str, Colours]


LIGHT = Palette(
    ground="#ffffff",
    ink="#18181b",
    muted="#5b5b66",
    kinds={
        "plain": Colours("#f4f4f5", "#8a8a94", "#18181b"),
        "root": Colours("#e0e0e6", "#52525b", "#18181b"),
        "accepted": Colours("#d5f5e0", "#15803d", "#0f3d22"),
        "rejected": Colours("#fff5f5", "#c96a6a", "#7f1d1d"),
        "cut": Colours("#fdf2d0", "#b45309", "#5f2f06"),
        "bonus": Colours("#dbe8fe", "#2563eb", "#172f76"),
    },
)
DARK = Palette(
    ground="#161618",
    ink="#ececf0",
    muted="#a8a8b3",
    kinds={
        "plain": Colours("#27272b", "#85858f", "#ececf0"),
        "root": Colours("#3b3b42", "#b4b4be", "#f6f6f8"),
        "accepted": Colours("#123a23", "#3fbf71", "#d3f7df"),
        "rejected": Colours("#2b1a1b", "#b56060", "#f3b9b9"),
        "cut": Colours("#3a2a0c", "#d9942f", "#fbe3b5"),
        "bonus": Colours("#15294f", "#6aa0fb", "#d6e5ff"),
    },
)
