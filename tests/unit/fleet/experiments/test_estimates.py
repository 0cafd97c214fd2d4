"""Means, intervals and paired differences, by hand and by printed tables."""

from __future__ import annotations

import math

import pytest

from fleet.experiments.estimates import Estimate, estimate, paired, t_quantile


@pytest.mark.parametrize(
    ("probability", "degrees", "value"),
    [
        # Printed tables of Student's t, to three decimals.
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.975, 3, 3.182),
        (0.975, 4, 2.776),
        (0.975, 9, 2.262),
        (0.975, 10, 2.228),
        (0.975, 29, 2.045),
        (0.975, 30, 2.042),
        (0.975, 120, 1.980),
        (0.95, 4, 2.132),
        (0.995, 5, 4.032),
        (0.9, 7, 1.415),
        (0.9995, 2, 31.599),
        (0.975, 10**9, 1.960),
    ],
)
def test_quantiles_are_those_of_the_printed_tables(
    probability: float, degrees: int, value: float
) -> None:
    assert t_quantile(probability, degrees) == pytest.approx(value, abs=5e-4)
    assert t_quantile(1 - probability, degrees) == pytest.approx(-value, abs=5e-4)


@pytest.mark.parametrize("probability", [0.6, 0.9, 0.975, 0.999999])
def test_quantiles_of_one_and_two_degrees_have_a_closed_form(probability: float) -> None:
    cauchy = math.tan(math.pi * (probability - 0.5))
    assert t_quantile(probability, 1) == pytest.approx(cauchy, rel=1e-9)
    alpha = 4 * probability * (1 - probability)
    second = 2 * (probability - 0.5) * math.sqrt(2 / alpha)
    assert t_quantile(probability, 2) == pytest.approx(second, rel=1e-9)


def test_the_normal_distribution_takes_over_without_a_step() -> None:
    assert t_quantile(0.975, 20_000) == pytest.approx(t_quantile(0.975, 20_001), abs=2e-4)


def test_the_median_is_zero() -> None:
    assert t_quantile(0.5, 3) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("probability", "degrees"), [(0.0, 3), (1.0, 3), (0.9, 0), (math.nan, 3)])
def test_a_quantile_that_does_not_exist_is_refused(probability: float, degrees: int) -> None:
    with pytest.raises(ValueError, match="no t quantile"):
        t_quantile(probability, degrees)


def test_mean_deviation_and_interval_of_four_runs() -> None:
    found = estimate([1.0, 2.0, 3.0, 4.0])
    assert (found.n, found.mean) == (4, 2.5)
    assert found.sd == pytest.approx(math.sqrt(5 / 3))
    # 3.1824 * 1.2910 / 2
    assert found.half_width == pytest.approx(2.0543, abs=1e-4)
    assert found.low == pytest.approx(0.4457, abs=1e-4)


def test_one_run_has_no_deviation() -> None:
    assert estimate([3.0]) == Estimate(1, 3.0, None, None, None)


def test_a_run_that_diverged_shows_in_the_mean() -> None:
    found = estimate([1.0, math.nan])
    assert math.isnan(found.mean)
    assert found.sd is None


def test_equal_runs_have_an_interval_of_width_zero() -> None:
    assert estimate([0.1, 0.1, 0.1]).half_width == 0.0


def test_differences_are_paired_by_seed_and_not_by_order() -> None:
    first, second = {1: 0.5, 2: 0.7}, {2: 0.8, 1: 0.6}
    found = paired(first, second, falls=False)
    assert found.estimate.mean == pytest.approx(0.1)
    assert found.estimate.sd == pytest.approx(0.0, abs=1e-12)
    assert (found.wins, found.ties) == (2, 0)


def test_wins_follow_the_direction_of_the_metric() -> None:
    first, second = {1: 1.0, 2: 1.0, 3: 1.0}, {1: 0.5, 2: 1.0, 3: 2.0}
    assert paired(first, second, falls=True).wins == 1
    assert paired(first, second, falls=False).wins == 1
    assert paired(first, second, falls=True).ties == 1


@pytest.mark.parametrize("second", [{}, {1: 0.5}, {1: 0.5, 3: 0.5}])
def test_seeds_that_do_not_pair_are_refused(second: dict[int, float]) -> None:
    with pytest.raises(ValueError, match="do not pair"):
        paired({1: 0.5, 2: 0.5}, second, falls=False)
