"""A device's rows: from files to arrays, in both formats."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_agent.data.dataset import (
    EmptyDataError,
    build_dataset,
    load_dataset,
    read_table,
)
from edge_agent.data.normalise import STATE_FILE
from fedge.errors import DataError
from models.package.spec import ModelSpec, TensorSpec
from tests.unit.edge_agent.training.dataset_files import (
    CLASSES,
    config,
    csv,
    csv_config,
    make_spec,
    npz,
    refusal,
)

# -- reading -------------------------------------------------------------------------------------


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


# -- splitting -----------------------------------------------------------------------------------


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


# -- normalising ---------------------------------------------------------------------------------


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
    npz(tmp_path, x=np.full((2, 2), 1e17), y=np.ones(2))
    spec = make_spec(TensorSpec("x", (2,), mean=(0,), std=(1e-6,)))
    with np.errstate(over="ignore"):
        assert "row 0, column 'x[0]': 1e+17 is no reading" in refusal(tmp_path, config(), spec)


# -- missing values -----------------------------------------------------------------------------


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


# -- several targets, none, and weights of rows -------------------------------------------------


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
