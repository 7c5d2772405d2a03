"""Shapes of tiny models, under names that ``--shape`` takes."""

from __future__ import annotations

import pytest

from specdecodes.benchmark.shapes import SHAPES, Shape
from tests.models.configs import FAMILIES

TINY = ("bamba", "mamba_in_llama", "mamba", "qwen3_next", "kimi_linear", "llama")


@pytest.fixture(autouse=True)
def _tiny_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    for family in TINY:
        monkeypatch.setitem(SHAPES, f"tiny-{family}", Shape("tiny", FAMILIES[family].config))
