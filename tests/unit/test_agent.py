"""The agent's machine, event by event: no broker, no clock, no training."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
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
    Unsubscribe,
)
from broker.messages import (
    AgentStatus,
    BlobRef,
    Cohort,
    CoordinatorStatus,
    Message,
    ProgramManifest,
    Receipt,
    Report,
    Resend,
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
    Topic,
    Topics,
    UpdateTopic,
)
from edge_agent.agent import Agent
from edge_agent.events import (
    Action,
    CancelJob,
    Evaluated,
    Event,
    ForgetResidual,
    JobFailed,
    LoadPackage,
    PackageFailed,
    PackageLoaded,
    SettleUpdate,
    SpoolUpdate,
    StartJob,
    Trained,
)
from edge_agent.spool import AgentMemory
from edge_agent.statements import AgentFacts
from edge_agent.trainer import TrainingResult
from models.codecs import CodecConfig, make_codec
from models.metrics import Sums
from models.parameters import F32

T = TypeVar("T")
TOPICS = Topics("f")
PACKAGE = b"a model package" * 200  # 3,000 bytes
OTHER_PACKAGE = b"another package" * 200
FINGERPRINT = "0123456789abcdef"
THETA = np.array([0.5, -1.0, 2.0, 0.0], np.float32)
MAX_PAYLOAD = 1 << 20


def digest(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()


def ref(blob: bytes) -> BlobRef:
    return blobs.describe(blob)


def plan(**changes: Any) -> RoundPlan:
    facts: dict[str, Any] = {
        "session": "s1",
        "start": "c1",
        "round_id": 1,
        "state": "open",
        "task": "train",
        "version": 0,
        "weights": ref(THETA.tobytes()),
        "package": digest(PACKAGE),
        "fingerprint": FINGERPRINT,
        "cohort": Cohort(ids=("pi-1",)),
        "codec": CodecConfig("float32"),
        "deadline_s": 9.5,
        "seed": 7,
    }
    return RoundPlan(**(facts | changes))


class Device:
    """An agent, what it subscribed to, and all it ever did."""

    def __init__(self, connect: bool = True, **facts: Any) -> None:
        self.agent = Agent(AgentFacts(agent_id="pi-1", federation="f", boot="b1", **facts))
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
            "runtime": "tflite 1",
            "train_examples": 20,
            "test_examples": 5,
        }
        return self.feed(PackageLoaded(digest(package), **(facts | changes)))

    def plan(self, **changes: Any) -> list[Action]:
        return self.hear(RoundTopic(), plan(**changes))

    def receipt(self, *, accepted: bool, **changes: Any) -> list[Action]:
        facts: dict[str, Any] = {"session": "s1", "round_id": 1, "boot": "b1", "attempt": 1}
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


def trained(delta: Any, **changes: Any) -> Trained:
    vector: F32 = np.array(delta, np.float32)
    sums = Sums(40.0, 20.0, {"mae": 10.0})
    return Trained(plan(**changes), TrainingResult(vector, 20, sums, 3, 0.25))


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


# -- birth and end ----------------------------------------------------------------------------


def test_it_subscribes_to_what_is_for_it_before_it_connects() -> None:
    device = Device(connect=False)
    device.feed(Started())
    assert device.filters == [
        "fedge/v1/f/coordinator/status",
        "fedge/v1/f/program",
        "fedge/v1/f/agents/pi-1/inbox",
        "fedge/v1/f/round",
    ]


def test_on_every_connection_it_says_what_it_is() -> None:
    device = Device(tags=("kitchen",), memory_bytes=123, software="1.0")
    for _ in range(2):
        status = status_in(device.feed(Connected(MAX_PAYLOAD)))
        assert (status.state, status.boot, status.tags) == ("online", "b1", ("kitchen",))
        assert (status.memory_bytes, status.software) == (123, "1.0")
        assert status.train_examples == 0  # not known before there is a model
        assert "int8" in status.codecs


def test_the_will_and_the_goodbye_say_offline() -> None:
    device = ready()
    (goodbye,) = device.feed(Stopping())
    assert status_in([goodbye]).state == "offline"
    assert status_in([device.agent.will]).state == "offline"
    assert status_in([device.agent.will]).boot == "b1"


def test_stopping_in_the_middle_of_a_round_declines_it_first() -> None:
    device = training()
    answer, goodbye = device.feed(Stopping())
    report = report_in([answer])
    assert (report.kind, report.reason, report.round_id) == ("declined", "stopping", 1)
    assert status_in([goodbye]).state == "offline"


# -- the model --------------------------------------------------------------------------------


def test_the_package_is_fetched_loaded_and_announced() -> None:
    device = Device()
    assert device.manifest() == [Subscribe(TOPICS.chunks_of(digest(PACKAGE)))]
    assert device.blob(PACKAGE) == [
        Unsubscribe(TOPICS.chunks_of(digest(PACKAGE))),
        LoadPackage(digest(PACKAGE), PACKAGE),
    ]
    status = status_in(device.loaded())
    assert (status.train_examples, status.test_examples) == (20, 5)
    assert (status.runtime, status.unable) == ("tflite 1", "")


def test_the_same_manifest_again_fetches_nothing() -> None:
    device = Device()
    device.manifest()
    assert device.manifest() == []
    device.blob(PACKAGE)
    assert device.manifest() == []
    device.loaded()
    assert device.manifest() == []


def test_a_package_that_does_not_load_makes_the_device_unable() -> None:
    device = Device()
    device.coordinator()
    device.manifest()
    device.blob(PACKAGE)
    failed = PackageFailed(digest(PACKAGE), "no_data", "no such file")
    status = status_in(device.feed(failed))
    assert (status.unable, status.passing) == ("no_data: no such file", False)
    report = report_in(device.plan())
    assert (report.reason, report.detail) == ("no_data", "no such file")


def test_a_package_beyond_the_limit_makes_the_device_unable() -> None:
    device = Device(max_blob_bytes=2999)
    status = status_in(device.manifest())
    assert status.unable == f"no_program: blob {digest(PACKAGE)[:12]} has 3000 bytes, limit 2999"
    assert device.filters[4:] == []


def test_the_answer_of_the_worker_for_an_older_package_is_ignored() -> None:
    device = Device()
    device.manifest()
    device.blob(PACKAGE)
    device.manifest(OTHER_PACKAGE)
    assert device.loaded() == []
    assert device.feed(PackageFailed(digest(PACKAGE), "no_program", "x")) == []
    (job,) = only(device.blob(OTHER_PACKAGE), LoadPackage)
    assert job.package == digest(OTHER_PACKAGE)


def test_a_new_package_ends_the_fetching_of_the_old_one() -> None:
    device = Device()
    device.manifest()
    device.manifest(OTHER_PACKAGE)
    assert device.filters[4:] == [TOPICS.chunks_of(digest(OTHER_PACKAGE))]


# -- a round, start to end --------------------------------------------------------------------


def test_a_plan_has_the_weights_fetched_and_then_a_job_started() -> None:
    device = ready()
    assert device.plan() == [Subscribe(TOPICS.chunks_of(digest(THETA.tobytes())))]
    unsubscribe, job = device.blob(THETA.tobytes())
    assert isinstance(unsubscribe, Unsubscribe)
    assert isinstance(job, StartJob)
    assert job.plan == plan()
    assert job.theta.tolist() == THETA.tolist()
    assert not job.theta.flags.writeable


@pytest.mark.parametrize(
    "order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
)
def test_retained_messages_may_arrive_in_any_order(order: tuple[int, int, int]) -> None:
    device = Device()
    steps: list[Callable[[], list[Action]]] = [
        device.coordinator,
        device.plan,
        device.manifest,
    ]
    for number in order:
        steps[number]()
    device.blob(PACKAGE)
    device.loaded()
    assert len(only(device.blob(THETA.tobytes()), StartJob)) == 1


def test_weights_that_are_there_already_are_not_fetched_again() -> None:
    device = training()
    device.feed(trained([1, 2, 3, 4]))
    assert [type(a) for a in device.plan(round_id=2)] == [SettleUpdate, StartJob]


def test_the_update_says_what_was_learned() -> None:
    device = training()
    received = sum(
        publish_packet_bytes(name, size)
        for name, size in [
            (TOPICS.name(topic), len(payload))
            for topic, payload in [
                (
                    CoordinatorStatusTopic(),
                    messages.encode(CoordinatorStatus(state="online", session="s1")),
                ),
                (
                    ProgramTopic(),
                    messages.encode(
                        ProgramManifest(name="m", package=ref(PACKAGE), fingerprint=FINGERPRINT)
                    ),
                ),
                (ChunkTopic(digest(PACKAGE), 0), blobs.split(PACKAGE)[1][0]),
                (RoundTopic(), messages.encode(plan())),
                (ChunkTopic(digest(THETA.tobytes()), 0), blobs.split(THETA.tobytes())[1][0]),
            ]
        ]
    )
    header, body, sent = update_in(device.feed(trained([1, 2, 3, 4])))
    assert header == UpdateHeader(
        session="s1",
        boot="b1",
        round_id=1,
        attempt=1,
        version=0,
        fingerprint=FINGERPRINT,
        codec=CodecConfig("float32"),
        size=4,
        num_examples=20,
        loss_sum=40.0,
        weight_sum=20.0,
        metric_sums={"mae": 10.0},
        training_s=0.25,
        received_bytes=received,
    )
    assert np.frombuffer(body, "<f4").tolist() == [1.0, 2.0, 3.0, 4.0]
    (publication,) = sent
    assert publication.topic == TOPICS.name(UpdateTopic("pi-1", 1, 0))
    assert publication.expiry_s == math.ceil(9.5)
    assert not publication.retain


def test_a_large_update_is_cut_to_what_the_connection_takes() -> None:
    theta = np.zeros(2000, np.float32)
    device = ready()
    device.feed(Connected(1024 + blobs.HEADER_BYTES))
    device.plan(weights=ref(theta.tobytes()))
    device.blob(theta.tobytes())
    delta = np.arange(2000)
    weights = ref(theta.tobytes())
    header, body, sent = update_in(device.feed(trained(delta, weights=weights)))
    assert header.size == 2000
    assert np.frombuffer(body, "<f4").tolist() == delta.tolist()
    assert len(sent) == 9  # 8,000 bytes and a header, in pieces of 1,024
    assert all(len(p.payload) <= 1024 + blobs.HEADER_BYTES for p in sent)
    assert [p.topic.rpartition("/")[2] for p in sent] == [str(n) for n in range(9)]


def test_an_evaluation_is_reported_in_sums() -> None:
    device = ready()
    device.plan(task="evaluate")
    (job,) = only(device.blob(THETA.tobytes()), StartJob)
    assert job.plan.task == "evaluate"
    report = report_in(device.feed(Evaluated(job.plan, Sums(12.5, 5.0, {"mae": 6.0}))))
    assert (report.kind, report.task, report.version) == ("evaluation", "evaluate", 0)
    assert (report.loss_sum, report.weight_sum, report.metric_sums) == (12.5, 5.0, {"mae": 6.0})


def test_training_and_evaluation_of_a_round_are_two_jobs() -> None:
    device = training()
    device.feed(trained([1, 0, 0, 0]))
    theta = THETA + 1
    device.plan(task="evaluate", version=1, weights=ref(theta.tobytes()))
    (job,) = only(device.blob(theta.tobytes()), StartJob)
    assert (job.plan.task, job.theta.tolist()) == ("evaluate", theta.tolist())


# -- plans that are not for us ----------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"session": "s0"},  # retained, of a run before
        {"cohort": Cohort(ids=("pi-2", "pi-3"))},
        {"cohort": Cohort(ids=())},
        {"cohort": Cohort(seed=1, fraction=0.0)},
        {"state": "finished"},
    ],
)
def test_a_plan_that_is_not_for_us_is_ignored(changes: Any) -> None:
    assert ready().plan(**changes) == []


def test_a_task_we_do_not_take_is_ignored() -> None:
    assert ready(tasks=("evaluate",)).plan() == []
    assert ready(tasks=("train",)).plan(task="evaluate") == []


def test_a_plan_is_worked_on_once_its_coordinator_is_there() -> None:
    device = ready()
    device.coordinator("offline")
    assert device.plan() == []
    assert device.coordinator("online", session="s0") == []
    assert device.coordinator("online") == [Subscribe(TOPICS.chunks_of(digest(THETA.tobytes())))]


def test_a_rule_asks_us_when_the_hash_falls_below_the_fraction() -> None:
    asked = [
        seed for seed in range(200) if ready().plan(cohort=Cohort(seed=seed, fraction=0.3)) != []
    ]
    assert asked == [s for s in range(200) if Cohort(seed=s, fraction=0.3).includes("pi-1")]
    assert 35 <= len(asked) <= 85  # 60 expected, standard deviation 6.5


# -- more than once ---------------------------------------------------------------------------


def test_the_same_plan_again_does_not_train_again() -> None:
    device = training()
    assert device.plan() == []  # while training
    _, *sent = device.feed(trained([1, 2, 3, 4]))
    assert device.plan() == sent  # no receipt yet: what was sent may be lost
    device.receipt(accepted=True)
    assert device.plan() == []


def test_after_a_reconnection_an_update_waits_until_its_round_is_announced_again() -> None:
    # A broker that lost everything gives it to nobody before the coordinator has subscribed.
    device = training()
    _, *sent = device.feed(trained([1, 2, 3, 4]))
    assert len(device.feed(Connected(MAX_PAYLOAD))) == 1  # the birth alone
    device.now_s += 1.0
    assert device.feed(Tick()) == []
    assert device.plan() == sent


def test_a_report_is_sent_again_when_its_plan_is_announced_again() -> None:
    device = ready()
    device.plan(task="evaluate")
    (job,) = only(device.blob(THETA.tobytes()), StartJob)
    sent = device.feed(Evaluated(job.plan, Sums(12.5, 5.0, {"mae": 6.0})))
    assert device.plan(task="evaluate") == sent
    assert only(device.plan(round_id=2, task="evaluate"), Publish) == []


def test_a_new_plan_cancels_the_job_and_starts_when_that_has_ended() -> None:
    device = training()
    assert device.plan(round_id=2) == [CancelJob()]
    (job,) = device.feed(JobFailed(plan(), "cancelled"))
    assert isinstance(job, StartJob)
    assert job.plan.round_id == 2


def test_a_result_for_a_round_that_is_over_is_not_sent() -> None:
    device = training()
    device.plan(round_id=2)
    actions = device.feed(trained([1, 2, 3, 4]))  # was done before it heard of the cancellation
    assert [type(a) for a in actions] == [StartJob]


def test_a_finished_federation_cancels_the_job() -> None:
    device = training()
    assert device.plan(state="finished", cohort=Cohort(ids=()), round_id=2) == [CancelJob()]
    assert device.feed(JobFailed(plan(), "cancelled")) == []


def test_a_coordinator_that_was_started_again_gets_its_own_answer_to_the_same_round() -> None:
    device = training()
    device.feed(trained([1, 2, 3, 4]))
    device.coordinator(session="s2")
    settled, job = device.plan(session="s2")
    assert settled == SettleUpdate(accepted=False)
    assert isinstance(job, StartJob)
    header, *_ = update_in(device.feed(trained([1, 2, 3, 4], session="s2")))
    assert (header.session, header.round_id, header.attempt) == ("s2", 1, 2)


# -- receipts ---------------------------------------------------------------------------------


def int8_round(device: Device, round_id: int, delta: Any) -> tuple[F32, list[Action]]:
    """What the coordinator reads of an int8 update; the weights are at hand."""
    actions = device.feed(trained(delta, round_id=round_id, codec=CodecConfig("int8")))
    header, body, _ = update_in(actions)
    return make_codec(header.codec).decode(body, header.size), actions


DELTA = [1.0, 0.001, -0.003, 0.5]


def test_what_rounding_lost_is_made_up_for_once_the_receipt_is_there() -> None:
    codec = CodecConfig("int8")
    device = training(codec=codec)
    arrived, _ = int8_round(device, 1, DELTA)
    lost = np.array(DELTA, np.float32) - arrived
    assert np.abs(lost).max() > 0
    assert device.agent.residual is None
    device.receipt(accepted=True)
    assert device.agent.residual is not None
    assert device.agent.residual.tolist() == lost.tolist()
    device.plan(round_id=2, codec=codec)
    arrived, _ = int8_round(device, 2, DELTA)
    # Off by less than a level of what was wanted, residual included.
    wanted = np.array(DELTA, np.float32) + lost
    assert np.abs(arrived - wanted).max() <= np.abs(wanted).max() / 127 * 1.001


def test_a_refusal_leaves_the_residual_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    device = training(codec=CodecConfig("int8"))
    int8_round(device, 1, DELTA)
    device.receipt(accepted=False, reason="norm", detail="L2 norm 5, limit 1")
    assert device.agent.residual is None
    assert "round 1: update refused (norm): L2 norm 5, limit 1" in caplog.text
    assert device.feed(Connected(MAX_PAYLOAD))[1:] == []  # and it is not sent again


@pytest.mark.parametrize(
    "changes", [{"boot": "b0"}, {"session": "s0"}, {"round_id": 2}, {"attempt": 2}]
)
def test_a_receipt_for_something_else_changes_nothing(changes: Any) -> None:
    device = training(codec=CodecConfig("int8"))
    int8_round(device, 1, DELTA)
    device.receipt(accepted=True, **changes)
    assert device.agent.residual is None
    device.feed(Connected(MAX_PAYLOAD))
    again = device.plan(codec=CodecConfig("int8"))
    assert len(only(again, Publish)) == 1  # still without a receipt: sent again


def test_a_receipt_that_comes_twice_counts_once() -> None:
    device = training(codec=CodecConfig("int8"))
    int8_round(device, 1, DELTA)
    device.receipt(accepted=True)
    first = device.agent.residual
    device.receipt(accepted=True)
    assert device.agent.residual is first


def test_an_update_without_a_receipt_is_sent_again_on_every_connection_until_it_has_one() -> None:
    device = training()
    spooled, *sent = device.feed(trained([1, 2, 3, 4]))
    assert isinstance(spooled, SpoolUpdate)
    for _ in range(2):
        assert status_in(device.feed(Connected(MAX_PAYLOAD))).state == "online"
        assert device.plan() == sent  # retained: it comes with the subscription
    assert device.receipt(accepted=True) == [SettleUpdate(accepted=True)]
    device.feed(Connected(MAX_PAYLOAD))
    assert device.plan() == []


def test_the_evaluation_of_the_same_round_may_overtake_the_receipt() -> None:
    device = training(codec=CodecConfig("int8"))
    int8_round(device, 1, DELTA)
    device.plan(task="evaluate", version=1)
    device.receipt(accepted=True)
    assert device.agent.residual is not None


def test_a_later_round_ends_the_wait_for_a_receipt() -> None:
    device = training()
    device.feed(trained([1, 2, 3, 4]))
    device.plan(round_id=2, cohort=Cohort(ids=()))
    assert len(device.feed(Connected(MAX_PAYLOAD))) == 1


def test_another_model_begins_without_the_residual_of_the_one_before() -> None:
    device = training(codec=CodecConfig("int8"))
    int8_round(device, 1, DELTA)
    device.receipt(accepted=True)
    device.manifest(OTHER_PACKAGE)
    device.blob(OTHER_PACKAGE)
    assert ForgetResidual() in device.loaded(OTHER_PACKAGE, fingerprint="f" * 16)
    assert device.agent.residual is None
    theta = np.zeros(6, np.float32)
    changes: dict[str, Any] = {
        "package": digest(OTHER_PACKAGE),
        "fingerprint": "f" * 16,
        "weights": ref(theta.tobytes()),
        "round_id": 2,
    }
    device.plan(**changes)
    device.blob(theta.tobytes())
    header, *_ = update_in(device.feed(trained(range(6), **changes)))
    assert header.size == 6


def test_another_package_of_the_same_layout_goes_on_with_what_the_last_rounds_left() -> None:
    device = training(codec=CodecConfig("int8"))
    int8_round(device, 1, DELTA)
    device.receipt(accepted=True)
    device.manifest(OTHER_PACKAGE)
    device.blob(OTHER_PACKAGE)
    device.loaded(OTHER_PACKAGE)
    assert device.agent.residual is not None


# -- declining --------------------------------------------------------------------------------


def test_a_device_without_an_interpreter_says_so_and_declines() -> None:
    device = Device(unable="no TFLite interpreter works here")
    assert status_in(device.feed(Connected(MAX_PAYLOAD))).unable.startswith("no TFLite")
    device.coordinator()
    assert device.manifest() == []
    report = report_in(device.plan())
    assert (report.kind, report.reason) == ("declined", "no_runtime")
    assert report_in(device.plan()) == report  # announced again, declined again


def test_without_rows_for_the_task_it_declines() -> None:
    device = Device()
    device.coordinator()
    device.manifest()
    device.blob(PACKAGE)
    device.loaded(train_examples=0)
    report = report_in(device.plan())
    assert (report.reason, report.detail) == ("no_data", "no rows to train on")
    evaluate = device.plan(task="evaluate")
    assert [type(a) for a in evaluate] == [Subscribe]  # it can measure all the same


def test_a_codec_it_does_not_know_is_declined() -> None:
    report = report_in(ready().plan(codec=CodecConfig("zip")))
    assert report.reason == "codec"
    assert "'zip' is unknown; known: float32" in report.detail


def test_another_layout_than_the_models_is_declined() -> None:
    report = report_in(ready().plan(fingerprint="f" * 16))
    assert report.reason == "fingerprint"
    assert "f" * 16 in report.detail


def test_a_device_that_is_pinned_to_a_layout_takes_no_other() -> None:
    device = Device(fingerprint="a" * 16)
    device.coordinator()
    device.manifest()
    device.blob(PACKAGE)
    assert status_in(device.loaded()).unable.startswith("fingerprint: layout 0123456789abcdef")
    assert report_in(device.plan()).reason == "fingerprint"


@pytest.mark.parametrize(
    "blob",
    [
        b"\0" * 15,
        np.array([1, np.nan], np.float32).tobytes(),
        np.array([-np.inf, 1], np.float32).tobytes(),
    ],
)
def test_weights_that_are_no_finite_vector_are_declined(blob: bytes) -> None:
    device = ready()
    device.plan(weights=ref(blob))
    *_, answer = device.blob(blob)
    assert report_in([answer]).reason == "weights"


def test_weights_beyond_the_limit_are_declined_before_a_byte_is_fetched() -> None:
    device = ready(max_blob_bytes=3000)
    weights = BlobRef(sha256="0" * 64, size=3001, chunks=1)
    report = report_in(device.plan(weights=weights))
    assert report.reason == "weights"
    assert device.filters[4:] == []


def test_training_that_failed_is_declined_with_its_words() -> None:
    device = training()
    report = report_in(device.feed(JobFailed(plan(), "the loss is nan at step 3")))
    assert (report.reason, report.detail) == ("training", "the loss is nan at step 3")
    assert report_in(device.plan()) == report  # and it does not try again


def test_measuring_that_failed_is_declined_as_such() -> None:
    device = ready()
    device.plan(task="evaluate")
    device.blob(THETA.tobytes())
    report = report_in(device.feed(JobFailed(plan(task="evaluate"), "Invoke failed")))
    assert (report.reason, report.detail) == ("evaluation", "Invoke failed")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_delta_that_is_not_finite_is_declined_and_never_sent(value: float) -> None:
    report = report_in(training().feed(trained([0, value, 0, 0])))
    assert report.reason == "training"
    assert "NaN or inf in 1 of 4 values" in report.detail


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300])
def test_figures_that_cannot_be_sent_are_declined(value: float) -> None:
    device = training()
    sums = Sums(1.0, 20.0, {"mae": value})
    result = TrainingResult(np.zeros(4, np.float32), 20, sums, 1, 0.1)
    report = report_in(device.feed(Trained(plan(), result)))
    assert report.reason == "training"
    assert report.detail.startswith("mae is ")
    device.plan(task="evaluate")
    report = report_in(
        device.feed(Evaluated(plan(task="evaluate"), Sums(value, 20.0, {"mae": 1.0})))
    )
    assert (report.kind, report.reason) == ("declined", "evaluation")


def test_a_value_beyond_float16_is_declined() -> None:
    device = training(codec=CodecConfig("float16"))
    report = report_in(device.feed(trained([1e6, 0, 0, 0], codec=CodecConfig("float16"))))
    assert report.reason == "training"
    assert "65504" in report.detail


# -- odd bytes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "topic",
    [
        CoordinatorStatusTopic(),
        ProgramTopic(),
        RoundTopic(),
        InboxTopic("pi-1"),
    ],
)
@pytest.mark.parametrize("payload", [b"rubbish", b"[]", b'{"session":"\xff"}', b"[" * 5000])
def test_unreadable_bytes_are_counted_and_survived(topic: Topic, payload: bytes) -> None:
    device = training()
    assert device.hear(topic, payload) == []
    assert device.agent.unreadable == 1
    assert len(only(device.feed(trained([1, 2, 3, 4])), Publish)) == 1


def test_foreign_topics_are_counted_and_survived() -> None:
    device = ready()
    assert device.feed(MessageArrived("fedge/v1/other/round", b"{}")) == []
    assert device.agent.unreadable == 1


def test_a_cleared_retained_message_means_nothing() -> None:
    device = ready()
    assert device.hear(RoundTopic(), b"") == []
    assert device.hear(ProgramTopic(), b"") == []
    assert device.agent.unreadable == 0


def test_chunks_nobody_asked_for_are_ignored() -> None:
    device = ready()
    assert device.hear(ChunkTopic("0" * 64, 0), b"whatever") == []
    assert device.agent.unreadable == 0


def test_a_damaged_chunk_has_the_blob_fetched_again() -> None:
    device = ready()
    device.plan()
    topic = ChunkTopic(digest(THETA.tobytes()), 0)
    chunks = TOPICS.chunks_of(topic.sha256)
    good = blobs.split(THETA.tobytes())[1][0]
    damaged = good[:-1] + bytes([good[-1] ^ 1])
    assert device.hear(topic, damaged) == [Unsubscribe(chunks), Subscribe(chunks)]
    assert len(only(device.hear(topic, good), StartJob)) == 1


def test_a_blob_that_never_comes_whole_is_given_up_and_the_round_declined() -> None:
    device = ready()
    device.plan()
    topic = ChunkTopic(digest(THETA.tobytes()), 0)
    for _ in range(2):
        device.hear(topic, b"rubbish")
    unsubscribe, answer = device.hear(topic, b"rubbish")
    assert unsubscribe == Unsubscribe(TOPICS.chunks_of(topic.sha256))
    assert report_in([answer]).reason == "weights"


def test_a_package_that_never_comes_whole_makes_the_device_unable() -> None:
    device = Device()
    device.manifest()
    topic = ChunkTopic(digest(PACKAGE), 0)
    for _ in range(2):
        device.hear(topic, b"rubbish")
    assert status_in(device.hear(topic, b"rubbish")).unable.startswith("no_program: ")


def test_what_is_fetched_for_a_plan_that_was_replaced_is_not_fetched_on() -> None:
    device = ready()
    device.plan()
    theta = THETA * 2
    assert device.plan(round_id=2, weights=ref(theta.tobytes())) == [
        Unsubscribe(TOPICS.chunks_of(digest(THETA.tobytes()))),
        Subscribe(TOPICS.chunks_of(digest(theta.tobytes()))),
    ]
    assert device.blob(THETA.tobytes()) == []


def test_fields_of_a_newer_coordinator_are_ignored() -> None:
    device = ready()
    newer = msgspec.to_builtins(plan()) | {"field_of_a_newer_coordinator": [1, {}]}
    actions = device.hear(RoundTopic(), msgspec.json.encode(newer))
    assert [type(a) for a in actions] == [Subscribe]


# -- after a power cut, and when messages are lost --------------------------------------------


def rebooted(device: Device, boot: str = "b2") -> Device:
    """The same device after a power cut: what it spooled is there, all else is gone."""
    spooled = only(device.actions, SpoolUpdate)
    memory = AgentMemory(pending=spooled[-1].update if spooled else None)
    again = Device(connect=False)
    again.agent = Agent(AgentFacts(agent_id="pi-1", federation="f", boot=boot), memory)
    again.feed(Started())
    again.feed(Connected(MAX_PAYLOAD))
    again.coordinator()
    again.manifest()
    again.blob(PACKAGE)
    again.loaded()
    return again


def test_after_a_power_cut_the_spooled_update_is_sent_again_and_nothing_is_trained_twice() -> None:
    device = training(codec=CodecConfig("int8"))
    _, *sent = device.feed(trained(DELTA, codec=CodecConfig("int8")))
    again = rebooted(device)
    actions = again.plan(codec=CodecConfig("int8"))
    assert only(actions, StartJob) == []
    assert only(actions, Publish) == sent
    assert again.receipt(accepted=True) == [SettleUpdate(accepted=True)]
    assert again.agent.residual is not None
    assert again.plan(codec=CodecConfig("int8")) == []


def test_after_a_power_cut_the_update_of_a_round_that_is_over_is_dropped() -> None:
    device = training()
    device.feed(trained([1, 2, 3, 4]))
    again = rebooted(device)
    actions = again.plan(round_id=2)
    assert actions[0] == SettleUpdate(accepted=True), "it may have counted: its residual is right"
    assert [a for a in only(actions, Publish) if "/updates/" in a.topic] == []


def test_a_residual_of_another_model_is_not_used() -> None:
    kept = AgentMemory(residual=np.ones(4, np.float32), fingerprint="f" * 16)
    device = Device(connect=False)
    device.agent = Agent(AgentFacts(agent_id="pi-1", federation="f", boot="b1"), kept)
    device.feed(Started())
    device.coordinator()
    device.manifest()
    device.blob(PACKAGE)
    device.loaded()
    assert device.agent.residual is None


def test_without_a_receipt_the_update_is_sent_again_ever_more_rarely() -> None:
    device = training()
    _, *sent = device.feed(trained([1, 2, 3, 4]))
    waits = []
    for _ in range(4):
        wait_s = device.agent.wait_s(device.now_s)
        due_s = device.now_s + wait_s
        device.now_s = due_s - 0.1
        assert device.feed(Tick()) == []
        device.now_s = due_s + 0.001  # the sum may fall short of the moment by its last bit
        assert device.feed(Tick()) == sent
        waits.append(wait_s)
    assert all(30.0 * 2**n <= wait <= 45.0 * 2**n for n, wait in enumerate(waits))


def test_chunks_the_coordinator_misses_are_sent_again_alone() -> None:
    device = training()
    device.feed(Connected(1024 + blobs.HEADER_BYTES))
    theta = np.arange(1000, dtype=np.float32)
    sent = only(device.feed(trained(theta)), Publish)
    assert len(sent) > 2
    ref = blobs.parse_chunk(sent[0].payload).ref
    resend = Resend(session="s1", round_id=1, sha256=ref.sha256, chunks=(1,))
    assert device.hear(InboxTopic("pi-1"), resend) == [sent[1]]
    other = Resend(session="s1", round_id=1, sha256="0" * 64, chunks=(1,))
    assert device.hear(InboxTopic("pi-1"), other) == []


def test_a_stalled_fetch_is_reported_as_missing() -> None:
    device = ready()
    device.plan()
    device.now_s += device.agent.wait_s(device.now_s)
    report = report_in([a for a in device.feed(Tick()) if isinstance(a, Publish)])
    assert (report.kind, report.sha256, report.chunks) == ("missing", digest(THETA.tobytes()), (0,))


def test_heartbeats_come_also_while_it_trains() -> None:
    device = ready(heartbeat_s=60.0)
    device.plan()
    device.blob(THETA.tobytes())
    for _ in range(3):
        device.now_s += 60.0
        assert status_in(device.feed(Tick())).heartbeat_s == 60.0
