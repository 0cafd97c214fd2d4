"""Shell of the agent: runs the state machine over a real link, with a worker for slow work."""

from __future__ import annotations

import logging
import math
import os
import secrets
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, replace
from pathlib import Path

import fedge
from broker.link.link import Link, Will
from broker.link.mqtt import MqttLink
from broker.link.network_loop import NetworkLoop
from broker.protocol.topics import AgentProbeTopic
from broker.service.events import Tick
from broker.service.service import Service
from edge_agent.config import AgentConfig
from edge_agent.device import Device, LinuxDevice
from edge_agent.machine.agent import Agent
from edge_agent.machine.decoded_plan import CommonBlobs
from edge_agent.machine.events import (
    Action,
    BlobRecalled,
    CancelJob,
    Event,
    ForgetBlob,
    ForgetState,
    JobDone,
    JobFailed,
    KeepChunk,
    LoadPackage,
    PauseJobs,
    RecallBlob,
    ResolvePendingUpdate,
    ResumeJobs,
    SaveTrust,
    SpoolUpdate,
    StartJob,
)
from edge_agent.machine.pending_update import SpooledUpdate
from edge_agent.machine.status import AgentFacts
from edge_agent.storage.chunk_cache import ChunkStore
from edge_agent.storage.trust_file import TrustFile, open_trust
from edge_agent.storage.update_spool import Spool
from edge_agent.training.memory_ceiling import MemoryCeiling, default_ceiling
from edge_agent.worker import WorkerPool
from fedge.errors import FederationError, ModelError, StoreError
from fedge.files import claimed
from fedge.system import (
    memory_bytes,
    memory_limit_bytes,
    resident_bytes,
    return_freed_memory,
    share_one_heap,
)
from fedge.yaml_config import located
from models.runtime.interpreters import find_runtime

log = logging.getLogger(__name__)

#: Between a device's silence and the broker's word for it: a short drop of Wi-Fi is no loss.
WILL_DELAY_S = 5
#: Messages on their way to us. Chunks of 120 KiB: one megabyte of this device's memory, as much of
#: the broker's for every device that is slow, and lost for nothing at a power cut. Enough for
#: 19 MB/s over 50 ms.
_RECEIVE_MAXIMUM = 8


@dataclass(frozen=True)
class _Spooled:
    """Event: the update that was being written is on disk, or cannot be."""


