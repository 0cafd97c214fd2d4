"""A device on a stage: the agent's machine, event by event; no broker, no clock, no training."""

from __future__ import annotations

import hashlib
from typing import Any, TypeVar

import numpy as np

from broker.protocol import blobs, messages
from broker.protocol.messages import (
    AgentStatus,
    BlobRef,
    Cohort,
    CoordinatorStatus,
    Message,
    ProgramManifest,
    Receipt,
    Report,
    RoundPlan,
    UpdateHeader,
    VectorRef,
)
from broker.protocol.topics import (
    AgentStatusTopic,
    ChunkTopic,
    CoordinatorStatusTopic,
    InboxTopic,
    ProgramTopic,
    ReportTopic,
    RoundTopic,
    Topic,
    Topics,
)
from broker.service.events import (
    Connected,
    MessageArrived,
    Publish,
    Started,
    Subscribe,
    Unsubscribe,
)
from edge_agent.machine.agent import Agent
from edge_agent.machine.decoded_plan import CommonBlobs
from edge_agent.machine.device_state import DeviceState, rounded_residuals
from edge_agent.machine.events import (
    Action,
    Event,
    JobDone,
    PackageLoaded,
    ResolvePendingUpdate,
    SpoolUpdate,
    StartJob,
)
from edge_agent.machine.pending_update import AgentMemory, LocalReport, LocalUpdate
from edge_agent.machine.status import AgentFacts
from learning.codecs.feedback import encode_with_feedback
from learning.codecs.registry import CODECS
from learning.vector.metrics import Sums
from learning.vector.parameters import F32

T = TypeVar("T")
TOPICS = Topics("f")
PACKAGE = b"a model package" * 200  # 3,000 bytes
OTHER_PACKAGE = b"another package" * 200
FINGERPRINT = "0123456789abcdef"
MODEL = FINGERPRINT
THETA = np.array([0.5, -1.0, 2.0, 0.0], np.float32)
MAX_PAYLOAD = 1 << 20


