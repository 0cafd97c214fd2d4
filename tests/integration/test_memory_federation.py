"""A coordinator and three agents over the in-memory link: real machines and training, no clock."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from broker.link.link import LinkDown, LinkUp, Posted, Received, Will
from broker.memory.link import MemoryBroker, MemoryLink
from broker.service.events import (
    Connected,
    Disconnected,
    MessageArrived,
    Publish,
    Started,
    Stopping,
    Subscribe,
    Tick,
    Unsubscribe,
)
from coordinator.config import CoordinatorConfig, EvaluationConfig, RoundConfig, StartConfig
from coordinator.machine.coordinator import Coordinator
from coordinator.machine.events import Commit, RoundEnded
from coordinator.records.records import RoundRecord
from edge_agent.data.dataset import LocalDataset
from edge_agent.machine.agent import Agent
from edge_agent.machine.events import (
    BlobRecalled,
    LoadPackage,
    RecallBlob,
    StartJob,
)
from edge_agent.machine.status import AgentFacts
from fleet.virtual.simulated_worker import SimulatedWorker
from learning.algorithms.training import TrainingPlan
from learning.vector.parameters import F32
from models.runtime.rows import Rows, row_count
from models.zoo import load_zoo

HOUSING = Path(__file__).parents[2] / "examples" / "data" / "housing_california.npz"
PACKAGE = load_zoo("house_price")
#: Virtual seconds that loading a model, measuring, or one local step takes.
STEP_S = 0.25
BATCH = 100

Handle = Callable[[Any, float], list[Any]]


def shares(agents: int) -> list[Rows]:
    """Rows of some agents: every so-many-th of the first 1,500."""
    tensor = PACKAGE.spec.inputs[0]
    with np.load(HOUSING) as file:
        x = ((file["x"] - tensor.mean) / tensor.std).astype(np.float32)
        y = (file["y"] * 1e-5).astype(np.float32)
    return [{"features": x[n:1500:agents], "target": y[n:1500:agents]} for n in range(agents)]


class Node:
    """A machine behind a link; what its shell would do with the actions that are not the link's."""

    def __init__(self, link: MemoryLink, handle: Handle) -> None:
        self.link, self._handle = link, handle
        self.performed: list[Any] = []
        self.gone = False

    def feed(self, event: Any, now_s: float) -> None:
        for action in self._handle(event, now_s):
            match action:
                case Publish(topic, payload, retain, expiry_s):
                    self.link.publish(topic, payload, retain=retain, expiry_s=expiry_s)
                case Subscribe(topic_filter):
                    self.link.subscribe(topic_filter)
                case Unsubscribe(topic_filter):
                    self.link.unsubscribe(topic_filter)
                case _:
                    self.performed.append(action)
                    self.perform(action)

    def perform(self, action: Any) -> None:
        """Nothing: it is written down."""

    def vanish(self) -> None:
        """As in a power cut."""
        self.gone = True
        self.link.abort()

    def serve(self, now_s: float) -> None:
        event = self.link.poll(0)
        if self.gone:
            return
        match event:
            case LinkUp(session_present, max_payload_bytes):
                self.feed(Connected(max_payload_bytes, session_present), now_s)
            case LinkDown():
                self.feed(Disconnected(), now_s)
            case Received(topic, payload) as received:
                self.feed(MessageArrived(topic, payload), now_s)
                self.link.acknowledge(received)
            case Posted(value):
                self.feed(value, now_s)


