"""Small fleets in tests, simulated with cohorts and event by event."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from coordinator.records.records import RoundRecord
from fleet.batched.mode import Choice, SimulationMode
from fleet.batched.simulate import Fleet, simulate_fleet
from fleet.participants import make_participants
from fleet.scenario import coordinator_config, fleet_changes, load_scenario, scenario_package
from fleet.virtual.profiles import load_profiles
from fleet.virtual.simulate import SimulationOptions, make_setting
from fleet.virtual.simulation import Simulation
from learning.vector.parameters import F32

EXAMPLES = Path(__file__).parents[4] / "examples"


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a simulation found."""

    theta: F32
    records: list[RoundRecord]

    def traffic(self) -> list[tuple[int, int]]:
        """Returns the bytes up and down of each round."""
        return [(record.bytes_up, record.bytes_down) for record in self.records]

    def timeless(self) -> list[RoundRecord]:
        """Returns the records without their virtual times."""
        return [msgspec.structs.replace(record, seconds=0.0) for record in self.records]


def make_fleet(
    name: str, changes: Mapping[str, Any], mode: SimulationMode, *, vectorized: bool
) -> Fleet:
    """Returns a fleet of an example, changed."""
    path = EXAMPLES / f"{name}.yaml"
    scenario = load_scenario(path, changes)
    package = scenario_package(scenario, path)
    participants = make_participants(scenario, path, package.spec, scenario.agents)
    config = coordinator_config(scenario, path, **fleet_changes(scenario, len(participants.asked)))
    choice = Choice(mode, vectorized, "")
    return Fleet(path, participants, config, package, load_profiles(), choice)


def cohorts(fleet: Fleet, processes: int = 1, ray: str | None = None) -> Outcome:
    """Simulates a fleet with cohorts."""
    with tempfile.TemporaryDirectory() as folder:
        done = simulate_fleet(
            fleet, Path(folder), processes, lambda _: None, lambda *_: None, is_kept=False, ray=ray
        )
    return Outcome(done.theta, done.records)


def event_exact(name: str, changes: Mapping[str, Any]) -> Outcome:
    """Simulates an example event by event; all devices run all day."""
    path = EXAMPLES / f"{name}.yaml"
    options = SimulationOptions(Path(), changes, trace=False, check=False)
    _, _, setting = make_setting(path, options)
    simulation = Simulation(replace(setting, start_hour=23.0))
    simulation.run()
    coordinator = simulation.coordinator
    return Outcome(coordinator.coordinator.progress.best[1], coordinator.store.rounds())
