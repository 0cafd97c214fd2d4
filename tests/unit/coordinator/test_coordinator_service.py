"""The coordinator's shell: nothing is confirmed that is not on disk."""

from __future__ import annotations

import logging
import math
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from broker.link.link import Received
from broker.link.settings import BrokerSettings
from broker.memory.link import MemoryBroker, MemoryLink
from broker.protocol import blobs, messages, signed_messages
from broker.protocol.messages import AgentStatus, Receipt, RoundPlan, UpdateHeader, VectorRef
from broker.protocol.topics import AgentStatusTopic, InboxTopic, RoundTopic, Topics, UpdateTopic
from broker.security.signing import Signer, SigningKeys
from coordinator.config import CoordinatorConfig, RoundConfig, StartConfig
from coordinator.doctor import diagnose
from coordinator.machine.coordinator import Coordinator
from coordinator.machine.events import Finished, RoundEnded, SaveAgent, Waiting
from coordinator.machine.progress import Progress
from coordinator.result import TrainedModel
from coordinator.rounds.checks import untrimmed
from coordinator.service import CoordinatorService, run_coordinator
from coordinator.storage.orders import Quarantine
from coordinator.storage.store import Store
from fedge.check_result import Check
from fedge.errors import ConfigError, LinkError, StoreError
from fedge.files import claimed
from learning.algorithms.algorithm import ServerState
from learning.codecs.registry import CODECS
from models.package.package import load_package
from models.package.stored_versions import STORE_FILE
from tests.ports import free_port
from tests.unit.coordinator.machine.coordinator_stage import PACKAGE, SESSION, config
from tests.unit.coordinator.test_stopping import record

TOPICS = Topics("f")
AGENTS = ("a", "b", "c")
KEYS = SigningKeys.generate()


@dataclass
class Scene:
    """A real service and store on the in-memory link, stepped by hand, and agents' plain links."""

    service: CoordinatorService
    link: MemoryLink
    agents: dict[str, MemoryLink]
    file: Path
    saved: list[str]

    def take_one(self) -> bool:
        """One turn of the service's loop that does not wait: what `run` does while busy."""
        event = self.link.poll(0.1)
        if event is None:
            return False
        self.service.take(event)
        return True

    def take_all(self) -> None:
        while self.take_one():
            pass
        self.service.idle()

    def on_disk(self) -> int:
        """Updates another process would find after a power cut now."""
        with closing(Store.open_existing(self.file.parent)) as other:
            progress = other.load(PACKAGE.spec.size)
        assert progress is not None
        return 0 if progress.open is None else len(progress.open.frames)

    def heard(self, name: str) -> list[Received]:
        found = []
        while (event := self.agents[name].poll(0.1)) is not None:
            if isinstance(event, Received):
                found.append(event)
        return found

    def receipts(self, name: str) -> list[Receipt]:
        inbox = TOPICS.name(InboxTopic(name))
        heard = [signed_messages.split(r.payload)[0] for r in self.heard(name) if r.topic == inbox]
        return [messages.decode(message, Receipt) for message in heard]

    def plan(self, name: str) -> RoundPlan:
        rounds = [r for r in self.heard(name) if r.topic == TOPICS.name(RoundTopic())]
        return messages.decode(signed_messages.split(rounds[-1].payload)[0], RoundPlan)

    def signed_until(self) -> int:
        """Numbers that another process would find set aside after a power cut now."""
        with sqlite3.connect(f"file:{self.file}?mode=ro", uri=True) as db:
            query = "SELECT value FROM meta WHERE key = 'signed_until'"
            number = int(db.execute(query).fetchone()[0])
        db.close()
        return number


def status() -> AgentStatus:
    return AgentStatus(
        state="online",
        agent_instance="b1",
        phases=("train",),
        train_examples=10,
        codecs=("float32",),
        algorithms=("fedavg",),
        coordinator_instance="c1",
    )


