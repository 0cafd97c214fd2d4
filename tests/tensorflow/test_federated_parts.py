"""Exported models in whole federations: moving averages, frozen layers, several outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from numpy.typing import NDArray

from fleet.cli.main import cli
from models.cli.main import cli as model_cli
from models.package.package import load_package

ROWS = 50
SITES = 3

MODELS = """
import keras

from models.export.exporter import export_model

layers = keras.layers


def normal():
    keras.utils.set_random_seed(1)
    x = keras.Input((2,), name="x")
    h = layers.BatchNormalization(momentum=0.9, name="norm")(x)
    model = keras.Model(x, layers.Dense(2, activation="softmax", name="head")(h))
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    # All 40 rows of a site in one call.
    return export_model(
        model, name="normal", batch_size=40, metrics=["confusion"], classes=("low", "high")
    )


def several():
    keras.utils.set_random_seed(1)
    x = keras.Input((2,), name="x")
    h = layers.Dense(6, activation="relu", name="backbone")(x)
    ends = [layers.Dense(2, activation="softmax", name="kind")(h), layers.Dense(1, name="sum")(h)]
    model = keras.Model(x, ends)
    losses = {"kind": "sparse_categorical_crossentropy", "sum": "mse"}
    model.compile(loss=losses, metrics={"kind": ["accuracy"], "sum": ["mae"]})
    return model
"""


def write(folder: Path, rounds: int, targets: dict[str, Any], **federation: Any) -> NDArray[Any]:
    """Writes models, scenario and data of sites with different means and variances."""
    rng = np.random.default_rng(2)
    site = np.repeat(np.arange(SITES), ROWS)
    x = rng.normal(size=(SITES * ROWS, 2)) * (1 + site[:, None]) + 3.0 * site[:, None]
    label = np.where(x[:, 0] > 3, "high", "low")
    names = ["site,a,b,label,sum"]
    names += [f"{s},{a},{b},{kind},{a + b}" for s, (a, b), kind in zip(site, x, label, strict=True)]
    (folder / "sites.csv").write_text("\n".join(names))
    (folder / "made.py").write_text(MODELS)
    document = {
        "name": "sites",
        "description": "three sites",
        "licence": "made up",
        "data": {"path": "sites.csv", "inputs": {"x": {"columns": ["a", "b"]}}, **targets},
        "partition": {"kind": "client", "client": "site", "prefix": "site"},
        "federation": {
            "model": "./model",
            "rounds": rounds,
            "round": {"deadline_s": 30, "minimum": SITES},
            **federation,
        },
    }
    (folder / "sites.yaml").write_text(yaml.safe_dump(document))
    dealt: NDArray[Any] = x.reshape(SITES, ROWS, 2)
    return dealt


def export(folder: Path, function: str, *options: str) -> str:
    target, source = str(folder / "model"), f"{folder / 'made.py'}:{function}"
    done = CliRunner().invoke(model_cli, ["export", source, "--out", target, *options])
    assert done.exit_code == 0, done.output
    return done.output


def simulate(folder: Path) -> dict[str, Any]:
    arguments = ["simulate", str(folder / "sites.yaml"), "--out", str(folder / "out"), "--json"]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    report: dict[str, Any] = json.loads((folder / "out" / "report.json").read_text())
    return report


@pytest.mark.parametrize("algorithm", ["fedavg", "fedadam"])
def test_moving_averages_are_the_mean_of_the_agents_averages(
    tmp_path: Path, algorithm: str
) -> None:
    """One full-batch step: a tenth of the way to each site's moments, whatever the algorithm."""
    x = write(
        tmp_path,
        1,
        {"target": {"column": "label"}},
        training={"epochs": 1, "batch_size": 0, "learning_rate": 0.1},
        codec={"name": "int8"},
        algorithm={"name": algorithm},
    )
    assert "training.batch_size must be 1 to 40, the rows of one call" in export(tmp_path, "normal")
    report = simulate(tmp_path)
    package = load_package(tmp_path / "out" / "model")
    found = package.spec.layout.unflatten(package.initial)
    learned = x[:, : ROWS * 4 // 5]
    mean, variance = learned.mean((0, 1)), learned.var(1).mean(0)
    # An int8 level of the largest change in the block, for each of three agents.
    level = 0.1 * float(max(learned.mean(1).max(), learned.var(1).max())) / 127
    assert found["norm/moving_mean"] == pytest.approx(0.1 * mean, abs=level)
    assert found["norm/moving_variance"] == pytest.approx(0.9 + 0.1 * variance, abs=level)
    (matrix,) = report["final"]["matrices"].values()
    assert np.sum(matrix) == SITES * ROWS / 5
    right = np.trace(matrix) / np.sum(matrix)
    assert right == pytest.approx(report["final"]["metrics"]["accuracy"])


def test_two_outputs_learn_from_a_csv_behind_a_frozen_backbone(tmp_path: Path) -> None:
    columns = {"target_kind": {"column": "label"}, "target_sum": {"column": "sum"}}
    training = {"epochs": 3, "batch_size": 16, "learning_rate": 0.01}
    write(tmp_path, 6, {"targets": columns}, training=training)
    # Without names of classes a label must be a number.
    text = (tmp_path / "sites.csv").read_text().replace("high", "1").replace("low", "0")
    (tmp_path / "sites.csv").write_text(text)
    said = export(tmp_path, "several", "--train", "kind", "--train", "sum")
    assert "21 parameters + 18 frozen" in said
    report = simulate(tmp_path)
    assert report["parameters"] == 21
    first, last = report["rounds"][0]["metrics"], report["final"]["metrics"]
    assert set(last) == {"kind_accuracy", "sum_mae"}
    assert last["sum_mae"] < 0.5 * first["sum_mae"]
    before, after = load_package(tmp_path / "model"), load_package(tmp_path / "out" / "model")
    assert before.frozen_bytes == after.frozen_bytes
    assert not np.array_equal(before.initial, after.initial)
