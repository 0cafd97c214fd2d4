"""Rows of a .npz file for the coordinator and for releases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.errors import DataError
from models.rows import read_rows
from models.spec import TensorSpec

SENSORS = TensorSpec("sensors", (2,), mean=(1.0,), std=(2.0,), missing=-9.0)
KIND = TensorSpec("target", (), "int32", classes=("ok", "worn", "broken"))
STEPS = TensorSpec("steps", (), "int32")


def file(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "rows.npz", **arrays)
    return folder / "rows.npz"


def test_rows_come_scaled_in_the_types_of_the_spec(tmp_path: Path) -> None:
    path = file(tmp_path, sensors=[[1.0, 3.0], [np.nan, 5.0]], target=[0.0, 2.0])
    rows = read_rows(path, [SENSORS, KIND])
    assert rows["sensors"].tolist() == [[0.0, 1.0], [-9.0, 2.0]]
    assert rows["sensors"].dtype == np.float32
    assert rows["target"].tolist() == [0, 2]
    assert rows["target"].dtype == np.int32


def test_y_is_the_target_unless_there_is_one_of_that_name(tmp_path: Path) -> None:
    """As agents read it."""
    assert read_rows(file(tmp_path, y=[2]), [KIND])["target"].tolist() == [2]
    assert read_rows(file(tmp_path, y=[2], target=[1]), [KIND])["target"].tolist() == [1]


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"sensors": None}, "no array 'sensors'; it has: target"),
        ({"sensors": [[1.0, 2.0, 3.0]]}, r"float64 of \(1, 3\), expected numbers of shape"),
        ({"sensors": [["a", "b"]]}, "expected numbers"),
        ({"sensors": [[1.0, np.inf]]}, "has NaN or infinity"),
        ({"sensors": np.zeros((0, 2))}, "arrays of {'sensors': 0"),
        ({"sensors": [[1.0, 2.0]], "target": [0, 1]}, "all need the same number"),
        ({"target": [3]}, "row 0 of 'target' holds 3, not one of 3 classes, 0 to 2"),
        ({"target": [-1]}, "holds -1, not one of 3 classes"),
        ({"target": [0.5]}, "holds 0.5, not one of 3 classes"),
        ({"steps": [0.5]}, "holds 0.5, not a whole number"),
        ({"steps": [2.0**31]}, "not a whole number, -2147483648 to 2147483647"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, arrays: dict[str, Any], says: str
) -> None:
    whole = {"sensors": [[1.0, 2.0]], "target": [0], "steps": [1], **arrays}
    given = {name: array for name, array in whole.items() if array is not None}
    with pytest.raises(DataError, match=says) as caught:
        read_rows(file(tmp_path, **given), [SENSORS, KIND, STEPS])
    assert "\n" not in str(caught.value)


def test_another_file_than_an_npz_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"not an \.npz file: save the arrays with numpy"):
        read_rows(tmp_path / "rows.csv", [SENSORS])
    with pytest.raises(DataError, match="No such file"):
        read_rows(tmp_path / "none.npz", [SENSORS])
