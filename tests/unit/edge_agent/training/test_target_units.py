"""Targets whose spec has a name, a unit and a scale: read, checked and told in that unit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.data.columns import DataColumns
from edge_agent.data.dataset import load_dataset
from edge_agent.data.targets import target_findings
from edge_agent.doctor.data_checks import data_checks, part_lines
from models.package.spec import TensorSpec
from tests.unit.edge_agent.training.dataset_files import config, csv, csv_config, make_spec, npz

ROOM = TensorSpec("target", features=("room",), units=("°C",), mean=(20.0,), std=(4.0,))
SPEC = make_spec(target=ROOM)
DEGREES = np.random.default_rng(0).normal(21, 3, 40)


def findings(folder: Path, y: Any, **keys: Any) -> list[str]:
    npz(folder, x=np.ones((40, 2)), y=y)
    data = load_dataset(config(**keys), SPEC, folder)
    return [str(odd) for odd in target_findings(data.arrays, SPEC, data.num_train, "time")]


@pytest.mark.parametrize("normalise", ["spec", "device", "none"])
def test_the_model_s_scale_is_applied_whatever_becomes_of_inputs(
    tmp_path: Path, normalise: str
) -> None:
    npz(tmp_path, x=np.arange(6).reshape(3, 2), y=[16.0, 20.0, 28.0])
    data = load_dataset(config(normalise=normalise, test_fraction=0), SPEC, tmp_path)
    assert data.arrays["target"].tolist() == [-1, 0, 2]


def test_the_scale_of_the_file_comes_first(tmp_path: Path) -> None:
    npz(tmp_path, x=np.ones((2, 2)), y=[160, 280])  # in tenths of a degree
    cfg = config(target={"array": "y", "scale": 0.1}, test_fraction=0)
    data = load_dataset(cfg, SPEC, tmp_path)
    assert data.arrays["target"].tolist() == pytest.approx([-1, 2])


def test_small_changes_of_large_targets_are_kept(tmp_path: Path) -> None:
    meter = TensorSpec("target", units=("Wh",), mean=(123_456_000.0,), std=(10.0,))
    csv(tmp_path, "a,b,price\n1,1,123456000.25\n1,1,123456000.5\n")
    data = load_dataset(csv_config(test_fraction=0), make_spec(target=meter), tmp_path)
    assert data.arrays["target"].tolist() == pytest.approx([0.025, 0.05])


def test_a_csv_column_named_like_the_target_needs_no_configuration(tmp_path: Path) -> None:
    csv(tmp_path, "a,b,room (°C)\n1,1,16\n1,1,28\n")
    data = load_dataset(csv_config(target=None, test_fraction=0), SPEC, tmp_path)
    assert data.arrays["target"].tolist() == [-1, 2]


def test_statistics_are_in_the_unit_of_the_spec(tmp_path: Path) -> None:
    npz(tmp_path, x=np.ones((3, 2)), y=[16.5, 20.1, 28.0])
    columns = DataColumns(load_dataset(config(), SPEC, tmp_path), SPEC)
    assert columns["room"][:, 0].tolist() == [16.5, 20.1, 28.0]


def test_a_file_in_another_unit_is_named_with_what_to_do(tmp_path: Path) -> None:
    assert findings(tmp_path, DEGREES) == []
    (kelvin,) = findings(tmp_path, DEGREES + 273.15)
    assert kelvin == (
        "target: 294 ± 2.4 in this file, 68.5 of the model's standard deviations: is it in another "
        "unit than °C? data.target.scale and offset convert it"
    )
    in_kelvin = {"array": "y", "offset": -273.15}
    assert findings(tmp_path, DEGREES + 273.15, target=in_kelvin) == []
    (milli,) = findings(tmp_path, DEGREES * 1000)
    assert "another unit than °C?" in milli
    in_degrees = {"array": "y", "scale": 0.001}
    assert findings(tmp_path, DEGREES * 1000, target=in_degrees) == []


@pytest.mark.parametrize(
    ("unit", "factor", "says"),
    [
        ("100,000 USD", 1e5, "is it in USD? then write data.target.scale: 1e-05"),
        ("1000 kWh", 1e3, "is it in kWh? then write data.target.scale: 0.001"),
        ("USD", 1e5, ""),
        ("10 min", 10, ""),
    ],
)
def test_plain_numbers_are_told_where_the_unit_is_a_multiple(
    tmp_path: Path, unit: str, factor: float, says: str
) -> None:
    spec = make_spec(target=TensorSpec("target", units=(unit,)))
    for scale, expected in ((1.0, ""), (factor, says)):
        prices = np.tile([1.2, 2.1, 3.4, 0.6], 10) * scale
        npz(tmp_path, x=np.ones((40, 2)), y=prices)
        data = load_dataset(config(), spec, tmp_path)
        told = [str(one) for one in target_findings(data.arrays, spec, data.num_train, data.split)]
        assert len(told) == bool(expected)
        assert expected in " ".join(told)


def test_check_and_doctor_tell_targets_in_their_unit(tmp_path: Path) -> None:
    npz(tmp_path, x=np.ones((40, 2)), y=np.tile([16.0, 24.0], 20))
    data = load_dataset(config(test_fraction=0.5), SPEC, tmp_path)
    assert [*part_lines(data, SPEC)] == [
        "learn    20 rows; room: 20 ± 4 (°C)",
        "measure  20 rows; room: 20 ± 4 (°C)",
    ]
    checks = {check.name: check for check in data_checks(data, SPEC, 40)}
    assert checks["target"].found == "16 to 24 (°C)"
