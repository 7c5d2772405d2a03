"""What is shipped of the conformance run belongs to the families that are tested."""

from __future__ import annotations

from specdecodes.benchmark.conformance import read, shipped

from .configs import FAMILIES


def test_what_is_shipped_was_measured_on_every_family() -> None:
    for run in read(shipped()):
        names = [row["name"] for row in run["rows"]]
        assert names == list(FAMILIES), "run tests/models/test_measured.py with --conformance-json again"
