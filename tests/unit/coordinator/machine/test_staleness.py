"""Updates that began at an earlier version of θ, and receipts for rounds that are over."""

from __future__ import annotations

from math import sqrt
from pathlib import Path

import pytest

from broker.protocol import blobs, messages
from broker.protocol.messages import Resend, RoundPlan
from broker.protocol.topics import InboxTopic, UpdateTopic
from broker.service.events import Publish
from coordinator.config import EvaluationConfig, RoundConfig, StartConfig
from coordinator.machine.events import StoreUpdate
from coordinator.storage.durability import Durability
from coordinator.storage.store import Store
from learning.algorithms.algorithm import ServerState
from tests.unit.coordinator.machine.coordinator_stage import (
    PACKAGE,
    FakeAgent,
    Stage,
    config,
    only,
    three,
)


def slow_third(max_staleness: int) -> tuple[Stage, FakeAgent, FakeAgent, FakeAgent, RoundPlan]:
    """Round 1 closed at its deadline without c's update; round 2 is open."""
    stage, a, b, c = three(max_staleness=max_staleness)
    plan = stage.plan
    a.update([2, 0, 0])
    b.update([4, 0, 0])
    stage.later(60.0)
    assert (stage.record.reported, stage.plan.round_id, stage.plan.version) == (2, 2, 1)
    return stage, a, b, c, plan


def test_without_staleness_an_update_of_the_round_before_is_late() -> None:
    _, _, _, c, plan = slow_third(0)
    receipt = c.receipt(c.update([6, 0, 0], plan=plan))
    assert (receipt.accepted, receipt.reason) == (False, "late")


def test_a_stale_update_counts_with_its_weight_discounted() -> None:
    stage, a, b, c, plan = slow_third(1)
    actions = c.update([6, 0, 0], plan=plan)
    assert c.receipt(actions).accepted
    (stored,) = only(actions, StoreUpdate)
    assert (stored.round_id, stored.agent_id, stored.version) == (2, "c", 0)
    a.update([3, 0, 0])
    b.update([3, 0, 0])
    c.update([3, 0, 0])
    record = stage.record
    assert (record.reported, record.stale, record.status) == (3, 1, "committed")
    # All have 10 rows; one version old counts 1 / √2: (3 · 3 + 6 / √2) / (3 + 1 / √2)
    expected = 3.0 + (9.0 + 6.0 / sqrt(2)) / (3.0 + 1.0 / sqrt(2))
    assert stage.coordinator.progress.theta[0] == pytest.approx(expected, rel=1e-6)


def test_a_stale_update_sent_again_counts_once_and_gets_its_receipt() -> None:
    stage, a, b, c, plan = slow_third(1)
    frame = c.frame([6, 0, 0], plan=plan)
    assert c.receipt(c.send(frame, plan.round_id)).accepted
    again = c.send(frame, plan.round_id)
    assert c.receipt(again).accepted
    assert not only(again, StoreUpdate)
    for agent in (a, b, c):
        agent.update([3, 0, 0])
    assert stage.record.stale == 1
    assert c.receipt(c.send(frame, plan.round_id)).accepted, "known in the next round too"


def test_another_update_for_a_round_that_counted_one_is_a_duplicate() -> None:
    _, _, _, c, plan = slow_third(1)
    c.update([6, 0, 0], plan=plan)
    receipt = c.receipt(c.update([9, 0, 0], plan=plan, attempt=2))
    assert (receipt.accepted, receipt.reason) == (False, "duplicate")


def test_an_update_that_counted_in_its_own_round_counts_no_second_time() -> None:
    _, a, _, _, plan = slow_third(1)
    receipt = a.receipt(a.update([9, 0, 0], plan=plan, attempt=2))
    assert (receipt.accepted, receipt.reason) == (False, "late")


def test_beyond_the_limit_an_update_is_refused() -> None:
    stage, a, b, c, plan = slow_third(1)
    for agent in (a, b):
        agent.update([3, 0, 0])
    stage.later(60.0)
    assert (stage.plan.round_id, stage.plan.version) == (3, 2)
    receipt = c.receipt(c.update([6, 0, 0], plan=plan))
    assert (receipt.accepted, receipt.reason) == (False, "late")


def test_an_update_of_an_abandoned_round_is_late_whatever_the_limit() -> None:
    stage, a, b, _ = three(max_staleness=3, round=RoundConfig(minimum=2, deadline_s=60.0))
    plan = stage.plan
    a.update([2, 0, 0])
    stage.later(60.0)
    assert (stage.record.status, stage.record.round_id) == ("abandoned", 1)
    stage.later(1.0)
    assert (stage.plan.round_id, stage.plan.version) == (2, 0)
    receipt = b.receipt(b.update([4, 0, 0], plan=plan))
    assert (receipt.accepted, receipt.reason) == (False, "late")


def test_an_agent_that_the_earlier_round_did_not_ask_cannot_answer_it() -> None:
    stage, _, _, _, plan = slow_third(1)
    stranger = FakeAgent(stage, "z")
    assert not stranger.receipt(stranger.update([6, 0, 0], plan=plan)).accepted


def test_weights_of_earlier_versions_stay_as_long_as_they_may_be_needed() -> None:
    stage, a, b, c, plan = slow_third(1)
    kept = [topic for topic in stage.retained if plan.weights.sha256 in topic]
    assert kept, "an agent of round 1 may still be fetching them"
    for agent in (a, b, c):
        agent.update([3, 0, 0])
    assert not [topic for topic in stage.retained if plan.weights.sha256 in topic]


