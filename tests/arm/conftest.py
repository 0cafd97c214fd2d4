"""The roots that `make test-arm` made, and the figures that it ends with."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest

from tests.arm.root import ROOTS, SYSTEMS, NotHere, Root, existing

Figure = dict[str, Any]
_figures: list[Figure] = []


@pytest.fixture(scope="session", params=list(SYSTEMS))
def root(request: pytest.FixtureRequest) -> Root:
    made = [path.name for path in ROOTS.iterdir()] if ROOTS.exists() else []
    if request.param not in os.environ.get("FEDGE_ARM", " ".join(made)).split():
        pytest.skip(f"not asked for: make test-arm ARM={request.param}")
    try:
        return existing(request.param)
    except NotHere as error:
        pytest.fail(str(error))


@pytest.fixture(scope="session")
def note() -> Callable[[Figure], None]:
    """Takes down what was measured."""
    return _figures.append


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _figures:
        return
    report = ROOTS / "report.json"
    report.write_text(json.dumps(_figures, indent=1) + "\n")
    terminalreporter.section(f"measured, emulated: {report}")
    for figure in _figures:
        terminalreporter.write_line("  ".join(f"{key} {value}" for key, value in figure.items()))
