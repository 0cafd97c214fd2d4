"""From sums that agents send to a round's record."""

from __future__ import annotations

import msgspec

from coordinator.records.records import AgentResult
from coordinator.records.results import with_central, with_evaluation, with_training
from coordinator.report import round_line
from learning.vector.metrics import MetricSpec, Sums
from tests.unit.coordinator.test_stopping import record

METRICS = (MetricSpec("mae"),)
TRAINED = {"a": Sums(8.0, 2.0, {"mae": 2.0}), "b": Sums(4.0, 6.0, {"mae": 6.0})}


def test_what_was_seen_while_training_stands_until_it_is_evaluated() -> None:
    got = with_training(record(None), TRAINED, METRICS)
    assert (got.loss, got.metrics) == (1.5, {"mae": 1.0})
    assert (got.train_loss, got.train_metrics) == (1.5, {"mae": 1.0})
    assert got.agents == {
        "a": AgentResult(task="train", loss=4.0, metrics={"mae": 1.0}, num_examples=2),
        "b": AgentResult(task="train", loss=4 / 6, metrics={"mae": 1.0}, num_examples=6),
    }


def test_an_evaluation_replaces_loss_and_metrics_and_keeps_those_of_training() -> None:
    before = with_training(record(None), TRAINED, METRICS)
    evaluated = {"a": Sums(1.0, 1.0, {"mae": 3.0}), "b": Sums(1.0, 3.0, {"mae": 1.0})}
    got = with_evaluation(before, evaluated, set(), METRICS)
    assert (got.loss, got.metrics) == (0.5, {"mae": 1.0})
    assert (got.train_loss, got.train_metrics) == (1.5, {"mae": 1.0})
    assert got.agents["a"] == AgentResult(
        task="train", loss=1.0, metrics={"mae": 3.0}, num_examples=2
    )


def test_agents_that_measure_without_having_learned_this_time_are_no_makers_of_the_version() -> (
    None
):
    got = with_evaluation(record(None), {"c": Sums(2.0, 4.0, {})}, set(), METRICS)
    assert got.agents == {"c": AgentResult(task="evaluate", loss=0.5, metrics={}, num_examples=4)}


def test_unseen_agents_have_figures_of_their_own() -> None:
    before = with_training(record(None), TRAINED, METRICS)
    evaluated = {"a": Sums(1.0, 1.0, {"mae": 3.0}), "new": Sums(8.0, 2.0, {"mae": 1.0})}
    got = with_evaluation(before, evaluated, {"new"}, METRICS)
    assert got.loss == 1.0
    assert got.metrics == {"mae": 3.0, "unseen_loss": 4.0, "unseen_mae": 0.5}
    assert got.agents["new"].task == "evaluate"
    assert list(got.agents) == ["a", "b", "new"]


def test_a_metric_without_a_value_is_told_with_its_reason() -> None:
    (r2,) = metrics = (MetricSpec("r2", "r2", (3,)),)
    alike, apart = {"r2": (1.0, 4.0, 8.0)}, {"r2": (1.0, 2.0, 4.0)}  # of 2, 2 and of 0, 2
    before = with_training(record(None), {"a": Sums(1.0, 2.0, alike)}, metrics)
    assert before.metrics == {}
    assert before.absent["r2"].startswith("the targets are all alike")
    assert f" · no r2: {before.absent['r2']} · " in round_line(before)
    evaluated = {"a": Sums(1.0, 2.0, apart), "new": Sums(1.0, 2.0, alike)}
    got = with_evaluation(before, evaluated, {"new"}, metrics)
    assert (got.metrics[r2.name], list(got.absent)) == (0.5, ["unseen_r2"])
    central = with_central(got, Sums(1.0, 2.0, alike), metrics)
    assert list(central.absent) == ["unseen_r2", "central_r2"]


def test_with_unseen_agents_alone_the_loss_is_theirs() -> None:
    got = with_evaluation(record(None), {"new": Sums(8.0, 2.0, {"mae": 1.0})}, {"new"}, METRICS)
    assert got.loss == 4.0
    assert got.metrics == {"unseen_loss": 4.0, "unseen_mae": 0.5}


def test_when_nobody_answered_the_figures_of_training_stand() -> None:
    before = with_training(record(None), TRAINED, METRICS)
    assert with_evaluation(before, {}, set(), METRICS) == before


def test_a_model_that_diverged_has_no_central_figures() -> None:
    nan = float("nan")
    got = with_central(record(0.5), Sums(nan, 4.0, {"mae": nan}), METRICS)
    assert got.absent == {"central_mae": "not a finite number"}
    assert msgspec.structs.replace(got, absent={}) == record(0.5)


def test_the_line_of_a_round_says_whether_its_loss_was_measured() -> None:
    trained = with_training(record(None, evaluated=False), TRAINED, METRICS)
    under_way = round_line(trained, progress="285 of 300 rounds")
    assert under_way == (
        "round 1 · version 1 · 285 of 300 rounds · 1 of 1 reported"
        " · loss while training 1.5000 · mae 1.0000 · being measured"
    )
    ended = msgspec.structs.replace(trained, seconds=2.5, bytes_up=1000, bytes_down=10)
    line = "loss while training 1.5000 · mae 1.0000 · 1.0 kB up, 10 B down · 2.50 s"
    assert round_line(ended).endswith(line)
    measured = with_evaluation(ended, {"a": Sums(1.0, 1.0, {"mae": 3.0})}, set(), METRICS)
    assert " · loss 1.0000 · mae 3.0000 · 1.0 kB up" in round_line(measured)


def test_a_record_says_how_many_agents_its_figures_are_of() -> None:
    before = with_training(record(None), TRAINED, METRICS)
    assert (before.measured, before.measured_unseen) == (2, 0)
    one = {"a": Sums(1.0, 1.0, {"mae": 3.0})}
    new = {"x": Sums(1.0, 1.0, {"mae": 3.0}), "y": Sums(1.0, 1.0, {"mae": 3.0})}
    both = with_evaluation(before, one | new, {"x", "y"}, METRICS)
    assert (both.measured, both.measured_unseen) == (1, 2)
    alone = with_evaluation(before, new, {"x", "y"}, METRICS)
    assert (alone.loss, alone.measured) == (1.0, 2)
    nobody = with_evaluation(before, {}, set(), METRICS)
    assert (nobody.loss, nobody.measured) == (before.loss, 2)