class AgentService(Service):
    """Service of one agent over one link: alone (`run`) or among others (`begin`, `take`, `end`).

    Args:
        agent: the machine.
        link: to the broker.
        config: of the agent.
        base: folder that the configuration's paths are relative to.
        pool: that trains for it.
        give_up_s: see `Service`.
        disk: threads that write the spool, so that one agent's disk does not hold up the others;
            None writes at once. Either way nothing that follows the update is done before it is
            on disk.
        device: source of readings.
        ceiling: of the process's memory, which only an agent that is alone in it can have.
    """

    def __init__(
        self,
        agent: Agent,
        link: Link,
        config: AgentConfig,
        base: Path,
        pool: WorkerPool,
        give_up_s: float | None = None,
        disk: Executor | None = None,
        device: Device | None = None,
        ceiling: MemoryCeiling | None = None,
    ) -> None:
        super().__init__(link, give_up_s)
        self._agent = agent
        self._limits = config.limits
        self._device = device or LinuxDevice()
        self._readings_due_s = -math.inf
        self._ceiling = ceiling
        self._has_worked = False  # since the memory was last looked at
        state_dir = located(config.state_dir, base)
        self._spool = Spool(state_dir, spool_limit(config))
        self._chunks = ChunkStore(state_dir, 3 * config.max_blob_bytes)
        self._trust = TrustFile(state_dir)
        self._worker = pool.worker(config, base, link.post)
        self._disk = disk
        self._writing: Future[None] | None = None
        #: Actions that wait for the update before them to be on disk.
        self._held: deque[Action] = deque()

    def handle(self, event: Event) -> Sequence[Action]:
        """See `Agent.handle`."""
        return self._agent.handle(event, time.monotonic())

    def wait_s(self) -> float:
        """Returns the seconds until the next heartbeat, stall, resend or reading."""
        now_s = time.monotonic()
        readings_s = self._readings_due_s - now_s if self._agent.needs_readings else math.inf
        return max(0.0, min(self._agent.wait_s(now_s), readings_s))

    def begin(self) -> None:
        """See `Service.begin`; the machine has readings before the first plan comes."""
        self._read_device()
        super().begin()

    def wake(self) -> None:
        """Tells the machine the time and the device's readings, when due."""
        self._read_device()
        if self._agent.wait_s(time.monotonic()) <= 0:
            self.dispatch(Tick())
        self._watch_memory()

    def _watch_memory(self) -> None:
        """Stops after a job that left too much memory in use, for another instance to follow."""
        if self._ceiling is None or not self._has_worked or not self._worker.is_idle:
            return
        self._has_worked = False
        if self._ceiling.is_above(resident_bytes()):
            return_freed_memory()
        if self._ceiling.after_job(resident_bytes()):
            self.starts_anew = True
            self.stop()

    def _read_device(self) -> None:
        now_s = time.monotonic()
        if self._agent.needs_readings and now_s >= self._readings_due_s:
            self._readings_due_s = now_s + self._limits.check_s
            self.dispatch(self._device.read(self._limits))

    def dispatch(self, event: Event | _Spooled) -> None:
        """See `Service.dispatch`."""
        if isinstance(event, _Spooled):
            self._release()
        else:
            self._has_worked |= isinstance(event, JobDone | JobFailed)
            super().dispatch(event)

    def do(self, action: Action) -> None:
        """Does an action now, or once the update before it is on disk."""
        if self._writing is not None:
            self._held.append(action)
        else:
            super().do(action)

    def end(self) -> None:
        """See `Service.end`."""
        super().end()
        while self._writing is not None:
            wait([self._writing])
            self._release()

    def _release(self) -> None:
        """Does the actions that waited for an update to be on disk, up to the next update."""
        writing, self._writing = self._writing, None
        if writing is not None and (error := writing.exception()) is not None:
            _warn_not_kept(error)
        while self._held and self._writing is None:
            super().do(self._held.popleft())

    def perform(self, action: Action) -> None:
        """Writes to disk, or hands slow work to the worker."""
        try:
            self._perform(action)
        except StoreError as error:
            _warn_not_kept(error)

    def _perform(self, action: Action) -> None:
        match action:
            case SpoolUpdate(update):
                self._write(update)
            case ResolvePendingUpdate(accepted):
                self._spool.resolve(accepted=accepted)
            case ForgetState():
                self._spool.forget_state()
            case RecallBlob(sha256):
                self._link.post(BlobRecalled(sha256, tuple(self._chunks.recall(sha256))))
            case KeepChunk(sha256, payload):
                self._chunks.keep(sha256, payload)
            case ForgetBlob(sha256):
                self._chunks.forget(sha256)
            case SaveTrust(record):
                self._trust.write(record)
            case LoadPackage() | StartJob():
                self._worker.submit(action)
            case CancelJob():
                self._worker.cancel()
            case PauseJobs() | ResumeJobs():
                self._worker.pause(paused=isinstance(action, PauseJobs))

    def _write(self, update: SpooledUpdate) -> None:
        if self._disk is None:
            self._spool.write(update)
            return
        self._writing = self._disk.submit(self._spool.write, update)
        self._writing.add_done_callback(lambda _: self._link.post(_Spooled()))


def _warn_not_kept(error: BaseException) -> None:
    # A full disk costs safety against power cuts, not the round.
    log.warning("%s", error, extra={"event": "not_kept"})


