"""LocalDataset: from a file and a DataConfig to arrays a program can take."""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from broker.config import parse_config
from edge_agent.data.dataset import (
    DataConfig,
    EmptyDataError,
    LocalDataset,
    build_dataset,
    load_dataset,
    read_table,
    split_in_time,
)
from edge_agent.data.normalise import STATE_FILE
from models.errors import ConfigError, DataError
from models.parameters import Layout, ParameterSpec
from models.spec import ModelSpec, TensorSpec
from tests.users import as_nobody

EXAMPLES = Path(__file__).parents[2] / "examples" / "data"


def make_spec(*inputs: TensorSpec, target: TensorSpec | None = None) -> ModelSpec:
    target = target or TensorSpec("target")
    return ModelSpec(
        name="tiny",
        inputs=inputs or (TensorSpec("x", (2,)),),
        targets=(target,),
        outputs=(TensorSpec("prediction", (len(target.classes),) if target.classes else ()),),
        loss="mse",
        metrics=(),
        batch_size=4,
        layout=Layout((ParameterSpec("kernel", (1,)),)),
    )


CLASSES = TensorSpec("target", (), "int32", classes=("rest", "walk", "run"))


def config(path: str = "data.npz", **keys: Any) -> DataConfig:
    return parse_config({"path": path, **keys}, DataConfig, "agent.yaml", key="data")


def npz(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "data.npz", **arrays)
    return folder


def csv(folder: Path, text: str | bytes) -> Path:
    (folder / "data.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def csv_config(**keys: Any) -> DataConfig:
    return config(
        **{
            "path": "data.csv",
            "inputs": {"x": {"columns": ["a", "b"]}},
            "target": {"column": "price"},
            **keys,
        },
    )


def refusal(
    base: Path, cfg: DataConfig, spec: ModelSpec | None = None, state_dir: Path | None = None
) -> str:
    with pytest.raises(DataError) as caught:
        load_dataset(cfg, spec or make_spec(), base, state_dir)
    line = str(caught.value)
    assert "\n" not in line
    return line.replace(f"{base}/", "")


# Reading ----------------------------------------------------------------------------------------


def test_an_npz_loads_in_the_types_and_shapes_of_the_spec(tmp_path: Path) -> None:
    npz(tmp_path, x=np.arange(20, dtype=np.float64).reshape(10, 2), y=np.arange(10, dtype=np.int8))
    data = load_dataset(config(), make_spec(), tmp_path)
    assert data.arrays["x"].dtype == data.arrays["target"].dtype == np.float32
    assert data.arrays["x"].shape == (10, 2)
    assert data.arrays["target"].shape == (10,)
    assert (data.num_train, data.num_test) == (8, 2)
    held_out = data.part("test")
    assert held_out["x"].tolist() == [[16, 17], [18, 19]]
    assert held_out["target"].tolist() == [8, 9]


def test_a_csv_loads_with_units_in_the_header_blank_lines_and_a_byte_order_mark(
    tmp_path: Path,
) -> None:
    csv(tmp_path, "\ufeffa (degC),note, b [m/s] ,price\r\n1,x,2,100\r\n\r\n3,y,4,300\r\n")
    cfg = csv_config(test_fraction=0, target={"column": "price", "scale": 0.01})
    data = load_dataset(cfg, make_spec(), tmp_path)
    assert data.arrays["x"].tolist() == [[1, 2], [3, 4]]
    assert data.arrays["target"].tolist() == [1, 3]
    assert data.arrays["x"].dtype == data.arrays["target"].dtype == np.float32


def test_csv_and_npz_of_the_same_numbers_give_the_same_dataset(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 2)).astype(np.float32), rng.normal(size=50)
    group = np.repeat([3, 1, 2], [10, 25, 15])
    npz(tmp_path, x=x, y=y, g=group)
    rows = zip(x.tolist(), y.tolist(), group.tolist(), strict=True)
    csv(tmp_path, "a,b,price,g\n" + "".join(f"{a!r},{b!r},{t!r},{g}\n" for (a, b), t, g in rows))
    one = load_dataset(config(group="g", normalise="device"), make_spec(), tmp_path)
    two = load_dataset(csv_config(group="g", normalise="device"), make_spec(), tmp_path)
    assert np.array_equal(one.arrays["x"], two.arrays["x"])
    assert np.array_equal(one.arrays["target"], two.arrays["target"])
    assert np.array_equal(one.rows, two.rows)


