"""Which rows calibrate and judge an int8 release, and what is wrong with them."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from models.export.release.calibration import Split, split_rows
from models.export.release.judging import Difference, difference_faults, row_differences
from models.zoo import load_zoo

SPEC = load_zoo("house_price").spec
NAME = SPEC.inputs[0].name
RANDOM = {NAME: np.full((3, 2), 7, np.float32), "target": np.zeros(3, np.float32)}


def rows(count: int, seed: int = 0, *, targets: bool = True) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    made = {NAME: rng.standard_normal((count, 2)).astype(np.float32)}
    return made | ({"target": np.zeros(count, np.float32)} if targets else {})


def split(calibration: dict[str, Any], data: dict[str, Any] | None = None) -> Split:
    return split_rows(SPEC, calibration, data, lambda: RANDOM)


def test_every_fifth_row_is_held_apart_and_does_not_calibrate() -> None:
    found = split(given := rows(23))
    assert found.judging[NAME].tolist() == given[NAME][4::5].tolist()
    assert found.numbers == [4, 9, 14, 19]
    assert len(found.calibrating[NAME]) == len(found.calibrating["target"]) == 19
    assert found.source == "rows of --calibration held apart"
    assert found.faults == ()
    assert found.measured(SPEC) is found.judging
    assert split(rows(23, targets=False)).measured(SPEC) is None


def test_equal_rows_are_on_the_same_side() -> None:
    given = {NAME: np.repeat(rows(20)[NAME], 3, 0)}
    found = split(given)
    assert (len(found.calibrating[NAME]), len(found.judging[NAME])) == (48, 12)
    assert not set(map(bytes, found.calibrating[NAME])) & set(map(bytes, found.judging[NAME]))


def test_rows_of_other_data_judge_and_all_of_the_calibration_calibrates() -> None:
    calibration, data = rows(20), rows(30, seed=1)
    data[NAME][:10] = calibration[NAME][:10]
    found = split(calibration, data)
    assert len(found.calibrating[NAME]) == 20
    assert found.judging[NAME].tolist() == data[NAME][10:].tolist()
    assert found.numbers == list(range(10, 30))
    assert found.source == "rows of --data that do not calibrate"
    assert split(calibration, calibration).source == "rows of --calibration held apart"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({NAME: np.ones((1, 2), np.float32)}, "has 1 different row of 1, 10 at least"),
        ({NAME: np.ones((50, 2), np.float32)}, "has 1 different row of 50, 10 at least"),
        (rows(9), "has 9 different rows of 9, 10 at least"),
    ],
)
def test_a_calibration_without_spread_is_a_fault_and_random_rows_judge(
    given: dict[str, Any], says: str
) -> None:
    found = split(given)
    (fault,) = found.faults
    assert says in fault
    assert (found.judging, found.source) == (RANDOM, "random rows")
    assert len(found.calibrating[NAME]) == len(given[NAME])
    assert found.measured(SPEC) is None


def test_one_number_far_beyond_all_others_is_a_fault() -> None:
    given = rows(200)
    given[NAME][8, 1] = 1e6
    (fault,) = split(given).faults
    assert "reaches 1e+06 after scaling (row 8)" in fault
    assert fault.endswith("(limit 1,000): remove such rows")
    given[NAME][8, 1] = 900.0
    assert split(given).faults == ()


def test_ids_and_sparse_inputs_have_no_such_range() -> None:
    sparse = {NAME: np.zeros((200, 2), np.float32)}
    sparse[NAME][:, 0] = np.arange(200) % 3 == 0
    sparse[NAME][:12, 1] = np.arange(12) / 12
    assert split(sparse).faults == ()
    ids = msgspec.structs.replace(SPEC.inputs[0], dtype="int32", mean=(), std=())
    spec = msgspec.structs.replace(SPEC, inputs=(ids,))
    numbers = np.arange(400, dtype=np.int32).reshape(200, 2)
    numbers[7] = 10_000_000
    assert split_rows(spec, {NAME: numbers}, None, lambda: RANDOM).faults == ()


def test_a_constant_prediction_is_one_spread_off_whatever_its_mean() -> None:
    wanted = 293.15 + np.tile([0.3, -0.3], 50).astype(np.float32)
    found = row_differences({"y": wanted}, {"y": np.full(100, 293.15, np.float32)})
    assert found is not None
    assert (found.median, found.worst) == pytest.approx((1.0, 1.0), rel=1e-4)
    assert len(difference_faults(found, "rows", range(100, 200))) == 1


def test_differences_are_of_the_worst_output_and_row() -> None:
    base = np.tile([[1.0, 0.0], [-1.0, 0.0]], (20, 1))
    off = base.copy()
    off[:, 1] += 0.1
    off[17, 1] += 2.9
    found = row_differences({"a": base, "b": base}, {"a": base, "b": off})
    assert found is not None
    assert (found.median, found.worst) == pytest.approx((0.1, 3.0))
    assert found.row == 17
    assert difference_faults(found, "rows", range(100, 200)) == [
        "row 117 of the rows differs by 3.00 spreads (limit 2.0)"
    ]


def test_an_absurd_row_does_not_make_all_differences_small() -> None:
    wanted = np.tile([1.0, -1.0], 20)
    wanted[3] = 1e6
    found = row_differences({"y": wanted}, {"y": np.zeros(40)})
    assert found is not None
    assert 0.5 < found.median < 1.1


def test_what_cannot_be_told_is_no_praise() -> None:
    assert row_differences({"y": np.ones(9)}, {"y": np.ones(9)}) is None
    assert difference_faults(None, "random rows", ()) == [
        "the float model predicts the same for all random rows, which cannot tell"
    ]
    assert len(difference_faults(Difference(float("nan"), float("nan"), 0), "rows", [5])) == 2
    assert difference_faults(Difference(0.1, 1.0, 0), "rows", [5]) == []
