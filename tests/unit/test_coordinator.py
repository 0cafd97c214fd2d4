"""The coordinator's machine: fake agents that speak real messages, no broker and no clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np
import pytest

from broker import blobs, messages
from broker.link import publish_packet_bytes
from broker.machine import (
    Connected,
    MessageArrived,
    Publish,
    Started,
    Stopping,
    Subscribe,
    Tick,
)
from broker.messages import (
    AgentStatus,
    CoordinatorStatus,
    ProgramManifest,
    Receipt,
    Report,
    RoundPlan,
    UpdateHeader,
)
from broker.topics import (
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
from coordinator.config import (
    CohortConfig,
    CoordinatorConfig,
    EvaluationConfig,
    RoundConfig,
    StartConfig,
    StopConfig,
)
from coordinator.events import (
    Action,
    Commit,
    Event,
    Finished,
    RoundEnded,
    SaveAgent,
    SaveRound,
    Unable,
    Waiting,
)
from coordinator.federation import Coordinator
from coordinator.progress import Progress, StoredRound
from coordinator.records import RoundRecord
from coordinator.strategies import StrategyConfig
from models.codecs import CodecConfig, make_codec
from models.errors import ConfigError
from models.metrics import Sums
from models.package import ModelPackage
from models.parameters import F32
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
        "codec": CodecConfig("float32"),
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
        ref = self.plan.weights
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
        boot: str = "b1",
        rows: int = 10,
        test_rows: int = 0,
        tasks: Sequence[Any] = ("train", "evaluate"),
        join: bool = True,
    ) -> None:
        self.stage, self.name, self.boot = stage, name, boot
        self.rows, self.test_rows, self.tasks = rows, test_rows, tuple(tasks)
        self.paused = ""
        if join:
            self.status("online")

    def say(self, topic: Any, payload: bytes) -> list[Action]:
        return self.stage.feed(MessageArrived(self.stage.topics.name(topic), payload))

    def status(self, state: Any, boot: str | None = None) -> list[Action]:
        status = AgentStatus(
            state=state,
            boot=boot or self.boot,
            tasks=self.tasks,
            train_examples=self.rows if "train" in self.tasks else 0,
            test_examples=self.test_rows,
            codecs=("float32", "int8"),
            paused=self.paused,
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
            "boot": self.boot,
            "round_id": plan.round_id,
            "attempt": 1,
            "version": plan.version,
            "fingerprint": plan.fingerprint,
            "codec": plan.codec,
            "size": len(vector),
            "num_examples": self.rows,
            "weight_sum": float(rows),
            "loss_sum": changes.pop("loss", 1.0) * rows,
            "metric_sums": {k: v * rows for k, v in changes.pop("metrics", {"mae": 0.5}).items()},
            "training_s": 0.1,
            "received_bytes": 0,
        }
        rng = np.random.default_rng(0)
        body = changes.pop("body", None)
        if body is None:
            body = make_codec(plan.codec).encode(vector, rng)
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
            "boot": self.boot,
            "round_id": plan.round_id,
            "kind": kind,
            "task": plan.task,
            "version": plan.version,
        }
        report = Report(**(facts | changes))
        return self.say(ReportTopic(self.name, plan.round_id), messages.encode(report))

    def evaluation(
        self, loss_sum: float, mae_sum: float, weight: float | None = None, **changes: Any
    ) -> list[Action]:
        weight_sum = float(self.test_rows) if weight is None else weight
        sums = {"loss_sum": loss_sum, "weight_sum": weight_sum, "metric_sums": {"mae": mae_sum}}
        return self.report("evaluation", **(sums | changes))

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


# -- what is published ------------------------------------------------------------------------


def test_it_subscribes_to_what_agents_write_and_to_nothing_else() -> None:
    actions = Coordinator(config(), PACKAGE, SESSION, "c1").handle(Started(), 0.0)
    assert actions == [
        Subscribe("fedge/v1/f/agents/+/status"),
        Subscribe("fedge/v1/f/agents/+/updates/+/+"),
        Subscribe("fedge/v1/f/agents/+/reports/+"),
    ]


def test_birth_and_package_are_retained_and_the_package_is_whole() -> None:
    stage = Stage(config())
    birth = stage.retained["fedge/v1/f/coordinator/status"]
    assert messages.decode(birth, CoordinatorStatus) == CoordinatorStatus(
        state="online", session=SESSION, version=0
    )
    manifest = messages.decode(stage.retained["fedge/v1/f/program"], ProgramManifest)
    assert manifest.package.sha256 == PACKAGE.digest
    receiver = blobs.BlobReceiver(manifest.package, 1 << 20)
    (payload,) = [p for topic, p in stage.retained.items() if PACKAGE.digest in topic]
    assert receiver.add(blobs.parse_chunk(payload)) == PACKAGE.wire


def test_stopping_and_the_will_say_offline() -> None:
    stage = Stage(config())
    offline = CoordinatorStatus(state="offline", session=SESSION, version=0)
    (goodbye,) = stage.feed(Stopping())
    will = stage.coordinator.will
    assert goodbye == will == Publish(will.topic, messages.encode(offline), retain=True)
    assert stage.topics.parse(will.topic) == CoordinatorStatusTopic()


def test_a_plan_names_weights_that_are_out_before_it() -> None:
    stage, *_ = three()
    published = [a.topic for a in only(stage.actions, Publish)]
    chunk = stage.topics.name(ChunkTopic(stage.plan.weights.sha256, 0))
    assert published.index(chunk) < published.index(stage.topics.name(RoundTopic()))
    assert stage.weights().tolist() == PACKAGE.initial.tolist()


def test_after_a_lost_broker_everything_retained_is_published_again() -> None:
    stage, a, *_ = three()
    before = dict(stage.retained)
    a.update([1, 0, 0])
    stage.retained.clear()
    stage.feed(Connected(MAX_PAYLOAD, session_present=False))
    assert stage.retained == before


def test_a_broker_with_smaller_messages_gets_weights_and_a_plan_that_fit_each_other() -> None:
    stage, *_ = three()
    actions = stage.feed(Connected(2048))
    package = messages.decode(stage.retained[stage.topics.name(ProgramTopic())], ProgramManifest)
    assert package.package.chunks > 1
    assert all(len(a.payload) <= 2048 for a in only(actions, Publish))
    assert stage.weights().tolist() == [0.0, 0.0, 0.0]


def test_weights_that_were_replaced_are_cleared_after_the_plan_that_replaced_them() -> None:
    stage, a, b, c = three()
    old = stage.topics.name(ChunkTopic(stage.plan.weights.sha256, 0))
    a.update([3, 0, 0])
    b.update([3, 0, 0])
    actions = c.update([3, 0, 0])
    removal = Publish(old, b"", retain=True)
    (plan,) = [x for x in only(actions, Publish) if x.topic == stage.topics.name(RoundTopic())]
    assert actions.index(removal) > actions.index(plan)
    assert old not in stage.retained
    assert stage.weights().tolist() == [3.0, 0.0, 0.0]
    kept = [topic for topic in stage.retained if "/blobs/" in topic]
    assert len(kept) == 2  # the package and the new weights


# -- a round ----------------------------------------------------------------------------------


def test_a_full_round_commits_the_mean_weighted_by_examples() -> None:
    stage = Stage(config(start=StartConfig(agents=3)))
    a, b, c = (FakeAgent(stage, n, rows=r) for n, r in (("a", 1), ("b", 2), ("c", 5)))
    a.update([8, 0, 0], loss=4.0, metrics={"mae": 2.0})
    b.update([0, 8, 0], loss=2.0, metrics={"mae": 1.0})
    actions = c.update([0, 0, 8], loss=1.0, metrics={"mae": 0.4})
    (commit,) = only(actions, Commit)
    assert commit.version == 1
    assert commit.theta.tolist() == [1.0, 2.0, 5.0]  # 8 x 1/8, 8 x 2/8, 8 x 5/8
    record = stage.record
    assert (record.status, record.round_id, record.version) == ("committed", 1, 1)
    assert (record.asked, record.reported, record.refused) == (3, 3, 0)
    assert record.closed == "goal"
    assert record.train_loss == pytest.approx((4 * 1 + 2 * 2 + 1 * 5) / 8)
    assert record.train_metrics == {"mae": pytest.approx((2 * 1 + 1 * 2 + 0.4 * 5) / 8)}
    assert {n: r.num_examples for n, r in record.agents.items()} == {"a": 1, "b": 2, "c": 5}
    assert stage.plan.round_id == 2
    assert stage.plan.version == 1


def test_weighting_by_agents_counts_all_alike() -> None:
    stage = Stage(config(start=StartConfig(agents=2), weighting="agents"))
    a, b = FakeAgent(stage, "a", rows=1), FakeAgent(stage, "b", rows=99)
    a.update([2, 0, 0])
    (commit,) = only(b.update([0, 4, 0]), Commit)
    assert commit.theta.tolist() == [1.0, 2.0, 0.0]


def test_the_commit_comes_before_anything_that_depends_on_it() -> None:
    stage, a, b, c = three()
    a.update([1, 0, 0])
    b.update([1, 0, 0])
    actions = c.update([1, 0, 0])
    kinds = [type(action) for action in actions]
    plans = [
        index
        for index, action in enumerate(actions)
        if isinstance(action, Publish) and action.topic == stage.topics.name(RoundTopic())
    ]
    assert kinds.index(Commit) < kinds.index(SaveRound) < plans[0]


def test_an_accepted_update_gets_a_receipt_that_names_it() -> None:
    stage, a, *_ = three()
    receipt = a.receipt(a.update([1, 0, 0], attempt=7))
    assert receipt == Receipt(session=SESSION, round_id=1, boot="b1", attempt=7, accepted=True)
    assert only(stage.actions, Commit) == []


def test_an_update_in_many_chunks_in_any_order_counts_once() -> None:
    stage, a, b, c = three()
    _, body = messages.decode_update(a.frame([3, 0, 0]))
    header = messages.decode_update(a.frame([3, 0, 0]))[0]
    newer = msgspec.to_builtins(header) | {"field_of_a_newer_agent": "x" * 4000}
    text = msgspec.json.encode(newer)
    frame = b"FDG1" + len(text).to_bytes(4, "big") + text + bytes(body)
    payloads = blobs.split(frame, 1024)[1]
    assert len(payloads) == 5
    for n in (4, 2, 2, 3, 0):
        assert a.say(UpdateTopic("a", 1, n), payloads[n]) == []
    assert a.receipt(a.say(UpdateTopic("a", 1, 1), payloads[1])).accepted
    b.update([0, 0, 0])
    c.update([0, 0, 0])
    assert stage.coordinator.progress.theta.tolist() == [1.0, 0.0, 0.0]


def test_over_selection_closes_at_the_goal_and_the_slow_one_is_late() -> None:
    stage = Stage(
        config(
            start=StartConfig(agents=3),
            cohort=CohortConfig(fraction=0.6, over_select=1.5),
            evaluation=EvaluationConfig(every=1),
        )
    )
    agents = {n: FakeAgent(stage, n, test_rows=1) for n in "abc"}
    asked = stage.plan.cohort.ids
    assert asked == ("a", "b", "c")  # goal ceil(0.6 x 3) = 2, asked ceil(2 x 1.5) = 3
    plan = stage.plan
    agents["a"].update([2, 0, 0])
    agents["b"].update([4, 0, 0])
    assert stage.coordinator.progress.theta.tolist() == [3.0, 0.0, 0.0]
    late = agents["c"].receipt(agents["c"].update([90, 0, 0], plan=plan))
    assert (late.accepted, late.reason) == (False, "late")
    for agent in agents.values():
        agent.evaluation(1.0, 1.0)
    assert stage.record.refusals == {"late": 1}
    assert (stage.record.asked, stage.record.reported, stage.record.refused) == (3, 2, 1)
    assert stage.coordinator.progress.theta.tolist() == [3.0, 0.0, 0.0]


def test_an_update_that_was_not_asked_for_is_refused_by_name() -> None:
    stage, *_ = three()
    stranger = FakeAgent(stage, "d")
    receipt = stranger.receipt(stranger.update([1, 1, 1]))
    assert (receipt.accepted, receipt.reason) == (False, "not_asked")


def test_at_the_deadline_the_updates_at_hand_are_enough() -> None:
    stage, a, b, _ = three()
    a.update([2, 0, 0])
    b.update([4, 0, 0])
    assert only(stage.later(59.9), Commit) == []
    assert stage.coordinator.wait_s(stage.now_s) == pytest.approx(0.1)
    (commit,) = only(stage.later(0.1), Commit)
    assert commit.theta.tolist() == [3.0, 0.0, 0.0]
    assert stage.record.closed == "deadline"
    assert stage.record.seconds == pytest.approx(60.0)


def test_below_the_minimum_a_round_is_abandoned_and_the_next_one_begins_after_a_pause() -> None:
    stage, a, b, c = three(round=RoundConfig(deadline_s=60.0, minimum=2))
    a.update([2, 0, 0])
    actions = stage.later(60.0)
    assert only(actions, Commit) == []
    abandoned = stage.record
    assert (abandoned.status, abandoned.reported, abandoned.version) == ("abandoned", 1, 0)
    assert stage.plan.round_id == 1
    assert stage.coordinator.wait_s(stage.now_s) == pytest.approx(1.0)
    stage.later(1.0)
    assert stage.plan.round_id == 2
    for agent in (a, b, c):
        agent.update([1, 0, 0])
    assert stage.record.status == "committed"
    # What was sent for the abandoned round does not count in the next.
    assert stage.coordinator.progress.theta.tolist() == [1.0, 0.0, 0.0]


def test_pauses_after_abandoned_rounds_grow_to_a_minute() -> None:
    stage = Stage(config(start=StartConfig(agents=1)))
    FakeAgent(stage, "a")
    pauses = []
    for _ in range(9):
        stage.later(60.0)
        ended_s, round_id = stage.now_s, stage.plan.round_id
        while stage.plan.round_id == round_id:
            stage.later(stage.coordinator.wait_s(stage.now_s))
        pauses.append(stage.now_s - ended_s)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_an_agent_that_is_lost_is_not_waited_for() -> None:
    stage, a, b, c = three()
    a.update([2, 0, 0])
    c.status("offline")
    (commit,) = only(b.update([4, 0, 0]), Commit)
    assert commit.theta.tolist() == [3.0, 0.0, 0.0]
    assert stage.record.closed == "everyone"
    assert stage.plan.cohort.ids == ("a", "b")


def test_when_everyone_is_lost_a_short_outage_does_not_end_the_round() -> None:
    stage, a, b, c = three()
    for agent in (a, b, c):
        agent.status("offline")
    assert only(stage.actions, RoundEnded) == []
    for agent in (a, b):
        agent.status("online")
        agent.update([1, 0, 0])
    assert (stage.record.status, stage.record.closed) == ("committed", "everyone")


def test_when_everyone_stays_lost_the_deadline_ends_the_round() -> None:
    stage, a, b, c = three()
    for agent in (a, b, c):
        agent.status("offline")
    stage.later(60.0)
    assert (stage.record.status, stage.record.closed) == ("abandoned", "deadline")
    stage.later(1.0)
    assert only(stage.actions, Waiting)[-1] == Waiting(able=0, wanted=1)
    a.boot = "b2"
    a.status("online")
    assert (stage.plan.round_id, stage.plan.cohort.ids) == (2, ("a",))


def test_an_agent_that_comes_back_in_time_may_still_answer() -> None:
    stage, a, b, c = three()
    c.status("offline")
    c.status("online")
    a.update([1, 0, 0])
    b.update([1, 0, 0])
    assert only(stage.actions, Commit) == []
    (commit,) = only(c.update([4, 0, 0]), Commit)
    assert commit.theta.tolist() == [2.0, 0.0, 0.0]


def test_a_will_of_the_boot_before_does_not_lose_the_new_one() -> None:
    stage, a, b, c = three()
    c.boot = "b2"
    c.status("online")
    assert c.status("offline", boot="b1") == []
    a.update([1, 0, 0])
    b.update([1, 0, 0])
    assert only(stage.actions, Commit) == []  # c is waited for
    assert len(only(c.update([1, 0, 0]), Commit)) == 1


def test_those_who_decline_are_not_waited_for_and_shown_with_the_reason() -> None:
    stage, a, b, c = three()
    a.update([2, 0, 0])
    b.report("declined", reason="training", detail="the loss is nan")
    c.report("declined", reason="no_data")
    assert stage.record.declined == {"b": "training", "c": "no_data"}
    assert stage.record.details == {"training": "b: the loss is nan", "no_data": "c: "}
    assert (stage.record.closed, stage.record.reported) == ("everyone", 1)


def test_everyone_declining_abandons_the_round() -> None:
    stage, *agents = three()
    for agent in agents:
        agent.report("declined", reason="training")
    assert stage.record.status == "abandoned"
    assert stage.coordinator.progress.version == 0


def test_a_rule_lets_agents_find_out_themselves() -> None:
    stage = Stage(
        config(start=StartConfig(agents=40), cohort=CohortConfig(fraction=0.5, announce="rule"))
    )
    agents = {f"pi-{n}": FakeAgent(stage, f"pi-{n}") for n in range(40)}
    cohort = stage.plan.cohort
    assert cohort.ids is None
    asked = [name for name in agents if cohort.includes(name)]
    assert 8 <= len(asked) <= 32  # 20 expected, standard deviation 3.2
    outsider = next(agents[name] for name in agents if name not in asked)
    assert outsider.receipt(outsider.update([9, 9, 9])).reason == "not_asked"
    for name in asked:
        assert only(stage.actions, Commit) == []
        agents[name].update([1, 0, 0])
    assert stage.record.asked == len(asked)
    assert stage.record.refusals == {"not_asked": 1}
    assert stage.record.closed == "goal"


# -- updates that must not count --------------------------------------------------------------


def nan_body() -> bytes:
    return np.array([np.nan, 0, 0], "<f4").tobytes()


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("malformed", {"body": nan_body()}),
        ("malformed", {"body": b"\0" * 11}),
        ("malformed", {"body": b"\0" * 13}),
        ("session", {"session": "s0"}),
        ("round", {"round_id": 77}),
        ("version", {"version": 5}),
        ("fingerprint", {"fingerprint": "0" * 16}),
        ("codec", {"codec": CodecConfig("float16")}),
        ("shape", {"size": 4}),
        ("metrics", {"metrics": {}}),
        ("metrics", {"metrics": {"mae": 1.0, "more": 1.0}}),
        ("examples", {"num_examples": 0}),
        ("examples", {"num_examples": 1_000_000_001}),
        ("norm", {"body": np.array([30, 40, 0], "<f4").tobytes()}),
    ],
)
def test_a_bad_update_is_refused_by_name_and_counted(reason: str, changes: Any) -> None:
    stage, a, b, c = three(max_update_norm=10.0)
    receipt = c.receipt(c.update([1, 0, 0], **changes))
    assert (receipt.accepted, receipt.reason) == (False, reason)
    a.update([2, 0, 0])
    b.update([4, 0, 0])
    if reason == "session":
        c.report("declined", reason="stopping")  # it is still waited for
    record = stage.record
    assert (record.status, record.reported) == ("committed", 2)
    assert (record.refused, record.refusals) == (1, {reason: 1})
    assert stage.coordinator.progress.theta.tolist() == [3.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"rubbish",
        b"\x80\x04pickle",
        blobs.split(b"no frame at all" * 10)[1][0],
        blobs.split(b"FDG1\0\0\0\x0f" + b'{"session":"\xff"}' + b"body")[1][0],
    ],
)
def test_bytes_that_are_no_update_refuse_their_sender_and_nobody_else(payload: bytes) -> None:
    stage, a, b, c = three()
    a.update([2, 0, 0])
    b.update([4, 0, 0])
    c.say(UpdateTopic("c", 1, 0), payload)
    assert stage.record.refusals == {"malformed": 1}
    assert stage.coordinator.progress.theta.tolist() == [3.0, 0.0, 0.0]


def test_a_refused_agent_may_send_a_good_one_while_the_round_is_open() -> None:
    stage, a, b, c = three()
    c.say(UpdateTopic("c", 1, 0), b"rubbish")
    assert c.receipt(c.update([6, 0, 0])).accepted
    a.update([3, 0, 0])
    b.update([3, 0, 0])
    assert stage.coordinator.progress.theta.tolist() == [4.0, 0.0, 0.0]
    assert (stage.record.reported, stage.record.refused) == (3, 1)


def test_an_update_left_over_from_an_earlier_run_does_not_spend_the_agents_answer() -> None:
    stage, a, b, c = three()
    a.update([1, 0, 0])
    b.update([1, 0, 0])
    receipt = c.receipt(c.update([50, 0, 0], session="s0"))
    assert (receipt.session, receipt.accepted, receipt.reason) == ("s0", False, "session")
    assert only(stage.actions, Commit) == []  # its answer to this run is waited for
    (commit,) = only(c.update([4, 0, 0]), Commit)
    assert commit.theta.tolist() == [2.0, 0.0, 0.0]
    assert stage.record.refusals == {"session": 1}


@pytest.mark.parametrize("tail", ["agents/a/status", "agents/a/reports/1"])
@pytest.mark.parametrize("payload", [b"rubbish", b'{"state":"\xff"}', b"[]", b"null", b"[" * 5000])
def test_unreadable_messages_are_counted_and_survived(tail: str, payload: bytes) -> None:
    stage, a, *_ = three()
    assert stage.feed(MessageArrived(f"fedge/v1/f/{tail}", payload)) == []
    assert stage.coordinator.unreadable == 1
    assert a.receipt(a.update([1, 0, 0])).accepted


@pytest.mark.parametrize(
    "topic",
    ["fedge/v1/f/agents/a#/status", "fedge/v1/other/agents/a/status", "x", "fedge/v1/f/agents/a"],
)
def test_foreign_topics_are_counted_and_survived(topic: str) -> None:
    stage, *_ = three()
    assert stage.feed(MessageArrived(topic, b"{}")) == []
    assert stage.coordinator.unreadable == 1


def test_a_device_with_absurd_figures_cannot_make_the_record_infinite() -> None:
    stage, a, b, c = three()
    c.update([1, 0, 0], loss_sum=1e308, num_examples=10**9)
    a.update([2, 0, 0], loss_sum=1e100, num_examples=10**9)
    b.update([2, 0, 0])
    assert stage.record.refusals == {"malformed": 1}
    assert msgspec.json.decode(msgspec.json.encode(stage.record), type=RoundRecord) == stage.record


def test_no_device_can_diverge_the_model_into_nan() -> None:
    stage, *agents = three()
    big = 3e38
    progress = stage.coordinator.progress
    for agent in agents:
        agent.update([big, 0, 0])
    assert progress.theta.tolist() == [pytest.approx(big), 0.0, 0.0]
    for agent in agents:
        agent.update([big, 0, 0])  # θ + delta is beyond float32
    assert stage.record.status == "abandoned"
    assert progress.version == 1
    assert np.isfinite(progress.theta).all()


# -- sent again -------------------------------------------------------------------------------


def test_an_update_sent_again_gets_its_receipt_again_and_counts_once() -> None:
    stage, a, b, c = three()
    first = a.receipt(a.update([3, 0, 0]))
    again = a.receipt(a.update([3, 0, 0]))
    assert first == again
    assert again.accepted
    b.update([3, 0, 0])
    c.update([0, 0, 0])
    assert stage.coordinator.progress.theta.tolist() == [2.0, 0.0, 0.0]
    assert (stage.record.reported, stage.record.refused) == (3, 0)


def test_an_update_sent_again_while_the_new_weights_are_measured_gets_its_receipt_again() -> None:
    stage = Stage(config(start=StartConfig(agents=2), evaluation=EvaluationConfig(every=1)))
    a, b = (FakeAgent(stage, n, test_rows=4) for n in "ab")
    plan = stage.plan
    a.update([2, 0, 0])
    b.update([4, 0, 0])
    assert stage.plan.task == "evaluate"
    assert a.receipt(a.update([2, 0, 0], plan=plan)).accepted
    a.evaluation(1.0, 1.0)
    b.evaluation(1.0, 1.0)
    assert (stage.record.reported, stage.record.refused) == (2, 0)
    assert stage.coordinator.progress.theta.tolist() == [3.0, 0.0, 0.0]


def test_another_update_of_an_agent_that_counts_already_is_a_duplicate() -> None:
    stage, a, b, c = three()
    a.update([3, 0, 0])
    receipt = a.receipt(a.update([90, 0, 0], attempt=2))
    assert (receipt.accepted, receipt.reason) == (False, "duplicate")
    a.boot = "b2"  # rebooted, trained again
    assert a.receipt(a.update([90, 0, 0])).reason == "duplicate"
    b.update([3, 0, 0])
    c.update([3, 0, 0])
    assert stage.coordinator.progress.theta.tolist() == [3.0, 0.0, 0.0]
    assert stage.record.refusals == {"duplicate": 2}


def test_an_update_for_a_round_long_over_is_late() -> None:
    stage, a, b, c = three()
    plan = stage.plan
    for agent in (a, b, c):
        agent.update([1, 0, 0])
    assert stage.plan.round_id == 2
    receipt = a.receipt(a.update([1, 0, 0], plan=plan, attempt=2))
    assert (receipt.round_id, receipt.accepted, receipt.reason) == (1, False, "late")
    for agent in (a, b, c):
        agent.update([1, 0, 0])
    assert stage.record.refusals == {"late": 1}


# -- evaluation -------------------------------------------------------------------------------


def test_who_does_not_measure_is_shown_with_the_reason() -> None:
    stage = Stage(config(start=StartConfig(agents=2), evaluation=EvaluationConfig(every=1)))
    a, b = FakeAgent(stage, "a", test_rows=1), FakeAgent(stage, "b", test_rows=3)
    for agent in (a, b):
        agent.update([1, 0, 0])
    a.evaluation(1.0, 1.0)
    b.report("declined", reason="evaluation", detail="index out of bounds")
    assert (stage.record.status, stage.record.declined) == ("committed", {"b": "evaluation"})
    assert stage.record.details == {"evaluation": "b: index out of bounds"}


def test_the_loss_of_a_round_is_the_mean_over_all_held_out_rows_with_the_new_weights() -> None:
    stage = Stage(config(start=StartConfig(agents=2), evaluation=EvaluationConfig(every=1)))
    a, b = FakeAgent(stage, "a", test_rows=1), FakeAgent(stage, "b", test_rows=3)
    a.update([2, 0, 0], loss=9.0)
    b.update([4, 0, 0], loss=9.0)
    plan = stage.plan
    assert (plan.task, plan.round_id, plan.version) == ("evaluate", 1, 1)
    assert stage.weights().tolist() == [3.0, 0.0, 0.0]
    a.evaluation(loss_sum=8.0, mae_sum=4.0)
    assert only(stage.actions, RoundEnded) == []
    b.evaluation(loss_sum=4.0, mae_sum=2.0)
    record = stage.record
    assert record.loss == pytest.approx(12 / 4)
    assert record.metrics == {"mae": pytest.approx(6 / 4)}
    assert record.train_loss == pytest.approx(9.0)
    assert record.agents["a"].loss == pytest.approx(8.0)
    assert record.agents["b"].loss == pytest.approx(4 / 3)
    assert record.agents["b"].num_examples == 10  # that it learned from
    assert stage.plan.task == "train"


def test_agents_that_never_learn_are_told_apart() -> None:
    stage = Stage(config(start=StartConfig(agents=1), evaluation=EvaluationConfig(every=1)))
    new = FakeAgent(stage, "new", test_rows=2, tasks=["evaluate"])
    a = FakeAgent(stage, "a", test_rows=4)
    learn = stage.plan
    a.update([1, 0, 0])
    measure = stage.plan
    assert (learn.cohort.ids, measure.cohort.ids) == (("a",), ("a", "new"))
    a.evaluation(loss_sum=4.0, mae_sum=8.0)
    new.evaluation(loss_sum=10.0, mae_sum=6.0)
    record = stage.record
    assert record.loss == 1.0
    assert record.metrics == {"mae": 2.0, "unseen_loss": 5.0, "unseen_mae": 3.0}
    assert (record.agents["new"].task, record.agents["new"].num_examples) == ("evaluate", 2)
    assert record.asked == 1


def test_evaluation_ends_at_its_own_deadline_with_the_answers_at_hand() -> None:
    stage = Stage(
        config(start=StartConfig(agents=2), evaluation=EvaluationConfig(every=1, deadline_s=5.0))
    )
    a, b = (FakeAgent(stage, n, test_rows=2) for n in "ab")
    a.update([1, 0, 0])
    b.update([1, 0, 0])
    a.evaluation(loss_sum=3.0, mae_sum=1.0)
    stage.later(5.0)
    assert stage.record.loss == 1.5
    assert stage.plan.round_id == 2


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("metrics", {"metric_sums": {}}),
        ("metrics", {"metric_sums": {"mae": 1.0, "x": 1.0}}),
        ("examples", {"weight_sum": 1e10}),
        ("examples", {"weight_sum": 1e-300}),
    ],
)
def test_an_evaluation_that_cannot_be_used_is_refused_and_not_waited_for(
    reason: str, changes: Any, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(config(start=StartConfig(agents=2), evaluation=EvaluationConfig(every=1)))
    a, b = (FakeAgent(stage, n, test_rows=2) for n in "ab")
    a.update([1, 0, 0])
    b.update([1, 0, 0])
    a.evaluation(loss_sum=3.0, mae_sum=1.0)
    b.evaluation(loss_sum=9e99, mae_sum=1.0, **changes)
    assert stage.record.loss == 1.5
    assert f"update from b refused ({reason})" in caplog.text


def test_evaluations_of_another_session_version_or_round_do_not_count() -> None:
    stage = Stage(config(start=StartConfig(agents=1), evaluation=EvaluationConfig(every=1)))
    a = FakeAgent(stage, "a", test_rows=2)
    a.update([1, 0, 0])
    a.evaluation(9.0, 9.0, session="s0")
    a.evaluation(9.0, 9.0, version=0)
    a.evaluation(9.0, 9.0, round_id=3)
    a.evaluation(9.0, 9.0, task="train")
    assert only(stage.actions, RoundEnded) == []
    a.evaluation(2.0, 2.0)
    assert stage.record.loss == 1.0


def test_an_evaluation_sent_twice_counts_once() -> None:
    stage = Stage(config(start=StartConfig(agents=2), evaluation=EvaluationConfig(every=1)))
    a, b = (FakeAgent(stage, n, test_rows=2) for n in "ab")
    a.update([1, 0, 0])
    b.update([1, 0, 0])
    a.evaluation(2.0, 2.0)
    a.evaluation(2.0, 2.0)
    b.evaluation(6.0, 2.0)
    assert stage.record.loss == 2.0  # (2 + 6) / 4


def test_evaluation_is_asked_for_every_so_many_versions_and_after_the_last() -> None:
    stage = Stage(
        config(start=StartConfig(agents=1), rounds=3, evaluation=EvaluationConfig(every=2))
    )
    a = FakeAgent(stage, "a", test_rows=1)
    tasks = []
    while stage.coordinator.finished is None:
        tasks.append(stage.plan.task)
        if stage.plan.task == "train":
            a.update([1, 0, 0])
        else:
            a.evaluation(1.0, 1.0)
    assert tasks == ["train", "train", "evaluate", "train", "evaluate"]


def test_the_coordinators_own_rows_are_measured_too() -> None:
    def measure(theta: F32) -> Sums:
        return Sums(float(theta[0]) * 4, 4.0, {"mae": 2.0})

    stage = Stage(config(start=StartConfig(agents=1)), measure=measure)
    FakeAgent(stage, "a").update([3, 0, 0])
    assert stage.record.metrics == {"mae": 0.5, "central_loss": 3.0, "central_mae": 0.5}


def test_a_measurement_that_fails_costs_its_figures_and_not_the_commit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def measure(theta: F32) -> Sums:
        raise RuntimeError("Invoke failed")

    stage = Stage(config(start=StartConfig(agents=1)), measure=measure)
    actions = FakeAgent(stage, "a").update([3, 0, 0])
    (commit,) = only(actions, Commit)
    assert (commit.version, commit.theta.tolist()) == (1, [3, 0, 0])
    assert (stage.record.status, stage.record.metrics) == ("committed", {"mae": 0.5})
    assert "round 1: the coordinator's own rows are not measured" in caplog.text


def test_the_time_that_measuring_takes_is_not_taken_from_the_next_round() -> None:
    stage = Stage(
        config(start=StartConfig(agents=1)), measure=lambda theta: Sums(1.0, 1.0, {"mae": 1.0})
    )
    FakeAgent(stage, "a").update([3, 0, 0])
    assert stage.plan.round_id == 1
    assert stage.coordinator.wait_s(stage.now_s) == 0
    stage.later(30.0)  # as long as it took
    assert stage.plan.round_id == 2
    stage.later(59.0)
    assert stage.record.round_id == 1
    stage.later(1.0)
    assert stage.record.round_id == 2


# -- beginning and end ------------------------------------------------------------------------


def test_it_waits_for_the_wished_number_of_agents_and_says_so_once() -> None:
    stage = Stage(config(start=StartConfig(agents=2)))
    assert only(stage.actions, Waiting) == [Waiting(able=0, wanted=2)]
    FakeAgent(stage, "a")
    stage.later(1.0)
    stage.later(1.0)
    assert only(stage.actions, Waiting) == [Waiting(0, 2), Waiting(1, 2)]
    assert stage.topics.name(RoundTopic()) not in stage.retained
    FakeAgent(stage, "b")
    assert stage.plan.cohort.ids == ("a", "b")


def test_after_the_timeout_fewer_agents_will_do() -> None:
    stage = Stage(config(start=StartConfig(agents=5, timeout_s=30.0)))
    FakeAgent(stage, "a")
    stage.later(29.0)
    assert stage.topics.name(RoundTopic()) not in stage.retained
    stage.later(1.0)
    assert stage.plan.cohort.ids == ("a",)


def test_agents_that_rest_are_not_asked_until_they_say_that_they_do_no_longer() -> None:
    stage = Stage(config(cohort=CohortConfig(at_least=2)))
    a = FakeAgent(stage, "a", join=False)
    a.rest("quiet_hours: 22:00-06:00 local time")
    FakeAgent(stage, "b")
    assert only(stage.actions, Waiting)[-1] == Waiting(able=1, wanted=2, resting=1)
    a.rest("")
    assert stage.plan.cohort.ids == ("a", "b")


def test_an_agent_that_rests_within_a_round_is_not_waited_for() -> None:
    stage, a, b, c = three()
    c.rest("too_hot: 80 °C, limit 75")
    a.update([1, 0, 0])
    assert only(b.update([1, 0, 0]), RoundEnded)
    assert (stage.record.reported, stage.record.closed) == (2, "everyone")
    assert stage.plan.cohort.ids == ("a", "b")


def test_an_agent_that_rested_within_a_round_and_goes_on_still_counts() -> None:
    stage, a, b, c = three()
    c.rest("too_hot: 80 °C, limit 75")
    c.rest("")
    a.update([1, 0, 0])
    assert not only(b.update([1, 0, 0]), RoundEnded)
    assert c.receipt(c.update([1, 0, 0])).accepted
    assert stage.record.reported == 3


def test_agents_that_cannot_train_are_not_asked() -> None:
    stage = Stage(config(start=StartConfig(agents=1)))
    FakeAgent(stage, "empty", rows=0)
    FakeAgent(stage, "eval", tasks=["evaluate"])
    sick = AgentStatus(state="online", boot="b", tasks=("train",), train_examples=5, unable="sick")
    foreign = msgspec.structs.replace(sick, unable="", codecs=("zip",))
    for name, status in (("sick", sick), ("foreign", foreign)):
        topic = stage.topics.name(AgentStatusTopic(name))
        stage.feed(MessageArrived(topic, messages.encode(status)))
    FakeAgent(stage, "a")
    assert stage.plan.cohort.ids == ("a",)
    assert only(stage.actions, Unable) == [Unable("sick", "sick", passing=False)]


@pytest.mark.parametrize(
    ("changes", "reason", "versions"),
    [
        ({"rounds": 3}, "rounds", 3),
        ({"stop": StopConfig(target=2.0)}, "target", 2),  # the losses are 4, 2, 1, 1, 1, …
        ({"stop": StopConfig(patience=2)}, "patience", 5),
        ({"stop": StopConfig(metric="mae", target=1.0)}, "target", 3),
    ],
)
def test_it_ends_for_a_reason(changes: Any, reason: str, versions: int) -> None:
    stage = Stage(config(start=StartConfig(agents=1), **changes))
    a = FakeAgent(stage, "a")
    losses = iter([4.0, 2.0, 1.0, 1.0, 1.0, 1.0])
    while stage.coordinator.finished is None:
        loss = next(losses)
        a.update([1, 0, 0], loss=loss, metrics={"mae": loss})
    assert stage.coordinator.finished == reason
    assert stage.coordinator.progress.version == versions
    assert stage.actions[-1] == Finished(reason)
    assert stage.plan.state == "finished"
    assert not stage.plan.cohort.includes("a")
    assert stage.weights().tolist() == [float(versions), 0.0, 0.0]


def test_an_agent_whose_heartbeats_stop_is_stored_as_offline() -> None:
    stage = Stage(config())
    status = AgentStatus(state="online", boot="b1", heartbeat_s=10.0)
    topic = stage.topics.name(AgentStatusTopic("a"))
    stage.feed(MessageArrived(topic, messages.encode(status)))
    for _ in range(3):
        assert only(stage.later(10.0), SaveAgent) == []
    offline = msgspec.structs.replace(status, state="offline")
    assert only(stage.later(1.0), SaveAgent) == [SaveAgent("a", offline)]


def test_what_single_agents_did_in_a_round_is_told_and_not_kept_in_memory() -> None:
    stage, a, b, c = three()
    a.report("declined", reason="too_hot")
    b.update([1, 0, 0])
    c.update([1, 0, 0])
    assert (set(stage.record.agents), stage.record.declined) == ({"b", "c"}, {"a": "too_hot"})
    assert only(stage.actions, SaveRound)[-1].record == stage.record
    assert stage.coordinator.progress.records == [stage.record.summary]
    assert stage.record.summary.agents == {}


def test_a_restart_goes_on_with_the_next_round_and_the_same_model() -> None:
    stage, *agents = three()
    for agent in agents:
        agent.update([1, 0, 0])
    for agent in agents:
        agent.update([1, 0, 0])
    assert stage.plan.round_id == 3
    kept = stage.coordinator.progress
    records = [r for r in kept.records if r.status == "committed"]
    again = Stage(
        config(), session="s2", progress=Progress(kept.version, kept.theta, {}, list(records))
    )
    a = FakeAgent(again, "a")
    again.later(1.0)  # births of the others would have arrived by now
    assert (again.plan.session, again.plan.round_id, again.plan.version) == ("s2", 3, 2)
    assert again.weights().tolist() == [2.0, 0.0, 0.0]
    a.update([1, 0, 0])
    assert (again.record.round_id, again.record.version) == (3, 3)


def test_after_a_restart_a_round_ends_only_when_births_had_time_to_arrive() -> None:
    settings = config(start=StartConfig(agents=2), evaluation=EvaluationConfig(every=1))
    stage = Stage(settings)
    a, _ = (FakeAgent(stage, name, test_rows=2) for name in "ab")
    frames = (("a", a.frame([2, 0, 0])),)
    stored = StoredRound(stage.plan, ("a", "b"), 2, frames)
    again = Stage(settings, progress=Progress(0, PACKAGE.initial, {}, [], stored))
    b = FakeAgent(again, "b", test_rows=2, join=False)
    # It was queued while nobody was there, and so comes before what is retained.
    assert b.receipt(b.update([4, 0, 0])).accepted
    assert only(again.actions, Commit) == []
    b.status("online")
    FakeAgent(again, "a", test_rows=2)
    again.later(again.coordinator.wait_s(again.now_s))
    assert again.coordinator.progress.theta.tolist() == [3.0, 0.0, 0.0]
    assert (again.plan.task, again.plan.cohort.ids) == ("evaluate", ("a", "b"))


def test_an_agent_lost_while_the_coordinator_was_away_is_not_waited_for() -> None:
    settings = config(start=StartConfig(agents=2))
    stage = Stage(settings)
    a, _ = FakeAgent(stage, "a"), FakeAgent(stage, "b")
    stored = StoredRound(stage.plan, ("a", "b"), 2, (("a", a.frame([2, 0, 0])),))
    again = Stage(settings, progress=Progress(0, PACKAGE.initial, {}, [], stored))
    FakeAgent(again, "b", join=False).status("offline")  # its will, retained
    FakeAgent(again, "a")
    again.later(again.coordinator.wait_s(again.now_s))
    assert (again.record.closed, again.record.reported) == ("everyone", 1)
    assert again.plan.cohort.ids == ("a",)


def test_a_restart_with_another_strategy_is_told_at_once() -> None:
    progress = Progress(1, PACKAGE.initial, {"velocity": np.zeros(3, np.float32)})
    with pytest.raises(ConfigError, match="the strategy or the model was changed"):
        Coordinator(config(), PACKAGE, SESSION, "c1", progress)
    Coordinator(config(strategy=StrategyConfig("fedavgm")), PACKAGE, SESSION, "c1", progress)


@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": StrategyConfig("fedmagic")},
        {"codec": CodecConfig("zip")},
        {"aggregator": "mode"},
    ],
)
def test_unknown_names_are_told_at_once(changes: Any) -> None:
    with pytest.raises(ValueError, match="unknown"):
        config(**changes)


# -- bytes ------------------------------------------------------------------------------------


def test_bytes_up_are_those_that_arrived_and_bytes_down_those_that_agents_report() -> None:
    stage = Stage(config(start=StartConfig(agents=2), evaluation=EvaluationConfig(every=1)))
    a, b = (FakeAgent(stage, n, test_rows=1) for n in "ab")
    a.update([1, 0, 0], received_bytes=700)
    b.update([1, 0, 0], received_bytes=900)
    a.evaluation(1.0, 1.0, received_bytes=750)
    b.evaluation(1.0, 1.0, received_bytes=900)
    assert (stage.record.bytes_up, stage.record.bytes_down) == (stage.fed_bytes, 750 + 900)
    before = stage.fed_bytes
    a.update([1, 0, 0], received_bytes=1000)
    b.boot = "b2"  # rebooted: its link counts from 0
    b.status("online")
    b.update([1, 0, 0], received_bytes=40)
    a.evaluation(1.0, 1.0, received_bytes=1000)
    b.evaluation(1.0, 1.0, received_bytes=60)
    assert stage.record.bytes_up == stage.fed_bytes - before
    assert stage.record.bytes_down == 250 + 60


def test_what_agents_say_of_themselves_is_saved() -> None:
    stage = Stage(config(start=StartConfig(agents=2)))
    a = FakeAgent(stage, "a")
    assert [action.agent_id for action in only(stage.actions, SaveAgent)] == ["a"]
    (saved,) = only(a.status("offline"), SaveAgent)
    assert saved.status.state == "offline"
    assert a.say(AgentStatusTopic("a"), b"") == []  # an operator cleared it


def test_the_same_events_at_the_same_times_give_the_same_actions() -> None:
    def play() -> list[Action]:
        stage, a, b, c = three(cohort=CohortConfig(fraction=0.7), codec=CodecConfig("int8"))
        for agent in (a, b, c):
            agent.update([1, 2, 3])
        stage.later(60.0)
        return [x for x in stage.actions if not isinstance(x, Commit)]

    assert play() == play()
