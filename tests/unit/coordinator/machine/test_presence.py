"""Presence: who is certainly there, who is asked less and less, and how long a round waits."""

from __future__ import annotations

import logging

import pytest

from broker.protocol import messages
from broker.protocol.messages import AgentStatus
from broker.protocol.topics import AgentStatusTopic, UpdateTopic
from coordinator.config import CohortConfig, EvaluationConfig, RoundConfig, StartConfig
from coordinator.machine.events import Waiting
from tests.unit.coordinator.machine.coordinator_stage import FakeAgent, Stage, config, only, three

ROUND = RoundConfig(deadline_s=8.0, minimum=2)


def asked(stage: Stage) -> tuple[str, ...]:
    ids = stage.plan.cohort.ids
    assert ids is not None
    return ids


def answer(stage: Stage, *agents: FakeAgent) -> None:
    for agent in agents:
        if agent.name in asked(stage):
            agent.update([1, 0, 0])


# -- who is there -------------------------------------------------------------------------------


def test_births_from_before_the_coordinator_started_begin_no_round() -> None:
    stage = Stage(config(start=StartConfig(agents=2, timeout_s=60.0)), start="c2")
    stage.start = "c1"
    ghosts = [FakeAgent(stage, name) for name in "ab"]
    stage.later(120.0)
    (waiting, *_) = only(stage.actions, Waiting)[-1:]
    assert (waiting.able, waiting.lacking) == (0, "2 do not answer yet")
    stage.start = "c2"
    ghosts[0].status("online")
    assert asked(stage) == ("a",)


def test_start_is_waited_for_again_after_a_restart_without_a_version() -> None:
    first = Stage(config(start=StartConfig(agents=2), round=RoundConfig(deadline_s=5.0, minimum=2)))
    for name in "ab":
        FakeAgent(first, name)
    first.later(5.0)
    assert first.record.status == "abandoned"
    later = Stage(
        config(start=StartConfig(agents=2)), start="c2", progress=first.coordinator.progress
    )
    FakeAgent(later, "a")
    later.later(5.0)
    assert "fedge/v1/f/round" not in later.retained
    FakeAgent(later, "b")
    later.later(1.0)
    assert asked(later) == ("a", "b")


# -- silence ------------------------------------------------------------------------------------


def test_an_agent_that_never_answers_costs_a_deadline_once_and_is_asked_less_and_less() -> None:
    stage, a, b, _ = three(round=ROUND)
    rounds_with_c, waited_s = [], 0.0
    for _ in range(40):
        now = stage.plan.round_id
        if "c" in asked(stage):
            rounds_with_c.append(now)
        answer(stage, a, b)
        while stage.plan.round_id == now:
            stage.later(0.5)
            waited_s += 0.5
    assert rounds_with_c == [1, 3, 7, 15, 31]
    assert waited_s == 8.0 + 4 * 1.0
    standing = stage.coordinator.progress.standings["c"]
    assert (standing.silences["train"].rounds, standing.silences["train"].until_round) == (5, 63)


def test_an_answer_makes_up_for_silence() -> None:
    stage, a, b, c = three(round=ROUND)
    answer(stage, a, b)
    stage.later(8.0)
    answer(stage, a, b)
    assert stage.plan.round_id == 3
    answer(stage, a, b, c)
    assert asked(stage) == ("a", "b", "c")
    assert stage.coordinator.progress.standings["c"].silences == {}


def test_the_silent_are_asked_when_no_round_could_be_without_them() -> None:
    stage, a, b, _ = three(round=ROUND, cohort=CohortConfig(at_least=3))
    answer(stage, a, b)
    stage.later(8.0)
    assert asked(stage) == ("a", "b", "c")


def test_when_most_do_not_answer_nobody_is_blamed() -> None:
    stage, *_ = three(round=ROUND)
    stage.later(8.0)
    stage.later(2.0)
    assert asked(stage) == ("a", "b", "c")


def test_silence_in_one_phase_says_nothing_about_another() -> None:
    stage = Stage(
        config(
            start=StartConfig(agents=3),
            evaluation=EvaluationConfig(every=1, deadline_s=4.0),
        )
    )
    a, b, c = (FakeAgent(stage, name, test_rows=5) for name in "abc")
    answer(stage, a, b, c)
    a.evaluation(5.0, 5.0)
    b.evaluation(5.0, 5.0)
    stage.later(4.0)
    assert asked(stage) == ("a", "b", "c")
    answer(stage, a, b, c)
    assert (stage.plan.phase_name, asked(stage)) == ("evaluate", ("a", "b"))


