"""Data that an agent does not train on, and what it says of them."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge_agent.data.dataset import EmptyDataError, load_dataset
from fedge.errors import ConfigError, DataError
from models.package.spec import TensorSpec
from tests.unit.edge_agent.training.dataset_files import (
    CLASSES,
    config,
    csv,
    csv_config,
    make_spec,
    npz,
    refusal,
)
from tests.users import as_nobody

# -- NaN and infinity ----------------------------------------------------------------------------


def test_a_nan_is_refused_with_its_row_and_column(tmp_path: Path) -> None:
    x = np.ones((4, 2))
    x[2, 1] = np.nan
    npz(tmp_path, x=x, y=np.ones(4))
    spec = make_spec(TensorSpec("x", (2,), features=("ax", "ay")))
    assert refusal(tmp_path, config(), spec) == (
        "data.npz: row 2, column 'x[ay]': nan is no finite number; "
        "with `nan: drop` such rows are left out"
    )
    assert refusal(tmp_path, config()).startswith("data.npz: row 2, column 'x[1]': nan is")


def test_a_number_beyond_float32_counts_as_infinite(tmp_path: Path) -> None:
    npz(tmp_path, x=np.full((4, 2), 1e300), y=np.ones(4))
    assert "row 0, column 'x[0]': 1e+300 is more than float32 holds, 3.4e+38; with" in refusal(
        tmp_path, config()
    )


@pytest.mark.parametrize("cell", ["", "NA", "nan", "inf", "-inf", "null", "1e999"])
def test_an_absent_reading_in_a_csv_is_refused_with_its_line(tmp_path: Path, cell: str) -> None:
    csv(tmp_path, f"a,b,price\n1,2,3\n\n1,{cell},3\n")
    assert refusal(tmp_path, csv_config()).startswith("data.csv: line 4, column 'b': ")


def test_rows_with_nan_are_dropped_on_request_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    csv(tmp_path, "a,b,price\n1,2,3\n1,,3\n1,2,inf\n4,5,6\n")
    with caplog.at_level(logging.WARNING):
        data = load_dataset(csv_config(nan="drop", test_fraction=0), make_spec(), tmp_path)
    assert data.arrays["target"].tolist() == [3, 6]
    assert data.rows.tolist() == [0, 3]
    assert "2 of 4 rows dropped: no reading, NaN or infinity (b 1, price 1)" in caplog.text


def test_nothing_left_after_dropping_is_an_empty_dataset(tmp_path: Path) -> None:
    csv(tmp_path, "a,b,price\n1,,3\n")
    with pytest.raises(EmptyDataError, match=r"data\.csv: no rows \(1 dropped for NaN\)"):
        load_dataset(csv_config(nan="drop"), make_spec(), tmp_path)


# -- what is refused -----------------------------------------------------------------------------


def test_no_rows_are_an_empty_dataset(tmp_path: Path) -> None:
    npz(tmp_path, x=np.ones((0, 2)), y=np.ones(0))
    csv(tmp_path, "a,b,price\n")
    for cfg in (config(), csv_config()):
        with pytest.raises(EmptyDataError, match=r"no rows$"):
            load_dataset(cfg, make_spec(), tmp_path)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1, 3], "row 2, column 'y': 3 is not one of 3 classes, 0 to 2 (rest, walk, run)"),
        ([0, -1, 3], "row 1, column 'y': -1 is not one of 3 classes, 0 to 2 (rest, walk, run)"),
        ([0, 1.5, 1], "row 1, column 'y': 1.5 is not one of 3 classes, 0 to 2 (rest, walk, run)"),
    ],
)
def test_a_class_that_does_not_exist_is_refused(
    tmp_path: Path, values: list[float], expected: str
) -> None:
    npz(tmp_path, x=np.ones((3, 2)), y=np.array(values))
    assert refusal(tmp_path, config(), make_spec(target=CLASSES)) == f"data.npz: {expected}"


@pytest.mark.parametrize(
    ("output", "values", "expected"),
    [
        ((3,), [0, 2, 3], "row 2, column 'y': 3 is not one of 3 classes, 0 to 2"),
        ((3,), [0, 99, 0], "row 1, column 'y': 99 is not one of 3 classes, 0 to 2"),
        ((3,), [-1, 0, 0], "row 0, column 'y': -1 is not one of 3 classes, 0 to 2"),
        ((), [0, 1, 2], "row 2, column 'y': 2 is not one of 2 classes, 0 to 1"),
    ],
)
def test_a_class_without_a_name_has_to_exist_too(
    tmp_path: Path, output: tuple[int, ...], values: list[int], expected: str
) -> None:
    """The program would find no loss and no gradient for it, or absurd ones."""
    spec = msgspec.structs.replace(
        make_spec(target=TensorSpec("target", (), "int32")),
        outputs=(TensorSpec("prediction", output),),
    )
    npz(tmp_path, x=np.ones((3, 2)), y=np.array(values))
    assert refusal(tmp_path, config(), spec) == f"data.npz: {expected}"


def test_labels_that_count_from_one_are_asked_about(tmp_path: Path) -> None:
    npz(tmp_path, x=np.ones((3, 2)), y=np.array([1, 2, 3]))
    assert refusal(tmp_path, config(), make_spec(target=CLASSES)) == (
        "data.npz: row 2, column 'y': 3 is not one of 3 classes, 0 to 2 (rest, walk, run); does "
        "the file count classes from 1?"
    )


def test_a_wrong_class_in_a_csv_names_the_line(tmp_path: Path) -> None:
    csv(tmp_path, "a,b,price\n1,2,2\n1,2,7\n")
    line = refusal(tmp_path, csv_config(), make_spec(target=CLASSES))
    assert (
        line
        == "data.csv: line 3, column 'price': 7 is not one of 3 classes, 0 to 2 (rest, walk, run)"
    )
    csv(tmp_path, "a,b,price\n1,2,jog\n")
    line = refusal(tmp_path, csv_config(), make_spec(target=CLASSES))
    assert (
        line == "data.csv: line 2, column 'price': 'jog' is none of the 3 classes (rest, walk, run)"
    )
    nameless = make_spec(target=TensorSpec("target", (), "int32"))
    line = refusal(tmp_path, csv_config(), nameless)
    assert line.endswith("'jog' is no number; the model's classes are 0 to 1")


def test_a_file_beside_the_folder_is_named_without_the_way_to_it(tmp_path: Path) -> None:
    csv(tmp_path, "a,b,price\n1,2,x\n")
    (tmp_path / "s").mkdir()
    with pytest.raises(DataError) as caught:
        load_dataset(csv_config(path="../data.csv"), make_spec(), tmp_path / "s")
    assert str(caught.value).startswith(f"{tmp_path.resolve()}/data.csv: line 2")


def test_a_whole_number_input_refuses_fractions_and_what_int32_cannot_hold(tmp_path: Path) -> None:
    spec = make_spec(TensorSpec("x", (2,), "int32"))
    npz(tmp_path, x=np.array([[1, 2.5]]), y=np.ones(1))
    assert "row 0, column 'x[1]': 2.5 is not a whole number, -2147483648" in refusal(
        tmp_path, config(), spec
    )
    npz(tmp_path, x=np.array([[1, 1 << 40]]), y=np.ones(1))
    assert "1099511627776 is not a whole number, -2147483648 to" in refusal(
        tmp_path, config(), spec
    )


@pytest.mark.parametrize(
    ("arrays", "keys", "expected"),
    [
        ({"z": np.ones(3)}, {}, "no array 'y'; arrays: z"),
        ({"y": np.ones(3), "xs": np.ones(3)}, {}, "no array 'x'; did you mean xs? arrays: y, xs"),
        (
            {"y": np.ones(3), "x": np.ones((3, 5))},
            {},
            "array 'x' has shape (3, 5); x needs (rows, 2)",
        ),
        ({"y": np.ones(3), "x": np.ones((4, 2))}, {}, "array 'x' has 4 rows, array 'y' has 3"),
        ({"y": np.float64(1), "x": np.ones((4, 2))}, {}, "array 'y' is one number, expected one"),
        ({"y": np.array(["a"]), "x": np.ones((1, 2))}, {}, "array 'y' holds <U1, expected numbers"),
        ({"y": np.array([{}]), "x": np.ones((1, 2))}, {}, "array 'y' holds Python objects, expec"),
        (
            {"y": np.ones(3), "x": np.ones((3, 2)), "g": np.ones(3)},
            {"group": "g"},
            "array 'g' (float64, shape (3,)) cannot be the group: expected one whole number",
        ),
        (
            {"y": np.ones(3), "x": np.ones((3, 2))},
            {"max_rows": 2},
            "3 rows, max_rows is 2; raise it if the device can hold them",
        ),
        (
            {"y": np.ones(3), "x": np.ones((3, 2))},
            {"inputs": {"z": {"array": "x"}}},
            "the model tiny has no input 'z'; inputs: x",
        ),
    ],
)
def test_an_npz_that_does_not_fit_says_what_and_why(
    tmp_path: Path, arrays: dict[str, Any], keys: dict[str, Any], expected: str
) -> None:
    npz(tmp_path, **arrays)
    assert refusal(tmp_path, config(**keys)).startswith(f"data.npz: {expected}")


@pytest.mark.parametrize(
    ("text", "keys", "expected"),
    [
        ("", {}, "data.csv: the file is empty, expected a header"),
        ("a,price\n1,2\n", {}, "data.csv: no column 'b'; columns: a, price"),
        (
            "a,b,prise (USD)\n1,2,3\n",
            {},
            "data.csv: no column 'price'; did you mean prise? columns: a, b, prise (USD)",
        ),
        ("a,b (m),b (s),price\n", {}, "data.csv: column 'b' is ambiguous: b (m), b (s)"),
        ("a,b,price\n1,two,3\n", {}, "data.csv: line 2, column 'b': 'two' is no number"),
        ("a,b,price\n1,1_0,3\n", {}, "data.csv: line 2, column 'b': '1_0' is no number"),
        ('a,b,price\n1,"1,5",3\n', {}, "data.csv: line 2, column 'b': '1,5' is no number"),
        ("a,b,price\n1,2,3\n1,2\n", {}, "data.csv: line 3: 2 cells, the header has 3"),
        ('a,b,price\n1,"2,3\n', {}, "data.csv: line 2: unexpected end of data"),
        (b"a,b,price\n1,2,\xff\n", {}, "data.csv: not UTF-8 text (invalid start byte)"),
        ("a,b,price\n" + "1" * 200_000 + ",2,3\n", {}, "data.csv: line 2, column 'a': inf is no"),
        ('a,b,price\n"' + "1" * 200_000 + '",2,3\n', {}, "data.csv: line 2: field larger than"),
        (" " * (1 << 20), {}, "data.csv: line 1: longer than 1048576 characters"),
        (
            "a,b,price\n1,2,3\n1,2,3\n1,2,3\n",
            {"max_rows": 2},
            "data.csv: more than 2 rows, max_rows is 2;",
        ),
        ("a,b,price\n1,2,3\n", {"group": "id"}, "data.csv: no column 'id'; columns: a, b, price"),
        (
            "a,b,price\n1,2,3\n",
            {"inputs": {"x": {"columns": ["a"]}}},
            "data.csv: x needs 2 columns (shape (2,)), 1 are configured: a",
        ),
        (
            "a,b,price\n1,2,3\n",
            {"inputs": {}},
            "data.csv: x needs 2 columns (shape (2,)), 0 are configured: none",
        ),
    ],
)
def test_a_csv_that_does_not_fit_says_where_and_why(
    tmp_path: Path, text: str | bytes, keys: dict[str, Any], expected: str
) -> None:
    csv(tmp_path, text)
    assert refusal(tmp_path, csv_config(**keys)).startswith(expected)


def test_a_file_that_cannot_be_opened_says_why(tmp_path: Path) -> None:
    for suffix, cfg in (("npz", config()), ("csv", csv_config())):
        begin = f"data.{suffix}: cannot be read:"
        assert refusal(tmp_path, cfg) == f"{begin} No such file or directory"
        (tmp_path / f"data.{suffix}").mkdir()
        assert refusal(tmp_path, cfg) == f"{begin} Is a directory"


def test_data_in_a_folder_of_another_user_says_so(tmp_path: Path) -> None:
    """As an agent finds it that runs as a user of its own."""
    npz(tmp_path, x=np.ones((3, 2)), y=np.ones(3))
    csv(tmp_path, "a,b,price\n1,2,3\n")
    tmp_path.chmod(0)
    with as_nobody():
        messages = [refusal(tmp_path, cfg) for cfg in (config(), csv_config())]
    tmp_path.chmod(0o700)
    assert messages == [
        "data.npz: cannot be read: Permission denied",
        "data.csv: cannot be read: Permission denied",
    ]


def test_a_damaged_npz_is_refused_wherever_the_damage_is(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(500, 2))
    np.savez_compressed(tmp_path / "data.npz", x=x, y=np.ones(500))
    whole = (tmp_path / "data.npz").read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "data.npz").write_bytes(whole[:size])
        assert "data.npz: not an .npz file" in refusal(tmp_path, config())
    middle = len(whole) // 3
    (tmp_path / "data.npz").write_bytes(whole[:middle] + b"\xff" * 64 + whole[middle + 64 :])
    assert "data.npz: array 'x' cannot be read" in refusal(tmp_path, config())


def test_an_array_whose_header_is_no_python_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        header = b"{(descr': '<f8', 'fortran_order': False, 'shape': (3,), }"
        archive.writestr("y.npy", b"\x93NUMPY\x01\x00" + bytes([len(header), 0]) + header)
    assert "data.npz: array 'y' cannot be read" in refusal(tmp_path, config())


def test_a_member_that_is_no_array_is_not_known(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("y", b"1")
    assert "y" in refusal(tmp_path, config())


def test_a_header_that_promises_a_billion_rows_costs_nothing(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive, archive.open("y.npy", "w") as file:
        np.lib.format.write_array_header_1_0(  # type: ignore[no-untyped-call]
            file, {"descr": "<f8", "fortran_order": False, "shape": (10**9,)}
        )
    assert "1000000000 rows, max_rows is 1000000" in refusal(tmp_path, config())


def test_class_targets_cannot_be_scaled(tmp_path: Path) -> None:
    npz(tmp_path, x=np.ones((3, 2)), y=np.arange(3))
    cfg = config(target={"array": "y", "scale": 2})
    assert "class targets cannot be scaled" in refusal(tmp_path, cfg, make_spec(target=CLASSES))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"path": "data.parquet"}, "data: path must end in .npz, .csv, .tsv, .txt, .sqlite, .s"),
        ({"test_fraction": 1.5}, "data: test_fraction must be 0 to 1, got 1.5"),
        ({"test_fraction": float("nan")}, "data: test_fraction must be 0 to 1, got nan"),
        ({"max_rows": 0}, "data: max_rows must be at least 1, got 0"),
        ({"nan": "ignore"}, "data.nan: expected one of: refuse, drop, got 'ignore'"),
        ({"inputs": {"x": {}}}, "data.inputs.x: give exactly one of array (for .npz) and columns"),
        ({"inputs": {"x": {"columns": ["a"]}}}, "data: inputs.x: a .npz file needs the key array"),
        ({"target": {"column": "a"}}, "data: target: a .npz file needs the key array"),
        ({"target": {"array": "a", "column": "b"}}, "data.target: give exactly one of array"),
        ({"target": {"array": "a", "scale": 0}}, "data.target: scale must be a finite number"),
        (
            {"path": "a.csv", "target": {"array": "y"}},
            "data: target: a .csv file needs the key col",
        ),
        (
            {"path": "a.csv", "inputs": {"x": {"array": "x"}}},
            "data: inputs.x: a .csv file needs the key columns",
        ),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_before_any_file_is_opened(
    keys: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**{"path": "data.npz", **keys})
    assert str(caught.value).startswith(f"agent.yaml: {expected}")
