"""Plans that come while an earlier one is worked on; updates of an earlier θ that still count."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from broker.service.events import Connected, Publish, Subscribe, Tick, Unsubscribe
from edge_agent.machine.events import (
    CancelJob,
    JobFailed,
    ResolvePendingUpdate,
    SpoolUpdate,
    StartJob,
)
from tests.unit.edge_agent.agent_stage import (
    MAX_PAYLOAD,
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
    trained,
    training,
    update_in,
)

AFTER = THETA + 1


def later(device: Device, versions: int, max_staleness: int, **changes: Any) -> list[Any]:
    """The plan of a round that begins so many versions after the first one's."""
    facts: dict[str, Any] = {
        "round_id": 1 + versions,
        "version": versions,
        "blobs": {"weights": ref(AFTER.tobytes())},
        "max_staleness": max_staleness,
    }
    return device.plan(**(facts | changes))


def test_without_staleness_a_later_plan_cancels_the_job() -> None:
    device = training()
    assert later(device, 1, 0) == [CancelJob()]


def test_a_job_goes_on_while_its_update_still_counts_and_then_the_newest_plan_is_worked_on() -> (
    None
):
    device = training(max_staleness=2)
    assert later(device, 1, 2) == []
    assert later(device, 2, 2) == []
    actions = device.feed(trained([1, 2, 3, 4], max_staleness=2))
    header, _, sent = update_in(actions)
    assert (header.round_id, header.version) == (1, 0), "its own, and not the newest plan's"
    assert all("/updates/1/" in publication.topic for publication in sent)
    assert only(actions, Subscribe) == [Subscribe(TOPICS.chunks_of(digest(AFTER.tobytes())))]
    (job,) = only(device.blob(AFTER.tobytes()), StartJob)
    assert (job.plan.round_id, job.plan.version) == (3, 2)


def test_a_job_is_cancelled_once_its_update_would_count_no_more() -> None:
    device = training(max_staleness=1)
    assert later(device, 1, 1) == []
    assert later(device, 2, 1) == [CancelJob()]
    device.feed(JobFailed(plan(max_staleness=1), "cancelled"))
    (job,) = only(device.blob(AFTER.tobytes()), StartJob)
    assert job.plan.version == 2


def test_the_newest_plan_says_how_much_staleness_counts() -> None:
    device = training(max_staleness=5)
    assert later(device, 1, 0) == [CancelJob()]


def test_the_blobs_of_an_earlier_plan_are_fetched_on_while_its_update_would_count() -> None:
    device = ready()
    device.plan(max_staleness=1)
    assert later(device, 1, 1) == []
    (job,) = only(device.blob(THETA.tobytes()), StartJob)
    assert job.plan.version == 0
    assert job.blobs["weights"].tolist() == THETA.tolist()


def test_they_are_forgotten_once_it_would_not() -> None:
    device = ready()
    device.plan(max_staleness=1)
    assert later(device, 2, 1) == [
        Unsubscribe(TOPICS.chunks_of(digest(THETA.tobytes()))),
        Subscribe(TOPICS.chunks_of(digest(AFTER.tobytes()))),
    ]


def test_an_earlier_plan_whose_blobs_do_not_come_gives_way_to_the_newest() -> None:
    device = ready()
    device.plan(max_staleness=1)
    later(device, 1, 1)
    device.now_s += device.agent.wait_s(device.now_s)
    actions = device.feed(Tick())
    assert only(actions, Publish) == [], "the coordinator may have cleared them"
    assert Subscribe(TOPICS.chunks_of(digest(AFTER.tobytes()))) in actions
    (job,) = only(device.blob(AFTER.tobytes()), StartJob)
    assert job.plan.version == 1


def test_an_update_is_sent_in_full_while_it_may_still_count() -> None:
    device = training(max_staleness=1)
    _, *sent = device.feed(trained([1, 2, 3, 4], max_staleness=1))
    device.feed(Connected(MAX_PAYLOAD))
    again = later(device, 1, 1, fetch_jitter_s=5.0)
    assert only(again, Publish) == sent, "sent on no connection that still is"
    assert only(later(device, 1, 1), Publish) == [], "and then left to its time"


def test_training_goes_on_from_the_update_under_way_and_the_next_update_settles_it() -> None:
    device = training(max_staleness=3, codec="int8")
    done = trained([1.0, 0.001, -0.003, 0.5], max_staleness=3, codec="int8")
    device.feed(done)
    later(device, 1, 3, codec="int8")
    (job,) = only(device.blob(AFTER.tobytes()), StartJob)
    assert job.state.residuals["delta"].scale, "of the update that has no receipt yet"
    second = trained(
        [1, 2, 3, 4],
        round_id=2,
        version=1,
        max_staleness=3,
        blobs={"weights": ref(AFTER.tobytes())},
        codec="int8",
    )
    resolved, spooled, *_ = device.feed(second)
    assert resolved == ResolvePendingUpdate(accepted=True)
    assert isinstance(spooled, SpoolUpdate)
    assert spooled.update.version == 1


def test_a_failure_is_told_under_the_plan_that_it_belongs_to() -> None:
    device = training(max_staleness=1)
    later(device, 1, 1)
    actions = device.feed(JobFailed(plan(max_staleness=1), "the loss is nan"))
    report = report_in(only(actions, Publish))
    assert (report.round_id, report.version, report.reason) == (1, 0, "training")
    assert only(device.blob(AFTER.tobytes()), StartJob)


def test_an_evaluation_is_of_use_for_its_own_version_only() -> None:
    device = ready()
    device.plan(phase="evaluate", max_staleness=3)
    device.blob(THETA.tobytes())
    assert later(device, 1, 3) == [CancelJob()]
    actions = device.feed(measured(plan(phase="evaluate"), trained([0]).result.sums))
    assert only(actions, Publish) == []


def test_a_coordinator_that_went_back_cancels_whatever_the_staleness() -> None:
    device = ready()
    device.plan(round_id=5, version=4, max_staleness=9)
    device.blob(THETA.tobytes())
    actions = device.plan(coordinator_instance="c2", round_id=3, version=2, max_staleness=9)
    assert only(actions, CancelJob)


def test_the_vectors_of_plans_that_are_over_are_freed() -> None:
    device = training()
    for number in range(1, 6):
        theta = THETA * np.float32(number + 1)
        device.plan(round_id=number + 1, blobs={"weights": ref(theta.tobytes())})
        device.feed(JobFailed(plan(round_id=number), "cancelled"))
        device.blob(theta.tobytes())
    assert len(device.agent.rounds._blobs._vectors) == 1


@pytest.mark.parametrize(
    "unknown", [{"algorithm": {"name": "nope"}}, {"codec": "zip"}, {"training": {"warm_up": 5}}]
)
def test_a_job_goes_on_by_the_plan_that_it_began_with_when_the_same_one_comes_garbled(
    unknown: dict[str, Any],
) -> None:
    device = training()
    assert device.plan(**unknown) == []
    header, _, _ = update_in(device.feed(trained([1, 2, 3, 4])))
    assert (header.round_id, header.version) == (1, 0)
    device = training()
    device.plan(**unknown)
    assert later(device, 1, 1) == [], "its update still counts"
    assert later(device, 3, 1) == [CancelJob()]


def test_a_garbled_copy_of_the_plan_whose_blobs_are_being_fetched_gives_way_to_the_next() -> None:
    device = ready()
    device.plan()
    device.coordinator("offline")
    device.plan(algorithm={"name": "nope"})
    later(device, 1, 1)
    device.coordinator()
    (job,) = only(device.blob(AFTER.tobytes()), StartJob)
    assert job.plan.version == 1
