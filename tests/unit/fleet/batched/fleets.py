"""Small fleets in tests, simulated with cohorts and event by event."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from coordinator.config import CoordinatorConfig
from coordinator.records.records import RoundRecord
from fedge.errors import FleetError
from fleet.batched.cohort.task import Mode
from fleet.batched.simulate import How, Simulated, simulate_fleet
from fleet.participants import Participants
from fleet.runs.prepared import Prepared, prepare
from fleet.virtual.profiles import load_profiles
from fleet.virtual.simulate import SimulationOptions, make_setting
from fleet.virtual.simulation import Simulation
from learning.vector.parameters import F32
from models.package.package import ModelPackage

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


@dataclass(frozen=True, eq=False)
class Fleet:
    """An example's fleet, and how it is simulated."""

    prepared: Prepared
    how: How

    @property
    def participants(self) -> Participants:
        return self.prepared.participants

    @property
    def package(self) -> ModelPackage:
        return self.prepared.package

    @property
    def config(self) -> CoordinatorConfig:
        return self.prepared.config


class Quiet:
    """Told everything, says nothing.

    Attributes:
        records: of the rounds so far.
    """

    def __init__(self) -> None:
        self.records: list[RoundRecord] = []

    def round(self, record: RoundRecord) -> None:
        self.records.append(record)

    def note(self, text: str) -> None: ...
    def working(self, what: str, done: int, of: int) -> None: ...


def make_fleet(name: str, changes: Mapping[str, Any], mode: Mode, *, vectorized: bool) -> Fleet:
    """Returns a fleet of an example, changed."""
    how = How(mode, "vectorized" if vectorized else "single", processes=1)
    return Fleet(prepare(EXAMPLES / f"{name}.yaml", changes), how)


def cohorts(fleet: Fleet, processes: int = 1, ray: str | None = None) -> Outcome:
    """Simulates a fleet with cohorts."""
    with tempfile.TemporaryDirectory() as folder:
        done = cohorts_in(Path(folder), fleet, processes, ray)
    return Outcome(done.theta, done.records)


def cohorts_in(folder: Path, fleet: Fleet, processes: int = 1, ray: str | None = None) -> Simulated:
    """Simulates a fleet with cohorts, its states in a folder."""
    how = replace(fleet.how, processes=processes, ray=ray)
    return simulate_fleet(fleet.prepared, load_profiles(), how, folder, Quiet())


def first_records(fleet: Fleet) -> list[RoundRecord]:
    """Returns the rounds of a fleet with cohorts, also of one that cannot go on."""
    told = Quiet()
    with tempfile.TemporaryDirectory() as folder, suppress(FleetError):
        simulate_fleet(fleet.prepared, load_profiles(), fleet.how, Path(folder), told)
    return told.records


def first_exact_records(name: str, changes: Mapping[str, Any], rounds: int) -> list[RoundRecord]:
    """Returns the first rounds of an example event by event, also of one that cannot go on."""
    setting = make_setting(EXAMPLES / f"{name}.yaml", SimulationOptions(Path(), changes))[2]
    simulation = Simulation(replace(setting, start_hour=23.0))
    records: list[RoundRecord] = []
    simulation.coordinator.on_round = records.append
    with suppress(FleetError):
        simulation.run(limit_s=1000.0)
    return records[:rounds]


def event_exact(name: str, changes: Mapping[str, Any]) -> Outcome:
    """Simulates an example event by event; all devices run all day."""
    path = EXAMPLES / f"{name}.yaml"
    options = SimulationOptions(Path(), changes, trace=False, check=False)
    _, _, setting = make_setting(path, options)
    simulation = Simulation(replace(setting, start_hour=23.0))
    simulation.run()
    coordinator = simulation.coordinator
    return Outcome(coordinator.coordinator.progress.best[1], coordinator.store.rounds())