def digest(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()


def ref(blob: bytes) -> BlobRef:
    return blobs.describe(blob)


def plan(**changes: Any) -> RoundPlan:
    facts: dict[str, Any] = {
        "session": "s1",
        "coordinator_instance": "c1",
        "round_id": 1,
        "state": "open",
        "phase": "train",
        "version": 0,
        "blobs": {"weights": ref(THETA.tobytes())},
        "package": digest(PACKAGE),
        "fingerprint": FINGERPRINT,
        "cohort": Cohort(ids=("pi-1",)),
        "codec": "float32",
        "deadline_s": 9.5,
        "seed": 7,
    }
    return RoundPlan(**(facts | changes))


class Device:
    """An agent, what it subscribed to, and all it ever did."""

    def __init__(
        self, connect: bool = True, common: CommonBlobs | None = None, **facts: Any
    ) -> None:
        self.agent = Agent(
            AgentFacts(agent_id="pi-1", federation="f", agent_instance="b1", **facts),
            common=common,
        )
        self.filters: list[str] = []
        self.actions: list[Action] = []
        self.now_s = 0.0
        if connect:
            self.feed(Started())
            self.feed(Connected(MAX_PAYLOAD))

    def feed(self, event: Event) -> list[Action]:
        actions = self.agent.handle(event, self.now_s)
        self.actions += actions
        for action in actions:
            if isinstance(action, Subscribe):
                self.filters.append(action.topic_filter)
            elif isinstance(action, Unsubscribe):
                self.filters.remove(action.topic_filter)
        return actions

    def hear(self, topic: Topic, message: Message | bytes) -> list[Action]:
        payload = message if isinstance(message, bytes) else messages.encode(message)
        return self.feed(MessageArrived(TOPICS.name(topic), payload))

    def coordinator(self, state: Any = "online", session: str = "s1") -> list[Action]:
        return self.hear(CoordinatorStatusTopic(), CoordinatorStatus(state=state, session=session))

    def manifest(self, package: bytes = PACKAGE) -> list[Action]:
        message = ProgramManifest(name="m", package=ref(package), fingerprint=FINGERPRINT)
        return self.hear(ProgramTopic(), message)

    def blob(self, blob: bytes) -> list[Action]:
        actions: list[Action] = []
        for n, payload in enumerate(blobs.split(blob)[1]):
            actions += self.hear(ChunkTopic(digest(blob), n), payload)
        return actions

    def loaded(self, package: bytes = PACKAGE, **changes: Any) -> list[Action]:
        facts: dict[str, Any] = {
            "fingerprint": FINGERPRINT,
            "model": MODEL,
            "runtime": "tflite 1",
            "train_examples": 20,
            "test_examples": 5,
            "train_weight": 20.0,
            "test_weight": 5.0,
        }
        return self.feed(PackageLoaded(digest(package), **(facts | changes)))

    def plan(self, **changes: Any) -> list[Action]:
        return self.hear(RoundTopic(), plan(**changes))

    def receipt(self, *, accepted: bool, **changes: Any) -> list[Action]:
        facts: dict[str, Any] = {
            "session": "s1",
            "round_id": 1,
            "agent_instance": "b1",
            "attempt": 1,
        }
        receipt = Receipt(accepted=accepted, **(facts | changes))
        return self.hear(InboxTopic("pi-1"), receipt)


def ready(**facts: Any) -> Device:
    """A device that has the model and waits for a plan."""
    device = Device(**facts)
    device.coordinator()
    device.manifest()
    device.blob(PACKAGE)
    device.loaded()
    return device


def training(**changes: Any) -> Device:
    """A device that trains for round 1."""
    device = ready()
    device.plan(**changes)
    (job,) = only(device.blob(THETA.tobytes()), StartJob)
    assert job.plan == plan(**changes)
    return device


def trained(delta: Any, state: DeviceState | None = None, **changes: Any) -> JobDone:
    """Returns the worker's result of a training that moves θ by `delta`."""
    of, state = plan(**changes), state or DeviceState(MODEL, "s1")
    vector: F32 = np.array(delta, np.float32)
    rng = np.random.default_rng(of.seed)
    kept = state.residuals.get("delta")
    residual = None if kept is None else kept.vector
    encoded = encode_with_feedback(CODECS.make(of.codec), vector, residual, of.seed, rng)
    after = DeviceState(
        MODEL, of.session, rounded_residuals({"delta": encoded.residual}), algorithm="fedavg"
    )
    sums = Sums(40.0, 20.0, {"mae": 10.0})
    part = VectorRef(codec=of.codec, size=vector.size, bytes=len(encoded.payload))
    return JobDone(of, LocalUpdate({"delta": part}, encoded.payload, 20, sums, 0.25, after))


def measured(of: RoundPlan, sums: Sums) -> JobDone:
    return JobDone(of, LocalReport(sums))


def only(actions: list[Action], kind: type[T]) -> list[T]:
    return [action for action in actions if isinstance(action, kind)]


def update_in(actions: list[Action]) -> tuple[UpdateHeader, memoryview, list[Publish]]:
    """The one update among some actions, put together as the coordinator would."""
    sent = [a for a in only(actions, Publish) if "/updates/" in a.topic]
    assert sent, actions
    receiver = blobs.BlobReceiver(blobs.parse_chunk(sent[0].payload).ref, 1 << 20)
    frame = None
    for publication in sent:
        frame = receiver.add(blobs.parse_chunk(publication.payload))
    assert frame is not None
    return *messages.decode_update(frame), sent


def report_in(actions: list[Action]) -> Report:
    (publication,) = only(actions, Publish)
    assert not publication.retain
    report = messages.decode(publication.payload, Report)
    assert publication.topic == TOPICS.name(ReportTopic("pi-1", report.round_id))
    return report


def status_in(actions: list[Action]) -> AgentStatus:
    (publication,) = [a for a in only(actions, Publish) if a.topic.endswith("/status")]
    assert publication.topic == TOPICS.name(AgentStatusTopic("pi-1"))
    assert publication.retain
    return messages.decode(publication.payload, AgentStatus)


def int8_round(device: Device, round_id: int, delta: Any) -> tuple[F32, list[Action]]:
    """What the coordinator reads of an int8 update; the weights are at hand."""
    job = only(device.actions, StartJob)[-1]
    actions = device.feed(trained(delta, job.state, round_id=round_id, codec="int8"))
    header, body, _ = update_in(actions)
    part = header.vectors["delta"]
    return CODECS.make(part.codec).decode(body, part.size, 7), actions


def rebooted(device: Device, agent_instance: str = "b2") -> Device:
    """The same device after a power cut: what is on its disk is there, all else is gone."""
    pending, settled = None, None
    for action in device.actions:
        if isinstance(action, SpoolUpdate):
            pending = action.update
        elif isinstance(action, ResolvePendingUpdate) and pending is not None:
            settled = pending.state if action.accepted else settled
            pending = None
    memory = AgentMemory(pending, settled)
    again = Device(connect=False)
    again.agent = Agent(
        AgentFacts(agent_id="pi-1", federation="f", agent_instance=agent_instance), memory
    )
    again.feed(Started())
    again.feed(Connected(MAX_PAYLOAD))
    again.coordinator()
    again.manifest()
    again.blob(PACKAGE)
    again.loaded()
    return again
