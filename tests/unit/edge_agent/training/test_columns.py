"""A device's columns for statistics: those of its data file, and only with its owner's word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from broker.protocol.messages import BlobRef, Cohort, RoundPlan
from edge_agent.config import AgentConfig
from edge_agent.data.columns import StatisticsConfig, allowed_columns
from edge_agent.data.dataset import LocalDataset, load_dataset
from edge_agent.machine.device_state import DeviceState
from edge_agent.machine.pending_update import LocalReport
from edge_agent.training.local_device import LocalModel
from edge_agent.training.local_task import run_local_task
from fedge.errors import ConfigError, DeclinedError
from fedge.yaml_config import parse_config
from learning.phases.phase import Columns
from models.package.spec import ModelSpec, TensorSpec
from models.runtime.program import Program
from models.zoo import load_zoo
from tests.unit.edge_agent.training.dataset_files import (
    CLASSES,
    EXAMPLES,
    config,
    csv,
    csv_config,
    make_spec,
    npz,
)

YES = StatisticsConfig(allow=True, min_rows=1)
SCALED = TensorSpec("x", (2,), features=("age", "fee"), mean=(54.37, 1e4), std=(9.05, 1e-3))


def columns(dataset: LocalDataset, spec: ModelSpec, allowed: StatisticsConfig = YES) -> Columns:
    return allowed_columns(dataset, spec, allowed)


def of_npz(folder: Path, spec: ModelSpec, arrays: dict[str, Any], **keys: Any) -> Columns:
    return columns(load_dataset(config(**keys), spec, npz(folder, **arrays)), spec)


# -- the numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("normalise", ["spec", "device", "none"])
def test_columns_are_the_numbers_of_the_data_file_whatever_they_are_scaled_by(
    tmp_path: Path, normalise: str
) -> None:
    ages = [50.0, 0.0, 77.5, 29.0, 54.37]
    fees = [1e4, 10000.001, 9999.999, 10000.002, 1e4]
    spec = make_spec(SCALED)
    arrays = {"x": np.array([ages, fees]).T, "y": np.arange(5.0)}
    found = of_npz(tmp_path, spec, arrays, normalise=normalise)
    assert list(found.values) == ["age", "fee", "target"]
    assert found.values["age"][:, 0].tolist() == ages
    if normalise == "none":  # then float32 has kept seven digits of the whole number only
        assert found.values["fee"][:, 0] == pytest.approx(fees, rel=1e-7)
    else:
        assert found.values["fee"][:, 0].tolist() == fees
    assert found.weights is None


@pytest.mark.parametrize("name", ["0.7", "0.1", "1e-20", "123456", "0.000123", "3e17", "-17.25"])
def test_a_decimal_number_comes_back_from_float32_as_it_was(tmp_path: Path, name: str) -> None:
    folder = csv(tmp_path, f"a,b,price\n{name},1,2\n{name},1,2\n")
    dataset = load_dataset(csv_config(), make_spec(), folder)
    found = columns(dataset, make_spec())
    assert found.values["x"][:, 0].tolist() == [float(name)] * 2


def test_numbers_of_many_decimals_come_back_to_seven_digits(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).normal((3.0, 1e4), 40.0, (500, 2))
    found = of_npz(tmp_path, make_spec(SCALED), {"x": numbers, "y": np.zeros(500)})
    age = found.values["age"][:, 0]
    order = load_dataset(config(), make_spec(SCALED), tmp_path).rows
    assert age == pytest.approx(numbers[order, 0], abs=2e-5)


def test_all_rows_are_in_it_those_that_are_held_out_too(tmp_path: Path) -> None:
    found = of_npz(
        tmp_path, make_spec(), {"x": np.ones((10, 2)), "y": np.arange(10.0)}, test_fraction=0.5
    )
    assert sorted(found.values["target"][:, 0].tolist()) == list(range(10))


def test_a_target_is_in_the_units_of_the_model(tmp_path: Path) -> None:
    arrays = {"x": np.ones((3, 2)), "y": np.array([452600.0, 358500.0, 60000.0])}
    target = {"array": "y", "scale": 1e-5}
    found = of_npz(tmp_path, make_spec(), arrays, target=target, test_fraction=0)
    assert found.values["target"][:, 0].tolist() == [4.526, 3.585, 0.6]


def test_classes_and_weights_are_columns_as_they_are(tmp_path: Path) -> None:
    arrays = {"x": np.ones((4, 2)), "y": np.array([0, 2, 1, 2]), "w": np.array([0.1, 1, 0, 2.5])}
    spec = make_spec(target=CLASSES)
    found = of_npz(tmp_path, spec, arrays, weight={"array": "w"}, test_fraction=0)
    assert found.values["target"][:, 0].tolist() == [0, 2, 1, 2]
    assert found.weights is not None
    assert found.weights.tolist() == [0.1, 1, 0, 2.5]


def test_a_window_s_feature_is_one_column_of_all_its_moments(tmp_path: Path) -> None:
    window = TensorSpec("x", (3, 2), features=("ax", "ay"), mean=(1.0, 2.0), std=(2.0, 4.0))
    numbers = np.arange(24.0).reshape(4, 3, 2)
    arrays = {"x": numbers, "y": np.zeros(4)}
    found = of_npz(tmp_path, make_spec(window), arrays, test_fraction=0)
    assert found.values["ax"].tolist() == numbers[:, :, 0].tolist()
    assert found.values["ay"].tolist() == numbers[:, :, 1].tolist()


@pytest.mark.parametrize("mean", [(5.0,), (1.0, 2.0)])
def test_an_array_without_names_of_features_is_one_column(tmp_path: Path, mean: Any) -> None:
    image = TensorSpec("x", (3, 2), mean=mean, std=mean)
    numbers = np.arange(24.0).reshape(4, 3, 2)
    arrays = {"x": numbers, "y": np.zeros(4)}
    found = of_npz(tmp_path, make_spec(image), arrays, test_fraction=0)
    assert list(found.values) == ["x", "target"]
    assert found.values["x"].tolist() == numbers.reshape(4, 6).tolist()


def test_names_for_every_number_of_a_row_are_columns_of_one_number(tmp_path: Path) -> None:
    lags = TensorSpec("x", (2, 2), features=("a1", "b1", "a2", "b2"), mean=(1.0, 9.0), std=(2, 3))
    numbers = np.arange(12.0).reshape(3, 2, 2)
    arrays = {"x": numbers, "y": np.zeros(3)}
    found = of_npz(tmp_path, make_spec(lags), arrays, test_fraction=0)
    assert found.values["b1"][:, 0].tolist() == [1, 5, 9]
    assert found.values["a2"][:, 0].tolist() == [2, 6, 10]


def test_a_missing_number_is_missing_and_one_that_looks_like_it_is_not(tmp_path: Path) -> None:
    tensor = TensorSpec("x", (9,), features=tuple("abcdefghi"), missing=0.0)
    numbers = np.arange(27.0).reshape(3, 9)
    numbers[1, 0], numbers[2, 8] = np.nan, np.nan
    arrays = {"x": numbers, "y": np.zeros(3)}
    found = of_npz(tmp_path, make_spec(tensor), arrays, test_fraction=0)
    for place, name in enumerate("abcdefghi"):
        np.testing.assert_array_equal(found.values[name][:, 0], numbers[:, place])


def test_the_numbers_of_real_data_come_back_as_they_are_in_the_file() -> None:
    spec = load_zoo("heart_disease").spec
    cfg = config("heart_hospitals.npz", inputs={"patient": {"array": "x"}})
    dataset = load_dataset(cfg, spec, EXAMPLES)
    with np.load(EXAMPLES / "heart_hospitals.npz") as file:
        raw = file["x"][dataset.rows].astype(np.float64)
    found = columns(dataset, spec)
    assert np.isnan(raw).any()
    for place, name in enumerate(spec.inputs[0].features):
        np.testing.assert_allclose(found.values[name][:, 0], raw[:, place], rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(np.isnan(found.values[name][:, 0]), np.isnan(raw[:, place]))


# -- the owner's word -------------------------------------------------------------------------


def declined(rows: int, **allowed: Any) -> tuple[str, str]:
    indexes = np.arange(rows)
    arrays = {"x": np.ones((rows, 2), np.float32), "target": np.ones(rows, np.float32)}
    dataset = LocalDataset(arrays, indexes, indexes[:0], indexes, {})
    with pytest.raises(DeclinedError) as caught:
        columns(dataset, make_spec(), StatisticsConfig(**allowed))
    return caught.value.reason, str(caught.value)


def test_without_the_owner_s_word_nothing_leaves_the_device() -> None:
    reason, words = declined(1000)
    assert reason == "not_allowed"
    assert words.startswith("statistics.allow is false in this device's configuration")


def test_statistics_of_few_rows_are_declined_with_the_limit() -> None:
    assert declined(9, allow=True) == ("too_few_rows", "9 rows, statistics.min_rows is 10")
    assert declined(99, allow=True, min_rows=100)[0] == "too_few_rows"
    assert declined(0, allow=True, min_rows=1)[0] == "no_data"


def test_the_section_of_the_configuration_is_off_by_default_and_checked() -> None:
    document = {"federation": "f", "agent_id": "a", "data": {"path": "a.npz"}}
    made = parse_config(document, AgentConfig, "agent.yaml")
    assert made.statistics == StatisticsConfig(allow=False, min_rows=10)
    assert "statistics" in made.phases
    changes = {"phases": ["train"], "statistics": {"allow": True}}
    with pytest.raises(ConfigError, match="allowed, but phases leaves out statistics"):
        parse_config(document | changes, AgentConfig, "agent.yaml")
    for wrong in ({"allow": 1}, {"min_rows": 0}, {"allowed": True}):
        with pytest.raises(ConfigError, match=r"agent\.yaml: statistics"):
            parse_config(document | {"statistics": wrong}, AgentConfig, "agent.yaml")


# -- the job ----------------------------------------------------------------------------------


def job(statistics: StatisticsConfig, **settings: Any) -> LocalReport:
    package = load_zoo("house_price")
    x = np.array([[1.0, 4.0], [3.0, 8.0]])
    scale = package.spec.inputs[0]
    scaled = ((x - np.array(scale.mean)) / np.array(scale.std)).astype(np.float32)
    rows = np.arange(2)
    dataset = LocalDataset(
        {"features": scaled, "target": np.array([0.5, 0.7], np.float32)},
        *(rows[:1], rows[1:], rows),
        {"features": msgspec.convert({"mean": scale.mean, "std": scale.std}, _scale())},
    )
    plan = RoundPlan(
        session="s",
        coordinator_instance="c",
        round_id=1,
        state="open",
        phase={"name": "statistics", **settings},
        version=0,
        blobs={"weights": BlobRef(sha256="0" * 64, size=12, chunks=1)},
        package="0" * 64,
        fingerprint="0" * 16,
        cohort=Cohort(),
    )
    model = LocalModel(Program(package.program, package.spec), package.personal)
    blobs = {"weights": np.zeros(3, np.float32)}
    result = run_local_task(plan, blobs, DeviceState(), model, dataset, "a", statistics=statistics)
    assert isinstance(result, LocalReport)
    return result


def _scale() -> Any:
    from edge_agent.data.normalise import Scale

    return Scale


def test_a_job_gives_the_numbers_of_a_report() -> None:
    result = job(YES, columns={"median_income": [2.0], "target": []})
    assert result.num_examples == 2
    assert result.values == {
        "median_income": (2, 0, 2, 2, 2, 1, 3, 1, 1),
        "target": (2, 0, 2, 0.6, pytest.approx(0.02), 0.5, 0.7),
    }
    assert result.sums.weight == 0


def test_a_job_that_the_owner_does_not_allow_is_declined_with_its_reason() -> None:
    with pytest.raises(DeclinedError) as caught:
        job(StatisticsConfig())
    assert caught.value.reason == "not_allowed"
    with pytest.raises(DeclinedError, match="no column 'wombat'; columns: median_income"):
        job(YES, columns={"wombat": []})
