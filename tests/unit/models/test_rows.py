"""Rows of a .npz file for the coordinator and for releases."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from fedge.errors import DataError
from learning.vector.parameters import Layout, ParameterSpec
from models.package.spec import ModelSpec, TensorSpec
from models.runtime.central_rows import has_targets, read_rows

SENSORS = TensorSpec("sensors", (2,), mean=(1.0,), std=(2.0,), missing=-9.0)
KIND = TensorSpec("target", (), "int32", classes=("ok", "worn", "broken"))
STEPS = TensorSpec("steps", (), "int32")
SPEC = ModelSpec(
    name="pump",
    inputs=(SENSORS, STEPS),
    targets=(KIND,),
    outputs=(TensorSpec("prediction", (3,)),),
    loss="sparse_categorical_crossentropy",
    metrics=(),
    batch_size=4,
    layout=Layout((ParameterSpec("kernel", (1,)),)),
)


def file(folder: Path, **arrays: Any) -> Path:
    """Writes a valid file of two rows, with some arrays replaced; None leaves one out."""
    whole = {"sensors": [[1.0, 3.0], [np.nan, 5.0]], "steps": [1, 2], "target": [0, 2], **arrays}
    given: dict[str, Any] = {name: array for name, array in whole.items() if array is not None}
    np.savez(folder / "rows.npz", **given)
    return folder / "rows.npz"


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_rows(path, SPEC)
    line = str(caught.value)
    assert "\n" not in line
    return line.replace(f"{path.parent}/", "")


def test_rows_are_scaled_and_have_the_dtypes_of_the_spec(tmp_path: Path) -> None:
    rows = read_rows(file(tmp_path, target=[0.0, 2.0]), SPEC)
    assert rows["sensors"].tolist() == [[0.0, 1.0], [-9.0, 2.0]]
    assert rows["sensors"].dtype == np.float32
    assert rows["target"].tolist() == [0, 2]
    assert rows["target"].dtype == np.int32


def test_y_is_the_target_unless_target_exists(tmp_path: Path) -> None:
    """Names columns as the data of agents does."""
    path = file(tmp_path, y=[2, 2], target=None)
    assert has_targets(path, SPEC)
    assert read_rows(path, SPEC)["target"].tolist() == [2, 2]
    assert read_rows(file(tmp_path, y=[2, 2]), SPEC)["target"].tolist() == [0, 2]


def test_inputs_are_read_without_targets(tmp_path: Path) -> None:
    path = file(tmp_path, target=None)
    assert not has_targets(path, SPEC)
    assert list(read_rows(path, SPEC, targets=False)) == ["sensors", "steps"]


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"sensors": None}, "no array 'sensors'; it has: steps, target"),
        ({"sensors": np.ones((2, 3))}, "array 'sensors' is float64 of (2, 3), expected numbers of"),
        ({"sensors": [["a", "b"]] * 2}, "array 'sensors' is <U1 of (2, 2), expected numbers"),
        ({"sensors": [[1.0, np.inf]] * 2}, "array 'sensors' has NaN or infinity"),
        ({"sensors": [[1.0, 1e39]] * 2}, "array 'sensors' has NaN or infinity"),
        (
            {"sensors": np.zeros((0, 2))},
            "arrays have different numbers of rows, or none: {'sensors': 0",
        ),
        ({"target": [0]}, "none: {'sensors': 2, 'steps': 2, 'target': 1}; all need"),
        ({"target": 0}, "array 'target' is one number, expected one per row"),
        ({"target": np.array([{}, {}])}, "array 'target' holds Python objects"),
        ({"target": [0, 3]}, "array 'target', row 1: 3 is not one of 3 classes, 0 to 2"),
        ({"target": [-1, 0]}, "array 'target', row 0: -1 is not one of 3 classes, 0 to 2"),
        ({"target": [0.5, 0]}, "array 'target', row 0: 0.5 is not one of 3 classes, 0 to 2"),
        ({"steps": [0.5, 0]}, "array 'steps', row 0: 0.5 is not a whole number, -2147483648 to"),
        ({"steps": [2.0**31, 0]}, "row 0: 2147483648 is not a whole number, -2147483648 to"),
    ],
)
def test_invalid_arrays_are_rejected_in_one_line(
    tmp_path: Path, arrays: dict[str, Any], says: str
) -> None:
    assert says in refusal(file(tmp_path, **arrays))


def test_classes_without_names_are_checked_by_number(tmp_path: Path) -> None:
    target = TensorSpec("target", (), "int32")
    three = msgspec.structs.replace(SPEC, targets=(target,))
    two = msgspec.structs.replace(three, outputs=(TensorSpec("prediction"),))
    for spec, wrong in ((three, 3), (three, -1), (two, 2)):
        with pytest.raises(DataError, match=rf"row 1: {wrong} is not one of . classes, 0 to"):
            read_rows(file(tmp_path, target=[0, wrong]), spec)


def test_a_header_that_claims_too_much_allocates_no_memory(tmp_path: Path) -> None:
    path = file(tmp_path, steps=None)
    with zipfile.ZipFile(path, "a") as archive, archive.open("steps.npy", "w") as member:
        np.lib.format.write_array_header_1_0(  # type: ignore[no-untyped-call]
            member, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)}
        )
    assert "array 'steps' cannot be read: 128 bytes for float64" in refusal(path)


def test_a_file_that_is_not_npz_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    assert "not an .npz file (save the arrays with numpy.savez)" in refusal(tmp_path / "rows.csv")
    assert "cannot be read: No such file" in refusal(tmp_path / "none.npz")


def test_a_damaged_npz_file_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    sensors = np.random.default_rng(0).normal(size=(500, 2))
    np.savez_compressed(path, sensors=sensors, steps=np.ones(500), target=np.ones(500))
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert refusal(path).startswith("rows.npz: not an .npz file")
        with pytest.raises(DataError, match=r"not an \.npz file"):
            has_targets(path, SPEC)
    middle = len(whole) // 3
    path.write_bytes(whole[:middle] + b"\xff" * 64 + whole[middle + 64 :])
    assert refusal(path).startswith("rows.npz: array 'sensors' cannot be read")
