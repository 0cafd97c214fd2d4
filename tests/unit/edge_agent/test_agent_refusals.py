"""Plans that an agent declines, and bytes that it refuses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from broker.protocol import blobs
from broker.protocol.messages import BlobRef
from broker.protocol.topics import (
    ChunkTopic,
    CoordinatorStatusTopic,
    InboxTopic,
    ProgramTopic,
    RoundTopic,
    Topic,
)
from broker.service.events import Connected, MessageArrived, Publish, Subscribe, Unsubscribe
from edge_agent.machine.events import JobDone, JobFailed, SpoolUpdate, StartJob
from edge_agent.machine.pending_update import LocalUpdate
from fedge.limits import RepeatFilter
from learning.vector.metrics import Sums
from tests.unit.edge_agent.agent_stage import (
    MAX_PAYLOAD,
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
)

# -- declining ----------------------------------------------------------------------------------


def test_a_device_without_an_interpreter_says_so_and_declines() -> None:
    device = Device(unavailable_reason="no TFLite interpreter works here")
    assert status_in(device.feed(Connected(MAX_PAYLOAD))).unavailable_reason.startswith("no TFLite")
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
    evaluate = device.plan(phase="evaluate")
    assert [type(a) for a in evaluate] == [Subscribe]  # it can measure all the same


def test_another_layout_than_the_models_is_declined() -> None:
    report = report_in(ready().plan(fingerprint="f" * 16))
    assert report.reason == "fingerprint"
    assert "f" * 16 in report.detail


def test_a_device_that_is_pinned_to_a_layout_takes_no_other() -> None:
    device = Device(fingerprint="a" * 16)
    device.coordinator()
    device.manifest()
    device.blob(PACKAGE)
    assert status_in(device.loaded()).unavailable_reason.startswith(
        "fingerprint: layout 0123456789abcdef"
    )
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
    device.plan(blobs={"weights": ref(blob)})
    *_, answer = device.blob(blob)
    assert report_in([answer]).reason == "weights"


def test_weights_beyond_the_limit_are_declined_before_a_byte_is_fetched() -> None:
    device = ready(max_blob_bytes=3000)
    weights = BlobRef(sha256="0" * 64, size=3001, chunks=1)
    report = report_in(device.plan(blobs={"weights": weights}))
    assert report.reason == "weights"
    assert device.filters[4:] == []


def test_weights_and_what_is_shared_must_fit_the_limit_together() -> None:
    shared = {n: BlobRef(sha256=n[0] * 64, size=1600, chunks=1) for n in ("control", "extra")}
    weights = BlobRef(sha256="0" * 64, size=1600, chunks=1)
    device = ready(max_blob_bytes=3199)
    blobs_of_plan = {"weights": weights, **shared}
    report = report_in(device.plan(algorithm="scaffold", blobs=blobs_of_plan))
    assert (report.reason, report.detail) == (
        "weights",
        "blobs weights, control of 3200 bytes, limit 3199",
    )
    assert device.filters[4:] == []


def test_blobs_that_the_algorithm_does_not_share_are_ignored() -> None:
    huge = BlobRef(sha256="e" * 64, size=1 << 40, chunks=100_000_000)
    device = ready()
    device.plan(blobs={"weights": ref(THETA.tobytes()), "extra": huge})
    assert device.filters[4:] == [TOPICS.chunks_of(digest(THETA.tobytes()))]
    (job,) = only(device.blob(THETA.tobytes()), StartJob)
    assert list(job.blobs) == ["weights"]


def test_a_plan_without_a_vector_that_its_algorithm_shares_is_declined() -> None:
    report = report_in(ready().plan(algorithm="scaffold"))
    assert (report.reason, report.detail) == (
        "weights",
        "the plan has no blob control; expected weights, control",
    )


def test_training_that_failed_is_declined_with_its_words() -> None:
    device = training()
    report = report_in(device.feed(JobFailed(plan(), "the loss is nan at step 3")))
    assert (report.reason, report.detail) == ("training", "the loss is nan at step 3")
    assert report_in(device.plan()) == report  # and it does not try again


def test_measuring_that_failed_is_declined_as_such() -> None:
    device = ready()
    device.plan(phase="evaluate")
    device.blob(THETA.tobytes())
    report = report_in(device.feed(JobFailed(plan(phase="evaluate"), "Invoke failed")))
    assert (report.reason, report.detail) == ("evaluation", "Invoke failed")


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300])
def test_figures_that_cannot_be_sent_are_declined(value: float) -> None:
    device = training()
    done = trained([0, 0, 0, 0])
    assert isinstance(done.result, LocalUpdate)
    sums = Sums(1.0, 20.0, {"mae": value})
    report = report_in(device.feed(JobDone(done.plan, replace(done.result, sums=sums))))
    assert report.reason == "training"
    assert report.detail.startswith("mae is ")
    device.plan(phase="evaluate", version=1)
    of = plan(phase="evaluate", version=1)
    report = report_in(device.feed(measured(of, Sums(value, 20.0, {"mae": 1.0}))))
    assert (report.kind, report.reason) == ("declined", "evaluation")


# -- plans of another software's version -------------------------------------------------------


INVENTED: dict[str, tuple[dict[str, Any], str]] = {
    "phase": ({"phase": "shuffle"}, "unknown phase 'shuffle'"),
    "phase setting": ({"phase": {"name": "train", "twice": True}}, "twice: unknown key"),
    "algorithm": ({"algorithm": {"name": "fedmagic", "wand": 3}}, "unknown algorithm 'fedmagic'"),
    "algorithm setting": ({"algorithm": {"name": "fedprox", "nu": 3}}, "nu: unknown key"),
    "training": ({"training": {"epochs": 2, "warm_up": 5}}, "training.warm_up: unknown key"),
    "training value": (
        {"training": {"epochs": "many"}},
        "training.epochs: expected a whole number, got 'many'",
    ),
    "algorithm with": (
        {"algorithm": "scaffold", "training": {"momentum": 0.9}},
        "scaffold needs training.optimizer sgd with momentum 0",
    ),
    "codec": ({"codec": {"name": "zip", "level": 9}}, "unknown codec 'zip'"),
    "codec setting": ({"codec": {"name": "int8", "blocks": 9}}, "blocks: unknown key"),
}


@pytest.mark.parametrize("kind", INVENTED)
def test_a_plan_it_does_not_understand_is_declined_by_name_and_the_next_one_is_worked_on(
    kind: str,
) -> None:
    changes, detail = INVENTED[kind]
    device = ready()
    report = report_in(device.plan(**changes))
    assert (report.kind, report.reason, report.round_id) == ("declined", kind.split()[0], 1)
    assert detail in report.detail
    assert report_in(device.plan(**changes)) == report, "announced again, declined again"
    assert status_in(device.feed(Connected(MAX_PAYLOAD))).unavailable_reason == ""
    device.plan(round_id=2)
    assert only(device.blob(THETA.tobytes()), StartJob)


@pytest.mark.parametrize(
    "changes",
    [{"algorithm": "f" * 500_000}, {"phase": "p" * 500_000}, {"training": {"e" * 500_000: 1}}],
)
def test_the_words_of_a_decline_are_few_in_the_report_and_in_the_log(
    changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    report = report_in(ready().plan(**changes))
    assert len(report.detail) == 500
    (line,) = [m for m in caplog.messages if "declined" in m]
    assert line.endswith(report.detail)
    assert len(line) < 550


def test_of_several_unknown_things_the_first_to_be_decoded_is_named() -> None:
    changes: dict[str, Any] = {"codec": "zip", "training": {"x": 1}, "algorithm": "no"}
    assert report_in(ready().plan(**changes)).reason == "algorithm"
    assert report_in(ready().plan(phase="no", **changes)).reason == "phase"
    del changes["algorithm"]
    assert report_in(ready().plan(**changes)).reason == "training"


def nested(key: str, depth: int, **changes: Any) -> bytes:
    """A plan with settings of some depth, as text: a deep one can be read, and not written."""
    text = msgspec.json.encode(plan(**changes, **{key: {"name": "DEEP"}})).decode()
    deep = '{"name":' * depth + '"train"' + "}" * depth
    return text.replace('{"name":"DEEP"}', deep).encode()


@pytest.mark.parametrize("depth", [21, 500])
@pytest.mark.parametrize("reason", ["phase", "algorithm", "training", "codec"])
def test_settings_that_are_nested_too_deep_are_declined(reason: str, depth: int) -> None:
    device = ready()
    report = report_in(device.hear(RoundTopic(), nested(reason, depth)))
    assert (report.kind, report.reason) == ("declined", reason)
    assert report.detail == f"{reason}: nested more than 20 deep"
    assert report_in(device.hear(RoundTopic(), nested(reason, depth))) == report
    device.plan(round_id=2)
    assert only(device.blob(THETA.tobytes()), StartJob)


@pytest.mark.parametrize("reason", ["phase", "algorithm", "training", "codec"])
def test_an_update_is_sent_however_deep_the_newest_plan_is_nested(reason: str) -> None:
    device = training(max_staleness=1)
    for depth in range(800, 1000):
        device.hear(RoundTopic(), nested(reason, depth, max_staleness=1, round_id=2))
    assert device.agent.plan is not None
    assert device.agent.plan.round_id == 2
    assert only(device.feed(trained([1, 2, 3, 4], max_staleness=1)), SpoolUpdate)


@pytest.mark.parametrize("phase", [{"steps": 3}, "a phase with spaces", {"name": 7}])
def test_a_phase_without_a_proper_name_is_declined_in_a_report_that_can_be_read(
    phase: Any,
) -> None:
    report = report_in(ready().plan(phase=phase))
    assert (report.phase, report.reason) == ("unnamed", "phase")


def test_a_state_it_does_not_know_is_no_work_and_no_harm() -> None:
    device = ready()
    assert device.plan(state="rehearsing") == []
    device.plan(round_id=2)
    assert only(device.blob(THETA.tobytes()), StartJob)


def test_a_job_that_was_declined_by_the_worker_says_why() -> None:
    device = training()
    report = report_in(device.feed(JobFailed(plan(), "not that one", "algorithm")))
    assert (report.kind, report.reason, report.detail) == ("declined", "algorithm", "not that one")


# -- odd bytes ----------------------------------------------------------------------------------


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
    assert status_in(device.hear(topic, b"rubbish")).unavailable_reason.startswith("no_program: ")


def test_what_is_fetched_for_a_plan_that_was_replaced_is_not_fetched_on() -> None:
    device = ready()
    device.plan()
    theta = THETA * 2
    assert device.plan(round_id=2, blobs={"weights": ref(theta.tobytes())}) == [
        Unsubscribe(TOPICS.chunks_of(digest(THETA.tobytes()))),
        Subscribe(TOPICS.chunks_of(digest(theta.tobytes()))),
    ]
    assert device.blob(THETA.tobytes()) == []


def test_fields_of_a_newer_coordinator_are_ignored() -> None:
    device = ready()
    newer = msgspec.to_builtins(plan()) | {"field_of_a_newer_coordinator": [1, {}]}
    actions = device.hear(RoundTopic(), msgspec.json.encode(newer))
    assert [type(a) for a in actions] == [Subscribe]


@pytest.mark.parametrize("topic", [RoundTopic(), InboxTopic("pi-1"), CoordinatorStatusTopic()])
def test_a_flood_of_junk_is_counted_and_told_seldom(
    topic: Topic, caplog: pytest.LogCaptureFixture
) -> None:
    device = ready()
    before = device.agent.unreadable
    with caplog.filtering(RepeatFilter()):
        for number in range(2000):
            device.hear(topic, b"junk %d" % number)
    assert device.agent.unreadable - before == 2000
    assert len(caplog.records) == 11  # the 1st, 2nd, 4th ... 1024th
    assert caplog.messages[-1].endswith("(1024 times so far)")
    assert report_in(device.plan(phase="unheard_of")).kind == "declined"  # it still listens
