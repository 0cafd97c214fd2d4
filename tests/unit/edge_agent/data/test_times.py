"""Times of rows: how they are written, the order that they give, and features made of them."""

from __future__ import annotations

import logging
from math import cos, pi, sin
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.data.dataset import build_dataset, load_dataset, read_table
from fedge.errors import ConfigError
from models.package.spec import TensorSpec
from tests.unit.edge_agent.training.dataset_files import csv, csv_config, make_spec, refusal

ONE = make_spec(TensorSpec("x"))


def read(
    folder: Path, times: list[str], column: str = "time.seconds", **keys: Any
) -> tuple[list[float], list[float]]:
    """A feature of each row's time and its target, which counts the lines of the file from 0."""
    csv(folder, "stamp;v;price\n" + "".join(f"{t};1;{n}\n" for n, t in enumerate(times)))
    cfg = csv_config(
        inputs={"x": {"columns": [column]}},
        time={"column": "stamp", **keys.pop("time", {})},
        test_fraction=0,
        **keys,
    )
    data = load_dataset(cfg, ONE, folder)
    return data.arrays["x"].tolist(), data.arrays["target"].tolist()


@pytest.mark.parametrize(
    "text",
    [
        *("1970-01-02T00:00:01", "1970-01-02 00:00:01Z", "1970-01-02T01:00:01+01:00"),
        *("1970-01-02T00:00:01.000+00:00", "19700102T000001Z", "02.01.1970 00:00:01", "86401"),
        *("02.01.1970 00:00:01.000", "02.01.1970 00:00:01,000", "2.1.1970 0:00:01"),
        *("86401.0", " 86401 "),
    ],
)
def test_times_are_seconds_since_1970(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, [text])[0] == [86401]


def test_fractions_of_a_second_may_come_and_go(tmp_path: Path) -> None:
    times = ["02.01.1970", "02.01.1970 00:00:01,25", "02.01.1970 00:00:01.5", "02.01.1970 00:01"]
    assert read(tmp_path, times)[0] == [86400, 86401.25, 86401.5, 86460]


@pytest.mark.parametrize(
    ("number", "unit"), [("1700000000", ""), ("1700000000000", ""), ("1.7e15", ""), ("1.7e18", "")]
)
def test_the_size_of_a_number_says_its_unit(tmp_path: Path, number: str, unit: str) -> None:
    # 1.7e9 s are 19675 days and 22 h 13 min 20 s
    hour = read(tmp_path, [number], "time.hour")[0][0]
    assert hour == pytest.approx(22 + 13 / 60 + 20 / 3600, rel=1e-6)


def test_a_unit_or_a_pattern_may_be_given(tmp_path: Path) -> None:
    assert read(tmp_path, ["5000"], time={"format": "ms"})[0] == [5]
    pattern = {"format": "%m/%d/%Y %H:%M"}
    assert read(tmp_path, ["01/02/1970 00:01"], time=pattern)[0] == [86460]


def test_a_date_that_can_be_read_in_two_ways_is_asked_about(tmp_path: Path) -> None:
    csv(tmp_path, "stamp,a,b,price\n01/02/1970 00:01,1,2,3\n")
    line = refusal(tmp_path, csv_config(time={"column": "stamp"}))
    assert line == (
        "data.csv: line 2, column 'stamp': '01/02/1970 00:01' is no time; which is the day? Write "
        "`time: {format: '%d/%m/%Y %H:%M'}` or `time: {format: '%m/%d/%Y %H:%M'}` into data"
    )
    csv(tmp_path, "stamp,a,b,price\n2026-01-01,1,2,3\nyesterday,1,2,3\n")
    line = refusal(tmp_path, csv_config(time={"column": "stamp"}))
    assert line.startswith("data.csv: line 3, column 'stamp': 'yesterday' is no time; expected ISO")
    csv(tmp_path, "stamp,a,b,price\n31.02.2026 00:00:00.000,1,2,3\n")
    line = refusal(tmp_path, csv_config(time={"column": "stamp"}))
    assert "'31.02.2026 00:00:00.000' is no time" in line
    assert "the pattern that data.time.format gives" in line


# -- order ---------------------------------------------------------------------------------------


def test_rows_are_put_in_the_order_of_time_and_keep_their_numbers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert read(tmp_path, ["30", "10", "20", "20", "40"])[1] == [1, 2, 3, 0, 4]
    assert "1 row earlier than the one before: put in the order of time" in caplog.text
    csv(tmp_path, "stamp,a,b,price\n30,1,2,0\n10,1,2,1\n20,1,2,2\n40,1,2,3\n")
    cfg = csv_config(time={"column": "stamp"}, test_fraction=0.25)
    data = load_dataset(cfg, make_spec(), tmp_path)
    assert data.rows.tolist() == [1, 2, 0, 3]
    assert data.part("test")["target"].tolist() == [3]
    assert data.places is not None
    assert data.places.name(0).endswith("data.csv: line 2")
    # a fleet's agent, whose rows are dealt out in the order of the file
    dealt = build_dataset(read_table(cfg, make_spec(), tmp_path), cfg, make_spec(), None,
                          np.array([0, 1, 2]))  # fmt: skip
    assert dealt.rows.tolist() == [1, 2, 0]