def test_a_restarted_coordinator_counts_stored_stale_updates(tmp_path: Path) -> None:
    with_store = Store(tmp_path)
    with_store.begin(PACKAGE.initial, ServerState())
    durability = Durability(with_store)
    stage, _, _, c, plan = slow_third(1)
    c.update([6, 0, 0], plan=plan)
    for action in stage.actions:
        durability.perform(action)
    durability.flush()
    settings = config(start=StartConfig(agents=3), max_staleness=1)
    again = Stage(settings, progress=with_store.load(PACKAGE.spec.size))
    agents = [FakeAgent(again, name) for name in "abc"]
    assert again.plan.round_id == 2
    for agent in agents:
        agent.update([3, 0, 0])
    again.later(1.0)
    assert (again.record.reported, again.record.stale) == (3, 1)
    expected = 3.0 + (9.0 + 6.0 / sqrt(2)) / (3.0 + 1.0 / sqrt(2))
    assert again.coordinator.progress.theta[0] == pytest.approx(expected, rel=1e-6)
    with_store.close()


def test_a_restarted_coordinator_knows_whose_updates_counted(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.begin(PACKAGE.initial, ServerState())
    durability = Durability(store)
    stage, a, b, c, plan = slow_third(0)
    for action in stage.actions:
        durability.perform(action)
    durability.flush()
    again = Stage(
        config(start=StartConfig(agents=3)),
        start="c2",
        progress=store.load(PACKAGE.spec.size),
    )
    counted, missed = FakeAgent(again, "a"), FakeAgent(again, "c")
    assert counted.receipt(counted.update([2, 0, 0], plan=plan)).accepted
    receipt = missed.receipt(missed.update([6, 0, 0], plan=plan))
    assert (receipt.accepted, receipt.reason) == (False, "late")
    store.close()
    del a, b, c


def test_a_stale_update_that_comes_during_the_evaluation_counts_in_the_next_round() -> None:
    stage, a, b, c = three(max_staleness=1, evaluation=EvaluationConfig(every=1))
    plan = stage.plan
    for agent in (a, b, c):
        agent.test_rows = 2
        agent.status("online")
    a.update([2, 0, 0])
    b.update([4, 0, 0])
    stage.later(60.0)
    assert stage.plan.phase_name == "evaluate"
    assert not only(c.update([6, 0, 0], plan=plan), Publish), "neither accepted nor refused"
    for agent in (a, b, c):
        agent.evaluation(1.0, 1.0)
    assert (stage.plan.phase_name, stage.plan.round_id) == ("train", 2)
    assert c.receipt(c.update([6, 0, 0], plan=plan)).accepted


def test_junk_for_an_earlier_round_is_no_answer_to_the_open_one() -> None:
    stage, a, b, c, _ = slow_third(1)
    c.say(UpdateTopic("c", 1, 0), b"junk")
    a.update([3, 0, 0])
    b.update([3, 0, 0])
    assert stage.plan.round_id == 2, "c is still waited for"
    c.update([3, 0, 0])
    record = stage.record
    assert (record.reported, record.refusals) == (3, {"malformed": 1})


def test_a_refused_stale_update_is_no_answer_to_the_open_round() -> None:
    stage, a, b, c, plan = slow_third(1)
    receipt = c.receipt(c.update([6, 0, 0], plan=plan, fingerprint="0" * 16))
    assert (receipt.accepted, receipt.reason) == (False, "fingerprint")
    for agent in (a, b, c):
        agent.update([3, 0, 0])
    assert stage.record.reported == 3


def padded(frame: bytes) -> bytes:
    """The same update with blanks behind its JSON header: several chunks long."""
    header = int.from_bytes(frame[4:8], "big")
    blanks = 3000
    size = (header + blanks).to_bytes(4, "big")
    return frame[:4] + size + frame[8 : 8 + header] + b" " * blanks + frame[8 + header :]


def test_missing_chunks_of_a_stale_update_are_asked_for_by_its_own_round() -> None:
    stage, _, _, c, plan = slow_third(1)
    _, chunks = blobs.split(padded(c.frame([6, 0, 0], plan=plan)), 1100)
    c.say(UpdateTopic("c", 1, 0), chunks[0])
    c.say(UpdateTopic("c", 2, 0), blobs.split(padded(c.frame([3, 0, 0])), 1100)[1][0])
    inbox = stage.topics.name(InboxTopic("c"))
    asked = [
        messages.decode_inbox(action.payload)
        for action in only(stage.later(30.0), Publish)
        if action.topic == inbox
    ]
    assert [(type(each), each.round_id) for each in asked] == [(Resend, 1), (Resend, 2)]
    for n, payload in enumerate(chunks):
        actions = c.say(UpdateTopic("c", 1, n), payload)
    assert c.receipt(actions).accepted


def test_a_header_of_another_round_than_its_topic_is_refused() -> None:
    _, _, _, c, plan = slow_third(1)
    frame = c.frame([6, 0, 0], plan=plan)
    receipt = c.receipt(c.send(frame, 2))
    assert (receipt.accepted, receipt.reason) == (False, "round")


def test_a_stale_update_takes_no_place_from_the_round_s_own() -> None:
    three_updates = {"name": "median", "max_bytes": 3 * 4 * 3}
    stage, a, b, c = three(max_staleness=1, aggregator=three_updates)
    plan = stage.plan
    a.update([2, 0, 0])
    b.update([4, 0, 0])
    stage.later(60.0)
    receipt = c.receipt(c.update([6, 0, 0], plan=plan))
    assert (receipt.accepted, receipt.reason) == (False, "full")
    for agent in (a, b, c):
        agent.update([3, 0, 0])
    assert (stage.record.reported, stage.record.stale) == (3, 0)
