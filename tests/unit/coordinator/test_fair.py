"""Measurements that can be believed."""

from __future__ import annotations

import pytest

from coordinator.records.fair import without_absurd
from learning.vector.metrics import MetricKind, MetricSpec, Sums, Total
from learning.vector.sums_table import SumsTable


def absurd(*losses: float, usual: float | None = None) -> dict[str, str]:
    sums = {name: Sums(2 * loss, 2.0, {}) for name, loss in zip("abcde", losses, strict=False)}
    kept, left_out = without_absurd(SumsTable.of(sums), usual)
    assert dict(kept) == {name: each for name, each in sums.items() if name not in left_out}
    return left_out


def test_a_loss_of_more_than_a_hundred_medians_is_left_out_by_name() -> None:
    assert absurd(1.0, 1.0, 101.0) == {"c": "loss 101, more than 100 times the usual 1"}
    assert absurd(1.0, 1.0, 99.0) == {}


def test_a_loss_below_that_of_the_first_round_is_never_absurd() -> None:
    assert absurd(0.01, 0.01, 5.0, usual=5.0) == {}
    assert list(absurd(0.01, 0.01, 5.1, usual=5.0)) == ["c"]


def test_a_large_first_loss_does_not_excuse_a_hundred_times_as_much() -> None:
    assert list(absurd(2.5, 2.5, 2.5, 430.0, usual=4.4)) == ["d"]


def test_a_loss_may_be_absurd_below_zero() -> None:
    assert list(absurd(-1.0, -2.0, 1.0, -1e97)) == ["d"]


def test_beside_losses_of_zero_the_first_loss_tells_what_is_usual() -> None:
    assert absurd(0.0, 0.0, 5.0) == {}
    assert absurd(0.0, 0.0, 399.0, usual=4.0) == {}
    assert list(absurd(0.0, 0.0, 401.0, usual=4.0)) == ["c"]


def test_of_two_nobody_knows_which_is_wrong() -> None:
    assert absurd(1.0, 1e90, usual=1.0) == {}


def absurd_metric(spec: MetricSpec, *totals: Total) -> dict[str, str]:
    """Returns who is left out of agents with 2 rows and a loss of 1."""
    sums = {
        name: Sums(2.0, 2.0, {spec.name: total})
        for name, total in zip("abcde", totals, strict=False)
    }
    return without_absurd(SumsTable.of(sums), 1.0, [spec])[1]


@pytest.mark.parametrize(
    ("name", "kind", "absurd", "fine"),
    [
        ("mae", "mean", 1e90, 190.0),
        ("wear_mse", "mean", 201.0, 190.0),
        ("rmse", "root_mean", 2e4 + 100, 2e4 - 100),
    ],
)
def test_an_absurd_error_is_left_out_by_name_beside_an_ordinary_loss(
    name: str, kind: MetricKind, absurd: float, fine: float
) -> None:
    spec = MetricSpec(name, kind)
    (who, why), *others = absurd_metric(spec, 2.0, 2.0, absurd).items()
    assert (who, others) == ("c", [])
    assert why.startswith(f"{name} ")
    assert why.endswith("more than 100 times the usual 1")
    assert absurd_metric(spec, 2.0, 2.0, fine) == {}
    assert absurd_metric(spec, 0.0, 0.0, absurd) == {}  # nothing is usual


@pytest.mark.parametrize("bad", [(1e60, 0.0, 2.0), (2.0, 0.0, 1e60), (2.0, 1e60, 2.0)])
def test_absurd_errors_or_targets_of_an_r2_are_left_out(bad: tuple[float, ...]) -> None:
    good = (2.0, 0.0, 2.0)
    assert list(absurd_metric(MetricSpec("r2", "r2", (3,)), good, good, bad)) == ["c"]
    assert absurd_metric(MetricSpec("r2", "r2", (3,)), good, good, (20.0, 20.0, 200.0)) == {}


def test_a_share_of_rows_that_is_rare_with_most_agents_is_not_absurd() -> None:
    assert absurd_metric(MetricSpec("alarms"), 0.002, 0.002, 2.0) == {}
    assert list(absurd_metric(MetricSpec("alarms"), 0.002, 0.002, -9e9)) == ["c"]
    assert absurd_metric(MetricSpec("accuracy"), 0.002, 0.002, 2.0) == {}