def test_what_is_silent_is_remembered_over_a_restart() -> None:
    stage, a, b, _ = three(round=ROUND)
    answer(stage, a, b)
    stage.later(8.0)
    later = Stage(config(round=ROUND), start="c2", progress=stage.coordinator.progress)
    for name in "abc":
        FakeAgent(later, name)
    later.later(2.0)
    assert (later.plan.round_id, asked(later)) == (2, ("a", "b"))


def test_a_round_below_its_minimum_that_everybody_left_ends_by_its_grace_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage, a, b, c = three(round=RoundConfig(deadline_s=6000.0, minimum=2, grace_s=30.0))
    a.update([1, 0, 0])
    b.status("offline")
    with caplog.at_level(logging.WARNING):
        c.status("offline")
    assert "all agents that have not answered are offline, and 1 of at least 2" in caplog.text
    stage.later(29.0)
    assert stage.coordinator.wait_s(stage.now_s) == 1.0
    stage.later(1.0)
    assert (stage.record.status, stage.record.closed) == ("abandoned", "grace")


def test_an_agent_that_returns_within_the_grace_is_waited_for() -> None:
    stage, a, b, c = three(round=RoundConfig(deadline_s=6000.0, minimum=2, grace_s=30.0))
    a.update([1, 0, 0])
    for agent in (b, c):
        agent.status("offline")
    stage.later(29.0)
    b.status("online")
    stage.later(100.0)
    b.update([1, 0, 0])
    assert stage.record.status == "committed"


# -- heartbeats and cleared statuses ------------------------------------------------------------


def test_an_agent_without_heartbeats_is_offline_after_an_hour_of_silence_and_back_when_heard() -> (
    None
):
    stage, a, b, c = three(round=RoundConfig(deadline_s=1e6, minimum=1))
    answer(stage, a, b)
    for _ in range(400):
        stage.later(10.0)
    assert stage.record.closed == "everyone"
    entry = stage.coordinator.roster.get("c")
    assert entry is not None
    assert not entry.online
    c.report("declined", reason="stopping")
    assert entry.online


def test_an_agent_without_heartbeats_that_nobody_asks_stays() -> None:
    stage = Stage(config(start=StartConfig(agents=2, timeout_s=1e6)))
    FakeAgent(stage, "a")
    for _ in range(1000):
        stage.later(10.0)
    entry = stage.coordinator.roster.get("a")
    assert entry is not None
    assert entry.online


def test_a_cleared_status_takes_an_agent_out_of_the_round_too() -> None:
    stage, a, b, c = three(round=RoundConfig(deadline_s=6000.0, minimum=1))
    answer(stage, a, b)
    c.say(AgentStatusTopic("c"), b"")
    assert stage.record.closed == "everyone"
    assert asked(stage) == ("a", "b")


# -- quarantine ---------------------------------------------------------------------------------


def test_an_agent_whose_answers_are_refused_again_and_again_is_left_out_for_a_while() -> None:
    stage, a, b, c = three()
    left_out = []
    for _ in range(40):
        if "c" in asked(stage):
            assert not c.receipt(c.update([1e30, 0, 0])).accepted
        else:
            left_out.append(stage.plan.round_id)
        answer(stage, a, b)
    assert left_out == [*range(4, 14), *range(15, 35), *range(36, 41)]
    standing = stage.coordinator.progress.standings["c"]
    assert standing.refusals == {"norm": 5}
    assert standing.quarantine_reason == "refused repeatedly, last for norm"


def test_good_answers_make_up_for_faults() -> None:
    stage, a, b, c = three()
    for number in range(40):
        good = number % 8
        c.update([1 if good else 1e30, 0, 0])
        answer(stage, a, b)
    assert asked(stage) == ("a", "b", "c")


def test_junk_in_an_agents_name_counts_and_is_no_fault_of_the_agent() -> None:
    stage, a, b, c = three()
    for _ in range(6):
        c.say(UpdateTopic("c", stage.plan.round_id, 0), b"junk")
        answer(stage, c, a, b)
    standing = stage.coordinator.progress.standings["c"]
    assert (standing.refusals, standing.faults, standing.quarantines) == ({"malformed": 6}, 0.0, 0)
    assert asked(stage) == ("a", "b", "c")


