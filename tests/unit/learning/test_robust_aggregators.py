"""Median and trimmed mean against numbers worked out by hand, and against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from fedge.errors import ConfigError
from learning.aggregation.aggregator import Update
from learning.aggregation.collected import BLOCK
from learning.aggregation.registry import AGGREGATORS
from learning.registry import Choice
from learning.vector.parameters import F32


def aggregated(choice: Choice, rows: F32) -> F32:
    aggregator = AGGREGATORS.make(choice, {"delta": rows.shape[1]})
    for index, row in enumerate(rows):
        aggregator.add(Update(f"pi-{index}", {"delta": row}, {"delta": 1.0}))
    return aggregator.result(len(rows)).vectors["delta"]


def rows(count: int, size: int) -> F32:
    return np.random.default_rng(4).normal(size=(count, size)).astype(np.float32)


def column(*values: float) -> F32:
    return np.array(values, np.float32)[:, None]


def test_the_median_of_an_odd_number_is_the_middle_value() -> None:
    assert aggregated("median", column(9, -100, 2, 3, 1e9))[0] == 3


def test_the_median_of_an_even_number_is_the_mean_of_the_two_middle_values() -> None:
    assert aggregated("median", column(9, -100, 2, 4))[0] == 3


@pytest.mark.parametrize("count", [1, 2, 3, 10, 101])
def test_the_median_equals_numpys(count: int) -> None:
    updates = rows(count, 400)
    expected = np.median(updates.astype(np.float64), axis=0).astype(np.float32)
    assert np.array_equal(aggregated("median", updates), expected)


def test_fewer_than_half_the_agents_cannot_move_the_median_out() -> None:
    honest, hostile = [1.0, 1.1, 1.2, 1.3, 1.4], [1e30] * 4
    assert aggregated("median", column(*honest, *hostile))[0] == np.float32(1.4)


def test_the_trimmed_mean_leaves_out_both_ends() -> None:
    # ⌊0.2 × 5⌋ = 1 at each end: (2 + 3 + 7) / 3
    assert aggregated("trimmed_mean", column(7, -100, 2, 3, 1e9))[0] == 4


@pytest.mark.parametrize(
    ("fraction", "values", "expected"),
    [
        (0.0, [1, 2, 9], 4),  # the plain mean
        (0.25, [1, 2, 9], 4),  # ⌊0.75⌋ = 0: too few updates to trim
        (0.4, [1, 2, 9], 2),  # ⌊1.2⌋ = 1
        (0.25, [0, 2, 4, 100], 3),
        (0.49, [0, 2, 4, 100], 3),  # ⌊1.96⌋ = 1
        (0.49, [5, 6], 5.5),
        (0.4999999999999999, [5, 6, 0, 7], 5.5),  # one pair, or with rounding none: never nothing
        (0.2, [8], 8),
    ],
)
def test_the_trimmed_mean_by_hand(fraction: float, values: list[float], expected: float) -> None:
    choice: Choice = {"name": "trimmed_mean", "fraction": fraction}
    assert aggregated(choice, column(*values))[0] == expected


def test_a_fraction_that_float64_holds_a_hair_low_trims_the_whole_number() -> None:
    # 0.29 × 100 = 28.999999999999996; 29 large values on one side must be gone
    values = [0.0] * 71 + [1e6] * 29
    assert aggregated({"name": "trimmed_mean", "fraction": 0.29}, column(*values))[0] == 0


@pytest.mark.parametrize("name", ["median", "trimmed_mean"])
@pytest.mark.parametrize("size", [BLOCK // 8 - 1, BLOCK // 8, BLOCK // 8 + 1])
def test_columns_beyond_one_block_are_aggregated(name: str, size: int) -> None:
    updates = rows(3, size)
    expected = np.sort(updates, axis=0)[1] if name == "median" else updates.mean(0, np.float64)
    np.testing.assert_allclose(aggregated(name, updates), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("fraction", [-0.1, 0.5, 1, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(ConfigError, match=r"aggregator\.fraction: expected a number .*, got "):
        AGGREGATORS.make({"name": "trimmed_mean", "fraction": fraction}, {"delta": 1})
