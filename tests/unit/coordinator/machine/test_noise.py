"""One sender's flood must cost the others little, and no honest sender anything."""

from __future__ import annotations

import logging
from itertools import pairwise

import pytest

from broker.protocol.topics import AgentStatusTopic, ReportTopic, RoundTopic, UpdateTopic
from broker.service.events import MessageArrived, Publish, Subscribe
from coordinator.config import StartConfig
from coordinator.machine import noise
from coordinator.machine.events import Waiting
from coordinator.machine.noise import SenderBudgets
from fedge.limits import RepeatFilter
from tests.unit.coordinator.machine.coordinator_stage import FakeAgent, Stage, config, only, three

JUNK = b'{"state": "onl' + b"x" * 60
MB = 1 << 20


def flood(stage: Stage, topic: object, count: int) -> None:
    name = stage.topics.name(topic)  # type: ignore[arg-type]
    for _ in range(count):
        stage.feed(MessageArrived(name, JUNK))


# -- budgets ------------------------------------------------------------------------------------


def test_a_sender_spends_its_budget_and_earns_it_back() -> None:
    budgets = SenderBudgets(0)
    passed = sum(budgets.admits("a", 0, 0.0, is_known=True) for _ in range(5000))
    assert passed == 1000
    assert budgets.dropped == 4000
    assert budgets.admits("b", 0, 0.0, is_known=True)
    later = sum(budgets.admits("a", 0, 10.0, is_known=True) for _ in range(5000))
    assert later == 200  # 20 a second


def test_what_cannot_be_read_costs_ten_times_as_much() -> None:
    budgets = SenderBudgets(0)
    passed = 0
    while budgets.admits("a", 0, 0.0, is_known=True):
        budgets.unreadable("a", is_known=True)
        passed += 1
    assert passed == 91


def test_bytes_cost_as_well() -> None:
    budgets = SenderBudgets(0)
    passed = sum(budgets.admits("a", 128 << 10, 0.0, is_known=True) for _ in range(5000))
    assert passed == 112  # 9 units each


@pytest.mark.parametrize("chunk_bytes", [4 << 10, 120 << 10])
def test_updates_that_count_are_never_held_up_however_quick_the_rounds(chunk_bytes: int) -> None:
    size = 10 * MB
    budgets = SenderBudgets(size)
    for round_id in range(50):  # all in the same second
        for start in range(0, size, chunk_bytes):
            part = min(chunk_bytes, size - start)
            assert budgets.admits("a", part, 1.0, is_known=True, awaited=round_id)
        budgets.settle(["a"])
    assert budgets.dropped == 0


def test_a_whole_fleet_may_be_switched_on_at_once() -> None:
    budgets = SenderBudgets(MB)
    assert all(budgets.admits(f"pi-{n}", 400, 0.0, is_known=False) for n in range(10_000))


def test_unknown_senders_share_one_budget() -> None:
    budgets = SenderBudgets(0)
    assert sum(budgets.admits(f"x{n}", 0, 0.0, is_known=False) for n in range(50_000)) == 20_000
    assert not budgets.admits("new", 0, 0.0, is_known=False)
    assert budgets.admits("a", 0, 0.0, is_known=True)
    assert budgets.admits("new", 0, 1.0, is_known=False)


def test_memory_is_bounded_and_an_account_that_owes_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(noise, "_MAX_ACCOUNTS", 10_000)
    budgets = SenderBudgets(0)
    while budgets.admits("noisy", 0, 5.0, is_known=True):
        pass  # owes 50 s
    for number in range(30_000):
        budgets.admits(f"pi-{number}", 0, 5.0 + number * 1e-5, is_known=True)
    assert len(budgets._accounts) <= 10_000
    assert "noisy" in budgets._accounts


def test_an_awaited_answer_has_a_reserve_for_each_phase() -> None:
    budgets = SenderBudgets(0)
    while budgets.admits("a", 0, 0.0, is_known=True):
        pass
    assert budgets.admits("a", 0, 0.0, is_known=True, awaited=(1, "train"))
    taken = 1
    while budgets.admits("a", 0, 0.0, is_known=True, awaited=(1, "train")):
        taken += 1
    assert taken == 40
    assert budgets.admits("a", 0, 0.0, is_known=True, awaited=(1, "evaluate"))


