"""A cohort as one process of the event-exact simulation, beside agents that have faults.

Its agents have one connection and one clock; every message of theirs is real, and goes through the
broker in memory to the real coordinator. They answer each plan once: their packets are not lost,
and none of them crashes. Agents for which a fault plan has something in store are processes of
their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.link.link import Will, publish_packet_bytes
from broker.protocol import messages
from broker.protocol.blobs import CHUNK_BYTES, HEADER_BYTES, chunk_bytes_for
from broker.protocol.messages import (
    CoordinatorStatus,
    ProgramManifest,
    Receipt,
    RoundPlan,
)
from broker.protocol.topics import (
    AgentStatusTopic,
    ChunkTopic,
    CoordinatorStatusTopic,
    InboxTopic,
    ProgramTopic,
    ReportTopic,
    RoundTopic,
    Topics,
    UpdateTopic,
)
from broker.service.events import (
    Connected,
    LinkAction,
    MessageArrived,
    Publish,
    Started,
    Subscribe,
    Tick,
)
from edge_agent.machine.blob_fetcher import Fetcher, Progressed
from edge_agent.machine.events import PackageLoaded, RecallBlob
from edge_agent.machine.status import AgentFacts, agent_status
from edge_agent.training.package_loaded import package_loaded
from fedge.errors import DeclinedError
from fleet.batched.cohort.cohort_update import CohortUpdate
from fleet.batched.cohort.device_states import CohortState
from fleet.batched.cohort.devices import Measured, Part, request_of
from fleet.batched.cohort.intake import INSTANCE, report_of, update_payloads
from fleet.batched.cohort.part_work import make_devices
from fleet.batched.cohort.task import Columns, PhaseTask
from fleet.batched.traffic import fetch
from fleet.virtual.event_trace import COHORT
from fleet.virtual.shells import CohortProcess, World
from learning.aggregation.norm_bound import NormBoundSettings, RoundNorms
from learning.phases.evaluate import Evaluate
from learning.phases.train import Train
from learning.vector.parameters import F32

_HEARTBEAT_S = 60.0
_MOST_BLOB_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class CohortDevices:
    """The agents of a cohort.

    Attributes:
        part: their rows, model and states.
        federation: its name.
        phases: that an agent takes part in, by its id.
        memory_bytes: of each device, shape (n,).
        load_s: to load a model package.
    """

    part: Part
    federation: str
    phases: Callable[[str], tuple[str, ...]]
    memory_bytes: NDArray[np.int64]
    load_s: float


@dataclass(frozen=True, eq=False)
class _Answered:
    """An update without a receipt so far: whose it is, and the states that it brings."""

    update: CohortUpdate
    place: int
    attempt: int


class CohortShell(CohortProcess):
    """See the module.

    Args:
        world: of the simulation.
        number: tells cohorts apart.
        devices: of the cohort.
    """

    def __init__(self, world: World, number: int, devices: CohortDevices) -> None:
        name = f"{COHORT}{number}"
        super().__init__(world, name, f"fedge-{devices.federation}-{name}")
        self._devices = devices
        self._topics = Topics(devices.federation)
        self._numbers = {name: n for n, name in enumerate(devices.part.names)}
        self._columns = Columns.empty(len(devices.part.names))
        self._pending: dict[str, _Answered] = {}
        self._fetcher = Fetcher(self._topics, _MOST_BLOB_BYTES, Random(name))  # noqa: S311
        self._vectors: dict[str, F32] = {}
        self._coordinator: CoordinatorStatus | None = None
        self._plan: RoundPlan | None = None
        self._answered: tuple[int, str] | None = None
        self._held: tuple[str, ...] = ()
        self._package = ""
        self._loaded: list[PackageLoaded] | None = None
        self._seen_bytes = 0
        self._chunk_bytes = CHUNK_BYTES
        self._heartbeat_s = math.inf
        self.size = len(self._numbers)

    def make_machine(self) -> Will:
        """See `Shell`; the cohort is its own machine."""
        topic = AgentStatusTopic(self._devices.part.names[0])
        return Will(self._topics.name(topic), b"", 0)

    def wait_s(self) -> float:
        """See `Shell`."""
        return max(0.0, min(self._heartbeat_s, self._fetcher.next_s()) - self.now_s)

    def perform(self, action: Any) -> None:
        """Nothing is kept of what only devices keep."""

    def handle(self, event: Any) -> Sequence[LinkAction]:
        """Returns what the cohort does about an event."""
        match event:
            case Started():
                topics = (CoordinatorStatusTopic(), ProgramTopic(), RoundTopic())
                names = [self._topics.name(topic) for topic in topics]
                inboxes = f"{self._topics.root}agents/+/inbox"
                return [Subscribe(name) for name in (*names, inboxes)]
            case Connected(max_payload_bytes):
                self._fetcher.connected(max_payload_bytes, self.now_s)
                self._chunk_bytes = chunk_bytes_for(max_payload_bytes)
                self._heartbeat_s = self.now_s + _HEARTBEAT_S
                return self._statuses()
            case MessageArrived(topic, payload):
                return self._message(topic, payload)
            case Tick():
                return self._tick()
        return []

    def _tick(self) -> list[LinkAction]:
        actions: list[LinkAction] = []
        for progressed in self._fetcher.tick(self.now_s):
            actions += self._fetched(progressed)
        if self.now_s >= self._heartbeat_s:
            self._heartbeat_s = self.now_s + _HEARTBEAT_S
            actions += self._statuses()
        return actions

    # -- messages -------------------------------------------------------------------------------

    def _message(self, name: str, payload: bytes) -> Sequence[LinkAction]:
        topic = self._topics.parse(name)
        size = publish_packet_bytes(name, len(payload))
        if isinstance(topic, InboxTopic):
            return self._receipt(topic.agent_id, payload, size)
        if isinstance(topic, ChunkTopic):
            return self._fetched(self._fetcher.chunk(topic.sha256, payload, self.now_s))
        self._columns.received += size
        match topic:
            case CoordinatorStatusTopic():
                return self._status(messages.decode(payload, CoordinatorStatus))
            case ProgramTopic():
                manifest = messages.decode(payload, ProgramManifest)
                self._package = manifest.package.sha256
                self._columns.received += _blob_bytes(self._topics, manifest.package)
                return self._fetched(self._fetcher.begin(manifest.package, self.now_s))
            case RoundTopic():
                self._plan = messages.decode(payload, RoundPlan)
                return self._advance()
        return []

    def _status(self, status: CoordinatorStatus) -> list[LinkAction]:
        self._coordinator = status
        if status.state != "online":
            return []
        self._seen_bytes = int(self._columns.received.max())
        return [*self._statuses(), *self._advance()]

    def _receipt(self, agent_id: str, payload: bytes, size: int) -> list[LinkAction]:
        number = self._numbers.get(agent_id)
        message = messages.decode_inbox(payload)
        if number is None or not isinstance(message, Receipt):
            return []  # another agent's, or chunks that were lost: ours are not
        self._columns.received[number] += size
        answered = self._pending.get(agent_id)
        if answered is not None and message.attempt == answered.attempt:
            del self._pending[agent_id]
            if message.accepted:
                self._promote(number, answered)
        return []

    def _promote(self, number: int, answered: _Answered) -> None:
        """Makes the state of an update that counts the one that its agent has."""
        state, place = answered.update.state, [answered.place]
        own = CohortState(
            {name: rows[place] for name, rows in state.residuals.items()},
            {name: rows[place] for name, rows in state.vectors.items()},
            None if state.personal is None else state.personal[place],
        )
        agents = np.array([number])
        slots = self._columns.slots
        slots[agents] = self._devices.part.states.write(agents, slots[agents], own)

    # -- statuses -------------------------------------------------------------------------------

    def _statuses(self) -> list[LinkAction]:
        """Returns the status of every agent."""
        devices = self._devices
        start = "" if self._coordinator is None else self._coordinator.coordinator_instance
        found: list[LinkAction] = []
        for number, name in enumerate(devices.part.names):
            facts = AgentFacts(
                agent_id=name,
                federation=devices.federation,
                agent_instance=INSTANCE,
                phases=devices.phases(name),
                memory_bytes=int(devices.memory_bytes[number]),
                software="simulated",
                heartbeat_s=_HEARTBEAT_S,
            )
            loaded = None if self._loaded is None else self._loaded[number]
            status = agent_status(
                facts, loaded, None, None, "", (), 0, start, self._seen_bytes, online=True
            )
            topic = self._topics.name(AgentStatusTopic(name))
            found.append(Publish(topic, messages.encode(status), retain=True))
        return found

    # -- blobs ----------------------------------------------------------------------------------

    def _fetched(self, progressed: Progressed) -> list[LinkAction]:
        """Takes the next step with a blob."""
        actions = [each for each in progressed.actions if isinstance(each, LinkAction)]
        for action in progressed.actions:
            if isinstance(action, RecallBlob):  # no disk: nothing is held
                actions += self._fetched(self._fetcher.recalled(action.sha256, (), self.now_s))
        if progressed.blob is not None:
            sha256, blob = progressed.blob
            if sha256 == self._package:
                self.later(self._devices.load_s, self._load)
            else:
                self._vectors[sha256] = np.frombuffer(blob, "<f4").astype(np.float32)
                actions += self._advance()
        return actions

    def _load(self) -> None:
        part = self._devices.part
        self._loaded = [
            package_loaded(part.package.digest, part.model.program, part.data.dataset(number))
            for number in range(self.size)
        ]
        self._send_all([*self._statuses(), *self._advance()])

    # -- work -----------------------------------------------------------------------------------

    def _advance(self) -> list[LinkAction]:
        """Fetches what an open plan needs, then works on it."""
        plan, coordinator = self._plan, self._coordinator
        if plan is None or coordinator is None or self._loaded is None:
            return []
        key = (plan.round_id, plan.phase_name)
        if (
            plan.state != "open"
            or coordinator.session != plan.session
            or coordinator.state != "online"
            or self._answered == key
        ):
            return []
        self._vectors = {
            ref.sha256: self._vectors[ref.sha256]
            for ref in plan.blobs.values()
            if ref.sha256 in self._vectors
        }
        actions: list[LinkAction] = []
        for ref in plan.blobs.values():
            if ref.sha256 not in self._vectors:
                actions += self._fetched(self._fetcher.begin(ref, self.now_s))
        if any(ref.sha256 not in self._vectors for ref in plan.blobs.values()):
            return actions
        self._answered = key
        asked = self._asked(plan)
        self._count_downloads(plan, asked)
        self.later(self._work_s(plan, asked), self._work, plan, asked)
        return actions

    def _asked(self, plan: RoundPlan) -> NDArray[np.int64]:
        """Returns the agents that a plan asks and that have rows for its phase."""
        part, phases = self._devices.part, self._devices.phases
        counts = part.data.counts("train" if plan.phase_name == "train" else "test")
        return np.array(
            [
                number
                for number, name in enumerate(part.names)
                if plan.cohort.includes(name) and plan.phase_name in phases(name) and counts[number]
            ],
            np.int64,
        )

    def _count_downloads(self, plan: RoundPlan, asked: NDArray[np.int64]) -> None:
        sizes = {ref.sha256: _blob_bytes(self._topics, ref) for ref in plan.blobs.values()}
        self._held = fetch(self._columns, self._held, sizes, asked)

    def _work_s(self, plan: RoundPlan, asked: NDArray[np.int64]) -> float:
        """Returns the virtual time of the slowest device's work."""
        if plan.phase_name != "train" or not len(asked):
            return 0.0
        rows = self._devices.part.data.num_train[asked]
        training = request_of(plan, {})[1].training
        steps = training.epochs * -(-rows // (training.batch_size or np.maximum(rows, 1)))
        return float((self._devices.part.seconds_per_step[asked] * steps).max())

    def _work(self, plan: RoundPlan, asked: NDArray[np.int64]) -> None:
        if self._plan is None or (self._plan.round_id, self._plan.phase_name) != (
            plan.round_id,
            plan.phase_name,
        ):
            return  # the round went on
        vectors = {name: self._vectors[ref.sha256] for name, ref in plan.blobs.items()}
        columns = self._columns.part(asked)
        norms = RoundNorms(NormBoundSettings(), {})
        task = PhaseTask(plan, vectors, asked, columns, norms, self._devices.federation)
        try:
            self._send_all(self._answers(task))
        except DeclinedError:
            return  # the coordinator's deadline ends the phase

    def _answers(self, task: PhaseTask) -> Iterable[LinkAction]:
        decoded, request = request_of(task.plan, task.vectors)
        devices = make_devices(self._devices.part)
        if isinstance(decoded.phase, Train):
            for update, _ in devices.train(request, task, task.asked, task.columns):
                yield from self._updates(update, task)
        elif isinstance(decoded.phase, Evaluate):
            for measured, _ in devices.evaluate(request, task, task.asked, task.columns):
                yield from self._reports(measured, task)

    def _updates(self, update: CohortUpdate, task: PhaseTask) -> Iterable[Publish]:
        self._columns.attempts[update.agents] += 1
        own = self._columns.part(update.agents)
        for place, name in enumerate(update.sums.names):
            attempt = int(own.attempts[place])
            self._pending[name] = _Answered(update, place, attempt)
            payloads = update_payloads(task.plan, update, own, place, self._chunk_bytes)
            for index, payload in enumerate(payloads):
                topic = self._topics.name(UpdateTopic(name, task.plan.round_id, index))
                yield Publish(topic, payload, expiry_s=math.ceil(task.plan.deadline_s))

    def _reports(self, measured: Measured, task: PhaseTask) -> Iterable[Publish]:
        for number, (name, sums) in zip(
            measured.agents.tolist(), measured.sums.items(), strict=True
        ):
            report = report_of(task, sums, int(self._columns.received[number]))
            topic = self._topics.name(ReportTopic(name, task.plan.round_id))
            yield Publish(topic, messages.encode(report))

    def _send_all(self, actions: Iterable[LinkAction]) -> None:
        """Sends what is not an answer to an event of the link."""
        for action in actions:
            self.send(action)


def _blob_bytes(topics: Topics, ref: messages.BlobRef) -> int:
    """Returns the bytes of the packets of a blob's chunks."""
    size = -(-ref.size // ref.chunks) if ref.chunks == 1 else CHUNK_BYTES
    total = 0
    for index in range(ref.chunks):
        data = min(size, ref.size - index * size)
        name = topics.name(ChunkTopic(ref.sha256, index))
        total += publish_packet_bytes(name, HEADER_BYTES + data)
    return total
