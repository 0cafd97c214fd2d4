"""Statistics: what devices send of their columns, and what the coordinator makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from broker.protocol import messages
from broker.protocol.messages import Report
from fedge.errors import ConfigError, DeclinedError, UpdateRejected, WireError
from learning.aggregation.registry import AGGREGATORS
from learning.algorithms.fedavg import FedAvg, FedAvgSettings
from learning.algorithms.training import TrainingPlan
from learning.phases.phase import Answer, CollectorContext, Columns, Received, Request
from learning.phases.registry import PHASES
from learning.phases.statistics import (
    MAX_COLUMNS,
    MAX_EDGES,
    MAX_NUMBER,
    Moments,
    Statistics,
    StatisticsCollector,
    StatisticsSettings,
    from_values,
    merged,
    moments,
    to_values,
)
from learning.vector.metrics import Sums

ALGORITHM = FedAvg(FedAvgSettings(), TrainingPlan())
REQUEST = Request({}, ALGORITHM, TrainingPlan())
CONTEXT = CollectorContext(
    ALGORITHM, lambda: AGGREGATORS.make("mean", {"delta": 1}), "agents", {"delta": 1}
)
NOTHING = Sums(0.0, 0.0, {})


class Owner:
    """A device that has columns and nothing else."""

    state: dict[str, Any] = {}  # noqa: RUF012
    rng = np.random.default_rng(0)

    def __init__(self, values: Mapping[str, Any], weights: Any = None) -> None:
        arrays = {name: np.asarray(column, np.float64) for name, column in values.items()}
        self._columns = Columns(arrays, None if weights is None else np.asarray(weights, float))

    def columns(self) -> Columns:
        return self._columns

    def train(self, *_: Any) -> Any:
        raise AssertionError

    loss = evaluate = train


def asked(**changes: Any) -> StatisticsSettings:
    return StatisticsSettings(**changes)


def answer(settings: StatisticsSettings, values: Mapping[str, Any], weights: Any = None) -> Answer:
    return Statistics(settings).answer(REQUEST, Owner(values, weights))


def received(given: Answer) -> Received:
    """The answer after its way through a report's JSON."""
    report = Report(
        session="s",
        agent_instance="b",
        round_id=1,
        kind="result",
        phase="statistics",
        version=0,
        values=given.values,  # type: ignore[arg-type]
        num_examples=given.num_examples,
    )
    arrived = messages.decode(messages.encode(report), Report)
    return Received({}, NOTHING, arrived.values, arrived.num_examples)


def collected(settings: StatisticsSettings, *parts: Any) -> dict[str, Moments]:
    """Several devices' columns, each `values` or `(values, weights)`, as the coordinator sees."""
    collector = Statistics(settings).collector(CONTEXT)
    assert isinstance(collector, StatisticsCollector)
    for n, part in enumerate(parts):
        values, weights = part if isinstance(part, tuple) else (part, None)
        collector.accept(f"pi-{n}", received(answer(settings, values, weights)))
    return collector.columns


# -- one column -------------------------------------------------------------------------------


def test_the_moments_of_four_numbers_by_hand() -> None:
    found = moments(np.array([1.0, 2.0, 3.0, 6.0]), None, ())
    assert to_values({"x": found}) == {"x": (4, 0, 4, 3, 14, 1, 6)}
    assert (found.sum, found.variance) == (12, 3.5)
    assert found.std == pytest.approx(3.5**0.5)


def test_weights_count_rows_by_their_weight() -> None:
    found = moments(np.array([1.0, 5.0, 9.0]), np.array([3.0, 1.0, 0.0]), (2.0, 9.0))
    # mean (3 + 5) / 4 = 2; squares 3 · 1 + 1 · 9; extremes and count ask nobody for a weight
    assert to_values({"x": found})["x"] == (3, 0, 4, 2, 12, 1, 9, 3, 1, 0)
    assert (found.sum, found.variance) == (8, 3)


