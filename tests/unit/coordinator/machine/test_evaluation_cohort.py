"""Who is asked in a whole coordinator: to learn and to measure, by list and by rule."""

from __future__ import annotations

from broker.protocol.topics import RoundTopic
from broker.service.events import Connected, Publish
from coordinator.config import CohortConfig, EvaluationConfig, RoundConfig, StartConfig
from coordinator.machine.events import RoundEnded
from tests.unit.coordinator.machine.coordinator_stage import FakeAgent, Stage, config, only


def test_a_large_fleet_is_asked_to_measure_by_rule_too() -> None:
    """Found by the benchmark of simulations: every plan listed the ids of all agents."""
    stage = Stage(
        config(
            start=StartConfig(agents=2),
            cohort=CohortConfig(announce="rule"),
            evaluation=EvaluationConfig(every=1),
        )
    )
    a, b = FakeAgent(stage, "a", test_rows=1), FakeAgent(stage, "b", test_rows=3)
    assert stage.plan.cohort.ids is None
    a.update([2, 0, 0])
    b.update([4, 0, 0])
    plan = stage.plan
    assert (plan.phase, plan.cohort.ids) == ("evaluate", None)
    assert plan.cohort.includes("a")
    assert plan.cohort.includes("b")
    a.evaluation(loss_sum=8.0, mae_sum=4.0)
    b.evaluation(loss_sum=4.0, mae_sum=2.0)
    assert stage.record.loss == 3.0


def test_a_rule_that_draws_too_few_for_a_commit_is_drawn_anew() -> None:
    settings = config(
        rounds=12,
        start=StartConfig(agents=6),
        cohort=CohortConfig(fraction=0.5, at_least=3, announce="rule"),
        round=RoundConfig(minimum=3, deadline_s=60.0),
    )
    stage = Stage(settings)
    agents = [FakeAgent(stage, name) for name in "abcdef"]
    for _ in range(200):
        stage.later(1.0)
        if stage.coordinator.finished:
            break
        asked = [agent for agent in agents if stage.plan.cohort.includes(agent.name)]
        assert len(asked) >= 3
        for agent in asked:
            agent.update([0, 0, 0])
    assert stage.coordinator.finished
    assert {ended.record.status for ended in only(stage.actions, RoundEnded)} == {"committed"}
    assert stage.record.round_id > 12, "some draws were passed over"


def test_a_plan_stays_within_the_largest_message_of_the_broker() -> None:
    stage = Stage(config(start=StartConfig(agents=200)))
    stage.feed(Connected(4096))
    for number in range(200):
        FakeAgent(stage, f"a-device-with-a-name-of-some-length-{number:03d}")
    stage.later(1.0)
    assert stage.plan.cohort.ids is None
    name = stage.topics.name(RoundTopic())
    assert all(len(a.payload) <= 4096 for a in only(stage.actions, Publish) if a.topic == name)