def test_columns_named_like_the_features_need_no_configuration(tmp_path: Path) -> None:
    csv(tmp_path, "b,a,price\n2,1,5\n")
    spec = make_spec(TensorSpec("x", (2,), features=("a", "b")))
    assert load_dataset(csv_config(inputs={}), spec, tmp_path).arrays["x"].tolist() == [[1, 2]]


def test_several_inputs_each_take_their_own_source(tmp_path: Path) -> None:
    npz(tmp_path, image=np.ones((3, 2, 2), np.uint8), sound=np.zeros(3), y=np.arange(3))
    spec = make_spec(TensorSpec("image", (2, 2, 1)), TensorSpec("audio"), target=CLASSES)
    data = load_dataset(config(inputs={"audio": {"array": "sound"}}), spec, tmp_path)
    assert data.arrays["image"].shape == (3, 2, 2, 1)
    assert data.arrays["audio"].shape == (3,)


def test_class_names_in_a_csv_become_indexes(tmp_path: Path) -> None:
    csv(tmp_path, "a,b,price\n1,2,walk\n1,2,rest\n1,2,2\n")
    data = load_dataset(csv_config(), make_spec(target=CLASSES), tmp_path)
    assert data.arrays["target"].tolist() == [1, 0, 2]
    assert data.arrays["target"].dtype == np.int32


def test_a_number_in_a_csv_is_the_class_of_that_name_where_names_are_numbers(
    tmp_path: Path,
) -> None:
    csv(tmp_path, "a,b,price\n1,2,1\n1,2,3\n1,2,2.0\n")
    spec = make_spec(target=TensorSpec("target", (), "int32", classes=("1", "2", "3")))
    assert load_dataset(csv_config(), spec, tmp_path).arrays["target"].tolist() == [0, 2, 1]
    csv(tmp_path, "a,b,price\n1,2,0\n")  # would be the index of "1"
    line = refusal(tmp_path, csv_config(), spec)
    assert line == "data.csv: line 2, column 'price': '0' is none of the 3 classes (1, 2, 3)"


def test_a_class_may_be_called_like_no_reading(tmp_path: Path) -> None:
    csv(tmp_path, "a,b,price\n1,2,none\n1,2,low\n1,2,0\n1,2,NA\n")
    spec = make_spec(target=TensorSpec("target", (), "int32", classes=("low", "none")))
    data = load_dataset(csv_config(nan="drop", test_fraction=0), spec, tmp_path)
    assert data.arrays["target"].tolist() == [1, 0, 0]


def test_nothing_can_be_written_to(tmp_path: Path) -> None:
    data = load_dataset(config(), make_spec(), npz(tmp_path, x=np.ones((9, 2)), y=np.ones(9)))
    taken = data.part("train")["target"]
    for array in (*data.arrays.values(), data.train, data.test, data.rows, taken):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        taken[0] = 0


def test_parts_share_the_memory_of_the_whole(tmp_path: Path) -> None:
    npz(tmp_path, x=np.ones((9, 2)), y=np.ones(9), g=np.arange(9) % 2)
    data = load_dataset(config(group="g"), make_spec(), tmp_path)
    assert np.shares_memory(data.part("train")["x"], data.arrays["x"])
    assert np.shares_memory(data.part("test")["target"], data.arrays["target"])


