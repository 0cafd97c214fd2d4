"""What an agent does about messages that a broker dropped or delivered out of order.

Each case was found by a sweep over random faults (`fedge fleet sweep`).
"""

from __future__ import annotations

from typing import Any

import pytest

from broker.protocol.topics import CoordinatorStatusTopic, ProgramTopic, RoundTopic
from broker.service.events import Subscribe, Tick
from edge_agent.machine.events import Action, ResolvePendingUpdate, StartJob
from tests.unit.edge_agent.agent_stage import THETA, TOPICS, Device, only, plan, ready, ref, trained

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
    device.plan(round_id=2, version=2, phase="evaluate")
    assert device.agent.plan == plan(round_id=2, version=2, state="finished")


def test_another_session_may_begin_at_round_one() -> None:
    device = ready()
    device.plan(round_id=7, version=6)
    device.plan(round_id=1, session="s2", coordinator_instance="c2")
    assert device.agent.plan == plan(round_id=1, session="s2", coordinator_instance="c2")


# -- a coordinator that starts again, from its state or from a backup of it ---------------------


def restarted(device: Device, start: str = "c2", **changes: Any) -> list[Action]:
    device.coordinator()
    return device.plan(coordinator_instance=start, **changes)


def test_a_round_that_goes_on_after_a_restart_is_not_trained_for_twice() -> None:
    device = ready()
    device.plan(round_id=2)
    device.blob(THETA.tobytes())
    assert restarted(device, round_id=2) == [], "it trains already"
    _, *sent = device.feed(trained([1, 2, 3, 4], round_id=2))
    assert restarted(device, "c3", round_id=2) == sent, "lost, perhaps"
    device.receipt(accepted=True, round_id=2)
    assert restarted(device, "c4", round_id=2) == []


def test_a_coordinator_that_was_restored_from_a_backup_is_followed_back() -> None:
    device = ready()
    device.plan(round_id=9, version=8)
    device.blob(THETA.tobytes())
    device.feed(trained([1, 2, 3, 4], round_id=9, version=8))
    before = THETA * 2
    assert ResolvePendingUpdate(accepted=False) in restarted(
        device, round_id=7, version=6, blobs={"weights": ref(before.tobytes())}
    )
    (job,) = only(device.blob(before.tobytes()), StartJob)
    assert (job.plan.round_id, job.blobs["weights"].tolist()) == (7, before.tolist())


def test_a_round_of_a_number_that_was_before_the_backup_is_another_round() -> None:
    device = ready()
    device.plan(round_id=9, version=8)
    device.blob(THETA.tobytes())
    device.feed(trained([1, 2, 3, 4], round_id=9, version=8))
    device.receipt(accepted=True, round_id=9)
    other = THETA * 3
    restarted(device, round_id=9, version=8, blobs={"weights": ref(other.tobytes())})
    (job,) = only(device.blob(other.tobytes()), StartJob)
    assert job.blobs["weights"].tolist() == other.tolist()


def test_a_second_coordinator_that_was_a_mistake_can_be_taken_back() -> None:
    device = ready()
    device.plan(round_id=5)
    device.plan(round_id=1, session="s2", coordinator_instance="c2")
    device.plan(round_id=5)
    assert device.agent.plan == plan(round_id=5)


def test_a_late_plan_of_the_start_before_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    device = ready()
    device.plan(round_id=9, version=8)
    restarted(device, round_id=7, version=6)
    with caplog.at_level("INFO"):
        assert device.plan(round_id=9, version=8) == []
    assert "plan of round 9 ignored: that of round 7 is newer" in caplog.text
    assert device.agent.plan == plan(coordinator_instance="c2", round_id=7, version=6)


@pytest.mark.parametrize("state", ["open", "finished"])
def test_a_start_that_goes_on_after_a_late_plan_of_the_one_before_is_heard_again(
    state: str,
) -> None:
    device = ready()
    device.plan(coordinator_instance="c2", round_id=2, version=1)
    device.plan(coordinator_instance="c1", round_id=1)
    later = THETA * 2
    facts: dict[str, Any] = {
        "coordinator_instance": "c2",
        "round_id": 3,
        "version": 2,
        "blobs": {"weights": ref(later.tobytes())},
        "state": state,
    }
    device.plan(**facts)
    assert device.agent.plan == plan(**facts)
    assert bool(only(device.blob(later.tobytes()), StartJob)) == (state == "open")
    for copy in ({"coordinator_instance": "c1"}, {"coordinator_instance": "c1", "version": 0}):
        assert device.plan(round_id=1, **copy) == [], "a late copy stays one"
    assert device.agent.plan == plan(**facts)


def test_late_copies_of_a_start_that_is_over_never_bring_it_back() -> None:
    device = ready()
    for round_id in (1, 2, 3):
        device.plan(coordinator_instance="c1", round_id=round_id, version=round_id - 1)
    restarted(device, round_id=2, version=1)
    for round_id in (3, 1, 2):
        late: dict[str, Any] = {"round_id": round_id, "version": round_id - 1}
        assert device.plan(coordinator_instance="c1", **late) == []
    assert device.agent.plan == plan(coordinator_instance="c2", round_id=2, version=1)


def test_an_end_that_is_announced_again_is_believed_after_a_late_earlier_plan() -> None:
    device = ready()
    device.plan(coordinator_instance="c2", round_id=3, version=3, state="finished")
    device.plan(coordinator_instance="c1", round_id=2, version=1)  # late, but unknown as such
    device.plan(coordinator_instance="c2", round_id=2, version=2)
    device.plan(coordinator_instance="c2", round_id=3, version=3, state="finished")
    newest = device.agent.plan
    assert newest is not None
    assert (newest.coordinator_instance, newest.state) == ("c2", "finished")
    device.plan(coordinator_instance="c1", round_id=4, version=3)
    newest = device.agent.plan
    assert newest is not None
    assert newest.coordinator_instance == "c1", "a coordinator that was put back goes on"


def test_the_end_may_name_an_earlier_version_which_is_the_best() -> None:
    device = ready()
    device.plan(round_id=2, version=3)
    device.plan(round_id=2, version=2, state="finished")
    assert device.agent.plan == plan(round_id=2, version=2, state="finished")
    device.plan(round_id=2, version=3)  # the broker sends the one before again
    assert device.agent.plan == plan(round_id=2, version=2, state="finished")