def test_each_group_is_split_at_its_own_latest_times(tmp_path: Path) -> None:
    csv(tmp_path, "stamp,a,b,price,g\n9,1,2,0,p\n1,1,2,1,p\n2,1,2,2,q\n8,1,2,3,q\n")
    cfg = csv_config(time={"column": "stamp"}, test_fraction=0.5, group="g")
    data = load_dataset(cfg, make_spec(), tmp_path)
    assert sorted(data.part("test")["target"].tolist()) == [0, 3]


def test_a_row_without_a_time_is_dropped_or_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert read(tmp_path, ["1", "", "3", "unknown"], nan="drop")[1] == [0, 2]
    assert "2 of 4 rows dropped: no reading, NaN or infinity (time 2" in caplog.text
    csv(tmp_path, "stamp,a,b,price\n,1,2,3\n")
    line = refusal(tmp_path, csv_config(time={"column": "stamp"}))
    assert line == (
        "data.csv: line 2, column 'stamp': '' is no time; with `nan: drop` such rows are left out"
    )


# -- zones ---------------------------------------------------------------------------------------


def test_a_time_without_a_zone_is_one_of_the_configured_zone(tmp_path: Path) -> None:
    berlin = {"zone": "Europe/Berlin"}
    assert read(tmp_path, ["1970-01-02 00:00:01"], time=berlin)[0] == [86401 - 3600]
    assert read(tmp_path, ["1970-07-01 00:00:00+00:00"], time=berlin)[0] == [181 * 86400]


def test_the_hour_that_comes_twice_when_clocks_are_put_back_is_in_order(tmp_path: Path) -> None:
    """In 2026 Berlin's clocks go back on 25 October at 3:00."""
    times = ["01:30", "02:00", "02:30", "02:00", "02:30", "03:00"]
    found, order = read(
        tmp_path,
        [f"2026-10-25 {time}:00" for time in times],
        time={"zone": "Europe/Berlin"},
        normalise="none",
    )
    assert order == [0, 1, 2, 3, 4, 5]
    hours = read(
        tmp_path,
        [f"2026-10-25 {time}:00" for time in times],
        "time.hour",
        time={"zone": "Europe/Berlin"},
    )[0]
    assert hours == [1.5, 2, 2.5, 2, 2.5, 3]
    assert len(found) == 6


def test_clocks_put_forward_leave_no_gap(tmp_path: Path) -> None:
    """On 29 March 2026 2:00 is 3:00 in Berlin: half an hour lies between 1:45 and 3:15."""
    spec = make_spec(TensorSpec("x", mean=(1_774_700_000.0,), std=(1.0,)))
    csv(tmp_path, "stamp,price\n2026-03-29 01:45:00,0\n2026-03-29 03:15:00,1\n")
    cfg = csv_config(
        inputs={"x": {"columns": ["stamp"]}},
        time={"column": "stamp", "zone": "Europe/Berlin"},
        test_fraction=0,
    )
    first, second = load_dataset(cfg, spec, tmp_path).arrays["x"].tolist()
    assert second - first == 1800


def test_an_unknown_zone_is_refused() -> None:
    with pytest.raises(ConfigError, match="zone 'Berlin' is not known here; names are like"):
        csv_config(time={"column": "stamp", "zone": "Berlin"})
    with pytest.raises(ConfigError, match="format 'isoo' is none of auto, iso"):
        csv_config(time={"column": "stamp", "format": "isoo"})


# -- features ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("feature", "value"),
    [
        ("time.hour", 18.5),
        ("time.hour_sin", sin(2 * pi * 18.5 / 24)),
        ("time.hour_cos", cos(2 * pi * 18.5 / 24)),
        ("time.weekday", 0 + 18.5 / 24),  # 30 November 2026 is a Monday
        ("time.weekday_cos", cos(2 * pi * 18.5 / 24 / 7)),
        ("time.yearday", 333 + 18.5 / 24),  # the first day is 0
        ("time.yearday_sin", sin(2 * pi * (333 + 18.5 / 24) / 365.2425)),
    ],
)
def test_features_of_a_time_are_those_of_its_zone(
    tmp_path: Path, feature: str, value: float
) -> None:
    local = ["2026-11-30T18:30:00"]
    zone = {"zone": "Asia/Tokyo"}
    assert read(tmp_path, local, feature, time=zone)[0] == [pytest.approx(value, rel=1e-5)]
    there = ["2026-11-30T09:30:00Z"]
    assert read(tmp_path, there, feature, time=zone)[0] == [pytest.approx(value, rel=1e-5)]


def test_features_and_columns_stand_side_by_side(tmp_path: Path) -> None:
    csv(tmp_path, "stamp,a,price\n3600,5,0\n7200,6,1\n")
    cfg = csv_config(
        inputs={"x": {"columns": ["a", "time.hour"]}}, time={"column": "stamp"}, test_fraction=0
    )
    assert load_dataset(cfg, make_spec(), tmp_path).arrays["x"].tolist() == [[5, 1], [6, 2]]


def test_a_column_that_is_called_like_a_feature_goes_before_it(tmp_path: Path) -> None:
    csv(tmp_path, "stamp,time.hour,a,price\n3600,17,5,0\n")
    cfg = csv_config(
        inputs={"x": {"columns": ["a", "time.hour"]}}, time={"column": "stamp"}, test_fraction=0
    )
    assert load_dataset(cfg, make_spec(), tmp_path).arrays["x"].tolist() == [[5, 17]]