def test_a_negative_scale_turns_the_target_around(tmp_path: Path) -> None:
    npz(tmp_path, x=np.ones((2, 2)), y=np.array([1, 3]))
    cfg = config(target={"array": "y", "scale": -2}, test_fraction=0)
    assert load_dataset(cfg, make_spec(), tmp_path).arrays["target"].tolist() == [-2, -6]


# Splitting --------------------------------------------------------------------------------------


def test_later_rows_of_each_group_are_held_out_even_when_groups_interleave() -> None:
    group = np.array([7, 3, 7, 3, 7, 3, 7, 7])
    train, test = split_in_time(group, 0.34)  # 5 * .34 = 1.7 -> 2 of group 7; 1.02 -> 1 of group 3
    assert train.tolist() == [0, 1, 2, 3, 4]
    assert test.tolist() == [5, 6, 7]


@pytest.mark.parametrize(
    ("rows", "fraction", "held_out"),
    [(10, 0, 0), (10, 0.2, 2), (10, 1, 10), (1, 0.2, 0), (1, 0.9, 0), (1, 1, 1), (3, 0.99, 2)],
)
def test_a_fraction_below_one_leaves_something_to_train_on(
    rows: int, fraction: float, held_out: int
) -> None:
    train, test = split_in_time(np.zeros(rows), fraction)
    assert test.tolist() == list(range(rows))[rows - held_out :]
    assert train.tolist() == list(range(rows))[: rows - held_out]


def test_groups_may_be_texts(tmp_path: Path) -> None:
    npz(tmp_path, x=np.ones((4, 2)), y=np.arange(4), g=np.array(["b", "a", "b", "a"]))
    data = load_dataset(config(group="g", test_fraction=0.5), make_spec(), tmp_path)
    assert data.rows.tolist() == [0, 1, 2, 3]
    assert data.part("test")["target"].tolist() == [2, 3]
    csv(tmp_path, "a,b,price,g\n1,1,0,b\n1,1,1,b\n1,1,2, a\n1,1,3,a\n")
    data = load_dataset(csv_config(group="g", test_fraction=0.5), make_spec(), tmp_path)
    assert data.rows.tolist() == [0, 2, 1, 3]
    assert data.part("train")["target"].tolist() == [0, 2]


def test_everything_held_out_is_a_device_that_only_evaluates(tmp_path: Path) -> None:
    npz(tmp_path, x=np.ones((4, 2)), y=np.ones(4))
    data = load_dataset(config(test_fraction=1), make_spec(), tmp_path)
    assert (data.num_train, data.num_test) == (0, 4)


def test_some_rows_of_a_table_make_a_dataset_of_their_own(tmp_path: Path) -> None:
    npz(tmp_path, x=np.arange(20).reshape(10, 2), y=np.arange(10))
    table = read_table(config(), make_spec(), tmp_path)
    data = build_dataset(table, config(), make_spec(), rows=np.array([1, 3, 5, 7, 9]))
    assert data.part("train")["target"].tolist() == [1, 3, 5, 7]
    assert data.part("test")["target"].tolist() == [9]
    assert data.rows.tolist() == [1, 3, 5, 7, 9]
    with pytest.raises(EmptyDataError, match=r"no rows$"):
        build_dataset(table, config(), make_spec(), rows=np.array([], np.int64))


# Normalising ------------------------------------------------------------------------------------


def test_the_scale_of_the_spec_is_applied_by_default(tmp_path: Path) -> None:
    npz(tmp_path, x=np.array([[1, 10], [3, 30]]), y=np.ones(2))
    spec = make_spec(TensorSpec("x", (2,), mean=(1, 10), std=(2, 10)))
    assert load_dataset(config(), spec, tmp_path).arrays["x"].tolist() == [[0, 0], [1, 2]]
    raw = load_dataset(config(normalise="none"), spec, tmp_path).arrays["x"]
    assert raw.tolist() == [[1, 10], [3, 30]]