def frame(plan: RoundPlan) -> bytes:
    header = UpdateHeader(
        session=plan.session,
        agent_instance="b1",
        round_id=plan.round_id,
        attempt=1,
        version=plan.version,
        fingerprint=plan.fingerprint,
        vectors={"delta": VectorRef(codec=plan.codec, size=3, bytes=12)},
        num_examples=10,
        loss_sum=10.0,
        weight_sum=10.0,
        metric_sums={"mae": 5.0},
        training_s=0.1,
        received_bytes=0,
    )
    vector = np.array([1, 2, 3], np.float32)
    return messages.encode_update(
        header, CODECS.make(plan.codec).encode(vector, 0, np.random.default_rng(0))
    )


def send(scene: Scene, name: str, plan: RoundPlan) -> None:
    for n, payload in enumerate(blobs.split(frame(plan))[1]):
        scene.agents[name].publish(TOPICS.name(UpdateTopic(name, plan.round_id, n)), payload)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    broker = MemoryBroker()
    store = Store(tmp_path)
    store.begin(PACKAGE.initial, ServerState())
    link = MemoryLink(broker, "coordinator", manual_ack=True)
    machine = Coordinator(config(start=StartConfig(agents=3)), PACKAGE, SESSION, "c1")
    saved: list[str] = []

    def tell(event: dict[str, Any]) -> None:
        saved.append(event["event"])

    signer = Signer(KEYS, store.signed_until, store.sign_until, lambda: 1000)
    service = CoordinatorService(machine, link, store, lambda: None, tell, None, signer)
    agents = {name: MemoryLink(broker, name) for name in AGENTS}
    found = Scene(service, link, agents, tmp_path / STORE_FILE, saved)
    service.begin()
    for name, agent in agents.items():
        agent.subscribe(TOPICS.name(InboxTopic(name)))
        agent.subscribe(TOPICS.name(RoundTopic()))
        agent.open()
        agent.publish(TOPICS.name(AgentStatusTopic(name)), messages.encode(status()), retain=True)
    found.take_all()
    yield found
    link.close()
    for agent in agents.values():
        agent.close()
    store.close()


def test_a_receipt_waits_until_the_update_is_on_disk(scene: Scene) -> None:
    send(scene, "a", scene.plan("a"))
    while scene.take_one():
        pass
    assert scene.on_disk() == 0
    assert scene.receipts("a") == []
    scene.service.idle()
    assert scene.on_disk() == 1
    assert [receipt.accepted for receipt in scene.receipts("a")] == [True]


def test_what_agents_must_trust_is_signed_as_late_as_it_is_sent(scene: Scene) -> None:
    plan = scene.plan("a")
    send(scene, "a", plan)
    send(scene, "b", plan)
    while scene.take_one():
        pass
    scene.service.idle()
    numbers = []
    for name in ("a", "b"):
        receipt = next(r for r in scene.heard(name) if r.topic == TOPICS.name(InboxTopic(name)))
        message, line = signed_messages.split(receipt.payload)
        found = signed_messages.parse(line)
        assert KEYS.sign(receipt.topic, found.number, message) == found
        assert messages.decode(message, Receipt).accepted
        numbers.append(found.number)
    assert numbers == sorted(set(numbers))
    assert 1000 < numbers[0] <= scene.signed_until()


def test_updates_that_come_together_are_written_together(scene: Scene) -> None:
    plan = scene.plan("a")
    for name in ("a", "b"):
        send(scene, name, plan)
    while scene.take_one():
        pass
    assert scene.on_disk() == 0
    scene.service.idle()
    assert scene.on_disk() == 2
    assert all(scene.receipts(name)[0].accepted for name in ("a", "b"))


def test_an_update_that_was_not_confirmed_comes_again_after_a_crash(scene: Scene) -> None:
    send(scene, "a", scene.plan("a"))
    while scene.take_one():
        pass
    scene.link.interrupt()  # the broker has no acknowledgement: it delivers again
    topics = []
    while (event := scene.link.poll(5.0)) is not None:
        if isinstance(event, Received):
            topics.append(event.topic)
        if TOPICS.name(UpdateTopic("a", 1, 0)) in topics:
            break
    assert TOPICS.name(UpdateTopic("a", 1, 0)) in topics


