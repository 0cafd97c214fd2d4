"""`fedge agent check` and `predict`: what they say of data that give them nothing to work with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from fedge.command import cli
from fedge.errors import TrainingError
from learning.vector.metrics import Sums
from models.runtime.program import Gradient, Program
from models.runtime.rows import Rows, row_count


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ("agent", *arguments))


def configured(folder: Path, data: str) -> str:
    path = folder / "agent.yaml"
    path.write_text(f"federation: houses\nagent_id: site-1\ndata: {data}\n")
    return str(path)


def test_rows_held_out_that_all_weigh_nothing_are_not_measured(tmp_path: Path) -> None:
    weight = np.array([1.0] * 8 + [0.0] * 2)
    np.savez(tmp_path / "rows.npz", features=np.ones((10, 2)), y=np.ones(10), weight=weight)
    config = configured(tmp_path, "{path: rows.npz, weight: {array: weight}}")
    done = run("check", "--config", config, "--model", "house_price")
    assert (done.exit_code, done.exception) == (0, None)
    assert done.stdout.endswith("nothing to measure: every row held out has weight 0\n")


def test_a_row_that_makes_the_loss_infinite_is_named(tmp_path: Path) -> None:
    price, weight = np.ones(100), np.ones(100)
    price[99] = weight[99] = 1e18  # each is taken, the weighted loss is beyond float32
    np.savez(tmp_path / "rows.npz", features=np.ones((100, 2)), y=price, weight=weight)
    config = configured(tmp_path, "{path: rows.npz, weight: {array: weight}}")
    done = run("check", "--config", config, "--model", "house_price")
    assert done.exit_code == 2
    assert "rows.npz: row 99: the loss of the untrained model is inf" in done.stderr
    assert "untrained" not in done.stdout


def test_a_row_that_the_model_cannot_take_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradient = Program.gradient

    def fail(program: Program, theta: Any, rows: Rows, **keys: Any) -> Gradient:
        if rows["target"].max() > 4:
            raise TrainingError("gather index out of bounds")
        return gradient(program, theta, rows, **keys)

    monkeypatch.setattr(Program, "gradient", fail)
    price = np.ones(100)
    price[7] = 5
    np.savez(tmp_path / "rows.npz", features=np.ones((100, 2)), y=price)
    config = configured(tmp_path, "{path: rows.npz}")
    done = run("check", "--config", config, "--model", "house_price")
    assert "rows.npz: row 7: gather index out of bounds" in done.stderr


@pytest.mark.parametrize(("row", "value"), [(7, 1e30), (99, -1e19)])
def test_a_reading_that_no_sensor_means_is_a_fault_of_the_data(
    tmp_path: Path, row: int, value: float
) -> None:
    price = np.ones(100)
    price[row] = value
    np.savez(tmp_path / "rows.npz", features=np.ones((100, 2)), y=price)
    config = configured(tmp_path, "{path: rows.npz}")
    done = run("check", "--config", config, "--model", "house_price")
    assert done.exit_code == 2
    assert f"rows.npz: row {row}, column 'y': {value:g} is no reading: its size is above 1e+18" in (
        done.stderr
    )


def test_rows_that_only_together_are_too_much_are_named_by_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(program: Program, theta: object, rows: Rows) -> Sums:
        if row_count(rows) > 1:
            raise TrainingError("gather index out of bounds")
        return Sums(1.0, 1.0, {})

    monkeypatch.setattr(Program, "evaluate", fail)
    np.savez(tmp_path / "rows.npz", features=np.ones((10, 2)), y=np.ones(10))
    config = configured(tmp_path, "{path: rows.npz}")
    done = run("check", "--config", config, "--model", "house_price")
    assert "row 8 and the 1 after it together: gather index out of bounds" in done.stderr


def test_a_data_file_in_a_folder_of_another_user_is_one_line(tmp_path: Path) -> None:
    """Here by a name that is too long, which the system refuses likewise."""
    config = configured(tmp_path, f"{{path: {'x' * 300}.npz}}")
    done = run("check", "--config", config, "--model", "house_price")
    assert done.exit_code == 2
    assert done.stderr.endswith("x.npz: cannot be read: File name too long\n")


@pytest.mark.parametrize(
    ("data", "file", "says"),
    [
        ("{path: a.csv, inputs: {x: {columns: [a]}}}", "rows.npz", "inputs.x: a .npz file needs"),
        ("{path: a.npz, inputs: {x: {array: a}}}", "rows.csv", "inputs.x: a .csv file needs"),
        ("{path: a.csv}", "rows.xls", "path must end in .npz, .csv"),
    ],
)
def test_rows_of_another_format_than_is_configured_are_one_line(
    tmp_path: Path, data: str, file: str, says: str
) -> None:
    config = configured(tmp_path, data)
    done = run("predict", "--model", "m.tflite", "--config", config, "--data", file)
    assert done.exit_code == 2
    assert f"--data {file}: {says}" in done.stderr.replace("\n", " ")


def test_what_only_learning_needs_does_not_matter_for_rows_of_another_format(
    tmp_path: Path,
) -> None:
    config = configured(tmp_path, "{path: a.csv, target: {column: price}, weight: {column: w}}")
    done = run("predict", "--model", "m.tflite", "--config", config, "--data", "rows.npz")
    assert "m.json: No such file" in done.stderr or "m.tflite: No such file" in done.stderr
