"""An agent whose device is hot, discharged, on a metered network, or has its quiet hours."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
import pytest

from broker.protocol.messages import Report
from broker.service.events import Connected, Started, Subscribe, Tick, Unsubscribe
from edge_agent.machine.events import (
    Action,
    CancelJob,
    JobFailed,
    LoadPackage,
    PackageFailed,
    PauseJobs,
    ResumeJobs,
    StartJob,
)
from edge_agent.machine.limits import DeviceReadings, LimitsConfig
from tests.unit.edge_agent.agent_stage import (
    MAX_PAYLOAD,
    PACKAGE,
    THETA,
    TOPICS,
    Device,
    digest,
    only,
    plan,
    ready,
    report_in,
    status_in,
    trained,
    update_in,
)

LIMITS = LimitsConfig(
    max_temperature_c=75,
    min_battery_percent=30,
    pause_on_metered=True,
    quiet_hours=("22:00-06:00",),
)
NOON = 12 * 60
TROUBLES: dict[str, dict[str, Any]] = {
    "too_hot": {"temperature_c": 80.0},
    "low_battery": {"battery_percent": 12.0},
    "metered": {"metered": True},
    "quiet_hours": {"minute": 0},
}
every_trouble = pytest.mark.parametrize("reason", TROUBLES)


def read(device: Device, **readings: Any) -> list[Action]:
    return device.feed(DeviceReadings(**({"minute": NOON} | readings)))


def at_work() -> Device:
    """A device that trains for round 1, announced at second 0 with 9.5 s until its deadline."""
    device = ready(limits=LIMITS)
    read(device)
    device.plan()
    assert only(device.blob(THETA.tobytes()), StartJob)
    return device


def chunks_of(blob: bytes) -> str:
    return TOPICS.chunks_of(digest(blob))


@every_trouble
def test_its_status_says_why_it_pauses_and_when_the_pause_is_over(reason: str) -> None:
    device = ready(limits=LIMITS)
    assert read(device) == []
    status = status_in(read(device, **TROUBLES[reason]))
    assert status.pause_reason.startswith(f"{reason}: ")
    assert status.train_examples == 20  # it is able, only not now
    assert read(device, **TROUBLES[reason]) == []
    assert status_in(read(device)).pause_reason == ""


def test_readings_from_before_it_connects_are_in_its_birth() -> None:
    device = Device(connect=False, limits=LIMITS)
    assert read(device, minute=0) == [PauseJobs()]
    device.feed(Started())
    assert status_in(device.feed(Connected(MAX_PAYLOAD))).pause_reason.startswith("quiet_hours")


@every_trouble
def test_a_round_that_comes_during_a_pause_is_declined_by_name(reason: str) -> None:
    device = ready(limits=LIMITS)
    read(device, **TROUBLES[reason])
    report = report_in(device.plan())
    assert (report.kind, report.reason, report.round_id) == ("declined", reason, 1)
    assert not only(read(device), StartJob)  # it has answered
    device.plan(round_id=2)
    assert only(device.blob(THETA.tobytes()), StartJob)


@every_trouble
def test_a_pause_that_begins_while_weights_are_fetched_declines_the_round(reason: str) -> None:
    device = ready(limits=LIMITS)
    device.plan()
    actions = read(device, **TROUBLES[reason])
    reports = [a for a in only(actions, type(device.agent.will)) if "/reports/" in a.topic]
    assert msgspec.json.decode(reports[0].payload, type=Report).reason == reason


@every_trouble
def test_training_pauses_and_goes_on(reason: str) -> None:
    device = at_work()
    assert only(read(device, **TROUBLES[reason]), PauseJobs)
    device.now_s = 5.0
    actions = read(device)
    assert only(actions, ResumeJobs)
    assert not only(actions, CancelJob)
    header, _, _ = update_in(device.feed(trained([1, 0, 0, 0])))
    assert header.num_examples == 20


def test_another_reason_to_pause_takes_over_without_a_step_between() -> None:
    device = at_work()
    read(device, **TROUBLES["too_hot"])
    actions = read(device, **TROUBLES["quiet_hours"])
    assert not only(actions, ResumeJobs)
    assert status_in(actions).pause_reason.startswith("quiet_hours")


def test_training_that_is_still_paused_at_the_deadline_is_given_up_with_the_reason() -> None:
    device = at_work()
    read(device, **TROUBLES["too_hot"])
    assert device.agent.wait_s(4.0) == pytest.approx(5.5)
    device.now_s = 9.4
    assert not only(device.feed(Tick()), CancelJob)
    device.now_s = 9.5
    actions = device.feed(Tick())
    assert only(actions, CancelJob)
    report = report_in(actions)
    assert (report.kind, report.reason) == ("declined", "too_hot")
    assert "deadline" in report.detail
    assert device.agent.wait_s(9.5) > 0  # it does not spin until the thread has noticed
    assert device.feed(JobFailed(plan(), "cancelled")) == []  # said already
    read(device)
    device.plan(round_id=2)
    assert [job.plan.round_id for job in only(device.actions, StartJob)] == [1, 2]


def test_without_a_pause_the_deadline_is_the_coordinators_business() -> None:
    device = at_work()
    device.now_s = 100.0
    assert not only(device.feed(Tick()), CancelJob)


def test_a_round_that_is_over_during_a_pause_is_not_given_up_twice() -> None:
    device = at_work()
    read(device, **TROUBLES["too_hot"])
    assert only(device.plan(round_id=2), CancelJob)
    device.now_s = 50.0
    assert not only(device.feed(Tick()), CancelJob)
    assert device.agent.wait_s(50.0) > 0
    actions = device.feed(JobFailed(plan(), "cancelled"))
    report = report_in(actions)
    assert (report.round_id, report.reason) == (2, "too_hot")


# -- a metered network -------------------------------------------------------


def test_no_package_is_fetched_over_a_metered_network() -> None:
    device = Device(limits=LIMITS)
    device.coordinator()
    read(device, metered=True)
    device.manifest()
    assert chunks_of(PACKAGE) not in device.filters
    assert Subscribe(chunks_of(PACKAGE)) in read(device)
    assert only(device.blob(PACKAGE), LoadPackage)


def test_fetching_stops_while_the_network_is_metered_and_goes_on_after() -> None:
    device = Device(limits=LIMITS)
    device.coordinator()
    device.manifest()
    assert Unsubscribe(chunks_of(PACKAGE)) in read(device, metered=True)
    assert chunks_of(PACKAGE) not in device.filters
    assert Subscribe(chunks_of(PACKAGE)) in read(device)
    assert only(device.blob(PACKAGE), LoadPackage)


def test_quiet_hours_do_not_hide_a_metered_network() -> None:
    device = Device(limits=LIMITS)
    device.coordinator()
    device.manifest()
    read(device, minute=0)
    assert chunks_of(PACKAGE) in device.filters  # fetching is quiet
    assert Unsubscribe(chunks_of(PACKAGE)) in read(device, minute=0, metered=True)
    assert Subscribe(chunks_of(PACKAGE)) in read(device, minute=0)


def test_another_model_replaces_the_one_whose_fetch_was_stopped() -> None:
    device = Device(limits=LIMITS)
    device.coordinator()
    read(device, metered=True)
    device.manifest()
    other = b"another model" * 99
    device.manifest(other)
    read(device)
    assert chunks_of(other) in device.filters
    assert chunks_of(PACKAGE) not in device.filters


# -- memory -----------------------------------------------------------------------------------


def short_of_memory(needs_bytes: int) -> Device:
    device = Device()
    device.coordinator()
    device.manifest()
    device.blob(PACKAGE)
    detail = "about 80 MB is needed, 70 MB is available"
    device.feed(PackageFailed(digest(PACKAGE), "memory", detail, needs_bytes))
    return device


def test_a_model_that_does_not_fit_makes_it_unable_and_declines_by_name() -> None:
    device = short_of_memory(0)
    status = status_in([device.actions[-1]])
    assert status.unavailable_reason == "memory: about 80 MB is needed, 70 MB is available"
    assert report_in(device.plan()).reason == "memory"
    assert not device.agent.needs_readings  # the ceiling will not change


def test_it_tries_again_when_there_is_room() -> None:
    device = short_of_memory(80_000_000)
    assert device.agent.needs_readings
    assert read(device, available_bytes=79_999_999) == []
    assert Subscribe(chunks_of(PACKAGE)) in read(device, available_bytes=80_000_000)
    assert only(device.blob(PACKAGE), LoadPackage)
    device.loaded()
    assert not device.agent.needs_readings
    device.plan()
    assert only(device.blob(THETA.tobytes()), StartJob)


# -- in any order -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_whatever_comes_in_whatever_order_it_never_works_during_a_pause(seed: int) -> None:
    rng = Random(seed)
    device = ready(limits=LIMITS)
    round_id, running, paused = 0, None, False
    for _ in range(80):
        device.now_s += rng.uniform(0, 6)
        match rng.randrange(6):
            case 0 | 1:
                trouble = rng.choice([{}, {}, *TROUBLES.values()])
                actions = read(device, **trouble)
            case 2:
                round_id += 1
                actions = device.plan(round_id=round_id, deadline_s=20.0)
            case 3:
                actions = device.blob(THETA.tobytes())
            case 4:
                actions = device.feed(Tick())
            case _:
                actions = []
                if running is not None and not paused:
                    done, running = running, None
                    actions = device.feed(trained([1, 0, 0, 0], round_id=done, deadline_s=20.0))
        if running is not None and only(actions, CancelJob):
            over, running = running, None
            actions += device.feed(JobFailed(plan(round_id=over, deadline_s=20.0), "cancelled"))
        for action in actions:
            match action:
                case PauseJobs() | ResumeJobs():
                    assert paused != isinstance(action, PauseJobs), "said twice"
                    paused = isinstance(action, PauseJobs)
                case StartJob(job):
                    assert not paused
                    assert running is None, "one at a time"
                    running = job.round_id
        device.feed(Tick())
        assert device.agent.wait_s(device.now_s) > 0, "it would spin"
    # What it said last is how it is.
    status = status_in(device.feed(Connected(MAX_PAYLOAD)))
    assert bool(status.pause_reason) == paused