def test_the_round_s_end_is_told_after_its_commit(scene: Scene) -> None:
    plan = scene.plan("a")
    for name in AGENTS:
        send(scene, name, plan)
    scene.take_all()
    assert "round" in scene.saved
    with sqlite3.connect(f"file:{scene.file}?mode=ro", uri=True) as db:
        assert db.execute("SELECT MAX(version) FROM versions").fetchone() == (1,)
    db.close()
    assert scene.on_disk() == 0
    assert all(scene.receipts(name)[0].accepted for name in AGENTS)


def test_when_agents_were_heard_of_is_kept_also_of_those_that_fell_silent(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, machine = scene.service._store, scene.service._coordinator
    start = {agent.agent_id: agent.heard_at for agent in store.agents()}
    shift = 0.0
    monotonic, wall = time.monotonic, time.time
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + shift)
    monkeypatch.setattr(time, "time", lambda: wall() + shift)
    shift = 100.0
    machine.roster.heard("a", time.monotonic())
    shift = 1000.0
    scene.service.wake()
    heard = {agent.agent_id: agent.heard_at - start[agent.agent_id] for agent in store.agents()}
    assert heard == pytest.approx({"a": 100.0, "b": 0.0, "c": 0.0}, abs=20)
    scene.service.perform(SaveAgent("b", AgentStatus(state="offline", agent_instance="b1")))
    scene.service.idle()
    (b,) = (agent for agent in store.agents() if agent.agent_id == "b")
    assert b.status.state == "offline"
    assert b.heard_at == pytest.approx(start["b"], abs=20)


def test_a_second_coordinator_on_one_state_folder_is_refused(tmp_path: Path) -> None:
    with (
        claimed(tmp_path / "state", "coordinator"),
        pytest.raises(ConfigError, match="state is in use by proc"),
    ):
        run_coordinator(config(), tmp_path)
    assert not (tmp_path / "state" / STORE_FILE).exists()


def test_another_algorithm_in_a_state_folder_is_refused_by_the_start_and_the_doctor(
    tmp_path: Path,
) -> None:
    nowhere = BrokerSettings(port=free_port())
    prox = config(model="house_price", algorithm="fedprox", broker=nowhere)
    with pytest.raises(LinkError):
        run_coordinator(msgspec.structs.replace(prox, algorithm="fedavg"), tmp_path, give_up_s=0.1)
    refusal = "holds algorithm 'fedavg', the configuration says 'fedprox'"
    with pytest.raises(ConfigError, match=refusal):
        run_coordinator(prox, tmp_path)

    def looked_at(settings: CoordinatorConfig) -> Check:
        checks = diagnose(settings, tmp_path, offline=True)
        return next(check for check in checks if check.name == "store")

    assert looked_at(prox).state == "failed"
    assert refusal in looked_at(prox).found
    for task, algorithm in (("train", "fedavg"), ("statistics", "fedprox")):
        same = msgspec.structs.replace(prox, task=task, algorithm=algorithm)
        assert looked_at(same).state == "ok"


@pytest.mark.parametrize(
    ("fraction", "minimum", "words"),
    [
        (0.2, 4, "fraction 0.2 leaves nothing out of a round of round.minimum 4, .*minimum to 5$"),
        (0.2, 5, "^$"),
        (0.29, 3, "set round.minimum to 4$"),
        (0.0, 9, "raise fraction$"),
    ],
)
def test_a_trimmed_mean_that_trims_nothing_is_a_warning(
    tmp_path: Path, fraction: float, minimum: int, words: str
) -> None:
    settings = config(
        model="house_price",
        aggregator={"name": "trimmed_mean", "fraction": fraction},
        round=RoundConfig(minimum=minimum),
    )
    found = untrimmed(settings)
    assert re.search(words, found)
    checks = diagnose(settings, tmp_path, offline=True)
    warned = [f"{c.found}: {c.advice}" for c in checks if c.name == "aggregator"]
    assert warned == ([found] if found else [])
    assert untrimmed(msgspec.structs.replace(settings, task="statistics")) == ""
    assert untrimmed(msgspec.structs.replace(settings, aggregator="median")) == ""