@pytest.mark.parametrize("nothing", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_is_missing_with_its_weight(nothing: float) -> None:
    found = moments(np.array([nothing, 2.0, 4.0, nothing]), np.array([9.0, 1.0, 1.0, 9.0]), (3.0,))
    assert to_values({"x": found})["x"] == (2, 2, 2, 3, 2, 2, 4, 1, 1)


def test_a_column_without_any_number_is_all_missing() -> None:
    found = moments(np.full(3, np.nan), None, (1.0,))
    assert to_values({"x": found})["x"] == (0, 3, 0, 0, 0, 0, 0, 0, 0)
    assert (found.sum, found.variance, found.std) == (0, 0, 0)
    assert collected(asked(columns={"x": (1.0,)}), {"x": [np.nan]}) != {}


def test_several_numbers_a_row_are_one_column_and_share_the_row_s_weight() -> None:
    found = moments(np.array([[1, 3], [5, np.nan]]), np.array([1.0, 2.0]), ())
    assert to_values({"x": found})["x"] == (3, 1, 4, 3.5, 11, 1, 5)


def test_a_number_on_an_edge_belongs_to_the_bin_above_it() -> None:
    found = moments(np.array([-1.0, 0.0, 0.5, 1.0, 1.0, 2.0, 9.0]), None, (0.0, 1.0, 2.0))
    assert found.histogram == (1, 2, 2, 2)  # below 0, 0 to 1, 1 to 2, 2 and above
    assert found.edges == (0, 1, 2)


def test_numbers_outside_all_edges_are_counted_at_the_ends() -> None:
    assert moments(np.array([-5.0, -4.0, 7.0]), None, (0.0, 1.0)).histogram == (2, 0, 1)
    assert moments(np.array([3.0]), None, (3.0,)).histogram == (0, 1)


@pytest.mark.parametrize("shape", [(200_001,), (3, 70_000), (70_000, 3), (1, 1), (5, 2, 2)])
def test_a_column_in_many_pieces_has_the_moments_of_the_whole(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    values, weights = rng.normal(1e6, 2.0, shape), rng.uniform(0, 2, shape[0])
    values.flat[0] = np.nan
    found = moments(values, weights, (1e6,))
    flat = values.reshape(len(values), -1)
    weight = np.broadcast_to(weights[:, None], flat.shape)[np.isfinite(flat)]
    numbers = flat[np.isfinite(flat)]
    if not numbers.size:
        assert found.count == 0
        return
    mean = np.average(numbers, weights=weight)
    assert found.mean == pytest.approx(mean, rel=1e-12)
    assert found.variance == pytest.approx(
        np.average((numbers - mean) ** 2, weights=weight), rel=1e-9
    )
    assert (found.count, found.missing) == (numbers.size, 1)
    assert sum(found.histogram) == pytest.approx(weight.sum(), rel=1e-12)


# -- many devices -----------------------------------------------------------------------------


def test_two_devices_by_hand() -> None:
    table = collected(asked(columns={"x": (2.0,)}), {"x": [1, 2, 3]}, {"x": [6, np.nan]})
    assert to_values(table) == {"x": (4, 1, 4, 3, 14, 1, 6, 1, 3)}


@given(
    columns=st.lists(
        hnp.arrays(
            np.float64,
            st.integers(1, 30),
            elements=st.one_of(st.just(np.nan), st.floats(-1e6, 1e6, width=32)),
        ),
        min_size=1,
        max_size=5,
    ),
    data=st.data(),
)
def test_merging_equals_the_concatenation(columns: list[Any], data: st.DataObject) -> None:
    weights = [
        data.draw(hnp.arrays(np.float64, len(c), elements=st.floats(0, 100, width=16)))
        for c in columns
    ]
    parts = [({"x": c}, w) for c, w in zip(columns, weights, strict=True)]
    (found,) = collected(asked(columns={"x": (-1.0, 0.0, 7.5)}, weighted=True), *parts).values()
    whole, weight = np.concatenate(columns), np.concatenate(weights)
    present = np.isfinite(whole)
    numbers, weight = whole[present], weight[present]
    assert (found.count, found.missing) == (numbers.size, whole.size - numbers.size)
    assert found.weight == pytest.approx(weight.sum(), rel=1e-9)
    if numbers.size:
        assert (found.minimum, found.maximum) == (numbers.min(), numbers.max())
    if weight.sum() > 0:
        mean, peak = np.average(numbers, weights=weight), np.abs(numbers).max()
        variance = np.average((numbers - mean) ** 2, weights=weight)
        assert found.mean == pytest.approx(mean, rel=1e-9, abs=1e-9 * peak)
        assert found.variance == pytest.approx(variance, rel=1e-9, abs=1e-9 * peak**2)
    bins = np.digitize(numbers, [-1.0, 0.0, 7.5])
    assert found.histogram == pytest.approx([weight[bins == n].sum() for n in range(4)], rel=1e-9)


def test_the_order_of_the_parts_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    parts = [moments(rng.normal(1e4, 3.0, n), None, ()) for n in (1, 1000, 3)]
    one = merged(merged(parts[0], parts[1]), parts[2])
    other = merged(merged(parts[2], parts[1]), parts[0])
    assert to_values({"x": one})["x"] == pytest.approx(to_values({"x": other})["x"], rel=1e-9)


def test_a_light_part_far_away_does_not_wipe_out_the_mean() -> None:
    far = Moments(count=1, missing=0, weight=1e-300, mean=1e99, m2=0, minimum=1e99, maximum=1e99)
    near = moments(np.array([4.0, 6.0]), None, ())
    assert merged(far, near).mean == merged(near, far).mean == 5


def test_one_device_s_missing_column_says_nothing_of_the_others() -> None:
    (found,) = collected(asked(), {"x": [np.nan, np.nan]}, {"x": [-7, -5]}).values()
    assert to_values({"x": found})["x"] == (2, 2, 2, -6, 2, -7, -5)


def test_weights_are_used_when_asked_for_only() -> None:
    part = ({"x": [1.0, 5.0]}, [3.0, 1.0])
    assert collected(asked(), part)["x"].mean == 3
    assert collected(asked(weighted=True), part)["x"].mean == 2
    assert collected(asked(weighted=True), {"x": [1.0, 5.0]})["x"].mean == 3


# -- what a device declines -------------------------------------------------------------------


def declined(settings: StatisticsSettings, values: Mapping[str, Any]) -> str:
    with pytest.raises(DeclinedError) as caught:
        answer(settings, values)
    assert caught.value.reason == "statistics"
    return str(caught.value)


def test_a_column_that_the_device_has_not_is_declined_with_those_that_it_has() -> None:
    assert declined(asked(columns={"z": ()}), {"x": [1], "y": [1]}) == (
        "no column 'z'; columns: x, y"
    )


@pytest.mark.parametrize("value", [1e300, 1e200, -1e99, 1e51])
def test_numbers_whose_squares_cannot_be_sent_are_declined(value: float) -> None:
    words = declined(asked(), {"x": [0.0, value]})
    assert words == "numbers of column 'x' are too large to square and add up"


def test_more_columns_than_an_answer_holds_are_declined() -> None:
    values = {f"x{n}": [1.0] for n in range(MAX_COLUMNS + 1)}
    assert "1,001 columns, limit 1,000" in declined(asked(), values)
    assert len(answer(asked(columns={"x3": ()}), values).values) == 1


def test_the_largest_answer_fits_a_message() -> None:
    columns = {f"{n:03d}{'x' * 61}": () for n in range(MAX_COLUMNS - 1)}
    edges = tuple(n + 0.123456789012345 for n in range(MAX_EDGES))
    wanted = asked(columns=columns | {"y": edges})
    values = {name: [-1.2345678901234567e30, 0.1] for name in wanted.columns}
    assert len(received(answer(wanted, values)).values) == MAX_COLUMNS
    assert len(msgspec.json.encode(wanted)) < 250_000


# -- what the coordinator refuses -------------------------------------------------------------

GOOD = (4.0, 1.0, 4.0, 3.0, 14.0, 1.0, 6.0, 1.0, 3.0)
ASKED = {"x": (2.0,)}


def test_the_numbers_of_a_device_are_taken_as_they_are() -> None:
    assert to_values(from_values({"x": GOOD}, ASKED)) == {"x": GOOD}


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (0, -4.0, "negative"),
        (0, 3.5, "counts 3.5"),
        (0, 2e18, "counts 2e\\+18"),
        (0, 0.0, "moments of no numbers"),
        (1, -1.0, "negative"),
        (1, 0.5, "counts 4 and 0.5"),
        (2, -4.0, "negative"),
        (2, 1e19, "weight 1e\\+19"),
        (2, 0.0, "moments of no numbers"),
        (2, 5.0, "histogram of weight 4, column of 5"),
        (3, 0.9, "mean 0.9 outside 1 to 6"),
        (3, 6.1, "mean 6.1 outside"),
        (4, -1.0, "negative"),
        (4, 26.0, "variance 6.5 between 1 and 6"),
        (5, 7.0, "mean 3 outside 7 to 6"),
        (6, 2.0, "mean 3 outside 1 to 2"),
        (7, -1.0, "negative"),
        (8, 9.0, "histogram of weight 10"),
        (3, float("nan"), "not finite"),
        (4, float("inf"), "not finite"),
        (6, 1e101, "beyond 1e\\+100"),
    ],
)
def test_numbers_that_no_device_computes_are_refused(place: int, value: float, words: str) -> None:
    numbers = (*GOOD[:place], value, *GOOD[place + 1 :])
    with pytest.raises(ValueError, match=f"x: .*{words}"):
        from_values({"x": numbers}, ASKED)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "no columns"),
        ({"x": GOOD[:-1]}, "8 numbers, expected 9"),
        ({"x": (*GOOD, 0.0)}, "10 numbers, expected 9"),
        ({"x": ()}, "0 numbers, expected 9"),
        ({"x": GOOD, "y": GOOD}, "'y' was not asked for"),
        ({"y": GOOD}, "'x' is missing"),
    ],
)
def test_other_columns_or_lengths_than_asked_for_are_refused(values: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        from_values(values, ASKED)


@pytest.mark.parametrize("rows", [0, 2, 6, 10, 2**53])
def test_numbers_that_do_not_fit_the_rows_are_refused(rows: int) -> None:
    collector = StatisticsCollector(asked(columns=ASKED))
    with pytest.raises(UpdateRejected, match=f"{rows} rows") as caught:
        collector.accept("pi-1", Received({}, NOTHING, {"x": GOOD}, rows))
    assert caught.value.reason == "statistics"
    assert collector.columns == {}


def test_a_refused_answer_leaves_the_table_as_it_was() -> None:
    collector = StatisticsCollector(asked())
    numbers = GOOD[:7]
    collector.accept("a", Received({}, NOTHING, {"x": numbers, "y": numbers}, 5))
    bad = (*numbers[:4], -1.0, *numbers[5:])
    with pytest.raises(UpdateRejected):
        collector.accept("b", Received({}, NOTHING, {"x": numbers, "y": bad}, 5))
    assert to_values(collector.columns) == {"x": numbers, "y": numbers}


def test_devices_cannot_fill_the_table_with_columns() -> None:
    collector = StatisticsCollector(asked())
    many = {f"x{n}": GOOD[:7] for n in range(MAX_COLUMNS)}
    collector.accept("a", Received({}, NOTHING, many, 5))
    with pytest.raises(UpdateRejected, match="more than 1000 columns in all"):
        collector.accept("b", Received({}, NOTHING, {"y": GOOD[:7]}, 5))
    assert len(collector.columns) == MAX_COLUMNS


def test_the_wildest_plausible_answers_stay_finite() -> None:
    collector = StatisticsCollector(asked())
    for n, mean in enumerate((1e100, -1e100) * 50):
        numbers = (1e18, 0.0, 1e18, mean, 0.0, mean, mean)
        collector.accept(f"pi-{n}", Received({}, NOTHING, {"x": numbers}, 1))
    assert np.isfinite(to_values(collector.columns)["x"]).all()


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "null", '"1"', "1e101"])
def test_a_number_that_is_none_does_not_come_by_json(number: str) -> None:
    report = messages.encode(
        Report(
            session="s",
            agent_instance="b",
            round_id=1,
            kind="result",
            phase="statistics",
            version=0,
            values={"x": (77.0,)},
        )
    )
    with pytest.raises(WireError):
        messages.decode(report.replace(b"77.0", number.encode()), Report)
    assert MAX_NUMBER == 1e100


# -- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"x": [2, 1]}, "columns.x: edges must be finite and ascend"),
        ({"x": [1, 1]}, "ascend"),
        ({"x": [0, float("inf")]}, "finite"),
        ({"x": [float("nan")]}, "finite"),
        ({"x": list(range(MAX_EDGES)), "y": [1.0]}, "5,001 edges in all, limit 5,000"),
        ({f"x{n}": [] for n in range(MAX_COLUMNS + 1)}, "length <= 1000"),
        ({"x": 3}, "expected a list"),
    ],
)
def test_edges_and_columns_out_of_bounds_are_refused(columns: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        PHASES.settings({"name": "statistics", "columns": columns}, key="task")
