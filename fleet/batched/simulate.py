"""Runs a scenario with cohorts: many agents, without an event for each of their messages."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np

from broker.protocol.messages import AgentStatus
from coordinator.evaluation import central_measure
from coordinator.fleet_data import fleet_findings
from coordinator.operate import open_store
from coordinator.records.records import RoundRecord
from coordinator.rounds.stopping import stop_rule
from coordinator.storage.store import Store
from fedge.errors import ConfigError, FleetError
from fedge.files import write_whole
from fedge.yaml_config import located
from fleet.batched.cohort.agent_data import AgentData, agent_data
from fleet.batched.cohort.task import Mode
from fleet.batched.federation import Federation, Inputs
from fleet.batched.fleet_roster import FleetRoster, FleetStandings
from fleet.batched.fleet_setup import FleetSetup
from fleet.batched.mode import KernelChoice, choose_kernel_kind
from fleet.batched.traffic import births
from fleet.batched.worker_choice import make_workers
from fleet.runs.prepared import Prepared
from fleet.virtual.profiles import Profiles
from learning.vector.metrics import Sums
from learning.vector.parameters import F32
from models.runtime.program import Program

#: Folder of the coordinator's state, below the simulation's.
_COORDINATOR = "coordinator"
_KERNEL = "kernel.json"


@dataclass(frozen=True)
class How:
    """How a fleet is simulated.

    Attributes:
        mode: see `fleet.batched.cohort.task.Mode`.
        kernel: "auto", "vectorized" or "single".
        processes: that work; None: one for each core.
        ray: address of Ray's cluster, or "local"; None: without Ray.
        is_kept: whether to keep, and go on with, what is needed to go on.
    """

    mode: Mode
    kernel: str = "auto"
    processes: int | None = None
    ray: str | None = None
    is_kept: bool = False


class Told(Protocol):
    """What is told while a fleet is simulated."""

    def round(self, record: RoundRecord) -> None:
        """Called with each round's record."""

    def note(self, text: str) -> None:
        """Called with one line for people."""

    def working(self, what: str, done: int, of: int) -> None:
        """Called with the phase, the parts of the fleet that have answered, and their number."""


@dataclass(frozen=True, eq=False)
class Simulated:
    """Result of a simulation.

    Attributes:
        reason: why the federation ended.
        records: of all rounds.
        theta: of its best version.
        virtual_s: virtual time at its end.
        odd_data: what is odd about the agents' data.
        kernel: how the model ran.
    """

    reason: str
    records: list[RoundRecord]
    theta: F32
    virtual_s: float
    odd_data: list[str]
    kernel: str


class Stopped(KeyboardInterrupt):
    """A simulation was interrupted.

    Attributes:
        so_far: what it has found; None: no version yet.
    """

    def __init__(self, so_far: Simulated | None) -> None:
        super().__init__()
        self.so_far = so_far


def simulate_fleet(
    prepared: Prepared, profiles: Profiles, how: How, folder: Path, told: Told
) -> Simulated:
    """Simulates the fleet of a scenario with cohorts.

    Args:
        prepared: the scenario.
        profiles: of the devices.
        how: to simulate it.
        folder: of states, and of what a later process goes on with.
        told: what happens.

    Raises:
        ConfigError: see `choose_kernel_kind`.
        DataError: an agent's data cannot be used.
        FleetError: the federation ended without a result.
        Stopped: it was interrupted.
    """
    config, package = prepared.config, prepared.package
    data = agent_data(prepared.participants)
    setup = _setup(prepared, profiles, how, data, folder)
    told.note(f"kernel: {setup.kernel} ({setup.why})")
    statuses: dict[str, AgentStatus] = {}
    with (
        closing(open_store(config, _state_dir(folder, how))) as store,
        make_workers(setup, how.processes, how.ray) as workers,
    ):
        store.adopt(config.federation, package)
        inputs = Inputs(
            config,
            package,
            setup,
            _roster(prepared, data, store),
            store,
            how.is_kept,
            _measure(prepared),
            lambda seen: _births(prepared, profiles, setup, seen, statuses),
            told.round,
            told.working,
        )
        federation = Federation(inputs, store.session(f"sim-{_seed(prepared)}"), workers)
        try:
            reason = federation.run()
        except KeyboardInterrupt as stopped:
            raise Stopped(_so_far(prepared, store, setup.kernel)) from stopped
        return Simulated(
            reason,
            list(store.rounds()),
            federation.progress.best[1],
            federation.now_s,
            [found.text for found in fleet_findings(statuses, package.spec)],
            setup.kernel,
        )


