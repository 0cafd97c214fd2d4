"""One suite over every registered aggregator: what any of them must do."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from fedge.errors import ConfigError, TrainingError
from learning.aggregation import AGGREGATORS, Aggregator, make_aggregator
from learning.aggregation.mean import PIECE
from learning.vector.parameters import F32

every_aggregator = pytest.mark.parametrize("name", AGGREGATORS)


def vector(*values: float) -> F32:
    return np.array(values, np.float32)


def folded(name: str, updates: list[tuple[F32, float]]) -> Aggregator:
    aggregator = make_aggregator(name, updates[0][0].size)
    for delta, weight in updates:
        aggregator.add(delta, weight)
    return aggregator


def cohort(count: int, size: int) -> list[tuple[F32, float]]:
    rng = np.random.default_rng(5)
    return [
        (rng.normal(0, 10.0 ** rng.integers(-6, 3), size).astype(np.float32), int(weight))
        for weight in rng.integers(1, 10_000, count)
    ]


@every_aggregator
def test_one_client_gets_its_own_delta_back(name: str) -> None:
    delta = vector(0.1, -3e-8, 12345.678, 0.0)
    for weight in (1, 7, 1e9):
        assert np.array_equal(folded(name, [(delta, weight)]).mean(), delta)


@every_aggregator
def test_weights_by_examples_count_every_example_alike(name: str) -> None:
    aggregator = folded(name, [(vector(1, 10), 30), (vector(5, -2), 10)])
    assert np.array_equal(aggregator.mean(), vector(2, 7))
    assert aggregator.weight == 40


@every_aggregator
def test_equal_weights_count_every_client_alike(name: str) -> None:
    aggregator = folded(name, [(vector(1, 10), 1), (vector(5, -2), 1)])
    assert np.array_equal(aggregator.mean(), vector(3, 4))


@every_aggregator
def test_the_order_of_arrival_does_not_matter(name: str) -> None:
    updates = cohort(count=60, size=5000)
    expected = folded(name, updates).mean()
    shuffle = np.random.default_rng(1)
    for _ in range(5):
        order = [updates[index] for index in shuffle.permutation(len(updates))]
        assert np.array_equal(folded(name, order).mean(), expected)
    assert np.array_equal(folded(name, updates[::-1]).mean(), expected)


@every_aggregator
@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 7])
def test_every_element_is_folded(name: str, size: int) -> None:
    updates = cohort(count=3, size=size)
    weights = [weight for _, weight in updates]
    stacked = np.stack([delta for delta, _ in updates]).astype(np.float64)
    expected = np.average(stacked, axis=0, weights=weights).astype(np.float32)
    np.testing.assert_allclose(folded(name, updates).mean(), expected, rtol=1e-6)


@every_aggregator
def test_huge_and_small_weights_keep_their_proportions(name: str) -> None:
    huge = folded(name, [(vector(1, 2), 3e17), (vector(5, 6), 1e17)])
    small = folded(name, [(vector(1, 2), 3e-17), (vector(5, 6), 1e-17)])
    assert np.array_equal(huge.mean(), vector(2, 3))
    assert np.array_equal(small.mean(), vector(2, 3))


@every_aggregator
def test_a_billion_examples_do_not_erase_one(name: str) -> None:
    aggregator = folded(name, [(vector(0), 1e9), (vector(1), 1)])
    assert aggregator.mean()[0] == pytest.approx(1 / (1e9 + 1), rel=1e-6)


@every_aggregator
def test_the_largest_deltas_and_weights_stay_finite(name: str) -> None:
    top = float(np.finfo(np.float32).max)
    aggregator = folded(name, [(vector(top, -top), 1e18), (vector(top, top), 1e18)])
    assert np.array_equal(aggregator.mean(), vector(top, 0))


@every_aggregator
def test_an_update_of_weight_zero_changes_nothing(name: str) -> None:
    assert np.array_equal(folded(name, [(vector(3), 2), (vector(1e30), 0)]).mean(), vector(3))


@every_aggregator
def test_no_update_or_total_weight_zero_has_no_mean(name: str) -> None:
    with pytest.raises(TrainingError, match="weights of the round's updates sum to 0"):
        make_aggregator(name, 3).mean()
    with pytest.raises(TrainingError, match="weights of the round's updates sum to 0"):
        folded(name, [(vector(1), 0)]).mean()


@every_aggregator
@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), 1.1e18])
def test_a_weight_out_of_range_is_refused_and_nothing_is_folded(name: str, weight: float) -> None:
    aggregator = folded(name, [(vector(4), 2)])
    with pytest.raises(ValueError, match="is outside 0 to 1e"):
        aggregator.add(vector(9), weight)
    assert np.array_equal(aggregator.mean(), vector(4))
    assert aggregator.weight == 2


@every_aggregator
def test_another_shape_or_dtype_is_refused(name: str) -> None:
    aggregator = make_aggregator(name, 3)
    with pytest.raises(ValueError, match=r"delta is float32 of \(2,\)"):
        aggregator.add(vector(1, 2), 1)
    with pytest.raises(ValueError, match="delta is float64"):
        aggregator.add(np.zeros(3), 1)  # type: ignore[arg-type]


@every_aggregator
def test_a_delta_may_be_reused_after_it_was_added(name: str) -> None:
    aggregator, delta = make_aggregator(name, 2), vector(1, 2)
    aggregator.add(delta, 1)
    delta[:] = 99
    assert np.array_equal(aggregator.mean(), vector(1, 2))


@every_aggregator
def test_taking_the_mean_does_not_end_the_round(name: str) -> None:
    aggregator = folded(name, [(vector(1), 1)])
    aggregator.mean()[0] = 99
    aggregator.add(vector(3), 1)
    assert np.array_equal(aggregator.mean(), vector(2))


def peak_bytes(name: str, size: int, count: int) -> int:
    delta = np.ones(size, np.float32)
    tracemalloc.start()
    try:
        aggregator = make_aggregator(name, size)
        for _ in range(count):
            aggregator.add(delta, 3)
        aggregator.mean()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@every_aggregator
def test_memory_does_not_grow_with_the_cohort(name: str) -> None:
    few, many = peak_bytes(name, 100_000, 10), peak_bytes(name, 100_000, 1000)
    assert many <= few + 65_536  # what else the process does meanwhile; one update is 400,000


def test_an_unknown_aggregator_is_named_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match="unknown aggregator 'median'; known aggregators: mean"):
        make_aggregator("median", 3)