def test_the_device_measures_on_training_rows_only(tmp_path: Path) -> None:
    x = np.array([[0, 5], [2, 5], [4, 5], [6, 5], [1000, 9]], np.float32)
    npz(tmp_path, x=x, y=np.ones(5))
    data = load_dataset(config(normalise="device"), make_spec(), tmp_path)
    # mean 3, std sqrt(5); the second feature never changes, so it is only shifted
    expected = np.stack([(x[:, 0] - 3) / np.sqrt(5), x[:, 1] - 5], 1)
    assert data.arrays["x"] == pytest.approx(expected, rel=1e-6)
    assert data.scales["x"].mean == (3, 5)


def test_the_scale_of_the_device_does_not_drift_when_data_arrives(tmp_path: Path) -> None:
    state, cfg = tmp_path / "state", config(normalise="device", test_fraction=0)
    npz(tmp_path, x=np.array([[0, 0], [2, 4]]), y=np.ones(2))
    first = load_dataset(cfg, make_spec(), tmp_path, state)
    npz(tmp_path, x=np.array([[0, 0], [2, 4], [100, 100]]), y=np.ones(3))
    second = load_dataset(cfg, make_spec(), tmp_path, state)
    assert second.arrays["x"][:2].tolist() == first.arrays["x"].tolist() == [[-1, -1], [1, 1]]
    assert second.arrays["x"][2].tolist() == [99, 49]
    assert json.loads((state / STATE_FILE).read_text()) == {
        "scales": {"x": {"mean": [1.0, 2.0], "std": [1.0, 2.0], "source": ["x"]}},
        "format": 1,
    }
    assert [path.name for path in state.iterdir()] == [STATE_FILE]


def test_a_large_offset_does_not_eat_small_changes(tmp_path: Path) -> None:
    seconds = 1.7e9 + np.arange(100.0)
    npz(tmp_path, x=np.stack([seconds, seconds], 1), y=np.ones(100))
    data = load_dataset(config(normalise="device", test_fraction=0), make_spec(), tmp_path)
    # std of 100 steps of one second is 28.9 s, far below float32's spacing of 128 at 1.7e9
    assert data.scales["x"].std[0] == pytest.approx(28.866, rel=1e-4)
    assert len(np.unique(data.arrays["x"][:, 0])) == 100


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "state/normalisation.json: Input data was truncated; delete the file to measure"),
        ('{"scales": {"\udcff": 1}}', "state/normalisation.json: 'utf-8' codec can't decode byte"),
        ('{"scales": {"x": {"mean": [1], "std": [0]}}}', "stds positive"),
        ('{"scales": {}}', "the stored scale is not of this data (input 'x' has another"),
        (
            '{"scales": {"x": {"mean": [1], "std": [1], "source": ["x"]}}}',
            "the stored scale is not of this data",
        ),
        (
            '{"scales": {"x": {"mean": [1, 1], "std": [1, 1], "source": ["z"]}}}',
            "the stored scale is not of this data",
        ),
    ],
)
def test_a_stored_scale_that_does_not_fit_is_refused(
    tmp_path: Path, text: str, expected: str
) -> None:
    npz(tmp_path, x=np.ones((2, 2)), y=np.ones(2))
    state = tmp_path / "state"
    state.mkdir()
    (state / STATE_FILE).write_bytes(text.encode(errors="surrogateescape"))
    line = refusal(tmp_path, config(normalise="device"), state_dir=state)
    assert expected in line
    assert "delete the file to measure the scale again" in line


def test_a_device_that_only_evaluates_cannot_measure(tmp_path: Path) -> None:
    npz(tmp_path, x=np.ones((2, 2)), y=np.ones(2))
    line = refusal(tmp_path, config(normalise="device", test_fraction=1))
    assert line == "data.npz: normalise: device needs training rows to measure, there are none"


def test_a_scale_that_leaves_float32_is_refused(tmp_path: Path) -> None:
    npz(tmp_path, x=np.full((2, 2), 1e38), y=np.ones(2))
    spec = make_spec(TensorSpec("x", (2,), mean=(0,), std=(1e-6,)))
    with np.errstate(over="ignore"):
        assert "x is not finite after it was scaled" in refusal(tmp_path, config(), spec)