def test_an_abandoned_round_is_not_logged_again_and_who_declined_is(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "coordinator")
    scene.service._tell = None  # lines instead of JSON
    ended = record(0.5, status="abandoned", declined={"b": "training", "a": "training"})
    scene.service.perform(RoundEnded(ended))
    assert caplog.messages == ["round 1: 2 declined (training): a, b"]
    caplog.clear()
    scene.service.perform(RoundEnded(msgspec.structs.replace(ended, declined={})))
    assert caplog.messages == []


def test_after_going_back_the_log_counts_rounds_not_versions(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "coordinator")
    scene.service._tell = None  # lines instead of JSON
    coordinator = scene.service._coordinator
    progress, rounds = coordinator.progress, coordinator.config.rounds
    progress.course = msgspec.structs.replace(progress.course, committed=285)
    scene.service.perform(RoundEnded(record(0.5, round_id=303, version=304)))
    assert caplog.messages[0].startswith(
        f"round 303 · version 304 · 285 of {rounds} rounds · 1 of 1 reported"
    )


def test_a_wait_says_what_agents_lack(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "coordinator")
    scene.service._tell = None
    scene.service.perform(Waiting(0, 1, 2, "4 do not know algorithm 'damped'"))
    assert caplog.messages == [
        "waiting for agents: 0 of 1 can take part, 2 paused; 4 do not know algorithm 'damped'"
    ]
    told: list[dict[str, object]] = []
    scene.service._tell = told.append
    scene.service.perform(Waiting(0, 1, 2, "4 do not know algorithm 'damped'"))
    assert told == [
        {
            "event": "waiting",
            "able": 0,
            "wanted": 1,
            "resting": 2,
            "reason": "4 do not know algorithm 'damped'",
        }
    ]


def test_the_trained_model_is_replaced_file_by_file_as_a_whole(tmp_path: Path) -> None:
    for value in (1, 2):
        theta = np.full(3, value, np.float32)
        TrainedModel(tmp_path / "model", PACKAGE, Progress(1, theta, ServerState())).save()
        found = load_package(tmp_path / "model")
        assert found.initial.tolist() == theta.tolist()
        assert found.digest != PACKAGE.digest
        assert found.program == PACKAGE.program


def test_a_model_that_cannot_be_written_ends_the_coordinator_and_says_so(
    scene: Scene, tmp_path: Path
) -> None:
    (tmp_path / "model").write_text("")

    progress = Progress(1, PACKAGE.initial, ServerState())
    scene.service._save_result = TrainedModel(tmp_path / "model", PACKAGE, progress).save
    with pytest.raises(StoreError, match=r"is not written: .*model.*mend the disk and start again"):
        scene.service.perform(Finished("rounds"))


def test_a_state_folder_that_is_deleted_while_it_runs_is_noticed(scene: Scene) -> None:
    plan = scene.plan("a")
    folder = scene.file.parent
    folder.rename(folder.with_name("elsewhere"))
    scene.service._looked_s = -math.inf  # some seconds later
    with pytest.raises(
        StoreError, match=r"deleted or replaced.*put the folder back.*coordinator restore FILE"
    ):
        scene.service.wake()
    send(scene, "a", plan)
    with pytest.raises(StoreError, match="deleted or replaced"):
        scene.take_all()
    assert scene.receipts("a") == [], "nothing is confirmed that nobody will find again"


def test_an_order_ends_the_service_so_that_it_begins_anew(scene: Scene) -> None:
    plan = scene.plan("a")
    scene.service._looked_s = -math.inf
    scene.service.wake()
    assert not scene.service.starts_anew
    with closing(Store.open_existing(scene.file.parent)) as operator:
        number = operator.give_order(Quarantine("c", "its sensor is broken"))
        assert operator.order_outcome(number) is None
    send(scene, "a", plan)
    scene.take_all()
    scene.service.wake()
    assert not scene.service.starts_anew, "it looks every two seconds"
    scene.service._looked_s = -math.inf
    scene.service.wake()
    assert scene.service.starts_anew
    assert scene.on_disk() == 1, "what was confirmed is there for the next instance"
