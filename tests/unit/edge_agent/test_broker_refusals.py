"""What an agent does when the broker refuses its messages or has nothing for it."""

from __future__ import annotations

import logging

import pytest

from broker.protocol import blobs, messages
from broker.protocol.messages import ProgramManifest, Report
from broker.protocol.topics import ProgramTopic, ReportTopic, UpdateTopic
from broker.service.events import (
    BrokerRefused,
    Connected,
    Disconnected,
    Publish,
    Subscribe,
    Tick,
    Unsubscribe,
)
from edge_agent.machine.events import Action, RecallBlob, ResolvePendingUpdate, StartJob
from tests.unit.edge_agent.agent_stage import (
    FINGERPRINT,
    MAX_PAYLOAD,
    PACKAGE,
    THETA,
    TOPICS,
    Device,
    digest,
    only,
    plan,
    ready,
    status_in,
    trained,
    training,
)

DETAIL = (
    "the broker refuses messages on fedge/v1/f/agents/pi-1/updates/#: not authorised: give this"
    " client the right"
)


def refuse_update(device: Device, round_id: int = 1, index: int = 0) -> list[Action]:
    topic = TOPICS.name(UpdateTopic("pi-1", round_id, index))
    return device.feed(BrokerRefused(topic, "not authorised: give this client the right"))


def reports_in(actions: list[Action]) -> list[Report]:
    sent = [a for a in only(actions, Publish) if "/reports/" in a.topic]
    return [messages.decode(publication.payload, Report) for publication in sent]


def refused() -> Device:
    """A device whose update of round 1 was refused."""
    device = training()
    device.feed(trained([0.5, 0, 0, 0]))
    refuse_update(device)
    return device


def after(device: Device, seconds: float) -> list[Action]:
    device.now_s += seconds
    return device.feed(Tick())


def test_a_refused_update_is_declined_at_once_and_dropped() -> None:
    device = training()
    device.feed(trained([0.5, 0, 0, 0]))
    actions = refuse_update(device)
    (report,) = reports_in(actions)
    assert (report.kind, report.reason, report.detail) == ("declined", "publish_refused", DETAIL)
    assert report.round_id == 1
    assert only(actions, ResolvePendingUpdate) == [ResolvePendingUpdate(accepted=False)]
    status = status_in(actions)
    assert (status.unavailable_reason, status.is_transient) == (DETAIL, True)
    assert refuse_update(device, index=1) == []  # its other chunks


def test_the_next_round_is_declined_without_training() -> None:
    device = refused()
    actions = device.plan(round_id=2, version=1)
    (report,) = reports_in(actions)
    assert (report.round_id, report.reason) == (2, "publish_refused")
    assert only(actions, StartJob) == []
    evaluate = device.plan(round_id=3, version=1, phase="evaluate")
    assert only(evaluate, StartJob)  # results go another way


def test_an_update_of_a_round_that_is_over_is_dropped_without_an_answer() -> None:
    device = training()
    device.feed(trained([0.5, 0, 0, 0]))
    device.plan(round_id=2, version=0, cohort=messages.Cohort(ids=("pi-2",)))
    assert reports_in(refuse_update(device)) == []


def test_an_empty_message_tries_after_a_while_whether_updates_are_taken_again() -> None:
    device = refused()
    assert after(device, 59) == []
    (trial,) = only(after(device, 32), Publish)
    assert (trial.topic, trial.payload) == (TOPICS.name(UpdateTopic("pi-1", 0, 0)), b"")
    assert refuse_update(device, round_id=0) == []  # still so: nobody is told again
    assert after(device, 100) == []
    (trial,) = only(after(device, 81), Publish)  # twice as long, with jitter
    assert trial.payload == b""
    status = status_in(after(device, 10))
    assert status.unavailable_reason == ""
    assert only(device.plan(round_id=2, version=1), StartJob)


def test_a_new_connection_tries_at_once() -> None:
    device = refused()
    device.feed(Disconnected())
    assert after(device, 1000) == []
    device.feed(Connected(MAX_PAYLOAD))
    assert [a.payload for a in only(after(device, 0), Publish)] == [b""]


def test_refused_reports_are_left_to_the_log() -> None:
    device = ready()
    assert device.feed(BrokerRefused(TOPICS.name(ReportTopic("pi-1", 1)), "not authorised")) == []


def test_a_refused_subscription_to_the_weights_declines_the_plan() -> None:
    device = ready()
    device.plan()
    weights = TOPICS.chunks_of(digest(THETA.tobytes()))
    (report,) = reports_in(
        device.feed(BrokerRefused(weights, "not authorised", is_subscription=True))
    )
    assert report.reason == "weights"
    assert report.detail == f"the broker refuses the subscription {weights}: not authorised"


def test_a_refused_subscription_to_the_package_is_told_in_the_status_and_tried_later() -> None:
    device = Device()
    device.coordinator()
    device.manifest()
    package = TOPICS.chunks_of(digest(PACKAGE))
    actions = device.feed(BrokerRefused(package, "not authorised", is_subscription=True))
    assert Unsubscribe(package) in actions
    status = status_in(actions)
    assert "the broker refuses the subscription" in status.unavailable_reason
    assert status.is_transient
    assert Subscribe(package) in after(device, 451)


# -- sizes --------------------------------------------------------------------------------------


def test_the_status_names_a_limit_below_that_of_the_protocol() -> None:
    device = Device()
    assert status_in(device.feed(Connected(MAX_PAYLOAD))).max_payload_bytes == 0
    assert status_in(device.feed(Connected(20_000))).max_payload_bytes == 20_000


def test_a_package_that_came_in_too_large_chunks_is_wanted_again_in_smaller_ones() -> None:
    device = Device()
    device.feed(Connected(2_000))
    device.coordinator()
    device.manifest()
    status = status_in(after(device, 31))
    assert "chunks of 3056 bytes do not come: this connection takes 2000" in (
        status.unavailable_reason
    )
    smaller = blobs.describe(PACKAGE, 1_500)
    manifest = ProgramManifest(name="m", package=smaller, fingerprint=FINGERPRINT)
    assert only(device.hear(ProgramTopic(), manifest), RecallBlob)


# -- silence ------------------------------------------------------------------------------------


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_broker_without_a_coordinator_s_word_is_told_within_seconds_and_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    device = Device()
    with caplog.at_level(logging.INFO):
        assert device.agent.wait_s(0.0) == 5.0
        after(device, 5)
        device.feed(Connected(MAX_PAYLOAD))
        after(device, 60)
    assert lines(caplog) == [
        "nothing is retained on fedge/v1/f/coordinator/status at this broker: is `federation`"
        " right, was the coordinator ever started, may this client read there?"
        " (fedge agent doctor)"
    ]


def test_a_coordinator_that_is_offline_or_lacks_its_program_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    device = Device()
    device.coordinator("offline")
    with caplog.at_level(logging.INFO):
        after(device, 5)
        device.coordinator()
        device.feed(Connected(MAX_PAYLOAD))
        after(device, 5)
    offline, program = lines(caplog)
    assert offline == "the coordinator is offline: waiting for it"
    assert program.startswith("the coordinator is online, but nothing is retained on fedge/v1/f/pr")


def test_where_all_is_there_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    device = ready()
    caplog.clear()
    assert device.agent.wait_s(0.0) == float("inf")
    after(device, 5)
    assert lines(caplog) == []
    assert device.agent.plan is None
    assert plan().round_id == 1
