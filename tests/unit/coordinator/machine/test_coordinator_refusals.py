"""Updates that must not count, or not twice."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from broker.protocol import blobs
from broker.protocol.topics import UpdateTopic
from broker.service.events import MessageArrived
from coordinator.config import EvaluationConfig, StartConfig
from coordinator.machine.events import Commit
from coordinator.records.records import RoundRecord
from learning.aggregation.norm_bound import NormBoundSettings
from tests.unit.coordinator.machine.coordinator_stage import FakeAgent, Stage, config, only, three

# -- updates that must not count ----------------------------------------------------------------


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
        ("codec", {"codec": "float16"}),
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
    c.update([1, 0, 0], loss_sum=1e308)
    a.update([2, 0, 0], loss_sum=1e100)
    b.update([2, 0, 0])
    assert stage.record.refusals == {"malformed": 1}
    assert msgspec.json.decode(msgspec.json.encode(stage.record), type=RoundRecord) == stage.record


def test_no_device_can_diverge_the_model_into_nan() -> None:
    stage, *agents = three(norm_bound=NormBoundSettings(clip=0, refuse=0))
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


# -- sent again ---------------------------------------------------------------------------------


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
    assert stage.plan.phase == "evaluate"
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
    a.agent_instance = "b2"  # rebooted, trained again
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