class AgentNode(Node):
    """Trains for real; it takes virtual time."""

    def __init__(self, broker: MemoryBroker, name: str, part: Rows) -> None:
        agent = Agent(AgentFacts(agent_id=name, federation="f", agent_instance="b1"))
        will = Will(agent.will.topic, agent.will.payload, delay_s=5)
        super().__init__(MemoryLink(broker, name, will=will), agent.handle)
        self._broker, self._name, self._worker = broker, name, SimulatedWorker()
        index = np.arange(row_count(part))
        cut = len(index) - len(index) // 5
        self._dataset = LocalDataset(part, index[:cut], index[cut:], index, {})

    def perform(self, action: Any) -> None:
        match action:
            case RecallBlob(sha256):
                self.link.post(BlobRecalled(sha256, ()))
            case LoadPackage():
                self._later(1, self._worker.load(action, self._dataset))
            case StartJob(plan):
                done = self._worker.work(action, self._name, self._dataset, seconds=0.5)
                is_training = plan.phase_name == "train"
                self._later(-(-self._dataset.num_train // BATCH) if is_training else 1, done)

    def _later(self, steps: int, event: Any) -> None:
        self._broker.at(self._broker.now_s + STEP_S * steps, self.link.post, event)


class Federation:
    """All nodes on one broker, and what becomes of them."""

    def __init__(self, agents: int = 3, **changes: Any) -> None:
        facts: dict[str, Any] = {
            "federation": "f",
            "model": "house_price",
            "rounds": 5,
            "start": StartConfig(agents=agents),
            "training": TrainingPlan(epochs=1, batch_size=BATCH, learning_rate=0.02),
            "round": RoundConfig(deadline_s=60.0),
        }
        self.broker = MemoryBroker()
        self.coordinator = Coordinator(CoordinatorConfig(**(facts | changes)), PACKAGE, "s1", "c1")
        link = MemoryLink(self.broker, "coordinator")
        self.coordinator_node = Node(link, self.coordinator.handle)
        self.agents = [
            AgentNode(self.broker, f"pi-{n}", part) for n, part in enumerate(shares(agents))
        ]

    def run(self, limit_s: float = 600.0) -> None:
        nodes = {node.link: node for node in (self.coordinator_node, *self.agents)}
        for node in nodes.values():
            node.feed(Started(), self.broker.now_s)
            node.link.open()
        while self.coordinator.finished is None and self.broker.now_s < limit_s:
            ready = next(iter(self.broker.ready), None)
            if ready is not None:
                nodes[ready].serve(self.broker.now_s)  # type: ignore[index]
                continue
            due_s = self.broker.now_s + self.coordinator.wait_s(self.broker.now_s)
            if not self.broker.advance(due_s):
                self.coordinator_node.feed(Tick(), self.broker.now_s)
        for node in nodes.values():
            if not node.gone:
                node.feed(Stopping(), self.broker.now_s)
                node.link.close()

    @property
    def records(self) -> list[RoundRecord]:
        return [a.record for a in self.coordinator_node.performed if isinstance(a, RoundEnded)]

    @property
    def theta(self) -> F32:
        return self.coordinator.progress.theta


@pytest.mark.parametrize("codec", ["float32", "float16", "int8"])
def test_the_loss_falls_round_by_round(codec: str) -> None:
    federation = Federation(codec=codec)
    federation.run()
    records = federation.records
    assert federation.coordinator.finished == "rounds"
    assert [(r.round_id, r.status, r.version) for r in records] == [
        (n, "committed", n) for n in range(1, 6)
    ]
    assert [(r.asked, r.reported, r.refused) for r in records] == [(3, 3, 0)] * 5
    losses = [r.loss for r in records]
    assert None not in losses
    assert losses == sorted(losses, reverse=True)  # type: ignore[type-var]
    assert federation.coordinator.unreadable == 0


def test_it_learns_what_the_rows_of_all_have_in_common() -> None:
    plan = TrainingPlan(batch_size=0, learning_rate=0.2)
    federation = Federation(rounds=100, training=plan)
    federation.run()
    parts = shares(3)
    learned = [{k: array[: -len(array) // 5] for k, array in part.items()} for part in parts]
    x = np.concatenate([part["features"] for part in learned])
    y = np.concatenate([part["target"] for part in learned])
    exact = np.linalg.lstsq(np.c_[x, np.ones(len(y))], y, rcond=None)[0]
    assert federation.theta == pytest.approx(exact, abs=0.02)


def test_the_same_run_again_is_the_same_to_the_last_bit() -> None:
    first, second = Federation(), Federation()
    first.run()
    second.run()
    assert first.theta.tobytes() == second.theta.tobytes()
    assert first.records == second.records
    assert first.broker.now_s == second.broker.now_s
    commits = [a for a in first.coordinator_node.performed if isinstance(a, Commit)]
    assert len(commits) == 5


def test_every_byte_is_accounted_for() -> None:
    federation = Federation()
    federation.run()
    last, counters = federation.records[-1], federation.coordinator_node.link.counters
    up = sum(r.bytes_up for r in federation.records)
    # The coordinator counts what it was handed, the broker what it sent: expiry aside, the same.
    assert counters.down - 100 <= up <= counters.down
    down = sum(r.bytes_down for r in federation.records)
    assert 0 < down <= sum(node.link.counters.down for node in federation.agents)
    assert last.bytes_up > 0


def test_an_agent_that_vanishes_while_it_trains_is_not_waited_for() -> None:
    federation = Federation()
    broker, victim = federation.broker, federation.agents[1]
    broker.at(3.0, victim.vanish)
    federation.run()
    records = federation.records
    assert federation.coordinator.finished == "rounds"
    cut_short = [r for r in records if r.reported < r.asked]
    assert [(r.asked, r.reported, r.closed) for r in cut_short] == [(3, 2, "everyone")]
    assert [r.asked for r in records] == sorted((r.asked for r in records), reverse=True)
    assert records[-1].asked == 2
    assert broker.now_s < 60.0  # no deadline had to pass


@pytest.mark.parametrize("cut_s", [0.5, 1.1, 2.0, 3.3, 4.0])
def test_links_that_break_at_any_moment_cost_no_update(cut_s: float) -> None:
    federation = Federation(evaluation=EvaluationConfig(every=0))
    for number, node in enumerate((federation.coordinator_node, *federation.agents)):
        federation.broker.at(cut_s + 0.01 * number, node.link.interrupt)
    federation.run()
    undisturbed = Federation(evaluation=EvaluationConfig(every=0))
    undisturbed.run()
    assert federation.coordinator.finished == "rounds"
    assert federation.coordinator.progress.version == 5
    for record in federation.records:
        assert record.status == "committed"
        assert set(record.refusals) <= {"late", "duplicate"}


def test_a_model_that_diverges_is_declined_by_everyone_and_never_committed() -> None:
    plan = TrainingPlan(epochs=40, batch_size=100, learning_rate=1000)
    federation = Federation(training=plan)
    federation.run(limit_s=30.0)
    assert federation.coordinator.progress.version == 0
    assert federation.records
    assert federation.records[0].declined == dict.fromkeys(("pi-0", "pi-1", "pi-2"), "training")
    stored = msgspec.json.decode(msgspec.json.encode(federation.records[0]), type=RoundRecord)
    assert stored == federation.records[0]
