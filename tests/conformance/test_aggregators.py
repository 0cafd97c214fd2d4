"""Suites over every registered aggregator: what any of them must do, linear ones, robust ones."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from fedge.errors import ConfigError, TrainingError
from learning.aggregation.aggregator import (
    Aggregator,
    Mergeable,
    Update,
    Updates,
    add_many,
)
from learning.aggregation.mean import PIECE
from learning.aggregation.registry import AGGREGATORS
from learning.algorithms.algorithm import Aggregate
from learning.vector.parameters import F32

FLOAT32_MAX = float(np.finfo(np.float32).max)


def make(name: str, **sizes: int) -> Aggregator:
    return AGGREGATORS.make(name, sizes)


#: A sum of weighted updates, whatever else it is, is linear in them.
LINEAR = [name for name in AGGREGATORS if make(name, delta=1).needs == "sum"]
ROBUST = [name for name in AGGREGATORS if make(name, delta=1).needs == "all"]

every_aggregator = pytest.mark.parametrize("name", list(AGGREGATORS))
every_linear = pytest.mark.parametrize("name", LINEAR)
every_robust = pytest.mark.parametrize("name", ROBUST)


def vector(*values: float) -> F32:
    return np.array(values, np.float32)


def update(weight: float = 1, agent_id: str = "pi-1", **vectors: F32) -> Update:
    return Update(agent_id, vectors, dict.fromkeys(vectors, weight))


def folded(name: str, updates: Sequence[tuple[F32, float]]) -> Aggregator:
    aggregator = make(name, delta=updates[0][0].size)
    for delta, weight in updates:
        aggregator.add(update(weight, delta=delta))
    return aggregator


def delta_of(aggregator: Aggregator) -> F32:
    return aggregator.result(100).vectors["delta"]


def cohort(count: int, size: int) -> list[tuple[F32, float]]:
    rng = np.random.default_rng(5)
    return [
        (rng.normal(0, 10.0 ** rng.integers(-6, 3), size).astype(np.float32), int(weight))
        for weight in rng.integers(1, 10_000, count)
    ]


# --- every aggregator -----------------------------------------------------------------------------


@every_aggregator
@pytest.mark.parametrize("weight", [1, 7, 1e9])
def test_one_update_gives_itself(name: str, weight: float) -> None:
    delta = vector(0.1, -3e-8, 12345.678, 0.0)
    found = delta_of(folded(name, [(delta, weight)]))
    assert found.dtype == np.float32
    assert np.array_equal(found, delta)


@every_aggregator
@pytest.mark.parametrize("count", [2, 3, 9, 10])
def test_equal_updates_give_what_each_of_them_is(name: str, count: int) -> None:
    delta = vector(0.1, -2, 1e-20)
    assert delta_of(folded(name, [(delta, 3)] * count)) == pytest.approx(delta, rel=1e-7)


@every_aggregator
def test_the_order_of_arrival_does_not_matter(name: str) -> None:
    updates = cohort(count=60, size=5000)
    expected = delta_of(folded(name, updates))
    shuffle = np.random.default_rng(1)
    for _ in range(3):
        order = [updates[index] for index in shuffle.permutation(len(updates))]
        np.testing.assert_allclose(delta_of(folded(name, order)), expected, rtol=1e-6)


@every_aggregator
def test_permuted_parameters_give_a_permuted_result(name: str) -> None:
    updates = cohort(count=9, size=200)
    places = np.random.default_rng(2).permutation(200)
    permuted = delta_of(folded(name, [(delta[places], weight) for delta, weight in updates]))
    assert np.array_equal(permuted, delta_of(folded(name, updates))[places])


@every_aggregator
@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_every_parameter_stays_between_the_smallest_and_the_largest(name: str, count: int) -> None:
    updates = cohort(count, size=300)
    stacked = np.stack([delta for delta, _ in updates])
    found = delta_of(folded(name, updates))
    assert (found >= np.nextafter(stacked.min(axis=0), np.float32(-np.inf))).all()
    assert (found <= np.nextafter(stacked.max(axis=0), np.float32(np.inf))).all()


@every_aggregator
@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_largest_values_and_weights_stay_finite(name: str, count: int) -> None:
    ends = [vector(FLOAT32_MAX, -FLOAT32_MAX), vector(FLOAT32_MAX, FLOAT32_MAX)]
    found = delta_of(folded(name, [(ends[index % 2], 1e18) for index in range(count)]))
    assert found[0] == np.float32(FLOAT32_MAX)
    assert np.isfinite(found).all()


@every_aggregator
def test_named_vectors_of_different_lengths_do_not_mix(name: str) -> None:
    aggregator = make(name, delta=3, control=2, loss=1)
    for factor in (1, 2, 3):
        aggregator.add(
            update(
                delta=factor * vector(1, 2, 3), control=factor * vector(-1, 5), loss=vector(factor)
            )
        )
    found = aggregator.result(10).vectors
    assert list(found) == ["delta", "control", "loss"]
    assert np.array_equal(found["delta"], vector(2, 4, 6))
    assert np.array_equal(found["control"], vector(-2, 10))
    assert np.array_equal(found["loss"], vector(2))


@every_aggregator
def test_vectors_may_arrive_in_any_order(name: str) -> None:
    aggregator = make(name, delta=2, control=1)
    aggregator.add(update(control=vector(9), delta=vector(1, 2)))
    found = aggregator.result(10).vectors
    assert np.array_equal(found["delta"], vector(1, 2))
    assert np.array_equal(found["control"], vector(9))


@every_aggregator
def test_an_aggregate_says_its_weight_count_and_population(name: str) -> None:
    aggregator = make(name, delta=1, control=1)
    for weight in (30, 10):
        weights = {"control": 1.0, "delta": weight}
        aggregator.add(Update("pi-1", {"delta": vector(1), "control": vector(2)}, weights))
    found = aggregator.result(population=7)
    assert isinstance(found, Aggregate)
    assert (found.weight, found.count, found.population) == (40, 2, 7)  # of the first vector
    assert found.left_out == {}


@every_aggregator
def test_an_update_of_weight_zero_changes_nothing_but_the_count(name: str) -> None:
    found = folded(name, [(vector(3), 2), (vector(1e30), 0)]).result(5)
    assert np.array_equal(found.vectors["delta"], vector(3))
    assert (found.weight, found.count) == (2, 2)


@every_aggregator
def test_a_weight_of_zero_counts_for_its_own_vector_only(name: str) -> None:
    aggregator = make(name, delta=1, control=1)
    for weight, value in ((1.0, 4), (0.0, 8)):
        vectors = {"delta": vector(value), "control": vector(value)}
        aggregator.add(Update("pi-1", vectors, {"delta": weight, "control": 1.0}))
    found = aggregator.result(5).vectors
    assert np.array_equal(found["delta"], vector(4))
    assert np.array_equal(found["control"], vector(6))


@every_aggregator
def test_no_update_or_only_weight_zero_has_no_result(name: str) -> None:
    with pytest.raises(TrainingError, match="weights of the round's updates sum to 0"):
        make(name, delta=3).result(5)
    with pytest.raises(TrainingError, match="weights of the round's updates sum to 0"):
        folded(name, [(vector(1), 0)]).result(5)


@every_aggregator
@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), 1.1e18])
def test_a_weight_out_of_range_is_refused_and_nothing_is_added(name: str, weight: float) -> None:
    aggregator = folded(name, [(vector(4), 2)])
    with pytest.raises(ValueError, match=r"weight \S+ of pi-1 is outside 0 to 1e\+18"):
        aggregator.add(update(weight, delta=vector(9)))
    assert np.array_equal(delta_of(aggregator), vector(4))
    assert (aggregator.result(5).weight, aggregator.result(5).count) == (2, 1)


@every_aggregator
@pytest.mark.parametrize(
    "vectors",
    [
        {"delta": np.zeros(2, np.float32)},
        {"delta": np.zeros((1, 3), np.float32)},
        {"delta": np.zeros(3)},
        {"delta": np.zeros(3, np.float16)},
        {"control": np.zeros(3, np.float32)},
        {"delta": np.zeros(3, np.float32), "control": np.zeros(3, np.float32)},
        {},
    ],
    ids=lambda v: ",".join(f"{n}-{a.dtype}-{a.shape}" for n, a in v.items()) or "none",
)
def test_other_names_shapes_and_dtypes_are_refused(name: str, vectors: Mapping[str, F32]) -> None:
    aggregator = make(name, delta=3)
    with pytest.raises(ValueError, match=r"update of pi-1 holds .*, expected .*float32"):
        aggregator.add(Update("pi-1", vectors, dict.fromkeys(vectors, 1.0)))
    with pytest.raises(TrainingError):
        aggregator.result(5)


@every_aggregator
@pytest.mark.parametrize("weights", [{}, {"delta": 1.0}, {"delta": 1.0, "control": 1, "c": 1}])
def test_weights_of_other_names_are_refused(name: str, weights: Mapping[str, float]) -> None:
    aggregator = make(name, delta=1, control=1)
    with pytest.raises(ValueError, match=r"has weights of .*, expected \['control', 'delta'\]"):
        aggregator.add(Update("pi-1", {"delta": vector(1), "control": vector(1)}, weights))


@every_aggregator
def test_arrays_may_be_reused_after_they_were_added(name: str) -> None:
    aggregator, delta = make(name, delta=2), vector(1, 2)
    aggregator.add(update(delta=delta))
    delta[:] = 99
    assert np.array_equal(delta_of(aggregator), vector(1, 2))


@every_aggregator
def test_arrays_of_an_update_are_not_changed(name: str) -> None:
    aggregator = make(name, delta=3)
    for values in (vector(3, 1, 2), vector(2, 3, 1), vector(1, 2, 3)):
        values.setflags(write=False)
        aggregator.add(update(delta=values))
    assert np.array_equal(delta_of(aggregator), vector(2, 2, 2))


@every_aggregator
def test_taking_the_result_does_not_end_the_round(name: str) -> None:
    aggregator = folded(name, [(vector(1), 1)])
    delta_of(aggregator)[0] = 99
    aggregator.add(update(delta=vector(3)))
    assert np.array_equal(delta_of(aggregator), vector(2))
    assert np.array_equal(delta_of(aggregator), vector(2))


@every_aggregator
def test_a_vector_of_no_parameters_has_a_result(name: str) -> None:
    assert delta_of(folded(name, cohort(count=3, size=0))).shape == (0,)


@every_aggregator
@pytest.mark.parametrize("size", [1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 7])
def test_every_block_of_a_long_vector_is_aggregated(name: str, size: int) -> None:
    places = np.arange(size, dtype=np.float32)
    updates = [(places + shift, 5.0) for shift in (-1, 0, 0, 0, 1)]
    assert np.array_equal(delta_of(folded(name, updates)), places)


def peak_bytes(name: str, size: int, count: int) -> int:
    delta = np.ones(size, np.float32)
    tracemalloc.start()
    try:
        aggregator = make(name, delta=size)
        for _ in range(count):
            aggregator.add(update(3, delta=delta))
        aggregator.result(5)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_an_unknown_aggregator_is_named_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"unknown aggregator 'medain'; did you mean median\?"):
        AGGREGATORS.make("medain", {"delta": 3})


# --- linear aggregators ---------------------------------------------------------------------------


@every_linear
def test_weights_by_examples_count_every_example_alike(name: str) -> None:
    aggregator = folded(name, [(vector(1, 10), 30), (vector(5, -2), 10)])
    assert np.array_equal(delta_of(aggregator), vector(2, 7))


@every_linear
def test_equal_weights_count_every_agent_alike(name: str) -> None:
    aggregator = folded(name, [(vector(1, 10), 1), (vector(5, -2), 1)])
    assert np.array_equal(delta_of(aggregator), vector(3, 4))


@every_linear
def test_each_vector_has_weights_of_its_own(name: str) -> None:
    aggregator = make(name, delta=1, control=1)
    for rows, value in ((30.0, 1), (10.0, 5)):
        vectors = {"delta": vector(value), "control": vector(value)}
        aggregator.add(Update("pi-1", vectors, {"delta": rows, "control": 1.0}))
    found = aggregator.result(5).vectors
    assert np.array_equal(found["delta"], vector(2))
    assert np.array_equal(found["control"], vector(3))


@every_linear
def test_a_stream_in_any_order_gives_the_same_bits(name: str) -> None:
    updates = cohort(count=60, size=5000)
    expected = delta_of(folded(name, updates))
    shuffle = np.random.default_rng(1)
    for _ in range(5):
        order = [updates[index] for index in shuffle.permutation(len(updates))]
        assert np.array_equal(delta_of(folded(name, order)), expected)
    assert np.array_equal(delta_of(folded(name, updates[::-1])), expected)


@every_linear
def test_aggregates_of_parts_merge_by_their_weights(name: str) -> None:
    updates = cohort(count=20, size=50)
    parts = [folded(name, updates[:7]).result(5), folded(name, updates[7:]).result(5)]
    merged = folded(name, [(part.vectors["delta"], part.weight) for part in parts]).result(5)
    whole = folded(name, updates).result(5)
    assert merged.weight == whole.weight == sum(weight for _, weight in updates)
    magnitude = float(np.abs(whole.vectors["delta"]).max())
    np.testing.assert_allclose(
        merged.vectors["delta"], whole.vectors["delta"], atol=1e-6 * magnitude
    )


@every_linear
@pytest.mark.parametrize("size", [1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 7])
def test_every_element_is_folded(name: str, size: int) -> None:
    updates = cohort(count=3, size=size)
    weights = [weight for _, weight in updates]
    stacked = np.stack([delta for delta, _ in updates]).astype(np.float64)
    expected = np.average(stacked, axis=0, weights=weights).astype(np.float32)
    np.testing.assert_allclose(delta_of(folded(name, updates)), expected, rtol=1e-6)


@every_linear
def test_sums_of_whole_numbers_are_exact(name: str) -> None:
    # 1,000 numbers up to 2**24 times weights up to 2**10: below 2**53, exact in float64.
    rng = np.random.default_rng(8)
    values, weights = rng.integers(-(2**24), 2**24, 1000), rng.integers(1, 2**10, 1000)
    found = folded(name, [(vector(v), int(w)) for v, w in zip(values, weights, strict=True)])
    total = sum(int(v) * int(w) for v, w in zip(values, weights, strict=True))
    assert delta_of(found)[0] == np.float32(total / int(weights.sum()))


@every_linear
def test_huge_and_small_weights_keep_their_proportions(name: str) -> None:
    huge = folded(name, [(vector(1, 2), 3e17), (vector(5, 6), 1e17)])
    small = folded(name, [(vector(1, 2), 3e-17), (vector(5, 6), 1e-17)])
    assert np.array_equal(delta_of(huge), vector(2, 3))
    assert np.array_equal(delta_of(small), vector(2, 3))


@every_linear
def test_a_billion_examples_do_not_erase_one(name: str) -> None:
    aggregator = folded(name, [(vector(0), 1e9), (vector(1), 1)])
    assert delta_of(aggregator)[0] == pytest.approx(1 / (1e9 + 1), rel=1e-6)


@every_linear
def test_the_largest_opposite_values_cancel(name: str) -> None:
    updates = [(vector(FLOAT32_MAX), 1e18), (vector(-FLOAT32_MAX), 1e18)]
    assert np.array_equal(delta_of(folded(name, updates)), vector(0))


@every_linear
def test_memory_does_not_grow_with_the_cohort(name: str) -> None:
    assert make(name, delta=100_000).capacity is None
    few, many = peak_bytes(name, 100_000, 10), peak_bytes(name, 100_000, 1000)
    assert many <= few + 65_536  # what else the process does meanwhile; one update is 400,000


# --- robust aggregators ---------------------------------------------------------------------------


@every_robust
@pytest.mark.parametrize("outlier", [1e30, -1e30, FLOAT32_MAX])
@pytest.mark.parametrize("place", [0, 2, 4])
def test_one_outlier_among_five_stays_without_effect(name: str, outlier: float, place: int) -> None:
    honest = [vector(1, -2), vector(1.5, -3), vector(2, -1), vector(1.2, -2.5)]
    updates = [(delta, 1.0) for delta in honest]
    updates.insert(place, (vector(outlier, outlier), 1e18))
    found, stacked = delta_of(folded(name, updates)), np.stack(honest)
    assert (found >= stacked.min(axis=0)).all()
    assert (found <= stacked.max(axis=0)).all()


@every_robust
def test_weights_above_zero_do_not_matter(name: str) -> None:
    updates = cohort(count=11, size=40)
    alike = [(delta, 1.0) for delta, _ in updates]
    assert np.array_equal(delta_of(folded(name, updates)), delta_of(folded(name, alike)))


@every_robust
def test_memory_is_that_of_the_updates_and_a_bounded_block(name: str) -> None:
    size, count = 100_000, 40
    assert peak_bytes(name, size, count) <= 4 * size * (count + 1) + (2 << 20)


@every_robust
def test_capacity_is_what_max_bytes_holds_of_all_vectors(name: str) -> None:
    settings = {"name": name, "max_bytes": 100}
    assert AGGREGATORS.make(settings, {"delta": 5}).capacity == 5
    assert AGGREGATORS.make(settings, {"delta": 5, "control": 3}).capacity == 3
    assert AGGREGATORS.make(name, {"delta": 100_000}).capacity == 1342  # 512 MiB


@every_robust
def test_an_update_beyond_capacity_is_refused_and_the_round_goes_on(name: str) -> None:
    aggregator = AGGREGATORS.make({"name": name, "max_bytes": 20}, {"delta": 2})
    for value in (1, 3):
        aggregator.add(update(delta=vector(value, value)))
    advice = "pi-9 is number 3, max_bytes 20 holds 2: raise aggregator.max_bytes or ask fewer"
    with pytest.raises(ValueError, match=advice):
        aggregator.add(update(agent_id="pi-9", delta=vector(9, 9)))
    found = aggregator.result(5)
    assert np.array_equal(found.vectors["delta"], vector(2, 2))
    assert (found.weight, found.count) == (2, 2)


@every_robust
def test_settings_that_hold_not_even_one_update_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} .* one has 24 bytes, more than max_bytes 20"):
        AGGREGATORS.make({"name": name, "max_bytes": 20}, {"delta": 5, "control": 1})


# --- cohorts and parts ----------------------------------------------------------------------------


def as_cohort(updates: Sequence[tuple[F32, float]]) -> Updates:
    weights = np.array([weight for _, weight in updates], np.float64)
    vectors = {"delta": np.stack([delta for delta, _ in updates])}
    return Updates([f"pi-{n}" for n in range(len(updates))], vectors, {"delta": weights})


@every_aggregator
@pytest.mark.parametrize("size", [1, 5, PIECE + 3])
def test_a_cohort_at_once_gives_what_one_by_one_gives(name: str, size: int) -> None:
    updates = cohort(7, size)
    at_once = make(name, delta=size)
    add_many(at_once, as_cohort(updates))
    found, expected = at_once.result(9), folded(name, updates).result(9)
    np.testing.assert_allclose(found.vectors["delta"], expected.vectors["delta"], rtol=1e-6)
    assert (found.weight, found.count) == (expected.weight, expected.count)


@every_aggregator
def test_parts_merged_give_what_one_aggregator_gives(name: str) -> None:
    updates = cohort(9, 20)
    parts = [folded(name, updates[start : start + 3]) for start in (0, 3, 6)]
    whole = make(name, delta=20)
    if not isinstance(whole, Mergeable):
        pytest.skip(f"aggregator {name} has no merge(other)")
    for part in parts:
        whole.merge(part)
    found, expected = whole.result(9), folded(name, updates).result(9)
    np.testing.assert_allclose(found.vectors["delta"], expected.vectors["delta"], rtol=1e-6)
    assert (found.weight, found.count) == (expected.weight, expected.count)


@every_robust
def test_parts_beyond_capacity_are_not_merged(name: str) -> None:
    choice = {"name": name, "max_bytes": 20}
    whole, part = (AGGREGATORS.make(choice, {"delta": 2}) for _ in range(2))
    for aggregator in (whole, part):
        for value in (1.0, 2.0):
            aggregator.add(update(delta=vector(value, value)))
    assert isinstance(whole, Mergeable)
    with pytest.raises(ValueError, match=r"raise aggregator\.max_bytes"):
        whole.merge(part)
