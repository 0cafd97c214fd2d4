"""One device that lies, at the default settings: what it can do to the others is bounded."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from coordinator.config import EvaluationConfig, StartConfig, StopConfig
from coordinator.machine.events import Commit, Finished
from tests.unit.coordinator.machine.coordinator_stage import FakeAgent, Stage, config, only


def four(**changes: object) -> tuple[Stage, list[FakeAgent]]:
    stage = Stage(config(start=StartConfig(agents=4), **changes))
    return stage, [FakeAgent(stage, name, test_rows=5) for name in "abcd"]


def honest(agents: list[FakeAgent], delta: float = 1.0) -> None:
    for agent in agents:
        agent.update([delta, 0, 0])


@pytest.mark.parametrize("value", [1e30, 3e38, -3e38])
def test_an_absurd_update_never_counts_not_even_in_the_first_round(value: float) -> None:
    stage, (a, *others) = four()
    receipt = a.receipt(a.update([value, 0, 0]))
    assert (receipt.accepted, receipt.reason) == (False, "norm")
    honest(others)
    assert stage.record.status == "committed"
    assert stage.coordinator.progress.theta.tolist() == [1.0, 0.0, 0.0]


def test_a_first_round_with_an_update_far_beyond_the_others_is_repeated_without_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage, (a, *others) = four()
    honest(others)
    with caplog.at_level(logging.ERROR):
        assert a.receipt(a.update([100, 0, 0])).accepted
    assert only(stage.actions, Commit) == []
    assert stage.record.held_back == "a: L2 norm of delta 100, 100 times the median"
    assert "round 1 is held back and repeated" in caplog.text
    assert (stage.plan.round_id, stage.plan.version) == (2, 0)  # at once
    receipt = a.receipt(a.update([100, 0, 0]))
    assert (receipt.accepted, receipt.reason) == (False, "norm")
    honest(others)
    assert stage.coordinator.progress.theta.tolist() == [1.0, 0.0, 0.0]
    assert stage.record.refusals == {"norm": 1}


def test_a_long_update_is_shortened_to_twice_the_usual_and_the_record_says_so() -> None:
    stage, (a, *others) = four()
    honest([a, *others])
    a.update([7, 0, 0])
    honest(others)
    assert stage.coordinator.progress.theta.tolist() == pytest.approx([2.25, 0.0, 0.0])
    assert stage.record.clipped == {"a": pytest.approx(2 / 7)}


def test_the_bound_is_known_again_after_a_restart() -> None:
    stage, agents = four()
    honest(agents)
    later = Stage(
        config(start=StartConfig(agents=4)), start="c2", progress=stage.coordinator.progress
    )
    (a, *_) = [FakeAgent(later, name) for name in "abcd"]
    later.later(2.0)
    assert a.receipt(a.update([50, 0, 0])).reason == "norm"


def test_a_fleet_whose_updates_all_grow_is_followed_after_one_round() -> None:
    stage, agents = four()
    honest(agents)
    honest(agents, 50.0)
    assert (stage.record.status, stage.record.refusals) == ("abandoned", {"norm": 4})
    stage.later(2.0)
    honest(agents, 50.0)
    assert stage.coordinator.progress.theta[0] == pytest.approx(51.0)


@pytest.mark.parametrize("rows", [11, 10**9])
def test_more_rows_than_an_agents_status_names_are_refused(rows: int) -> None:
    _, (a, *_) = four()
    receipt = a.receipt(a.update([5, 5, 5], num_examples=rows, weight_sum=10.0))
    assert (receipt.accepted, receipt.reason) == (False, "examples")
    assert receipt.detail == f"{rows} examples, its status says 10"


def test_a_status_that_claims_a_billion_rows_has_half_of_four_at_most() -> None:
    stage = Stage(config(start=StartConfig(agents=4)))
    liar = FakeAgent(stage, "a", rows=10**9)
    others = [FakeAgent(stage, name) for name in "bcd"]
    liar.update([2, 0, 0])
    honest(others)
    assert stage.coordinator.progress.theta.tolist() == pytest.approx([1.5, 0.0, 0.0])


def test_an_update_of_an_agent_that_has_just_restarted_counts() -> None:
    _, (a, *_) = four()
    frame = a.frame([1, 0, 0])
    a.rows = 0  # until its model is loaded again
    a.status("online", "b2")
    assert a.receipt(a.send(frame, 1)).accepted


def measuring(**changes: object) -> tuple[Stage, list[FakeAgent]]:
    stage, agents = four(evaluation=EvaluationConfig(every=1), **changes)
    honest(agents)
    assert stage.plan.phase_name == "evaluate"
    return stage, agents


@pytest.mark.parametrize(
    "lie",
    [
        {"loss_sum": -1e100, "mae_sum": 1.0, "weight": 5.0},
        {"loss_sum": 1.0, "mae_sum": -1.0, "weight": 5.0},
        {"loss_sum": 0.0, "mae_sum": 0.0, "weight": 1e9},
    ],
)
def test_one_lie_about_a_measurement_ends_no_federation(lie: dict[str, float]) -> None:
    stage, (a, *others) = measuring(stop=StopConfig(metric="loss", target=0.2))
    a.evaluation(**lie)
    for other in others:
        other.evaluation(5.0, 5.0)
    assert stage.record.refusals == {"implausible": 1}
    assert stage.record.loss == 1.0
    assert only(stage.actions, Finished) == []


def test_an_agent_that_claims_many_rows_does_not_decide_when_a_federation_stops() -> None:
    stage = Stage(
        config(
            start=StartConfig(agents=5),
            evaluation=EvaluationConfig(every=1),
            stop=StopConfig(metric="loss", target=0.5),
        )
    )
    liar = FakeAgent(stage, "a", test_rows=10**9)
    others = [FakeAgent(stage, name, test_rows=5) for name in "bcde"]
    honest([liar, *others])
    liar.evaluation(0.0, 0.0)
    for other in others:
        other.evaluation(5.0, 5.0)
    assert stage.record.loss == pytest.approx(2 / 3)
    assert only(stage.actions, Finished) == []


def test_an_absurd_loss_is_left_out_by_name_and_patience_goes_on() -> None:
    stage, (a, *others) = measuring(stop=StopConfig(metric="loss", patience=1))
    a.evaluation(5e50, 5.0)
    for other in others:
        other.evaluation(5.0, 5.0)
    assert stage.record.loss == 1.0
    assert stage.record.left_out == {"a": "loss 1e+50, more than 100 times the usual 1"}


def test_weighted_rows_may_weigh_more_than_their_number() -> None:
    stage, agents = four()
    for agent in agents:
        agent.train_weight = 250.0
        agent.status("online")
    receipt = agents[0].receipt(agents[0].update([1, 0, 0], weight_sum=250.0, loss_sum=1.0))
    assert receipt.accepted
    assert np.isfinite(stage.coordinator.progress.theta).all()
