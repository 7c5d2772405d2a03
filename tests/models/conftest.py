"""The conformance run: what ``test_measured.py`` measures, collected and, on request, written down."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from specdecodes.benchmark.conformance import write

from .configs import FAMILIES

OPTION = "--conformance-json"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(OPTION, type=Path, metavar="FILE", help="add what test_measured.py measures to this file")


@pytest.fixture(scope="session")
def measured(request: pytest.FixtureRequest) -> Iterator[dict[str, dict[str, Any]]]:
    """What was measured, by the family's name; written when the session ends, if all of it is there and passed."""
    found: dict[str, dict[str, Any]] = {name: {} for name in FAMILIES}
    yield found
    path = request.config.getoption(OPTION, None)
    if path is None:
        return
    if request.session.testsfailed or not all("greedy" in row and "float32" in row["errors"] for row in found.values()):
        pytest.fail(f"{OPTION}: expected every family to pass, nothing is written")
    command = ["python", "-m", "pytest", "tests/models/test_measured.py", OPTION, str(path)]
    write(path, command, list(found.values()))
