from __future__ import annotations

import pytest

from learning.vector.metrics import MetricSpec, Sums
from learning.vector.plausible import implausible

METRICS = (
    MetricSpec("accuracy"),
    MetricSpec("mae"),
    MetricSpec("rmse", "root_mean"),
    MetricSpec("confusion", "confusion", (2, 2)),
    MetricSpec("r2", "r2", (3,)),
    MetricSpec("auc", "auc", (2, 3)),
    MetricSpec("f1", "f1", (3, 2)),
)


def sums(loss: float = 5.0, weight: float = 10.0, **metrics: float | tuple[float, ...]) -> Sums:
    good: dict[str, float | tuple[float, ...]] = {
        "accuracy": 7.0,
        "mae": 3.0,
        "rmse": 2.0,
        "confusion": (5.0, 0.0, 0.0, 5.0),
        "r2": (1.0, -500.0, 30.0),
        "auc": (0.0, 1.0, 4.0, 3.0, 2.0, 0.0),
        "f1": (3.0, 6.0, 1.0, 2.0, 2.0, 1.0),  # of class 0: 3 found, 1 false alarm, 2 missed
    }
    return Sums(loss, weight, good | metrics)


def why(found: Sums, loss: str = "mean_squared_error", rows: float | None = 10.0) -> str:
    return implausible(found, METRICS, loss, rows)


def test_sums_of_real_rows_are_plausible() -> None:
    assert why(sums()) == ""
    assert why(sums(), rows=None) == ""
    assert why(sums(accuracy=10.0, confusion=(10.0, 0.0, 0.0, 0.0))) == ""


def test_rounding_of_float32_sums_is_not_a_lie() -> None:
    assert why(sums(weight=10.005, accuracy=10.006)) == ""


def test_more_weight_than_the_agent_has_rows_is_named() -> None:
    assert why(sums(weight=1e9)) == "rows of weight 1e+09, the agent's own add up to 10"


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        ({"accuracy": 11.0}, "accuracy 1.1, it is never above 1"),
        ({"accuracy": -1.0}, "accuracy -0.1, it is never below 0"),
        ({"mae": -1.0}, "mae -0.1, it is never below 0"),
        ({"rmse": -1.0}, "rmse -0.1, it is never below 0"),
        ({"confusion": (0.0, 99.0, 0.0, 0.0)}, "confusion 9.9, it is never above 1"),
        (
            {"confusion": (5.0, 1.0, 0.0, 5.0)},
            "confusion of rows of weight 11, measured were 10",
        ),
        (
            {"auc": (0.0, 0.0, 10.0, 10.0, 0.0, 0.0)},
            "auc of rows of weight 20, measured were 10",
        ),
        (
            {"f1": (0.0, 0.0, 10.0, 0.0, 10.0, 0.0)},
            "f1 of rows of weight 20, measured were 10",
        ),
        ({"r2": (-1e60, 0.0, 30.0)}, "r2 of squared errors that add up to -1e+60"),
    ],
)
def test_a_metric_outside_its_range_is_named(
    metrics: dict[str, float | tuple[float, ...]], reason: str
) -> None:
    assert why(sums(5.0, 10.0, **metrics)) == reason


@pytest.mark.parametrize(
    "loss", ["mean_squared_error", "a: huber; b: sparse_categorical_crossentropy"]
)
def test_a_loss_that_cannot_be_negative_is_not(loss: str) -> None:
    assert why(sums(loss=-1e100), loss) == f"loss -1e+99, {loss} is never below 0"


def test_a_loss_of_unknown_kind_may_be_negative() -> None:
    assert why(sums(loss=-5.0), "my_loss") == ""
