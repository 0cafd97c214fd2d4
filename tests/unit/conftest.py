"""What several unit tests begin with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from broker.security.fleet import Fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """A new fleet's folder."""
    from tests.unit.broker.security.fleet_folders import make  # needs cryptography

    return make(tmp_path / "fleet")