# NaN and infinity -------------------------------------------------------------------------------


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
    assert "2 of 4 rows dropped: NaN or infinity" in caplog.text


def test_nothing_left_after_dropping_is_an_empty_dataset(tmp_path: Path) -> None:
    csv(tmp_path, "a,b,price\n1,,3\n")
    with pytest.raises(EmptyDataError, match=r"data\.csv: no rows \(1 dropped for NaN\)"):
        load_dataset(csv_config(nan="drop"), make_spec(), tmp_path)


# What is refused --------------------------------------------------------------------------------


def test_no_rows_are_an_empty_dataset(tmp_path: Path) -> None:
    npz(tmp_path, x=np.ones((0, 2)), y=np.ones(0))
    csv(tmp_path, "a,b,price\n")
    for cfg in (config(), csv_config()):
        with pytest.raises(EmptyDataError, match=r"no rows$"):
            load_dataset(cfg, make_spec(), tmp_path)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1, 3], "row 2, column 'y': 3 is not one of 3 classes, 0 to 2"),
        ([0, -1, 3], "row 1, column 'y': -1 is not one of 3 classes, 0 to 2"),
        ([0, 1.5, 1], "row 1, column 'y': 1.5 is not one of 3 classes, 0 to 2"),
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


def test_a_wrong_class_in_a_csv_names_the_line(tmp_path: Path) -> None:
    csv(tmp_path, "a,b,price\n1,2,2\n1,2,7\n")
    line = refusal(tmp_path, csv_config(), make_spec(target=CLASSES))
    assert line == "data.csv: line 3, column 'price': 7 is not one of 3 classes, 0 to 2"
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
        ("a;b;price\n1;2;3\n", {}, "data.csv: no column 'a'; columns: a;b;price"),
        ('a,b,price\n1,"2,3\n', {}, "data.csv: line 2: unexpected end of data"),
        (b"a,b,price\n1,2,\xff\n", {}, "data.csv: not UTF-8 text (invalid start byte)"),
        ("a,b,price\n" + "1" * 200_000 + ",2,3\n", {}, "data.csv: line 2: field larger than"),
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
        ({"path": "data.parquet"}, "data: path must end in .npz or .csv, got 'data.parquet'"),
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


# The example data -------------------------------------------------------------------------------

EXAMPLE_FILES = {
    "comments_youtube.npz": (
        "c474c8b13b3f22a4fb94b6dd60a620451184b9b2f2ed73750006d42c4cea12f1",
        {"x": (1956, 1024), "y": (1956,), "client": (1956,), "client_names": (5,)},
    ),
    "engine_wear.npz": (
        "b1a765cdf07d4f0f9af7b49c5bea44d2eb0c8d90d3ef5e2d1ef933a779158335",
        {"x": (4184, 30, 14), "y": (4184,), "worn": (4184,), "client": (4184,)},
    ),
    "har_watch.npz": (
        "616d98584ea9d811340c0871be0b88f6ebdf0bef642edaf92b32d7521d585ebe",
        {"x": (2369, 100, 6), "y": (2369,), "client": (2369,), "recording": (2369,),
         "side": (2369,)},
    ),
    "heart_hospitals.npz": (
        "bef8b3dc5ffce993c528a70d60251e4dbcbf45c33b8878366d2b3faeb9bde0bb",
        {"x": (920, 13), "y": (920,), "client": (920,), "client_names": (4,)},
    ),
    "housing_california.npz": (
        "869bbfbf0e550d3fb60828a39701291be837f8ad47e566bf4181e112f0e32ae8",
        {"x": (19202, 2), "y": (19202,), "client": (19202,), "client_names": (29,)},
    ),
    "mnist_writers_small.npz": (
        "ac7bfb35e09b3075d64d403d34254ff8b509be08b843327380ac5e8b722b0147",
        {"x": (12622, 28, 28), "y": (12622,), "client": (12622,), "split": (12622,),
         "hsf": (12622,)},
    ),
    "road_traffic.npz": (
        "f623081a5dd5182d5d0f6d7ed416ecea4526b42ff68e8dc5017ceaf723ba9561",
        {"x": (5633, 12, 3), "y": (5633,), "client": (5633,), "client_names": (5,)},
    ),
    "spoken_words.npz": (
        "75c76b978c0c0ef0ed3fce6d65db455b186879b853b55ba24373348142e08026",
        {"x": (1858, 39, 16), "y": (1858,), "client": (1858,)},
    ),
    "spoken_written_digits.npz": (
        "9a7d67d5de545cddce744fb75d90930968df25848efe27ad0b5b60d5f599704f",
        {"image": (1440, 28, 28), "sound": (1440, 24, 16), "y": (1440,), "client": (1440,)},
    ),
}  # fmt: skip


