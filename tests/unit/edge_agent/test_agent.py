"""The agent's machine: birth, model, rounds, and plans that are not for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from broker.link.link import publish_packet_bytes
from broker.protocol import blobs, messages
from broker.protocol.messages import (
    Cohort,
    CoordinatorStatus,
    ProgramManifest,
    UpdateHeader,
    VectorRef,
)
from broker.protocol.topics import (
    ChunkTopic,
    CoordinatorStatusTopic,
    ProgramTopic,
    RoundTopic,
    UpdateTopic,
)
from broker.service.events import (
    Connected,
    Publish,
    Started,
    Stopping,
    Subscribe,
    Tick,
    Unsubscribe,
)
from edge_agent.machine.events import (
    Action,
    CancelJob,
    JobFailed,
    LoadPackage,
    PackageFailed,
    ResolvePendingUpdate,
    StartJob,
)
from learning.vector.metrics import Sums
from tests.unit.edge_agent.agent_stage import (
    FINGERPRINT,
    MAX_PAYLOAD,
    OTHER_PACKAGE,
    PACKAGE,
    THETA,
    TOPICS,
    Device,
    digest,
    measured,
    only,
    plan,
    ready,
    ref,
    report_in,
    status_in,
    trained,
    training,
    update_in,
)

# -- birth and end ------------------------------------------------------------------------------


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
        assert (status.state, status.agent_instance, status.tags) == ("online", "b1", ("kitchen",))
        assert (status.memory_bytes, status.software) == (123, "1.0")
        assert status.train_examples == 0  # not known before there is a model
        assert "int8" in status.codecs


def test_the_will_and_the_goodbye_say_offline() -> None:
    device = ready()
    (goodbye,) = device.feed(Stopping())
    assert status_in([goodbye]).state == "offline"
    assert status_in([device.agent.will]).state == "offline"
    assert status_in([device.agent.will]).agent_instance == "b1"


def test_stopping_in_the_middle_of_a_round_declines_it_first() -> None:
    device = training()
    answer, goodbye = device.feed(Stopping())
    report = report_in([answer])
    assert (report.kind, report.reason, report.round_id) == ("declined", "stopping", 1)
    assert status_in([goodbye]).state == "offline"


# -- the model ----------------------------------------------------------------------------------


def test_the_package_is_fetched_loaded_and_announced() -> None:
    device = Device()
    assert device.manifest() == [Subscribe(TOPICS.chunks_of(digest(PACKAGE)))]
    assert device.blob(PACKAGE) == [
        Unsubscribe(TOPICS.chunks_of(digest(PACKAGE))),
        LoadPackage(digest(PACKAGE), PACKAGE),
    ]
    status = status_in(device.loaded())
    assert (status.train_examples, status.test_examples) == (20, 5)
    assert (status.runtime, status.unavailable_reason) == ("tflite 1", "")


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
    assert (status.unavailable_reason, status.is_transient) == ("no_data: no such file", False)
    report = report_in(device.plan())
    assert (report.reason, report.detail) == ("no_data", "no such file")


def test_a_package_beyond_the_limit_makes_the_device_unable() -> None:
    device = Device(max_blob_bytes=2999)
    status = status_in(device.manifest())
    assert (
        status.unavailable_reason
        == f"no_program: blob {digest(PACKAGE)[:12]} has 3000 bytes, limit 2999"
    )
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


# -- a round, start to end ----------------------------------------------------------------------


def test_a_plan_has_the_weights_fetched_and_then_a_job_started() -> None:
    device = ready()
    assert device.plan() == [Subscribe(TOPICS.chunks_of(digest(THETA.tobytes())))]
    unsubscribe, job = device.blob(THETA.tobytes())
    assert isinstance(unsubscribe, Unsubscribe)
    assert isinstance(job, StartJob)
    assert job.plan == plan()
    assert job.blobs["weights"].tolist() == THETA.tolist()
    assert not job.blobs["weights"].flags.writeable


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
    device.receipt(accepted=True)
    assert [type(a) for a in device.plan(round_id=2)] == [StartJob]


def test_every_blob_that_the_algorithm_shares_is_fetched_and_handed_to_the_job() -> None:
    control = np.array([1.0, 2.0], np.float32)
    blobs_of_plan = {"weights": ref(THETA.tobytes()), "control": ref(control.tobytes())}
    device = ready()
    wanted = [TOPICS.chunks_of(digest(v.tobytes())) for v in (THETA, control)]
    assert device.plan(algorithm="scaffold", blobs=blobs_of_plan) == [
        Subscribe(topic) for topic in wanted
    ]
    assert not only(device.blob(THETA.tobytes()), StartJob)
    (job,) = only(device.blob(control.tobytes()), StartJob)
    assert {name: v.tolist() for name, v in job.blobs.items()} == {
        "weights": THETA.tolist(),
        "control": control.tolist(),
    }
    # The next plan shares another control: the weights that stay are not fetched again.
    after = control * 2
    blobs_of_plan |= {"control": ref(after.tobytes())}
    device.plan(round_id=2, algorithm="scaffold", blobs=blobs_of_plan)
    actions = device.feed(JobFailed(plan(), "cancelled"))
    assert actions == [Subscribe(TOPICS.chunks_of(digest(after.tobytes())))]


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
        agent_instance="b1",
        round_id=1,
        attempt=1,
        version=0,
        fingerprint=FINGERPRINT,
        vectors={"delta": VectorRef(codec="float32", size=4, bytes=16)},
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
    device.plan(blobs={"weights": ref(theta.tobytes())})
    device.blob(theta.tobytes())
    delta = np.arange(2000)
    weights = ref(theta.tobytes())
    header, body, sent = update_in(device.feed(trained(delta, blobs={"weights": weights})))
    assert header.vectors["delta"].size == 2000
    assert np.frombuffer(body, "<f4").tolist() == delta.tolist()
    assert len(sent) == 9  # 8,000 bytes and a header, in pieces of 1,024
    assert all(len(p.payload) <= 1024 + blobs.HEADER_BYTES for p in sent)
    assert [p.topic.rpartition("/")[2] for p in sent] == [str(n) for n in range(9)]


def test_an_evaluation_is_reported_in_sums() -> None:
    device = ready()
    device.plan(phase="evaluate")
    (job,) = only(device.blob(THETA.tobytes()), StartJob)
    assert job.plan.phase == "evaluate"
    report = report_in(device.feed(measured(job.plan, Sums(12.5, 5.0, {"mae": 6.0}))))
    assert (report.kind, report.phase, report.version) == ("result", "evaluate", 0)
    assert (report.loss_sum, report.weight_sum, report.metric_sums) == (12.5, 5.0, {"mae": 6.0})


def test_training_and_evaluation_of_a_round_are_two_jobs() -> None:
    device = training()
    device.feed(trained([1, 0, 0, 0]))
    theta = THETA + 1
    device.plan(phase="evaluate", version=1, blobs={"weights": ref(theta.tobytes())})
    (job,) = only(device.blob(theta.tobytes()), StartJob)
    assert (job.plan.phase, job.blobs["weights"].tolist()) == ("evaluate", theta.tolist())


# -- plans that are not for us ------------------------------------------------------------------


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


def test_a_phase_that_the_owner_left_out_is_declined_when_asked_by_name() -> None:
    report = report_in(ready(phases=("evaluate",)).plan())
    assert (report.kind, report.reason) == ("declined", "phase")
    assert report.detail == "this device takes part in evaluate only"
    rule = Cohort(seed=1, fraction=1.0)
    assert ready(phases=("train",)).plan(phase="evaluate", cohort=rule) == []


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


# -- more than once -----------------------------------------------------------------------------


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
    device.plan(phase="evaluate")
    (job,) = only(device.blob(THETA.tobytes()), StartJob)
    sent = device.feed(measured(job.plan, Sums(12.5, 5.0, {"mae": 6.0})))
    assert device.plan(phase="evaluate") == sent
    assert only(device.plan(round_id=2, phase="evaluate"), Publish) == []


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
    assert settled == ResolvePendingUpdate(accepted=False)
    assert isinstance(job, StartJob)
    header, *_ = update_in(device.feed(trained([1, 2, 3, 4], session="s2")))
    assert (header.session, header.round_id, header.attempt) == ("s2", 1, 2)
