"""When a federation has ended."""

from __future__ import annotations

from functools import reduce
from typing import Any

import pytest

from coordinator.config import CoordinatorConfig, EvaluationConfig, StopConfig
from coordinator.records.course import Course
from coordinator.records.records import RoundRecord
from coordinator.rounds.stopping import stop_reason, stop_rule


def record(loss: float | None, **changes: Any) -> RoundRecord:
    facts: dict[str, Any] = {
        "round_id": 1,
        "status": "committed",
        "version": 1,
        "asked": 1,
        "reported": 1,
        "refused": 0,
        "refusals": {},
        "declined": {},
        "loss": loss,
        "metrics": {},
        "train_loss": None,
        "train_metrics": {},
        "bytes_up": 0,
        "bytes_down": 0,
        "seconds": 0.0,
        "closed": "goal",
        "evaluated": True,
        "agents": {},
    }
    return RoundRecord(**(facts | changes))


def reason(records: list[RoundRecord], rounds: int = 100, **stop: Any) -> str | None:
    config = CoordinatorConfig(
        federation="f", model="house_price", rounds=rounds, stop=StopConfig(**stop)
    )
    return stop_reason(config, reduce(Course.after, records, Course(stop_rule(config))))


def losses(*values: float | None) -> list[RoundRecord]:
    return [record(value) for value in values]


def test_it_goes_on_at_first() -> None:
    assert reason([]) is None
    assert reason([], target=1.0, patience=1) is None


def test_it_ends_after_the_committed_rounds_wished_for() -> None:
    assert reason(losses(3, 2), rounds=3) is None
    assert reason(losses(3, 2, 1), rounds=3) == "rounds"


def test_abandoned_rounds_do_not_count() -> None:
    abandoned = record(0.0, status="abandoned")
    assert reason([*losses(3, 2), abandoned], rounds=3, target=1.0) is None


@pytest.mark.parametrize(
    ("metric", "values", "target", "ended"),
    [
        ("loss", [3.0, 1.0], 1.0, True),
        ("loss", [1.0, 3.0], 2.0, False),  # the latest counts
        ("mae", [3.0, 0.9], 1.0, True),
        ("unseen_mae", [3.0, 0.9], 1.0, True),
        ("central_loss", [3.0, 0.9], 1.0, True),
        ("wear_rmse", [3.0, 0.9], 1.0, True),  # of one of several outputs
        ("accuracy", [0.5, 0.9], 0.9, True),
        ("accuracy", [0.9, 0.5], 0.8, False),
        ("unseen_accuracy", [0.1, 0.2], 0.8, False),
    ],
)
def test_a_target_is_reached_from_the_right_side(
    metric: str, values: list[float], target: float, ended: bool
) -> None:
    records = [record(v if metric == "loss" else None, metrics={metric: v}) for v in values]
    assert reason(records, metric=metric, target=target) == ("target" if ended else None)


@pytest.mark.parametrize(
    ("values", "patience", "ended"),
    [
        ([3, 2, 2, 2], 2, True),  # as good is no better
        ([3, 2, 2], 2, False),
        ([3, 2, 4, 1.9], 2, False),
        ([1, 2, 3], 2, True),
        ([1, 2, 3], 0, False),
        ([1, None, None, None, 2], 2, False),  # not evaluated: says nothing
    ],
)
def test_patience_counts_evaluations_without_a_better_value(
    values: list[float | None], patience: int, ended: bool
) -> None:
    assert reason(losses(*values), patience=patience) == ("patience" if ended else None)


def test_patience_with_a_metric_that_rises() -> None:
    records = [record(None, metrics={"accuracy": v}) for v in (0.5, 0.8, 0.7, 0.8)]
    assert reason(records, metric="accuracy", patience=2) == "patience"
    assert reason(records[:3], metric="accuracy", patience=2) is None


def test_a_metric_that_nobody_reports_never_ends_it() -> None:
    assert reason(losses(1, 1, 1, 1), metric="accuracy", target=0.1, patience=1) is None


def test_what_was_seen_while_training_reaches_no_target_unless_nothing_is_ever_evaluated() -> None:
    trained_only = [record(0.1, evaluated=False)]
    assert reason(trained_only, target=0.5) is None
    config = CoordinatorConfig(
        federation="f",
        model="house_price",
        stop=StopConfig(target=0.5),
        evaluation=EvaluationConfig(every=0),
    )
    course = Course(stop_rule(config)).after(trained_only[0])
    assert stop_reason(config, course) == "target"
