"""A simulated device: `edge_agent.service` in virtual time, with a disk that survives crashes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from broker.link.link import Will
from edge_agent.data.columns import NOT_ALLOWED, StatisticsConfig
from edge_agent.data.dataset import LocalDataset
from edge_agent.machine.agent import Agent
from edge_agent.machine.device_state import DeviceState
from edge_agent.machine.events import (
    Action,
    BlobRecalled,
    CancelJob,
    ForgetBlob,
    ForgetState,
    JobFailed,
    KeepChunk,
    LoadPackage,
    RecallBlob,
    ResolvePendingUpdate,
    SaveTrust,
    SpoolUpdate,
    StartJob,
)
from edge_agent.machine.pending_update import AgentMemory, SpooledUpdate
from edge_agent.machine.status import DEFAULT_PHASES, AgentFacts
from edge_agent.machine.trust import TrustRecord
from edge_agent.service import WILL_DELAY_S
from fleet.virtual.faults import ClockSkew
from fleet.virtual.profiles import DeviceProfile
from fleet.virtual.shells import Shell, World
from fleet.virtual.simulated_worker import SimulatedWorker

_NO_SKEW = ClockSkew()


@dataclass(eq=False)
class AgentDisk:
    """Disk of one agent: content of update spool and chunk cache, written whole or not at all."""

    pending: SpooledUpdate | None = None
    settled: DeviceState | None = None
    trust: TrustRecord | None = None
    chunks: dict[str, list[bytes]] = field(default_factory=dict)

    @property
    def memory(self) -> AgentMemory:
        """The memory that a new instance loads."""
        return AgentMemory(self.pending, self.settled, self.trust)

    def resolve(self, *, accepted: bool) -> None:
        """See `Spool.resolve`."""
        if accepted and self.pending is not None:
            self.settled = self.pending.state
        self.pending = None

    @property
    def chunk_bytes(self) -> int:
        """The bytes of all chunks together."""
        return sum(len(chunk) for chunks in self.chunks.values() for chunk in chunks)


@dataclass(frozen=True, eq=False)
class Device:
    """A simulated device with one agent.

    Attributes:
        agent_id: id of the agent.
        federation: of the agent.
        dataset: the agent's rows.
        profile: speed, link and hours of the device.
        phases: that the agent takes part in.
        skew: of the device's clock.
        heartbeat_s: seconds between two heartbeats.
        trusted_keys: keys whose signature the agent requires; empty: it requires none.
        statistics: that the owner allows.
    """

    agent_id: str
    federation: str
    dataset: LocalDataset
    profile: DeviceProfile
    phases: tuple[str, ...] = DEFAULT_PHASES
    skew: ClockSkew = _NO_SKEW
    heartbeat_s: float = 60.0
    trusted_keys: tuple[bytes, ...] = ()
    statistics: StatisticsConfig = NOT_ALLOWED


class AgentShell(Shell):
    """One agent's process and its disk."""

    def __init__(self, world: World, device: Device, worker: SimulatedWorker) -> None:
        client_id = f"fedge-{device.federation}-{device.agent_id}"
        super().__init__(world, device.agent_id, client_id)
        self.device = device
        self.disk = AgentDisk()
        self.machine: Agent | None = None
        self._offset_s, self._rate = device.skew.offset_s, device.skew.rate
        self._worker = worker
        self._busy_until_s = 0.0
        self._job: StartJob | None = None
        self._jobs = 0

    def make_machine(self) -> Will:
        """See `Shell`."""
        device = self.device
        facts = AgentFacts(
            agent_id=device.agent_id,
            federation=device.federation,
            agent_instance=f"instance-{self.instance}",
            phases=device.phases,
            memory_bytes=device.profile.memory_bytes,
            software="simulated",
            heartbeat_s=device.heartbeat_s,
            trusted_keys=device.trusted_keys,
        )
        rng = Random(f"{self.world.seed}/{self.name}/{self.instance}/agent")  # noqa: S311
        self.machine = Agent(facts, self.disk.memory, rng, self.world.common)
        self._busy_until_s, self._job = self.now_s, None
        will = self.machine.will
        return Will(will.topic, will.payload, WILL_DELAY_S)

    @property
    def agent(self) -> Agent:
        """The machine of this instance."""
        assert self.machine is not None, "not started"
        return self.machine

    def handle(self, event: Any) -> Sequence[Action]:
        """See `Agent.handle`; uses the device's own clock."""
        assert self.machine is not None, "not started"
        return self.machine.handle(event, self._offset_s + self._rate * self._broker.now_s)

    def wait_s(self) -> float:
        """See `Agent.wait_s`."""
        assert self.machine is not None, "not started"
        clock_s = self._offset_s + self._rate * self._broker.now_s
        return self.machine.wait_s(clock_s) / self._rate

    def perform(self, action: Any) -> None:
        """Performs an action like `edge_agent.service.AgentService.perform`."""
        match action:
            case StartJob():  # most are
                duration = self._worker.duration_s(
                    action.plan, self.device.dataset, self.device.profile
                )
                self._job, self._jobs = action, self._jobs + 1
                self._after_earlier_work(duration, self._work, action, self._jobs, duration)
            case SpoolUpdate(update):
                self.disk.pending = update
            case ResolvePendingUpdate(accepted):
                self.disk.resolve(accepted=accepted)
            case ForgetState():
                self.disk.settled = None
            case RecallBlob(sha256):
                self.link.post(BlobRecalled(sha256, tuple(self.disk.chunks.get(sha256, ()))))
            case KeepChunk(sha256, payload):
                self.disk.chunks.setdefault(sha256, []).append(payload)
            case ForgetBlob(sha256):
                self.disk.chunks.pop(sha256, None)
            case SaveTrust(record):
                self.disk.trust = record
            case LoadPackage():
                self._after_earlier_work(self.device.profile.load_s, self._load, action)
            case CancelJob():
                self._cancel()

    def _after_earlier_work(self, seconds: float, function: Any, *arguments: Any) -> None:
        """Calls a function after all earlier work: the device has one trainer."""
        now_s = self._broker.now_s
        self._busy_until_s = max(self._busy_until_s, now_s) + seconds
        self.later(self._busy_until_s - now_s, function, *arguments)

    def _load(self, job: LoadPackage) -> None:
        self.link.post(self._worker.load(job, self.device.dataset))

    def _work(self, job: StartJob, number: int, seconds: float) -> None:
        if self._job is None or number != self._jobs:
            return  # cancelled
        self._job = None
        device = self.device
        done = self._worker.work(job, device.agent_id, device.dataset, seconds, device.statistics)
        self.link.post(done)

    def _cancel(self) -> None:
        """Ends the running job after the step under way."""
        job = self._job
        if job is None:
            return
        self._job = None
        self._busy_until_s = self.now_s + self.device.profile.seconds_per_step
        wait_s = self._busy_until_s - self.now_s
        self.later(wait_s, self.link.post, JobFailed(job.plan, "cancelled"))