def agent_facts(config: AgentConfig, agent_instance: str) -> AgentFacts:
    """Returns the facts of this instance."""
    try:
        find_runtime(config.runtime)
        reason = ""
    except ModelError as error:
        reason = str(error)
        log.error("cannot take part: %s", error)
    return AgentFacts(
        agent_id=config.agent_id,
        federation=config.federation,
        agent_instance=agent_instance,
        phases=config.phases,
        tags=config.tags,
        unavailable_reason=reason,
        memory_bytes=memory_bytes(),
        software=fedge.__version__,
        fingerprint=config.fingerprint,
        max_blob_bytes=config.max_blob_bytes,
        heartbeat_s=config.heartbeat_s,
        stall_s=config.stall_s,
        limits=config.limits,
    )


def spool_limit(config: AgentConfig) -> int:
    """Returns the most bytes of a spooled update: a few uploads and states as large as a blob."""
    return 6 * config.max_blob_bytes + (1 << 20)


def make_agent(config: AgentConfig, base: Path, common: CommonBlobs | None = None) -> Agent:
    """Returns the machine of a new instance, with the memory from its state folder.

    Args:
        config: of the agent.
        base: folder that the configuration's paths are relative to.
        common: blobs that other agents of the process hold; None: there are no others.
    """
    state_dir = located(config.state_dir, base)
    facts = agent_facts(config, secrets.token_hex(8))
    memory = Spool(state_dir, spool_limit(config)).load()
    keys, record = open_trust(config, base)
    facts, memory = replace(facts, trusted_keys=keys), replace(memory, trust=record)
    agent = Agent(facts, memory, common=common)
    if agent.trusted_keys:
        log.info("messages must be signed by %s", " or ".join(agent.trusted_keys))
    return agent


def make_link(
    agent: Agent,
    config: AgentConfig,
    base: Path,
    network: NetworkLoop | None = None,
    notify: Callable[[], None] | None = None,
) -> MqttLink:
    """Returns the agent's link, not opened yet.

    Args:
        agent: that says what its will is.
        config: of the agent.
        base: folder that the configuration's paths are relative to.
        network: see `broker.link.mqtt.MqttLink`.
        notify: likewise.

    Raises:
        ConfigError: the broker's settings name files that cannot be read.
    """
    will = agent.will
    return MqttLink(
        config.broker.located(base),
        client_id=f"fedge-{config.federation}-{config.agent_id}",
        network=network,
        will=Will(will.topic, will.payload, WILL_DELAY_S),
        receive_maximum=_RECEIVE_MAXIMUM,
        probe_topic=agent.topics.name(AgentProbeTopic(config.agent_id)),
        notify=notify,
    )


def run_agent(config: AgentConfig, base: Path, give_up_s: float | None = None) -> None:
    """Runs an agent until it is stopped; paths in `config` are relative to `base`.

    Above its ceiling of memory the process starts its own command anew between two jobs: as after a
    restart, the spool has what the coordinator has not confirmed, and the broker the session.

    Raises:
        LinkError: see `Service.run`.
        ConfigError: the broker's settings name files that cannot be read, or another process runs
            on the state folder.
        FederationError: the process cannot start anew.
    """
    share_one_heap()
    limit = config.limits.max_memory_bytes or default_ceiling(memory_limit_bytes())
    with claimed(located(config.state_dir, base), "agent"):
        agent = make_agent(config, base)
        link = make_link(agent, config, base)
        pool = WorkerPool()
        ceiling = MemoryCeiling(limit)
        service = AgentService(agent, link, config, base, pool, give_up_s, ceiling=ceiling)
        try:
            service.run()
        finally:
            pool.stop()
    if service.starts_anew:
        _start_anew()


def _start_anew() -> None:
    """Replaces this process by its own command; does not return.

    The process keeps its number: a service manager sees no restart, and waits for none.

    Raises:
        FederationError: the system does not allow it; whoever supervises the process restarts it.
    """
    logging.shutdown()
    try:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  no shell
    except OSError as error:
        raise FederationError(f"{sys.executable} cannot start anew: {error.strerror}") from error