def test_what_is_late_or_not_asked_for_is_no_fault() -> None:
    stage = Stage(config(start=StartConfig(agents=3), cohort=CohortConfig(fraction=0.6)))
    a, b, c = (FakeAgent(stage, name) for name in "abc")
    for _ in range(6):
        plan = stage.plan
        for agent in (a, b, c):
            agent.update([1, 0, 0], plan=plan)
        for agent in (a, b, c):
            agent.update([1, 0, 0], plan=plan, attempt=2)
    assert all(s.quarantines == 0 for s in stage.coordinator.progress.standings.values())


def test_a_quarantined_agents_update_of_an_earlier_round_does_not_count() -> None:
    stage, a, b, c = three(max_staleness=1, round=RoundConfig(deadline_s=8.0, minimum=1))
    plan = stage.plan
    answer(stage, a, b)
    stage.later(8.0)
    progress = stage.coordinator.progress
    progress.standings["c"] = progress.standings["c"].quarantined("broken sensor", by_operator=True)
    receipt = c.receipt(c.update([1, 0, 0], plan=plan))
    assert (receipt.accepted, receipt.reason) == (False, "quarantined")


def test_waiting_names_those_in_quarantine() -> None:
    stage, a, b, _ = three(cohort=CohortConfig(at_least=3))
    progress = stage.coordinator.progress
    answer(stage, a, b)
    stage.coordinator.roster.standings.set(
        "c", stage.coordinator.roster.standings.get("c").quarantined("me", by_operator=True)
    )
    stage.later(60.0)
    assert progress.version == 1
    assert only(stage.actions, Waiting)[-1].lacking == "1 in quarantine"


# -- large fleets -------------------------------------------------------------------------------


def test_a_rule_names_agents_that_are_left_out_so_that_they_do_not_train_in_vain() -> None:
    stage = Stage(
        config(start=StartConfig(agents=3), cohort=CohortConfig(announce="rule"), round=ROUND)
    )
    a, b, _ = (FakeAgent(stage, name) for name in "abc")
    a.update([1, 0, 0])
    b.update([1, 0, 0])
    stage.later(8.0)
    cohort = stage.plan.cohort
    assert (cohort.ids, cohort.without) == (None, ("c",))
    assert not cohort.includes("c")
    status = AgentStatus(state="online", agent_instance="b1")
    assert messages.decode(messages.encode(status), AgentStatus) == status


# -- holding up ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["offline", "declined", "cleared", "paused"])
def test_an_agent_that_leaves_just_before_the_deadline_is_asked_less_and_less(way: str) -> None:
    stage, a, b, c = three(round=RoundConfig(deadline_s=600.0, minimum=2))
    long_rounds = 0
    for _ in range(12):
        c.paused = ""
        c.status("online")
        now = stage.plan.round_id
        answer(stage, a, b)
        if stage.plan.round_id != now:
            continue
        for _ in range(59):
            if stage.plan.round_id == now:
                stage.later(10.0)
        if stage.plan.round_id == now:
            long_rounds += 1
            if way == "declined":
                c.report("declined", reason="stopping")
            elif way == "cleared":
                c.say(AgentStatusTopic("c"), b"")
            elif way == "paused":
                c.rest("too_hot: 90 °C")
            else:
                c.status("offline")
    assert long_rounds == 1


def test_a_slow_agent_that_a_round_did_not_wait_for_is_waited_for_the_next_time() -> None:
    stage, a, b, c = three(round=RoundConfig(deadline_s=600.0, minimum=2))
    answer(stage, a, b)
    for _ in range(60):
        stage.later(10.0)  # it was away this once
    answer(stage, a, b)
    plan = stage.plan
    assert (plan.round_id, asked(stage)) == (3, ("a", "b", "c"))
    answer(stage, a, b)
    for _ in range(10):
        stage.later(1.0)
    assert stage.record.closed == "grace"
    c.update([1, 0, 0], plan=plan)  # a minute's work
    answer(stage, a, b)
    assert "c" in asked(stage)
    answer(stage, a, b)
    for _ in range(6):
        stage.later(10.0)
    assert c.receipt(c.update([1, 0, 0])).accepted
    assert stage.coordinator.progress.standings["c"].silences == {}


def test_clearing_ones_status_in_a_round_hides_no_rows() -> None:
    _, _, _, c = three()
    c.say(AgentStatusTopic("c"), b"")
    receipt = c.receipt(c.update([1, 0, 0], num_examples=10**9, weight_sum=10.0))
    assert (receipt.accepted, receipt.reason) == (False, "examples")