def test_every_example_file_is_listed_here_and_documented() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.npz")) == sorted(EXAMPLE_FILES)
    for document in ("README.md", "LICENSES.md"):
        text = (EXAMPLES / document).read_text()
        assert [name for name in EXAMPLE_FILES if name not in text] == []
    readme = (EXAMPLES / "README.md").read_text()
    assert [name for name, (sha256, _) in EXAMPLE_FILES.items() if sha256 not in readme] == []


@pytest.mark.parametrize("name", EXAMPLE_FILES)
def test_example_files_load_without_pickle_and_are_what_their_readme_says(name: str) -> None:
    sha256, shapes = EXAMPLE_FILES[name]
    assert hashlib.sha256((EXAMPLES / name).read_bytes()).hexdigest() == sha256
    with np.load(EXAMPLES / name, allow_pickle=False) as file:
        assert {key: file[key].shape for key in file.files} == shapes


def load_watch() -> LocalDataset:
    classes = ("PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW")
    spec = make_spec(
        TensorSpec("x", (100, 6)), target=TensorSpec("target", (), "int32", classes=classes)
    )
    return load_dataset(
        config("har_watch.npz", group="recording", normalise="device"), spec, EXAMPLES
    )


def test_the_watch_data_splits_inside_each_recording() -> None:
    data = load_watch()
    with np.load(EXAMPLES / "har_watch.npz") as file:
        recording = file["recording"]
    assert (data.num_train, data.num_test) == (1892, 477)
    for part in np.unique(recording):
        held_out = data.rows[data.test][recording[data.rows[data.test]] == part]
        trained = data.rows[data.train][recording[data.rows[data.train]] == part]
        assert trained.max() < held_out.min(initial=len(recording))
    train = data.part("train")["x"].reshape(-1, 6)
    assert train.mean(0, np.float64) == pytest.approx(np.zeros(6), abs=1e-4)
    assert train.std(0, np.float64) == pytest.approx(np.ones(6), abs=1e-4)


# What models need beside inputs and one target.


def test_missing_values_arrive_as_the_number_that_stands_for_them(tmp_path: Path) -> None:
    x = np.array([[1, np.nan], [3, 10], [np.nan, 30]])
    npz(tmp_path, x=x, y=np.ones(3))
    tensor = TensorSpec("x", (2,), mean=(1, 10), std=(2, 10), missing=-9.0)
    data = load_dataset(config(test_fraction=0), make_spec(tensor), tmp_path)
    assert data.arrays["x"].tolist() == [[0, -9], [1, 0], [-9, 2]]
    with pytest.raises(DataError, match="row 0, column 'x\\[1\\]': nan is no finite"):
        load_dataset(config(), make_spec(), tmp_path)


def test_missing_values_do_not_count_in_what_the_device_measures(tmp_path: Path) -> None:
    npz(tmp_path, x=np.array([[1, np.nan], [3, np.nan], [np.nan, np.nan]]), y=np.ones(3))
    spec = make_spec(TensorSpec("x", (2,), missing=0.0))
    data = load_dataset(config(normalise="device", test_fraction=0), spec, tmp_path)
    assert data.scales["x"].mean == (2, 0)
    assert data.arrays["x"].tolist() == [[-1, 0], [1, 0], [0, 0]]