def test_a_flood_is_recovered_from_once_when_it_is_over_and_seldom_while_it_lasts() -> None:
    budgets = SenderBudgets(0)
    assert budgets.recovery_s() is None
    recovered = []
    for step in range(3000):  # 300 s of 50 messages at a time, thrice what is earned
        now_s = step / 10
        for _ in range(6):
            budgets.admits("a", 0, now_s, is_known=True)
        if budgets.recovers(now_s):
            recovered.append(round(now_s))
    gaps = [late - early for early, late in pairwise(recovered)]
    assert gaps[:5] == [4, 8, 16, 32, 60]
    assert budgets.recovers(400.0)
    # Another flood, long after: a second of calm is enough.
    while budgets.admits("a", 0, 1000.0, is_known=True):
        pass
    assert budgets.recovery_s() == 1001.0
    assert not budgets.recovers(1000.5)
    assert budgets.recovers(1001.0)
    assert not budgets.recovers(1002.0)


# -- the coordinator ----------------------------------------------------------------------------


def test_junk_of_one_agent_is_dropped_before_it_is_read(caplog: pytest.LogCaptureFixture) -> None:
    stage, a, b, c = three()
    caplog.set_level(logging.WARNING)
    flood(stage, AgentStatusTopic("c"), 10_000)
    assert stage.coordinator.unreadable < 200
    over = [r for r in caplog.records if getattr(r, "event", "") == "over_budget"]
    assert len(over) == 14  # the 1st, 2nd, 4th ... 8192nd
    a.update([2, 0, 0])
    b.update([4, 0, 0])
    c.update([6, 0, 0])  # its answer is awaited: the reserve lets it pass
    assert (stage.record.status, stage.record.reported) == ("committed", 3)


def test_junk_under_many_ids_leaves_the_known_agents_alone() -> None:
    stage, *agents = three()
    for number in range(5_000):
        flood(stage, ReportTopic(f"x{number}", 1), 1)
    assert stage.coordinator.unreadable < 2_000
    for agent in agents:
        agent.update([2, 0, 0])
    assert stage.record.reported == 3


def test_junk_in_place_of_an_update_is_bounded_too() -> None:
    stage, a, b, _ = three()
    flood(stage, UpdateTopic("c", stage.plan.round_id, 0), 5_000)
    a.update([2, 0, 0])
    b.update([4, 0, 0])
    assert stage.record.reported == 2
    assert stage.record.refusals["malformed"] <= 1_100


def test_what_a_flood_swept_away_is_asked_for_again_when_it_is_over() -> None:
    stage, *_ = three()
    flood(stage, AgentStatusTopic("c"), 1_000)
    assert stage.coordinator.wait_s(stage.now_s) <= 1.0
    actions = stage.later(1.0)
    assert stage.topics.from_agents[0] in [s.topic_filter for s in only(actions, Subscribe)]
    again = [p.topic for p in only(actions, Publish)]
    assert again == [stage.topics.name(RoundTopic())]
    assert not only(stage.later(1.0), Publish)


def test_bytes_of_dropped_messages_are_counted() -> None:
    stage, *agents = three()
    flood(stage, AgentStatusTopic("c"), 1_000)
    for agent in agents:
        agent.update([2, 0, 0])
    assert stage.record.bytes_up == stage.fed_bytes


# -- lines --------------------------------------------------------------------------------------


def test_an_agent_that_comes_and_goes_for_ever_does_not_fill_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage = Stage(config(start=StartConfig(agents=3)))
    FakeAgent(stage, "a")
    flapping = FakeAgent(stage, "b")
    with caplog.filtering(RepeatFilter()), caplog.at_level(logging.INFO):
        for _ in range(500):
            stage.now_s += 0.1
            flapping.say(AgentStatusTopic("b"), b"")
            flapping.status("online")
    cleared = [text for text in caplog.messages if "status was cleared" in text]
    assert len(cleared) == 9  # the 1st, 2nd, 4th ... 256th
    assert len(caplog.messages) == len(cleared)
    assert len(only(stage.actions, Waiting)) <= 20
