"""A whole federation in virtual time: real machines, a broker in memory, and faults."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from random import Random
from typing import TYPE_CHECKING

from broker.memory.link import MemoryBroker
from coordinator.config import CoordinatorConfig
from fedge.errors import FleetError
from fleet.virtual.agent_shell import AgentShell, Device
from fleet.virtual.coordinator_shell import CoordinatorShell
from fleet.virtual.event_trace import BrokerKilled, Observer
from fleet.virtual.faults import (
    COORDINATOR,
    BrokerRestart,
    ClockSkew,
    Crash,
    FaultPlan,
    RandomCrashes,
    concerns,
)
from fleet.virtual.profiles import DeviceProfile
from fleet.virtual.route import FaultyRoute
from fleet.virtual.shells import CohortProcess, Shell, World
from fleet.virtual.simulated_worker import SimulatedWorker
from learning.vector.metrics import Sums
from learning.vector.parameters import F32
from models.package.package import ModelPackage

if TYPE_CHECKING:
    from broker.security.signing import SigningKeys

#: Longer than any pause of the protocol: a federation that needs longer after its last fault is
#: stuck.
PATIENCE_S = 20_000.0
#: Limit of events of all machines within one second of virtual time: more is an endless loop.
_LOOP_EVENTS, _LOOP_EVENTS_AN_AGENT = 1_000_000, 100
#: New objects until the garbage collector looks at them.
_COLLECT_EVERY = 100_000


@dataclass(frozen=True, eq=False)
class Setting:
    """Inputs of a simulation: federation, devices and faults.

    Attributes:
        config: of the federation.
        package: its model.
        devices: the agents.
        seed: of faults, delays and jitter; the learning has the seeds of `config`.
        faults: fault plan.
        start_hour: hour of the day at the start, for devices that are not always online.
        measure: evaluates θ on the coordinator's own data; None without such data.
        observers: called with every entry of the trace.
        worker: runs the jobs of all agents.
        signed: the coordinator signs, and the agents were enrolled with its key.
        cohorts: make processes that are cohorts of agents each, beside the devices.
    """

    config: CoordinatorConfig
    package: ModelPackage
    devices: Sequence[Device]
    seed: int = 0
    faults: FaultPlan = field(default_factory=FaultPlan)
    start_hour: float = 12.0
    measure: Callable[[F32], Sums] | None = None
    observers: Sequence[Observer] = ()
    worker: SimulatedWorker = field(default_factory=SimulatedWorker)
    signed: bool = False
    cohorts: Sequence[Callable[[World], CohortProcess]] = ()


class Simulation:
    """Runs the federation of a setting to its end.

    Attributes:
        world: broker, clock and links.
        coordinator: process of the coordinator.
        agents: processes of the agents, by id.
        cohorts: processes of cohorts, by name.
        ended_s: virtual time at which the federation finished.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        faults = setting.faults
        names = {_client(setting, device.agent_id): device.agent_id for device in setting.devices}
        names[_client(setting, COORDINATOR)] = COORDINATOR
        rates = {d.agent_id: d.profile.bytes_per_s for d in setting.devices}
        self.route = FaultyRoute(
            faults, setting.seed, names, {name: rate for name, rate in rates.items() if rate}
        )
        broker = MemoryBroker(
            self.route,
            max_payload_bytes=faults.max_payload_bytes,
            max_queued_messages=faults.max_queued_messages,
        )
        if faults.drop:
            broker.admits = lambda _client_id, _message: self.route.admits(broker.now_s)
        self.world = World(broker, setting.seed, list(setting.observers))
        keys = _signing_keys(setting.seed) if setting.signed else None
        trusted = () if keys is None else keys.public
        self.coordinator = CoordinatorShell(
            self.world, setting.config, setting.package, setting.measure, keys
        )
        self.agents = {
            device.agent_id: AgentShell(
                self.world, replace(device, trusted_keys=trusted), setting.worker
            )
            for device in setting.devices
        }
        self.cohorts = {made.name: made for made in (make(self.world) for make in setting.cohorts)}
        self.ended_s = 0.0
        self._down_s: dict[str, float] = {}
        self._rng = Random(f"{setting.seed}/faults")  # noqa: S311  a simulation
        self._schedule_faults()

    @property
    def now_s(self) -> float:
        """The virtual time."""
        return self.world.broker.now_s

    @property
    def shells(self) -> Mapping[str, Shell]:
        """All processes by name."""
        return {COORDINATOR: self.coordinator, **self.agents, **self.cohorts}

    def run(self, limit_s: float | None = None, settle_s: float = 0.0) -> str:
        """Runs until the federation has finished; returns the reason of its end.

        Args:
            limit_s: limit of virtual time; None: far more than the rounds and the faults need.
            settle_s: virtual time to run on afterwards, for messages that are still under way.

        Raises:
            FleetError: the federation did not finish in time.
        """
        calm_s = self.setting.faults.calm_s
        if limit_s is None:
            limit_s = PATIENCE_S + (calm_s if calm_s < 1e8 else 0.0)
            limit_s += self._rounds_s() + self._absence_s()
        for shell in self.shells.values():
            if self._available(shell):
                shell.start()
        with rare_collections():
            self._run_until(limit_s, to_the_end=False)
        if not self.coordinator.finished:
            raise FleetError(
                f"the federation did not finish in {self.now_s:.0f} virtual seconds: version"
                f" {self.coordinator.coordinator.progress.version} of {self.setting.config.rounds}"
            )
        self.ended_s = self.now_s
        self._run_until(
            max(self.now_s, calm_s if calm_s < 1e8 else 0.0) + settle_s, to_the_end=True
        )
        return self.coordinator.finished

    def _rounds_s(self) -> float:
        config = self.setting.config
        return 3 * config.rounds * (config.round.deadline_s + config.evaluation.deadline_s)

    def _absence_s(self) -> float:
        """Returns time to wait for devices that do not run all day."""
        devices = self.setting.devices
        return 2 * 86_400.0 if any(device.profile.available for device in devices) else 0.0

    def _run_until(self, limit_s: float, *, to_the_end: bool) -> None:
        """Runs until the federation has finished, or time is up."""
        world, broker, coordinator = self.world, self.world.broker, self.coordinator
        most_events = max(_LOOP_EVENTS, _LOOP_EVENTS_AN_AGENT * len(self.agents))
        until_s, last_event = broker.now_s + 1.0, world.events + most_events
        ready, advance, links = broker.ready, broker.advance, world.links
        while to_the_end or not coordinator.finished:
            if not ready:
                if not advance(limit_s):
                    return
                if broker.now_s > until_s:
                    until_s, last_event = broker.now_s + 1.0, world.events + most_events
                continue
            link = next(iter(ready))
            shell = links.get(link)  # type: ignore[call-overload]  # all are ours
            if shell is None:
                del ready[link]  # it is closing and takes no more events
            else:
                shell.serve()
            if world.events > last_event:
                raise FleetError(
                    f"endless loop: over {most_events} events in the virtual second before"
                    f" {broker.now_s:.3f} s"
                )

    # -- faults ---------------------------------------------------------------------------------

    def _schedule_faults(self) -> None:
        faults, broker = self.setting.faults, self.world.broker
        for restart in faults.broker_restarts:
            broker.at(restart.at_s, self._kill_broker, restart)
        for name, shell in self.shells.items():
            for partition in faults.partitions:
                if concerns(partition.who, name):
                    broker.at(partition.from_s, self._cut_off, shell)
            for crash in faults.crashes:
                if concerns(crash.who, name):
                    broker.at(crash.at_s, self._schedule_crash, shell, crash)
            for random in faults.random_crashes:
                if concerns(random.who, name):
                    self._next_crash(shell, random)
            shell.on_crash = self._restart_later
            if isinstance(shell, AgentShell):
                self._watch_the_day(shell)

    def _kill_broker(self, restart: BrokerRestart) -> None:
        lose = restart.lose
        self.world.tell(BrokerKilled(self.now_s, lose))
        self.route.broker_down(self.now_s + restart.down_s)
        self.world.broker.restart(
            lose_queued=lose in ("queued", "all"),
            lose_retained=lose in ("retained", "all"),
            lose_sessions=lose == "all",
        )

    def _cut_off(self, shell: Shell) -> None:
        if shell.alive:
            shell.link.interrupt()

    def _schedule_crash(self, shell: Shell, crash: Crash) -> None:
        if shell.alive:
            self._down_s[shell.name] = crash.down_s
            shell.crash_at_next_event(crash.after_actions)

    def _next_crash(self, shell: Shell, random: RandomCrashes) -> None:
        when_s = self.now_s + self._rng.expovariate(1 / random.mean_s)
        if when_s < self.setting.faults.until_s:
            self.world.broker.at(when_s, self._crash_at_random, shell, random)

    def _crash_at_random(self, shell: Shell, random: RandomCrashes) -> None:
        down_s = self._rng.expovariate(1 / random.down_s) if random.down_s else 0.0
        crash = Crash(
            who=(shell.name,),
            at_s=self.now_s,
            after_actions=self._rng.randrange(4),
            down_s=down_s,
        )
        self._schedule_crash(shell, crash)
        self._next_crash(shell, random)

    def _restart_later(self, shell: Shell) -> None:
        wait_s = self._down_s.pop(shell.name, 0.0)
        self.world.broker.at(self.now_s + wait_s, self._start_again, shell)

    def _start_again(self, shell: Shell) -> None:
        if self._available(shell) and not (shell is self.coordinator and shell.finished):
            shell.start()

    # -- the day --------------------------------------------------------------------------------

    def _time_of_day_s(self) -> float:
        return 3600 * self.setting.start_hour + self.now_s

    def _available(self, shell: Shell) -> bool:
        if not isinstance(shell, AgentShell):
            return True
        return shell.device.profile.is_available(self._time_of_day_s())

    def _watch_the_day(self, shell: AgentShell) -> None:
        wait_s = shell.device.profile.next_change_s(self._time_of_day_s())
        if wait_s is not None:
            self.world.broker.at(self.now_s + wait_s, self._day_changes, shell)

    def _day_changes(self, shell: AgentShell) -> None:
        if self._available(shell):
            shell.start()
        else:
            shell.stop()
        self._watch_the_day(shell)


@contextmanager
def rare_collections() -> Iterator[None]:
    """Has the garbage collector look rarely, and never at what is there already.

    Machines and messages make hardly any cycles; looking at those of all agents again and again
    takes a tenth of the time of a small fleet, and more of a large one.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_EVERY, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def _signing_keys(seed: int) -> SigningKeys:
    from broker.security.signing import (
        SigningKeys,
    )  # needs cryptography: only where messages are signed

    return SigningKeys.from_seed(sha256(f"{seed}/signing key".encode()).digest())


def _client(setting: Setting, name: str) -> str:
    return f"fedge-{setting.config.federation}-{name}"


def skew_of(faults: FaultPlan, agent_id: str) -> ClockSkew:
    """Returns the skew of an agent's clock: the first in the plan that names it."""
    return next((skew for skew in faults.clock_skews if concerns(skew.who, agent_id)), ClockSkew())


def make_device(
    agent_id: str, federation: str, profile: DeviceProfile, faults: FaultPlan, **rest: object
) -> Device:
    """Returns a device with the clock skew of the fault plan."""
    skew = skew_of(faults, agent_id)
    return Device(agent_id, federation, profile=profile, skew=skew, **rest)  # type: ignore[arg-type]
