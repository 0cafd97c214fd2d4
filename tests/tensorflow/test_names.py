"""Names and constants of Keras that programs have in another form."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from fedge.command import cli
from fedge.errors import ExportError
from models.export.backend import keras
from models.export.exporter import export_model
from models.export.random_rows import random_batch
from models.export.reference import Reference
from models.export.verify import relative_error
from models.package.package import load_package
from models.package.spec import TensorSpec
from models.runtime.program import Program

layers = keras.layers


def two_outputs(**compiled: Any) -> Any:
    keras.utils.set_random_seed(1)
    x = keras.Input((4,), name="x")
    hidden = layers.Dense(3, activation="relu")(x)
    outputs = [layers.Dense(1, name=name)(hidden) for name in ("wear-level", "rest of life")]
    model = keras.Model(x, outputs)
    model.compile(**compiled)
    return model


def test_outputs_may_have_names_with_a_dash_or_a_space() -> None:
    model = two_outputs(
        loss={"wear-level": "mse", "rest of life": "mae"},
        loss_weights={"rest of life": 0.5, "wear-level": 2.0},
        metrics={"rest of life": "mse"},
    )
    package = export_model(model, name="m", batch_size=8)
    assert [t.name for t in package.spec.targets] == ["target_wear_level", "target_rest_of_life"]
    assert package.spec.loss == "wear_level: mean_squared_error; rest_of_life: mean_absolute_error"
    assert [m.name for m in package.spec.metrics] == ["rest_of_life_mse"]
    program = Program(package.program, package.spec)
    rows = random_batch(package.spec, np.random.default_rng(2))
    got = program.gradient(package.initial, rows)
    # Keras itself, by hand: 2 · mse + 0.5 · mae.
    wear_level, rest_of_life = (np.asarray(y)[:, 0] for y in model(rows["x"]))
    expected = 2 * np.square(wear_level - rows["target_wear_level"]).mean()
    expected += 0.5 * np.abs(rest_of_life - rows["target_rest_of_life"]).mean()
    assert got.loss / 8 == pytest.approx(float(expected), rel=1e-5)
    _, gradient, _ = Reference(model, package).gradient(package.initial, rows)
    assert relative_error(got.vector, gradient) <= 1e-5


def test_an_unknown_output_is_told_with_keras_names() -> None:
    model = two_outputs(
        loss={"wear-level": "mse", "rest of life": "mae"}, metrics={"wear_level": "mae"}
    )
    says = r"'wear_level': did you mean wear-level\? the outputs are wear-level, rest of life$"
    with pytest.raises(ExportError, match=says):
        export_model(model, name="m")


SOURCE = """
import keras
import numpy as np

def build():
    keras.utils.set_random_seed(1)
    adapted = keras.layers.Normalization(name="adapted")
    adapted.adapt(np.array([[20.0, 1.0], [40.0, 3.0], [60.0, 5.0]], "float32"))
    inputs = [keras.Input((1,), name="weight"), keras.Input((2,), name="oil temp")]
    parts = [keras.layers.Normalization(mean=70.0, variance=9.0)(inputs[0]), adapted(inputs[1])]
    model = keras.Model(
        inputs, keras.layers.Dense(1)(keras.layers.Concatenate()(parts)), name="people"
    )
    model.compile(loss="mse", metrics=["mae"])
    return model
"""
AGENT = """
federation: people
agent_id: scale-1
data:
  path: rows.csv
  inputs: {oil_temp: {columns: [front, back]}}
  target: {column: y}
  test_fraction: 0
"""


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    return result


def test_reserved_names_and_normalization_work_from_export_to_prediction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("people.py").write_text(SOURCE)
    run("model", "export", "people.py:build", "--out", "people", "--batch-size", "4")
    assert "input 'weight' of model 'people' is called 'weight_input'" in caplog.text
    assert "inputs: {oil_temp: {array: oil temp}}" in caplog.text
    spec = load_package(Path("people")).spec
    assert [t.name for t in spec.inputs] == ["weight_input", "oil_temp"]
    assert (spec.inputs[0].features, spec.frozen, spec.size) == (("weight",), 0, 4)

    Path("agent.yaml").write_text(AGENT)
    Path("rows.csv").write_text("weight,front,back,y\n70,20,1,1\n76,60,5,2\n64,40,3,0\n")
    shown = run("agent", "check", "--config", "agent.yaml", "--model", "people").output
    assert re.search(r"learn +3 rows", shown)
    for options in ([], ["--model", "people.py:build"]):
        run("model", "release", "people", "--out", "people.tflite", *options)
        command = ("agent", "predict", "--model", "people.tflite", "--config", "agent.yaml")
        lines = run(*command, "--json").stdout.splitlines()
        got = [json.loads(line)["prediction"] for line in lines]
        # By hand: weights 0, 2, -2; oil temperatures -√1.5, √1.5, 0.
        kernel, bias = load_package(Path("people")).initial[:3], 0.0
        scaled = np.array([[0, -(1.5**0.5), -(1.5**0.5)], [2, 1.5**0.5, 1.5**0.5], [-2, 0, 0]])
        assert got == pytest.approx(scaled @ kernel + bias, abs=1e-5)


def test_an_adapted_layer_that_takes_readings_back_is_exported() -> None:
    model = keras.Sequential(
        [
            keras.Input((3,), name="x"),
            layers.Dense(2),
            layers.Normalization(mean=[5.0, 500.0], variance=[4.0, 100.0], invert=True),
        ]
    )
    model.compile(loss="mse")
    package = export_model(model, name="m", batch_size=8)
    rows = random_batch(package.spec, np.random.default_rng(3))
    got = Program(package.program, package.spec).gradient(package.initial, rows)
    _, gradient, _ = Reference(model, package).gradient(package.initial, rows)
    assert relative_error(got.vector, gradient) <= 1e-5


def test_given_specs_keep_their_features_under_another_name() -> None:
    x = keras.Input((2,), name="anything")
    model = keras.Model(x, layers.Dense(1)(layers.Dropout(0.5)(x)))
    model.compile(loss="mse")
    given = TensorSpec("seed", (2,), features=("a", "b"))  # Dropout's program has a seed
    spec = export_model(model, name="m", inputs=[given], reconstruct="").spec
    assert (spec.inputs[0].name, spec.inputs[0].features) == ("seed_input", ("a", "b"))
