"""What an agent does about messages that a broker dropped or delivered out of order.

Each case was found by a sweep over random faults (`fedge fleet sweep`).
"""

from __future__ import annotations

from broker.machine import Subscribe, Tick
from broker.topics import CoordinatorStatusTopic, ProgramTopic, RoundTopic
from edge_agent.events import StartJob
from tests.unit.test_agent import THETA, TOPICS, Device, plan, ready

_STATE = {TOPICS.name(t) for t in (CoordinatorStatusTopic(), ProgramTopic(), RoundTopic())}


def asked_again(device: Device) -> set[str]:
    """Topics that are subscribed to at the next heartbeat."""
    device.now_s += 60.0
    actions = device.feed(Tick())
    return {a.topic_filter for a in actions if isinstance(a, Subscribe)} & _STATE


def test_what_never_came_is_asked_for_at_every_heartbeat() -> None:
    device = Device(heartbeat_s=60.0)
    assert asked_again(device) == _STATE
    device.coordinator()
    assert asked_again(device) == {TOPICS.name(ProgramTopic()), TOPICS.name(RoundTopic())}
    device.plan()
    assert asked_again(device) == {TOPICS.name(ProgramTopic())}
    device.manifest()
    assert asked_again(device) == set()


def test_a_coordinator_that_seems_gone_is_asked_for() -> None:
    device = ready(heartbeat_s=60.0)
    device.plan()
    device.coordinator("offline")
    assert asked_again(device) == {TOPICS.name(CoordinatorStatusTopic())}


def test_a_late_copy_of_an_earlier_plan_changes_nothing() -> None:
    device = ready()
    device.plan(round_id=2, version=1)
    device.blob(THETA.tobytes())
    started = [a for a in device.actions if isinstance(a, StartJob)]
    assert [job.plan.round_id for job in started] == [2]
    assert device.plan(round_id=1) == []
    assert device.agent.plan == plan(round_id=2, version=1)


def test_an_open_plan_does_not_take_back_the_end() -> None:
    device = ready()
    device.plan(round_id=2, version=2, state="finished")
    device.plan(round_id=2, version=2, task="evaluate")
    assert device.agent.plan == plan(round_id=2, version=2, state="finished")


def test_another_session_may_begin_at_round_one() -> None:
    device = ready()
    device.plan(round_id=7, version=6)
    device.plan(round_id=1, session="s2")
    assert device.agent.plan == plan(round_id=1, session="s2")
