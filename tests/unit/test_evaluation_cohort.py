"""Who is asked to measure a new θ."""

from __future__ import annotations

from coordinator.config import CohortConfig, EvaluationConfig, StartConfig
from tests.unit.test_coordinator import FakeAgent, Stage, config


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
    assert (plan.task, plan.cohort.ids) == ("evaluate", None)
    assert plan.cohort.includes("a")
    assert plan.cohort.includes("b")
    a.evaluation(loss_sum=8.0, mae_sum=4.0)
    b.evaluation(loss_sum=4.0, mae_sum=2.0)
    assert stage.record.loss == 3.0
