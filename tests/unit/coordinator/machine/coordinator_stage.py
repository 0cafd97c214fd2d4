"""A coordinator on a stage: fake agents that speak real messages, no broker and no clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from broker.link.link import publish_packet_bytes
from broker.protocol import blobs, messages
from broker.protocol.messages import (
    AgentStatus,
    Receipt,
    Report,
    RoundPlan,
    UpdateHeader,
    VectorRef,
)
from broker.protocol.topics import (
    AgentStatusTopic,
    ChunkTopic,
    InboxTopic,
    ReportTopic,
    RoundTopic,
    Topics,
    UpdateTopic,
)
from broker.service.events import Connected, MessageArrived, Publish, Started, Tick
from coordinator.config import CoordinatorConfig, EvaluationConfig, RoundConfig, StartConfig
from coordinator.machine.coordinator import Coordinator
from coordinator.machine.events import Action, Event, RoundEnded
from coordinator.machine.progress import Progress
from coordinator.records.records import RoundRecord
from learning.codecs.registry import CODECS
from learning.vector.parameters import F32
from models.package.package import ModelPackage
from models.zoo import load_zoo

PACKAGE = load_zoo("house_price")  # θ has 3 parameters, all 0 at first
SESSION = "s1"
MAX_PAYLOAD = 1 << 20
T = TypeVar("T")


def config(**changes: Any) -> CoordinatorConfig:
    facts: dict[str, Any] = {
        "federation": "f",
        "model": "house_price",
        "rounds": 100,
        "codec": "float32",
        "evaluation": EvaluationConfig(every=0),
        "round": RoundConfig(deadline_s=60.0),
    }
    return CoordinatorConfig(**(facts | changes))


class Stage:
    """A coordinator, what it keeps retained, and all it ever did."""

    def __init__(
        self,
        settings: CoordinatorConfig,
        *,
        session: str = SESSION,
        start: str = "c1",
        progress: Progress | None = None,
        measure: Any = None,
        package: ModelPackage = PACKAGE,
    ) -> None:
        self.start = start
        self.coordinator = Coordinator(settings, package, session, start, progress, measure)
        self.topics = Topics(settings.federation)
        self.now_s = 1000.0
        self.retained: dict[str, bytes] = {}
        self.actions: list[Action] = []
        self.fed_bytes = 0
        self.feed(Started())
        self.feed(Connected(MAX_PAYLOAD))

    def feed(self, event: Event) -> list[Action]:
        if isinstance(event, MessageArrived):
            expiry_s = 1 if "/updates/" in event.topic else None
            self.fed_bytes += publish_packet_bytes(event.topic, len(event.payload), expiry_s)
        actions = self.coordinator.handle(event, self.now_s)
        self.actions += actions
        for action in actions:
            if isinstance(action, Publish) and action.retain:
                self.retained[action.topic] = action.payload
                if not action.payload:
                    del self.retained[action.topic]
        return actions

    def later(self, seconds: float) -> list[Action]:
        self.now_s += seconds
        return self.feed(Tick())

    @property
    def plan(self) -> RoundPlan:
        return messages.decode(self.retained[self.topics.name(RoundTopic())], RoundPlan)

    @property
    def record(self) -> RoundRecord:
        """Of the last round that ended."""
        return only(self.actions, RoundEnded)[-1].record

    def weights(self) -> F32:
        """θ as an agent fetches it: only from what is retained."""
        return self.blob("weights")

    def blob(self, name: str) -> F32:
        """A vector of the plan, likewise."""
        ref = self.plan.blobs[name]
        receiver = blobs.BlobReceiver(ref, 1 << 20)
        blob = None
        for n in range(ref.chunks):
            payload = self.retained[self.topics.name(ChunkTopic(ref.sha256, n))]
            blob = receiver.add(blobs.parse_chunk(payload))
        assert blob is not None
        return np.frombuffer(blob, "<f4")


class FakeAgent:
    """Says what a device would say; `header` changes make it say something wrong."""

    def __init__(
        self,
        stage: Stage,
        name: str,
        *,
        agent_instance: str = "b1",
        rows: int = 10,
        test_rows: int = 0,
        phases: Sequence[Any] = ("train", "evaluate"),
        join: bool = True,
    ) -> None:
        self.stage, self.name, self.agent_instance = stage, name, agent_instance
        self.rows, self.test_rows, self.phases = rows, test_rows, tuple(phases)
        self.paused = ""
        self.train_weight = 0.0
        self.received_before = 0
        if join:
            self.status("online")

    def say(self, topic: Any, payload: bytes) -> list[Action]:
        return self.stage.feed(MessageArrived(self.stage.topics.name(topic), payload))

    def status(self, state: Any, agent_instance: str | None = None) -> list[Action]:
        status = AgentStatus(
            state=state,
            agent_instance=agent_instance or self.agent_instance,
            phases=self.phases,
            train_examples=self.rows if "train" in self.phases else 0,
            test_examples=self.test_rows,
            train_weight=self.train_weight,
            codecs=("float32", "int8"),
            algorithms=("fedavg", "fedavgm", "fedadam", "scaffold"),
            pause_reason=self.paused,
            coordinator_instance=self.stage.start,
            received_bytes=self.received_before,
        )
        return self.say(AgentStatusTopic(self.name), messages.encode(status))

    def rest(self, why: str) -> list[Action]:
        self.paused = why
        return self.status("online")

    def frame(self, delta: Sequence[float], **changes: Any) -> bytes:
        plan = changes.pop("plan", None) or self.stage.plan
        vector = np.array(delta, np.float32)
        rows = changes.get("num_examples", self.rows) or 1
        facts: dict[str, Any] = {
            "session": plan.session,
            "agent_instance": self.agent_instance,
            "round_id": plan.round_id,
            "attempt": 1,
            "version": plan.version,
            "fingerprint": plan.fingerprint,
            "num_examples": self.rows,
            "weight_sum": float(rows),
            "loss_sum": changes.pop("loss", 1.0) * rows,
            "metric_sums": {k: v * rows for k, v in changes.pop("metrics", {"mae": 0.5}).items()},
            "training_s": 0.1,
            "received_bytes": 0,
        }
        rng = np.random.default_rng(0)
        body = changes.pop("body", None)
        codec = changes.pop("codec", plan.codec)
        if body is None:
            body = CODECS.make(plan.codec).encode(vector, 0, rng)
        size = changes.pop("size", len(vector))
        facts["vectors"] = {"delta": VectorRef(codec=codec, size=size, bytes=len(body))}
        for name, more in changes.pop("more", {}).items():
            part = CODECS.make(plan.codec).encode(np.array(more, np.float32), 0, rng)
            facts["vectors"][name] = VectorRef(codec=codec, size=len(more), bytes=len(part))
            body += part
        return messages.encode_update(UpdateHeader(**(facts | changes)), body)

    def update(self, delta: Sequence[float], **changes: Any) -> list[Action]:
        plan = changes.get("plan") or self.stage.plan
        return self.send(self.frame(delta, **changes), plan.round_id)

    def send(
        self, frame: bytes, round_id: int, chunk_bytes: int = blobs.CHUNK_BYTES
    ) -> list[Action]:
        actions: list[Action] = []
        for n, payload in enumerate(blobs.split(frame, chunk_bytes)[1]):
            actions += self.say(UpdateTopic(self.name, round_id, n), payload)
        return actions

    def report(self, kind: Any, **changes: Any) -> list[Action]:
        plan = self.stage.plan
        facts: dict[str, Any] = {
            "session": plan.session,
            "agent_instance": self.agent_instance,
            "round_id": plan.round_id,
            "kind": kind,
            "phase": plan.phase_name,
            "version": plan.version,
        }
        report = Report(**(facts | changes))
        return self.say(ReportTopic(self.name, plan.round_id), messages.encode(report))

    def evaluation(
        self, loss_sum: float, mae_sum: float, weight: float | None = None, **changes: Any
    ) -> list[Action]:
        weight_sum = float(self.test_rows) if weight is None else weight
        sums = {"loss_sum": loss_sum, "weight_sum": weight_sum, "metric_sums": {"mae": mae_sum}}
        return self.report("result", **(sums | changes))

    def receipt(self, actions: Sequence[Action]) -> Receipt:
        """The one receipt for this agent among some actions."""
        inbox = self.stage.topics.name(InboxTopic(self.name))
        (payload,) = [a.payload for a in only(actions, Publish) if a.topic == inbox]
        return messages.decode(payload, Receipt)


def only(actions: Sequence[Action], kind: type[T]) -> list[T]:
    return [action for action in actions if isinstance(action, kind)]


def three(**changes: Any) -> tuple[Stage, FakeAgent, FakeAgent, FakeAgent]:
    """A stage whose first round asks a, b and c."""
    stage = Stage(config(start=StartConfig(agents=3), **changes))
    a, b, c = (FakeAgent(stage, name) for name in "abc")
    assert stage.plan.cohort.ids == ("a", "b", "c")
    return stage, a, b, c
