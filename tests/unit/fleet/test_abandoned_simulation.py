"""Simulations whose rounds are abandoned again and again."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedge.errors import FleetError
from fleet.live import LiveWatcher
from fleet.virtual.simulate import SimulationOptions, simulate_scenario

SCENARIO = Path(__file__).parents[3] / "examples" / "house_price.yaml"
DIVERGING: dict[str, Any] = {
    "agents": 4,
    "partition.clients": 4,
    "federation.rounds": 30,
    "federation.training.learning_rate": 1000.0,
    "federation.norm_bound": {"clip": 0.0, "refuse": 0.0},
    "baselines": {},
}


def test_five_abandoned_rounds_in_a_row_end_it_and_say_why(tmp_path: Path) -> None:
    options = SimulationOptions(tmp_path, DIVERGING, trace=False)
    why = r"^5 rounds in a row were abandoned: .*loss"
    console = Console(file=io.StringIO(), width=100)
    with pytest.raises(FleetError, match=why) as found, LiveWatcher(console, "rounds") as watcher:
        simulate_scenario(SCENARIO, options, watcher)
    assert found.value.exit_code == 4