def test_infinity_is_no_missing_value(tmp_path: Path) -> None:
    npz(tmp_path, x=np.array([[1, np.inf]]), y=np.ones(1))
    with pytest.raises(DataError, match="inf is no finite"):
        load_dataset(config(), make_spec(TensorSpec("x", (2,), missing=0.0)), tmp_path)


def with_targets(*targets: TensorSpec) -> ModelSpec:
    outputs = tuple(TensorSpec(t.name.removeprefix("target_")) for t in targets)
    return msgspec.structs.replace(
        make_spec(), targets=targets, outputs=outputs or (TensorSpec("prediction"),)
    )


TWO = (TensorSpec("target_kind", (), "int32", classes=("a", "b")), TensorSpec("target_age"))


def test_several_targets_come_from_arrays_of_their_names_or_as_configured(tmp_path: Path) -> None:
    npz(tmp_path, x=np.ones((2, 2)), target_kind=np.array([1, 0]), years=np.array([10, 20]))
    cfg = config(test_fraction=0, targets={"target_age": {"array": "years", "scale": 0.1}})
    part = load_dataset(cfg, with_targets(*TWO), tmp_path).part("train")
    assert part["target_kind"].tolist() == [1, 0]
    assert part["target_age"] == pytest.approx([1, 2])


def test_several_targets_of_a_csv_are_named(tmp_path: Path) -> None:
    csv(tmp_path, "a,b,kind,years\n1,2,b,30\n3,4,a,40\n")
    sources = {"target_kind": {"column": "kind"}, "target_age": {"column": "years"}}
    cfg = csv_config(target=None, targets=sources, test_fraction=0)
    part = load_dataset(cfg, with_targets(*TWO), tmp_path).part("train")
    assert part["target_kind"].tolist() == [1, 0]
    assert part["target_age"].tolist() == [30, 40]
    without = csv_config(target=None, targets={"target_kind": {"column": "kind"}})
    with pytest.raises(DataError, match=r"targets\.target_age is missing: name its column"):
        load_dataset(without, with_targets(*TWO), tmp_path)


def test_a_target_that_the_model_has_not_is_refused(tmp_path: Path) -> None:
    npz(tmp_path, x=np.ones((2, 2)), y=np.ones(2))
    cfg = config(targets={"target_age": {"array": "y"}})
    with pytest.raises(DataError, match=r"no target 'target_age'; targets: target$"):
        load_dataset(cfg, make_spec(), tmp_path)


def test_a_model_without_a_target_needs_none(tmp_path: Path) -> None:
    npz(tmp_path, x=np.ones((5, 2)))
    data = load_dataset(config(), with_targets(), tmp_path)
    assert set(data.part("train")) == {"x"}
    assert (data.num_train, data.num_test) == (4, 1)


def test_rows_weigh_what_the_data_say(tmp_path: Path) -> None:
    npz(tmp_path, x=np.ones((3, 2)), y=np.ones(3), w=np.array([0, 2, 0.5]))
    data = load_dataset(config(weight={"array": "w"}, test_fraction=0), make_spec(), tmp_path)
    assert data.part("train")["weight"].tolist() == [0, 2, 0.5]


@pytest.mark.parametrize(
    ("weight", "says"),
    [([1, -1], r"row 1: weight -1.0 is below 0"), ([0, 0], "every row has weight 0")],
)
def test_weights_that_mean_nothing_are_refused(
    tmp_path: Path, weight: list[float], says: str
) -> None:
    npz(tmp_path, x=np.ones((2, 2)), y=np.ones(2), w=np.array(weight, float))
    with pytest.raises(DataError, match=says):
        load_dataset(config(weight={"array": "w"}), make_spec(), tmp_path)
