"""How good new weights are, as devices and the coordinator measure it."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from broker.service.events import Connected
from coordinator.config import EvaluationConfig, StartConfig, StopConfig
from coordinator.machine.events import Commit, RoundEnded
from learning.vector.metrics import Sums
from learning.vector.parameters import F32
from tests.unit.coordinator.machine.coordinator_stage import FakeAgent, Stage, config, only


def test_who_does_not_measure_is_shown_with_the_reason() -> None:
    stage = Stage(config(start=StartConfig(agents=2), evaluation=EvaluationConfig(every=1)))
    a, b = FakeAgent(stage, "a", test_rows=1), FakeAgent(stage, "b", test_rows=3)
    for agent in (a, b):
        agent.update([1, 0, 0])
    a.evaluation(1.0, 1.0)
    b.report("declined", reason="evaluation", detail="index out of bounds")
    assert (stage.record.status, stage.record.declined) == ("committed", {"b": "evaluation"})
    assert stage.record.details == {"evaluation": "b: index out of bounds"}


def test_the_loss_of_a_round_is_the_mean_over_all_held_out_rows_with_the_new_weights() -> None:
    stage = Stage(config(start=StartConfig(agents=2), evaluation=EvaluationConfig(every=1)))
    a, b = FakeAgent(stage, "a", test_rows=1), FakeAgent(stage, "b", test_rows=3)
    a.update([2, 0, 0], loss=9.0)
    b.update([4, 0, 0], loss=9.0)
    plan = stage.plan
    assert (plan.phase, plan.round_id, plan.version) == ("evaluate", 1, 1)
    assert stage.weights().tolist() == [3.0, 0.0, 0.0]
    a.evaluation(loss_sum=8.0, mae_sum=4.0)
    assert only(stage.actions, RoundEnded) == []
    b.evaluation(loss_sum=4.0, mae_sum=2.0)
    record = stage.record
    assert record.loss == pytest.approx(12 / 4)
    assert record.metrics == {"mae": pytest.approx(6 / 4)}
    assert record.train_loss == pytest.approx(9.0)
    assert record.agents["a"].loss == pytest.approx(8.0)
    assert record.agents["b"].loss == pytest.approx(4 / 3)
    assert record.agents["b"].num_examples == 10  # that it learned from
    assert stage.plan.phase == "train"


def test_agents_that_never_learn_are_told_apart() -> None:
    stage = Stage(config(start=StartConfig(agents=1), evaluation=EvaluationConfig(every=1)))
    new = FakeAgent(stage, "new", test_rows=2, phases=["evaluate"])
    a = FakeAgent(stage, "a", test_rows=4)
    learn = stage.plan
    a.update([1, 0, 0])
    measure = stage.plan
    assert (learn.cohort.ids, measure.cohort.ids) == (("a",), ("a", "new"))
    a.evaluation(loss_sum=4.0, mae_sum=8.0)
    new.evaluation(loss_sum=10.0, mae_sum=6.0)
    record = stage.record
    assert record.loss == 1.0
    assert record.metrics == {"mae": 2.0, "unseen_loss": 5.0, "unseen_mae": 3.0}
    assert (record.agents["new"].task, record.agents["new"].num_examples) == ("evaluate", 2)
    assert record.asked == 1


def test_evaluation_ends_at_its_own_deadline_with_the_answers_at_hand() -> None:
    stage = Stage(
        config(start=StartConfig(agents=2), evaluation=EvaluationConfig(every=1, deadline_s=5.0))
    )
    a, b = (FakeAgent(stage, n, test_rows=2) for n in "ab")
    a.update([1, 0, 0])
    b.update([1, 0, 0])
    a.evaluation(loss_sum=3.0, mae_sum=1.0)
    stage.later(5.0)
    assert stage.record.loss == 1.5
    assert stage.plan.round_id == 2


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("metrics", {"metric_sums": {}}),
        ("metrics", {"metric_sums": {"mae": 1.0, "x": 1.0}}),
        ("examples", {"weight_sum": 1e10}),
        ("examples", {"weight_sum": 1e-300}),
    ],
)
def test_an_evaluation_that_cannot_be_used_is_refused_and_not_waited_for(
    reason: str, changes: Any, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(config(start=StartConfig(agents=2), evaluation=EvaluationConfig(every=1)))
    a, b = (FakeAgent(stage, n, test_rows=2) for n in "ab")
    a.update([1, 0, 0])
    b.update([1, 0, 0])
    a.evaluation(loss_sum=3.0, mae_sum=1.0)
    b.evaluation(loss_sum=9e99, mae_sum=1.0, **changes)
    assert stage.record.loss == 1.5
    assert f"update from b refused ({reason})" in caplog.text


def test_evaluations_of_another_session_version_or_round_do_not_count() -> None:
    stage = Stage(config(start=StartConfig(agents=1), evaluation=EvaluationConfig(every=1)))
    a = FakeAgent(stage, "a", test_rows=2)
    a.update([1, 0, 0])
    a.evaluation(9.0, 9.0, session="s0")
    a.evaluation(9.0, 9.0, version=0)
    a.evaluation(9.0, 9.0, round_id=3)
    a.evaluation(9.0, 9.0, phase="train")
    assert only(stage.actions, RoundEnded) == []
    a.evaluation(2.0, 2.0)
    assert stage.record.loss == 1.0


def test_an_evaluation_sent_twice_counts_once() -> None:
    stage = Stage(config(start=StartConfig(agents=2), evaluation=EvaluationConfig(every=1)))
    a, b = (FakeAgent(stage, n, test_rows=2) for n in "ab")
    a.update([1, 0, 0])
    b.update([1, 0, 0])
    a.evaluation(2.0, 2.0)
    a.evaluation(2.0, 2.0)
    b.evaluation(6.0, 2.0)
    assert stage.record.loss == 2.0  # (2 + 6) / 4


def test_evaluation_is_asked_for_every_so_many_versions_and_after_the_last() -> None:
    stage = Stage(
        config(start=StartConfig(agents=1), rounds=3, evaluation=EvaluationConfig(every=2))
    )
    a = FakeAgent(stage, "a", test_rows=1)
    tasks = []
    while stage.coordinator.finished is None:
        tasks.append(stage.plan.phase)
        if stage.plan.phase == "train":
            a.update([1, 0, 0])
        else:
            a.evaluation(1.0, 1.0)
    assert tasks == ["train", "train", "evaluate", "train", "evaluate"]


def test_the_coordinators_own_rows_are_measured_too() -> None:
    def measure(theta: F32) -> Sums:
        return Sums(float(theta[0]) * 4, 4.0, {"mae": 2.0})

    stage = Stage(config(start=StartConfig(agents=1)), measure=measure)
    FakeAgent(stage, "a").update([3, 0, 0])
    assert stage.record.metrics == {"mae": 0.5, "central_loss": 3.0, "central_mae": 0.5}


def test_a_measurement_that_fails_costs_its_figures_and_not_the_commit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def measure(theta: F32) -> Sums:
        raise RuntimeError("Invoke failed")

    stage = Stage(config(start=StartConfig(agents=1)), measure=measure)
    actions = FakeAgent(stage, "a").update([3, 0, 0])
    (commit,) = only(actions, Commit)
    assert (commit.version, commit.theta.tolist()) == (1, [3, 0, 0])
    assert (stage.record.status, stage.record.metrics) == ("committed", {"mae": 0.5})
    assert "the coordinator's own rows are not measured" in caplog.text


def test_a_version_that_wrecks_the_loss_on_the_coordinators_own_rows_is_held_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    measured = []

    def measure(theta: F32) -> Sums:
        measured.append(float(theta[0]))
        return Sums(1.0 + float(theta[0]) ** 2, 1.0, {"mae": 2.0})

    stage = Stage(config(start=StartConfig(agents=1)), measure=measure)
    a = FakeAgent(stage, "a")
    with caplog.at_level(logging.ERROR):
        a.update([30, 0, 0])
    assert only(stage.actions, Commit) == []
    assert stage.record.status == "abandoned"
    assert stage.record.held_back == "loss on the coordinator's own rows 901, at first 1"
    assert "round 1 is held back: loss on" in caplog.text
    stage.later(2.0)
    a.update([3, 0, 0])
    assert stage.record.metrics["central_loss"] == 10.0
    assert measured == [0.0, 30.0, 3.0]  # each θ once


def test_a_version_that_devices_find_far_worse_than_the_first_is_told_with_the_way_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage = Stage(config(start=StartConfig(agents=2), evaluation=EvaluationConfig(every=1)))
    a, b = (FakeAgent(stage, n, test_rows=2) for n in "ab")
    for loss in (2.0, 500.0):
        a.update([1, 0, 0])
        b.update([1, 0, 0])
        with caplog.at_level(logging.ERROR):
            a.evaluation(2 * loss, 2.0)
            b.evaluation(2 * loss, 2.0)
    assert caplog.messages == [
        "round 2: loss 500 on the devices' rows, 2 in the first round: version 2 has diverged; go "
        "back with 'fedge coordinator rollback --to 1', and lower training.learning_rate"
    ]


def test_a_measurement_that_a_restart_interrupted_is_taken_up_again() -> None:
    settings = config(start=StartConfig(agents=2), evaluation=EvaluationConfig(every=1))
    stage = Stage(settings)
    a, b = (FakeAgent(stage, n, test_rows=2) for n in "ab")
    a.update([1, 0, 0])
    b.update([1, 0, 0])
    a.evaluation(4.0, 2.0)
    progress = stage.coordinator.progress
    assert progress.course.is_unmeasured
    (commit,) = only(stage.actions, Commit)
    progress.unmeasured = commit.record  # as the store finds it
    progress._before = None
    later = Stage(settings, start="c2", progress=progress)
    a, b = (FakeAgent(later, n, test_rows=2) for n in "ab")
    later.later(2.0)
    assert (later.plan.round_id, later.plan.version) == (1, 1)
    assert later.plan.phase_name == "evaluate"
    a.evaluation(4.0, 2.0)
    b.evaluation(8.0, 2.0)
    assert (later.record.round_id, later.record.loss, later.record.evaluated) == (1, 3.0, True)
    assert later.coordinator.progress.course.committed == 1
    assert (later.plan.round_id, later.plan.phase_name) == (2, "train")


def test_a_measurement_is_given_up_when_nobody_is_there_to_take_it() -> None:
    settings = config(start=StartConfig(agents=1), evaluation=EvaluationConfig(every=1), rounds=1)
    stage = Stage(settings)
    FakeAgent(stage, "a", test_rows=2).update([1, 0, 0])
    progress = stage.coordinator.progress
    (commit,) = only(stage.actions, Commit)
    progress.unmeasured = commit.record
    later = Stage(settings, start="c2", progress=progress)
    later.later(2.0)
    assert later.coordinator.finished == "rounds"


def test_bytes_that_an_agent_received_before_the_coordinator_started_are_of_no_round() -> None:
    stage = Stage(config(start=StartConfig(agents=1)))
    a = FakeAgent(stage, "a", join=False)
    a.received_before = 1_000_000
    a.status("online")
    a.update([1, 0, 0], received_bytes=1_002_000)
    assert stage.record.bytes_down == 2_000


def test_each_rounds_result_is_retained_as_plain_json_and_says_when_all_is_over() -> None:
    stage = Stage(config(start=StartConfig(agents=1), rounds=1))
    FakeAgent(stage, "a").update([3, 0, 0])
    result = json.loads(stage.retained["fedge/v1/f/results"])
    assert result["metrics"] == {"mae": 0.5}
    assert (result["round_id"], result["status"], result["version"]) == (1, "committed", 1)
    assert (result["loss"], result["asked"], result["reported"]) == (1.0, 1, 1)
    assert (result["session"], result["finished"]) == ("s1", "rounds")
    assert result["bytes_up"] == stage.record.bytes_up
    del stage.retained["fedge/v1/f/results"]
    stage.feed(Connected(1 << 20))
    assert json.loads(stage.retained["fedge/v1/f/results"]) == result


def test_the_time_that_measuring_takes_is_not_taken_from_the_next_round() -> None:
    stage = Stage(
        config(start=StartConfig(agents=1)), measure=lambda theta: Sums(1.0, 1.0, {"mae": 1.0})
    )
    FakeAgent(stage, "a").update([3, 0, 0])
    assert stage.plan.round_id == 1
    assert stage.coordinator.wait_s(stage.now_s) == 0
    stage.later(30.0)  # as long as it took
    assert stage.plan.round_id == 2
    stage.later(59.0)
    assert stage.record.round_id == 1
    stage.later(1.0)
    assert stage.record.round_id == 2


def ended(losses: list[float], **changes: Any) -> Stage:
    """A federation of one agent; version v of θ is (v, 0, 0)."""
    evaluation = EvaluationConfig(every=1)
    stage = Stage(config(start=StartConfig(agents=1), evaluation=evaluation, **changes))
    a = FakeAgent(stage, "a", test_rows=1)
    for loss in losses:
        assert stage.coordinator.finished is None
        a.update([1, 0, 0])
        a.evaluation(loss, 1.0)
    assert stage.coordinator.finished is not None
    return stage


@pytest.mark.parametrize(
    ("losses", "changes", "best"),
    [
        ([3.0, 1.0, 2.0], {"rounds": 3}, 2),
        ([3.0, 2.0, 1.0], {"rounds": 3}, 3),
        ([2.0, 1.0, 1.0, 4.0], {"stop": StopConfig(patience=2)}, 2),
        ([3.0, 2.0, 0.5], {"stop": StopConfig(target=0.5)}, 3),
    ],
)
def test_the_end_hands_out_the_best_version_and_names_it(
    losses: list[float], changes: Any, best: int
) -> None:
    stage = ended(losses, **changes)
    assert (stage.plan.state, stage.plan.version) == ("finished", best)
    assert stage.weights().tolist() == [float(best), 0.0, 0.0]
    assert stage.record.best_round == best
    assert stage.coordinator.progress.version == len(losses), "training would go on from there"


def test_records_name_the_best_round_so_far() -> None:
    stage = ended([3.0, 1.0, 2.0], rounds=3)
    records = [each.record for each in only(stage.actions, RoundEnded)]
    assert [record.best_round for record in records] == [1, 2, 2]
