"""Runs a scenario with cohorts: many agents, without an event for each of their messages."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from broker.protocol.messages import AgentStatus
from coordinator.config import CoordinatorConfig
from coordinator.evaluation import central_measure
from coordinator.fleet_data import fleet_findings
from coordinator.operate import open_store
from coordinator.records.records import RoundRecord
from fedge.yaml_config import located
from fleet.batched.agent_data import AgentData, agent_data
from fleet.batched.federation import Federation, Inputs
from fleet.batched.fleet_roster import FleetRoster, FleetStandings
from fleet.batched.fleet_setup import FleetSetup
from fleet.batched.mode import Choice
from fleet.batched.traffic import births
from fleet.batched.worker_choice import make_workers
from fleet.participants import Participants
from fleet.virtual.profiles import Profiles
from learning.vector.metrics import Sums
from learning.vector.parameters import F32
from models.package.package import ModelPackage


@dataclass(frozen=True, eq=False)
class Fleet:
    """A scenario's fleet, ready to be simulated.

    Attributes:
        path: of the scenario, which other paths are relative to.
        participants: its agents.
        config: of the federation.
        package: its model.
        profiles: of the devices.
        choice: how it is simulated.
    """

    path: Path
    participants: Participants
    config: CoordinatorConfig
    package: ModelPackage
    profiles: Profiles
    choice: Choice

    @property
    def seed(self) -> int:
        """Of which agent is which kind of device, as in the exact simulation."""
        return self.participants.scenario.resolved_seeds.simulation


@dataclass(frozen=True, eq=False)
class Simulated:
    """Result of a simulation.

    Attributes:
        reason: why the federation ended.
        records: of all rounds.
        theta: of its best version.
        virtual_s: virtual time at its end.
        odd_data: what is odd about the agents' data.
    """

    reason: str
    records: list[RoundRecord]
    theta: F32
    virtual_s: float
    odd_data: list[str]


def simulate_fleet(
    fleet: Fleet,
    folder: Path,
    processes: int | None,
    on_round: Callable[[RoundRecord], None],
    on_part: Callable[[str, int, int], None],
    *,
    is_kept: bool,
    ray: str | None = None,
) -> Simulated:
    """Simulates a fleet.

    Args:
        fleet: to simulate.
        folder: of states, and of what a later process goes on with.
        processes: that work; None: one for each core.
        on_round: called with each round's record.
        on_part: called with the phase, the parts that have answered, and their number.
        is_kept: whether to keep, and go on with, what is needed to go on.
        ray: address of a Ray that works in place of processes; see `fleet.batched.ray_workers`.

    Raises:
        ConfigError: Ray is wanted, and is not there.
        DataError: an agent's data cannot be used.
        FleetError: the federation ended without a result.
    """
    config, package = fleet.config, fleet.package
    data = agent_data(fleet.participants)
    setup = _setup(fleet, data, folder)
    state = folder / "coordinator" if is_kept else None
    if state is not None:
        state.mkdir(parents=True, exist_ok=True)
    statuses: dict[str, AgentStatus] = {}
    with (
        closing(open_store(config, state)) as store,
        make_workers(setup, processes, ray) as workers,
    ):
        store.adopt(config.federation, package)
        inputs = Inputs(
            config,
            package,
            setup,
            _roster(fleet, data),
            store,
            is_kept,
            _measure(fleet),
            lambda seen: _births(fleet, setup, seen, statuses),
            on_round,
            on_part,
        )
        federation = Federation(inputs, store.session(f"sim-{fleet.seed}"), workers)
        reason = federation.run()
        return Simulated(
            reason,
            list(store.rounds()),
            federation.progress.best[1],
            federation.now_s,
            [found.text for found in fleet_findings(statuses, package.spec)],
        )


def _setup(fleet: Fleet, data: AgentData, folder: Path) -> FleetSetup:
    names, config = fleet.participants.rows.names, fleet.config
    return FleetSetup(
        fleet.package,
        names,
        data,
        folder,
        fleet.profiles.column("seconds_per_step", names, fleet.seed),
        "bytes" if fleet.choice.mode == "bytes" else "arrays",
        fleet.choice.vectorized,
        config.aggregator,
        config.weighting,
        tuple(located(plugin, fleet.path.parent).resolve() for plugin in config.plugins),
    )


def _roster(fleet: Fleet, data: AgentData) -> FleetRoster:
    standings = FleetStandings(fleet.config.quarantine)
    participants = fleet.participants
    return FleetRoster(participants.rows.names, participants.unseen, data, standings)


def _measure(fleet: Fleet) -> Callable[[F32], Sums] | None:
    data = fleet.config.evaluation.data
    if data is None:
        return None
    return central_measure(located(data, fleet.path.parent), fleet.package)


def _births(
    fleet: Fleet, setup: FleetSetup, seen_bytes: int, statuses: dict[str, AgentStatus]
) -> int:
    memory = fleet.profiles.column("memory_bytes", setup.names, fleet.seed).astype(np.int64)
    phases = fleet.participants.phases
    found = births(setup, fleet.config.federation, phases, memory, seen_bytes)
    statuses.update(found.statuses)
    return found.bytes_up