def interrupted(prepared: Prepared, folder: Path) -> Simulated | None:
    """Returns what a simulation that was interrupted has found so far; None: no version yet."""
    begun = _begun_with("auto", folder)
    with closing(open_store(prepared.config, folder / _COORDINATOR)) as store:
        return _so_far(prepared, store, "" if begun is None else begun.kind)


def _so_far(prepared: Prepared, store: Store, kernel: str) -> Simulated | None:
    progress = store.load(prepared.package.spec.size, stop_rule(prepared.config))
    records = list(store.rounds())
    if progress is None or not any(record.status == "committed" for record in records):
        return None
    return Simulated("interrupted", records, progress.best[1], 0.0, [], kernel)


def _state_dir(folder: Path, how: How) -> Path | None:
    if not how.is_kept:
        return None
    state = folder / _COORDINATOR
    state.mkdir(parents=True, exist_ok=True)
    return state


def _seed(prepared: Prepared) -> int:
    """Returns the seed of which agent is which kind of device, as in the exact simulation."""
    return prepared.scenario.resolved_seeds.simulation


def _setup(
    prepared: Prepared, profiles: Profiles, how: How, data: AgentData, folder: Path
) -> FleetSetup:
    names, config, package = prepared.participants.rows.names, prepared.config, prepared.package
    program = Program(package.program, package.spec, frozen=package.frozen)
    kernel = _begun_with(how.kernel, folder) if how.is_kept else None
    if kernel is None:
        kernel = choose_kernel_kind(how.kernel, package, program, data, config.training)
        if how.is_kept:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / _KERNEL, msgspec.json.encode(kernel))
    plugins = (located(plugin, prepared.path.parent).resolve() for plugin in config.plugins)
    return FleetSetup(
        package,
        names,
        data,
        folder,
        profiles.column("seconds_per_step", names, _seed(prepared)),
        how.mode,
        kernel.kind,
        kernel.why,
        config.aggregator,
        config.weighting,
        tuple(plugins),
    )


def _begun_with(wanted: str, folder: Path) -> KernelChoice | None:
    """Returns the kernel that an interrupted simulation was begun with; None: it begins now.

    The choice measures time: another time it might be another one, and other last bits.

    Raises:
        ConfigError: another kernel is wanted.
        FleetError: the file is damaged.
    """
    path = folder / _KERNEL
    if not path.is_file():
        return None
    try:
        begun = msgspec.json.decode(path.read_bytes(), type=KernelChoice)
    except msgspec.DecodeError as error:
        raise FleetError(f"{path} is damaged ({error}); begin anew without --resume") from error
    if wanted != "auto" and (wanted == "single") != (begun.kind == "single"):
        raise ConfigError(
            f"--kernel {wanted}: the simulation was begun with kernel {begun.kind}, another one "
            "gives other last bits; leave out --kernel"
        )
    return begun


def _roster(prepared: Prepared, data: AgentData, store: Store) -> FleetRoster:
    standings = FleetStandings(prepared.config.quarantine, store.standings())
    participants = prepared.participants
    return FleetRoster(participants.rows.names, participants.unseen, data, standings)


def _measure(prepared: Prepared) -> Callable[[F32], Sums] | None:
    data = prepared.config.evaluation.data
    if data is None:
        return None
    return central_measure(located(data, prepared.path.parent), prepared.package)


def _births(
    prepared: Prepared,
    profiles: Profiles,
    setup: FleetSetup,
    seen_bytes: int,
    statuses: dict[str, AgentStatus],
) -> int:
    memory = profiles.column("memory_bytes", setup.names, _seed(prepared)).astype(np.int64)
    phases = prepared.participants.phases
    found = births(setup, prepared.config.federation, phases, memory, seen_bytes)
    statuses.update(found.statuses)
    return found.bytes_up
