"""Updates until they are resolved: receipts, residuals, power cuts, messages that are lost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from broker.protocol import blobs
from broker.protocol.messages import Cohort, Resend
from broker.protocol.topics import InboxTopic
from broker.service.events import Connected, Publish, Started, Tick
from edge_agent.machine.agent import Agent
from edge_agent.machine.device_state import DeviceState, Residual, rounded
from edge_agent.machine.events import (
    ForgetState,
    JobDone,
    ResolvePendingUpdate,
    SpoolUpdate,
    StartJob,
)
from edge_agent.machine.pending_update import AgentMemory, LocalUpdate
from edge_agent.machine.status import AgentFacts
from learning.vector.parameters import F32
from tests.unit.edge_agent.agent_stage import (
    MAX_PAYLOAD,
    OTHER_PACKAGE,
    PACKAGE,
    THETA,
    Device,
    digest,
    int8_round,
    only,
    ready,
    rebooted,
    ref,
    report_in,
    status_in,
    trained,
    training,
    update_in,
)

# -- receipts -----------------------------------------------------------------------------------


DELTA = [1.0, 0.001, -0.003, 0.5]


def residual(device: Device) -> Residual | None:
    """The settled residual."""
    settled = device.agent.rounds.outbox.settled
    return None if settled is None else settled.residuals.get("delta")


def test_what_rounding_lost_is_made_up_for_once_the_receipt_is_there() -> None:
    device = training(codec="int8")
    arrived, _ = int8_round(device, 1, DELTA)
    lost = rounded(np.array(DELTA, np.float32) - arrived).vector
    assert np.abs(lost).max() > 0
    assert residual(device) is None
    device.receipt(accepted=True)
    kept = residual(device)
    assert kept is not None
    assert kept.vector.tolist() == lost.tolist()
    (job,) = only(device.plan(round_id=2, codec="int8"), StartJob)
    assert job.state.residuals["delta"].vector.tolist() == lost.tolist()
    arrived, _ = int8_round(device, 2, DELTA)
    # Off by less than a level of what was wanted, residual included.
    wanted = np.array(DELTA, np.float32) + lost
    assert np.abs(arrived - wanted).max() <= np.abs(wanted).max() / 127 * 1.001


def test_a_refusal_leaves_the_residual_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    device = training(codec="int8")
    int8_round(device, 1, DELTA)
    device.receipt(accepted=False, reason="norm", detail="L2 norm 5, limit 1")
    assert residual(device) is None
    assert "round 1: update refused (norm): L2 norm 5, limit 1" in caplog.text
    assert device.feed(Connected(MAX_PAYLOAD))[1:] == []  # and it is not sent again


@pytest.mark.parametrize(
    "changes", [{"agent_instance": "b0"}, {"session": "s0"}, {"round_id": 2}, {"attempt": 2}]
)
def test_a_receipt_for_something_else_changes_nothing(changes: Any) -> None:
    device = training(codec="int8")
    int8_round(device, 1, DELTA)
    device.receipt(accepted=True, **changes)
    assert residual(device) is None
    device.feed(Connected(MAX_PAYLOAD))
    again = device.plan(codec="int8")
    assert len(only(again, Publish)) == 1  # still without a receipt: sent again


def test_a_receipt_that_comes_twice_counts_once() -> None:
    device = training(codec="int8")
    int8_round(device, 1, DELTA)
    device.receipt(accepted=True)
    first = residual(device)
    device.receipt(accepted=True)
    assert residual(device) is first


def test_an_update_without_a_receipt_is_sent_again_on_every_connection_until_it_has_one() -> None:
    device = training()
    spooled, *sent = device.feed(trained([1, 2, 3, 4]))
    assert isinstance(spooled, SpoolUpdate)
    for _ in range(2):
        assert status_in(device.feed(Connected(MAX_PAYLOAD))).state == "online"
        assert device.plan() == sent  # retained: it comes with the subscription
    assert device.receipt(accepted=True) == [ResolvePendingUpdate(accepted=True)]
    device.feed(Connected(MAX_PAYLOAD))
    assert device.plan() == []


def test_the_evaluation_of_the_same_round_may_overtake_the_receipt() -> None:
    device = training(codec="int8")
    int8_round(device, 1, DELTA)
    device.plan(phase="evaluate", version=1)
    device.receipt(accepted=True)
    assert residual(device) is not None


def test_in_a_later_round_it_asks_with_the_first_chunk_whether_the_update_counted() -> None:
    device = training()
    device.feed(Connected(1024 + blobs.HEADER_BYTES))
    sent = only(device.feed(trained(np.arange(1000, dtype=np.float32))), Publish)
    assert len(sent) > 2
    not_for_us = Cohort(ids=())
    assert device.plan(round_id=2, version=1, cohort=not_for_us) == sent[:1]
    device.now_s += device.agent.wait_s(device.now_s) + 0.001
    assert device.feed(Tick()) == sent[:1], "and again while nothing is said"
    assert device.receipt(accepted=True) == [ResolvePendingUpdate(accepted=True)]
    assert device.plan(round_id=3, version=2, cohort=not_for_us) == []


def test_the_next_training_goes_on_from_an_update_that_very_likely_counted() -> None:
    device = training(codec="int8")
    int8_round(device, 1, DELTA)
    ask, job = device.plan(round_id=2, version=1, codec="int8")
    assert isinstance(ask, Publish)
    assert isinstance(job, StartJob)
    assert job.state.residuals["delta"].scale
    # An answer that comes now takes nothing back: the training has begun from this state.
    device.receipt(accepted=False, reason="late")
    assert residual(device) is not None


def test_an_update_that_was_late_leaves_nothing_when_the_answer_comes_before_the_next_job() -> None:
    device = training(codec="int8")
    int8_round(device, 1, DELTA)
    after = THETA + 1
    device.plan(round_id=2, version=1, blobs={"weights": ref(after.tobytes())})
    device.receipt(accepted=False, reason="late")
    (job,) = only(device.blob(after.tobytes()), StartJob)
    assert job.state.residuals == {}


def test_the_end_of_the_federation_settles_the_update() -> None:
    device = training()
    device.feed(trained([1, 2, 3, 4]))
    actions = device.plan(round_id=1, version=1, state="finished")
    assert actions == [ResolvePendingUpdate(accepted=True)]


def test_another_model_begins_without_the_residual_of_the_one_before() -> None:
    device = training(codec="int8")
    int8_round(device, 1, DELTA)
    device.receipt(accepted=True)
    device.manifest(OTHER_PACKAGE)
    device.blob(OTHER_PACKAGE)
    assert ForgetState() in device.loaded(OTHER_PACKAGE, fingerprint="f" * 16, model="f" * 16)
    assert residual(device) is None
    theta = np.zeros(6, np.float32)
    changes: dict[str, Any] = {
        "package": digest(OTHER_PACKAGE),
        "fingerprint": "f" * 16,
        "blobs": {"weights": ref(theta.tobytes())},
        "round_id": 2,
    }
    device.plan(**changes)
    device.blob(theta.tobytes())
    header, *_ = update_in(device.feed(trained(range(6), **changes)))
    assert header.vectors["delta"].size == 6


def test_another_package_of_the_same_layout_goes_on_with_what_the_last_rounds_left() -> None:
    device = training(codec="int8")
    int8_round(device, 1, DELTA)
    device.receipt(accepted=True)
    device.manifest(OTHER_PACKAGE)
    device.blob(OTHER_PACKAGE)
    device.loaded(OTHER_PACKAGE)
    assert residual(device) is not None


# -- after a power cut, and when messages are lost ----------------------------------------------


def test_after_a_power_cut_the_spooled_update_is_sent_again_and_nothing_is_trained_twice() -> None:
    device = training(codec="int8")
    _, *sent = device.feed(trained(DELTA, codec="int8"))
    again = rebooted(device)
    actions = again.plan(codec="int8")
    assert only(actions, StartJob) == []
    assert only(actions, Publish) == sent
    assert again.receipt(accepted=True) == [ResolvePendingUpdate(accepted=True)]
    assert residual(again) is not None
    assert again.plan(codec="int8") == []


def test_after_a_power_cut_it_asks_whether_the_update_of_a_round_that_is_over_counted() -> None:
    device = training()
    _, *sent = device.feed(trained([1, 2, 3, 4]))
    again = rebooted(device)
    actions = again.plan(round_id=2, version=1)
    assert [a for a in only(actions, Publish) if "/updates/" in a.topic] == sent


@pytest.mark.parametrize("accepted", [True, False])
def test_after_a_power_cut_the_control_variate_is_that_of_the_last_accepted_update(
    accepted: bool,
) -> None:
    def control(state: DeviceState) -> list[float]:
        return state.vectors["control"].tolist() if "control" in state.vectors else []

    scaffold = shared_by_scaffold(THETA)
    device = training(**scaffold)
    device.feed(with_control(trained([1, 2, 3, 4], **scaffold), 1.0))
    device.receipt(accepted=True)
    device.plan(round_id=2, version=1, **scaffold)
    device.feed(with_control(trained([1, 2, 3, 4], round_id=2, **scaffold), 2.0))
    again = rebooted(device)  # killed before the second receipt
    after = THETA + 1
    sent = again.plan(round_id=2, **scaffold)
    assert [a for a in only(sent, Publish) if "/updates/2/" in a.topic]
    again.receipt(accepted=accepted, round_id=2, attempt=2)
    again.plan(round_id=3, version=2, **shared_by_scaffold(after))
    (job,) = only(again.blob(after.tobytes()), StartJob)
    assert control(job.state) == ([2.0] * 4 if accepted else [1.0] * 4)


def shared_by_scaffold(theta: F32) -> dict[str, Any]:
    blob = ref(theta.tobytes())
    return {"algorithm": "scaffold", "blobs": {"weights": blob, "control": blob}}


def with_control(done: JobDone, value: float) -> JobDone:
    assert isinstance(done.result, LocalUpdate)
    vectors = {"control": np.full(4, value, np.float32)}
    state = replace(done.result.state, algorithm="scaffold", vectors=vectors)
    return JobDone(done.plan, replace(done.result, state=state))


def test_the_state_of_another_model_is_not_used() -> None:
    kept = AgentMemory(
        settled=DeviceState("f" * 16, "s1", {"delta": rounded(np.ones(4, np.float32))})
    )
    device = Device(connect=False)
    device.agent = Agent(AgentFacts(agent_id="pi-1", federation="f", agent_instance="b1"), kept)
    device.feed(Started())
    device.coordinator()
    device.manifest()
    device.blob(PACKAGE)
    assert ForgetState() in device.loaded()
    assert residual(device) is None


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
