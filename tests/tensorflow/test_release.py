"""Released models: compared with the program, and run without TensorFlow."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

from coordinator.records.records import new_record
from coordinator.storage.store import Store
from edge_agent.cli import cli as agent_cli
from fedge.errors import ExportError, ModelError
from learning.algorithms.algorithm import ServerState
from models.cli.main import cli
from models.cli.model_card import model_card
from models.export.backend import keras
from models.export.exporter import export_model
from models.export.objective.losses import Triplet
from models.export.release.architecture import read_options, rebuild
from models.export.release.releaser import release_model
from models.export.verify import relative_error
from models.package.package import ModelPackage, load_package
from models.package.spec import TensorSpec
from models.runtime.inference import InferenceModel, load_release
from models.runtime.program import Program
from models.zoo import load_zoo

layers = keras.layers
ROOT = Path(__file__).parents[2]
CLASSES = ("slow", "fast", "odd")
METRICS = ("f1", "confusion")


def build() -> Any:
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((12, 2), name="window"),
            layers.Conv1D(6, 3, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.GlobalAveragePooling1D(),
            layers.Dense(3, activation="softmax"),
        ]
    )


def classifier() -> ModelPackage:
    model = build()
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    tensor = TensorSpec("window", (12, 2), features=("a", "b"), mean=(1.0, -2.0), std=(2.0, 3.0))
    return export_model(model, name="waves", inputs=[tensor], classes=CLASSES, metrics=METRICS)


def raw_rows(count: int = 64) -> dict[str, Any]:
    rng = np.random.default_rng(5)
    window = rng.normal((1.0, -2.0), (2.0, 3.0), (count, 12, 2)).astype(np.float32)
    return {"window": window, "target": rng.integers(0, 3, count)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a coordinator's state folder with versions 0 to 2, and rows beside it."""
    folder = tmp_path_factory.mktemp("federation")
    package = classifier()
    rng = np.random.default_rng(1)
    store = Store(folder / "state", keep_versions=2)
    store.adopt("waves-fed", package)
    store.begin(package.initial, ServerState())
    theta = package.initial
    for version in (1, 2):
        theta = theta + 0.1 * rng.standard_normal(theta.shape).astype(np.float32)
        record = new_record(version, version, 3)
        measured = {"loss": 0.5 / version, "metrics": {"accuracy": 0.7}, "evaluated": True}
        record = msgspec.structs.replace(record, status="committed", reported=3, **measured)
        store.commit(version, theta, ServerState(), record)
    store.close()
    package.save(folder / "state" / "model")
    np.save(folder / "version2.npy", theta)
    np.savez(folder / "rows.npz", **raw_rows())
    np.savez(folder / "calibration.npz", window=raw_rows(200)["window"][64:])
    return folder


def release(trained: Path, *options: str) -> Result:
    return CliRunner().invoke(cli, ["release", str(trained / "state"), *options])


@pytest.mark.parametrize(
    ("numbers", "agreement"), [("float32", 1.0), ("float16", 0.98), ("int8", 0.85)]
)
def test_a_released_version_predicts_like_the_program(
    trained: Path, tmp_path: Path, numbers: str, agreement: float
) -> None:
    out = tmp_path / "made" / "waves.tflite"
    options = ["--calibration", str(trained / "calibration.npz"), "--out", str(out)]
    options += ["--data", str(trained / "rows.npz")]
    made = release(trained, f"--{numbers}", "--weights", "2", "--licence", "CC0", *options)
    assert made.exit_code == 0, made.stderr
    assert "same class" in made.stdout
    data, description = load_release(out)
    assert (description.federation, description.version) == ("waves-fed", 2)
    assert (description.agents, description.trained_at[:2]) == (3, "20")
    assert description.federation_metrics == {"loss": 0.25, "accuracy": 0.7}
    assert (description.licence, description.classes) == ("CC0", CLASSES)
    assert description.agreement is not None
    assert description.agreement >= agreement
    assert (
        set(description.metrics) == {"loss", "accuracy", "f1"} == set(description.released_metrics)
    )
    # The figures are the program's own, with θ of that version.
    package = load_package(trained / "state" / "model")
    theta, rows = np.load(trained / "version2.npy"), raw_rows()
    scaled = (rows["window"] - (1.0, -2.0)) / np.array((2.0, 3.0))
    given = {"window": scaled.astype(np.float32), "target": rows["target"].astype(np.int32)}
    expected = Program(package.program, package.spec).evaluate(theta, given)
    assert description.metrics["loss"] == pytest.approx(expected.loss / 64, rel=1e-5)
    runner = InferenceModel(data, description.inputs, description.outputs, 1)
    got = runner.predict(given)["prediction"]
    float_outputs = Program(package.program, package.spec).predict(theta, given)["prediction"]
    limit = {"float32": 1e-5, "float16": 5e-3, "int8": 0.1}[numbers]
    assert np.abs(got - float_outputs).max() <= limit
    matrix = np.array(description.released_matrices["confusion"])
    assert matrix.sum(1).tolist() == np.bincount(rows["target"], minlength=3).tolist()
    assert np.trace(matrix) == (got.argmax(1) == rows["target"]).sum()
    card = out.with_suffix(".md").read_text()
    assert f"| slow | {' | '.join(f'{value:g}' for value in matrix[0])} |" in card
    for text in (
        "waves-fed",
        "version 2",
        "CC0",
        "| accuracy |",
        "64 rows",
        "of 3 agents",
        description.sha256,
    ):
        assert text in card


def test_int8_is_integer_throughout_and_small(trained: Path, tmp_path: Path) -> None:
    package = load_package(trained / "state" / "model")
    rows = {"window": raw_rows()["window"]}
    sizes = {}
    for numbers in ("float32", "int8"):
        made = release_model(package, package.initial, numbers, calibration=rows)
        sizes[numbers] = made.tflite
    runner = InferenceModel(sizes["int8"], package.spec.inputs, package.spec.outputs, 1)
    details = runner._interpreter.get_tensor_details()
    assert {np.dtype(d["dtype"]).name for d in details} <= {"int8", "int32"}
    assert len(made.release.metrics) == 0  # nothing to compare with: no targets


def divides(x: Any) -> Any:
    """Returns a model with operators that tflite-runtime lacks for int8: DIV, SQRT, LOG."""
    spread = keras.ops.std(x, axis=1, keepdims=True)
    masked = keras.layers.Masking()(keras.layers.Dense(4, activation="softplus")(x / spread))
    return keras.layers.GlobalAveragePooling1D()(masked)


_PREDICT = """
import sys
import numpy as np
from pathlib import Path
from models.runtime.inference import InferenceModel, load_release
tflite, release = load_release(Path(sys.argv[1]))
model = InferenceModel(tflite, release.inputs, release.outputs, 1, runtime="tflite-runtime")
np.save(sys.argv[3], model.predict({"x": np.load(sys.argv[2])["x"]})["prediction"])
"""


@pytest.mark.skipif(
    importlib.util.find_spec("tflite_runtime") is None, reason="tflite-runtime is not installed"
)
@pytest.mark.parametrize(
    "part",
    [divides, lambda x: keras.layers.Flatten()(keras.layers.Dense(8, activation="gelu")(x))],
    ids=["divides", "gelu"],
)
def test_int8_models_with_float_operators_run_on_tflite_runtime(
    tmp_path: Path, part: Callable[[Any], Any]
) -> None:
    keras.utils.set_random_seed(2)
    x = keras.Input((5, 3), name="x")
    model = keras.Model(x, keras.layers.Dense(2)(part(x)))
    model.compile(loss="mse")
    package = export_model(model, name="m")
    values = np.random.default_rng(1).standard_normal((60, 5, 3)).astype(np.float32)
    package.save(tmp_path / "m")
    np.savez(tmp_path / "x.npz", x=values)
    options = [
        "--int8",
        "--calibration",
        str(tmp_path / "x.npz"),
        "--out",
        str(tmp_path / "m.tflite"),
    ]
    made = CliRunner().invoke(cli, ["release", str(tmp_path / "m"), *options])
    assert made.exit_code == 0, made.stderr
    arguments = [str(tmp_path / name) for name in ("m.tflite", "x.npz", "y.npy")]
    subprocess.run([sys.executable, "-c", _PREDICT, *arguments], check=True, cwd=ROOT, timeout=60)
    expected = np.asarray(model(values))
    assert relative_error(np.load(tmp_path / "y.npy"), expected) <= 0.1


def test_a_float16_file_of_few_weights_hints_at_float32(tmp_path: Path) -> None:
    advice = "most of the file is not weights (12 bytes as float32): --float32 may make a smaller"
    options = ["release", "house_price", "--out", str(tmp_path / "a.tflite")]
    assert advice in CliRunner().invoke(cli, [*options, "--float16"]).stdout
    assert advice not in CliRunner().invoke(cli, options).stdout


@pytest.mark.skipif(
    importlib.util.find_spec("tflite_runtime") is None, reason="tflite-runtime is not installed"
)
@pytest.mark.parametrize("numbers", ["float32", "int8"])
def test_a_device_without_tensorflow_predicts(trained: Path, tmp_path: Path, numbers: str) -> None:
    out = tmp_path / "waves.tflite"
    rows = str(trained / "rows.npz")
    options = ["--calibration", str(trained / "calibration.npz"), "--data", rows]
    made = release(trained, f"--{numbers}", *options, "--out", str(out))
    assert made.exit_code == 0, made.stderr
    code = (
        "import sys; sys.modules['tensorflow'] = None; from edge_agent.cli import cli;"
        "cli(['predict', *sys.argv[1:]])"
    )
    options = ["--model", str(out), "--data", rows, "--runtime", "tflite-runtime", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *options],
        check=True, capture_output=True, text=True, cwd=ROOT, timeout=60,
    )  # fmt: skip
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["row"] for record in records] == list(range(64))
    best = [CLASSES[int(np.argmax([r[f"prediction_{i}"] for i in range(3)]))] for r in records]
    assert [record["class"] for record in records] == best
    described = load_release(out)[1]
    hits = np.mean([CLASSES[t] == c for t, c in zip(raw_rows()["target"], best, strict=True)])
    assert hits == pytest.approx(described.released_metrics["accuracy"], abs=0.02)


def test_predictions_are_written_as_csv_or_jsonl(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "waves.tflite"
    assert release(trained, "--out", str(out)).exit_code == 0
    options = ["predict", "--model", str(out), "--data", str(trained / "rows.npz"), "--out"]
    for name in ("found.npz", "found.csv", "found.jsonl"):
        done = CliRunner().invoke(agent_cli, [*options, str(tmp_path / name)])
        assert done.exit_code == 0, done.stderr
    with np.load(tmp_path / "found.npz") as file:
        probabilities = file["prediction"]
    lines = (tmp_path / "found.csv").read_text().splitlines()
    assert lines[0] == "row,prediction_0,prediction_1,prediction_2,class"
    assert float(lines[1].split(",")[1]) == pytest.approx(probabilities[0, 0], rel=1e-5)
    assert len((tmp_path / "found.jsonl").read_text().splitlines()) == 64
    refused = CliRunner().invoke(agent_cli, [*options, str(tmp_path / "found.txt")])
    assert refused.exit_code == 2
    assert "must end in .npz, .csv or .jsonl" in refused.stderr


def test_a_damaged_or_exchanged_file_is_rejected_before_loading(
    trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "waves.tflite"
    assert release(trained, "--out", str(out)).exit_code == 0
    out.write_bytes(out.read_bytes()[:-100] + bytes(100))
    with pytest.raises(ModelError, match=r"damaged, or not the file that waves.json describes"):
        load_release(out)
    out.with_suffix(".json").unlink()
    with pytest.raises(ModelError, match=r"a released model is a \.tflite with its \.json"):
        load_release(out)


@pytest.fixture(scope="module")
def released(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a released model with its description beside it."""
    out = tmp_path_factory.mktemp("released") / "waves.tflite"
    assert release(trained, "--out", str(out)).exit_code == 0
    return out


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"inputs": [{"name": "sound", "shape": [12, 2]}]}, "inputs are ['window'], described are"),
        (
            {"inputs": [{"name": "window", "shape": [12, 3]}]},
            "input 'window' is float32 (1, 12, 2)",
        ),
        ({"inputs": [{"name": "window", "shape": [12, 2], "dtype": "int32"}]}, "is int32 (1, 12"),
        ({"outputs": [{"name": "kind", "shape": [3]}]}, "outputs are ['prediction'], described"),
        ({"outputs": [{"name": "prediction", "shape": [4]}]}, "output 'prediction' is float32 (1"),
        ({"outputs": [{"name": "prediction", "shape": [3]}] * 2}, "['prediction', 'prediction']"),
        ({"batch_size": 2}, "described is float32 (2, 12, 2)"),
        ({"batch_size": 0}, "waves.json: batch_size 0 is outside"),
        ({"inputs": []}, "waves.json: a spec needs at least one input"),
    ],
)
def test_a_description_of_another_model_is_rejected(
    released: Path, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    out = tmp_path / "waves.tflite"
    out.write_bytes(released.read_bytes())
    description = json.loads(released.with_suffix(".json").read_text()) | changes
    out.with_suffix(".json").write_text(json.dumps(description))
    options = ["predict", "--model", str(out), "--data", "none.npz"]
    done = CliRunner().invoke(agent_cli, options)
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert says in line


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--weights", "9"], "no version 9; versions kept: 1 to 2"),
        (["--int8"], "--int8 needs representative rows: --calibration DATA.npz"),
        (["--calibration", "none.npz"], "none.npz: cannot be read: No such file"),
        (["--out", "model.bin"], "must end in .tflite"),
        (["--calibration", __file__], "not an .npz file (save the arrays with numpy.savez)"),
        (["--weights", "missing.npy"], "missing.npy: No such file"),
        (["--model", "none.py:build"], "none.py: no such file"),
    ],
)
def test_missing_inputs_of_a_release_are_named(
    trained: Path, options: list[str], says: str
) -> None:
    done = release(trained, *options)
    assert done.exit_code == 2
    assert says in done.stderr


class Own(keras.layers.Layer):  # type: ignore[misc]
    """Custom layer."""

    def call(self, x: Any) -> Any:
        return 2.0 * x


def test_custom_layers_need_the_function_that_builds_them(tmp_path: Path) -> None:
    def made() -> Any:
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((4,), name="x"), Own(), layers.Dense(1)])
        model.compile(loss="mse", metrics=["mae"])
        return model

    package = export_model(made(), name="own")
    with pytest.raises(ExportError, match=r"name the function .*--model FILE.py:FUNCTION"):
        release_model(package, package.initial, "float32")
    got = release_model(package, package.initial, "float32", build=made)
    runner = InferenceModel(got.tflite, package.spec.inputs, package.spec.outputs, 1)
    x = {"x": np.ones((3, 4), np.float32)}
    expected = Program(package.program, package.spec).predict(package.initial, x)["prediction"]
    assert runner.predict(x)["prediction"] == pytest.approx(expected, abs=1e-5)


def test_a_failing_function_is_named_with_its_line(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "made.py"
    path.write_text("def build():\n    return 1 / 0\n")
    done = release(trained, "--model", f"{path}:build")
    assert done.exit_code == 2
    assert "made.py:build() failed: ZeroDivisionError: division by zero (line 2" in done.stderr


class Opaque(keras.layers.Layer):  # type: ignore[misc]
    """Layer without `get_config`, so that Keras cannot describe it."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self._inner = inner

    def call(self, x: Any) -> Any:
        return self._inner(x)


def test_a_layer_without_json_is_released_by_its_function() -> None:
    """The package holds the options of `export_model` without the model."""

    def made() -> Any:
        keras.utils.set_random_seed(1)
        x = keras.Input((4,), name="sensors")
        model = keras.Model(x, layers.Dense(4)(Opaque(layers.Activation("relu"))(x)))
        model.compile(loss="mse", metrics=["mae"])
        return model

    package = export_model(made(), name="opaque", reconstruct="sensors")
    with pytest.raises(ExportError, match="has no description of its model: name the function"):
        release_model(package, package.initial, "float32")
    rows = {"sensors": np.ones((3, 4), np.float32)}
    got = release_model(package, package.initial, "float32", data=rows, build=made)
    assert got.release.released_metrics == pytest.approx(got.release.metrics, rel=1e-4)
    with pytest.raises(ExportError, match=r"must name a function .* not ModelPackage"):
        release_model(package, package.initial, "float32", build=lambda: package)


def test_a_long_recurrent_layer_is_released_in_all_formats() -> None:
    """The program has a loop; TensorFlow crashes when it calibrates one."""
    keras.utils.set_random_seed(2)
    model = keras.Sequential(
        [keras.Input((33, 2), name="series"), layers.SimpleRNN(3), layers.Dense(1)]
    )
    model.compile(loss="mse")
    package = export_model(model, name="long", batch_size=8)
    series = np.random.default_rng(1).normal(size=(20, 33, 2)).astype(np.float32)
    rows = {"series": series, "target": np.ones(20, np.float32)}
    far = []
    for numbers in ("float32", "float16", "int8"):
        made = release_model(package, package.initial, numbers, calibration=rows, data=rows)
        assert made.release.agreement is not None
        far.append(made.release.agreement)
    assert far[0] < 1e-5
    assert far[1] < 0.01
    assert far[2] < 0.3


def test_a_model_card_names_initial_personal_layers() -> None:
    model = build()
    model.compile(loss="sparse_categorical_crossentropy")
    package = export_model(model, name="mine", personal=["dense"])
    made = release_model(package, package.initial, "float32")
    assert made.release.personal == package.personal.size == 6 * 3 + 3
    assert "21 numbers, as every device starts with them" in model_card(made.release)
    assert "personal layers" not in model_card(msgspec.structs.replace(made.release, personal=0))


def test_calibration_accepts_fewer_rows_than_a_batch() -> None:
    package, few = classifier(), {"window": raw_rows(5)["window"]}
    whole, single = (
        release_model(package, package.initial, "int8", calibration=few, batch_size=size)
        for size in (8, 1)
    )
    batched, alone = (
        InferenceModel(made.tflite, package.spec.inputs, package.spec.outputs, size).predict(few)
        for made, size in ((whole, 8), (single, 1))
    )
    assert np.abs(batched["prediction"] - alone["prediction"]).max() < 0.05


def test_models_with_frozen_parts_personal_parts_and_embeddings_are_released() -> None:
    keras.utils.set_random_seed(6)
    encoder = keras.Sequential(
        [keras.Input((5,)), layers.Dense(4, name="back"), layers.Dense(3, name="top")], name="enc"
    )
    inputs = [keras.Input((5,), name=name) for name in ("anchor", "positive", "negative")]
    model = keras.Model(inputs, [encoder(x) for x in inputs])
    package = export_model(model, name="triplet", loss=Triplet(0.3))
    assert read_options(package).loss == Triplet(0.3)
    assert len(rebuild(package).outputs) == 3
    rows = {
        t.name: np.random.default_rng(1).normal(size=(20, 5)).astype(np.float32)
        for t in package.spec.inputs
    }
    made = release_model(package, package.initial, "float32", data=rows)
    assert made.release.metrics == pytest.approx(made.release.released_metrics, rel=1e-4)
    assert made.release.agreement == pytest.approx(0, abs=1e-5)
    # Its accuracy is one of pairs: the embeddings are no classes.
    assert "Root mean square of the difference: 0.00%" in model_card(made.release)

    plain = build()
    plain.compile(loss="sparse_categorical_crossentropy")
    parts = export_model(plain, name="parts", train=["dense"], personal=[])
    made = release_model(parts, parts.initial, "float32")
    given = {"window": raw_rows(8)["window"]}
    expected = Program(parts.program, parts.spec, frozen=parts.frozen).predict(parts.initial, given)
    runner = InferenceModel(made.tflite, parts.spec.inputs, parts.spec.outputs, 1)
    assert runner.predict(given)["prediction"] == pytest.approx(expected["prediction"], abs=1e-5)


def test_a_regression_predicts_in_the_unit_of_its_target(tmp_path: Path) -> None:
    model = keras.Sequential(
        [keras.Input((1,), name="x"), layers.Dense(1, kernel_initializer="ones", name="room")]
    )
    model.compile(loss="mean_squared_error", metrics=["mae"])
    room = TensorSpec("target", (), units=("°C",), mean=(20.0,), std=(4.0,))
    package = export_model(model, name="rooms", targets=[room])
    assert package.spec.targets[0] == room
    with pytest.raises(ExportError, match=r"target spec 'target' is float32 \(2,\), the loss"):
        export_model(model, name="rooms", targets=[TensorSpec("target", (2,))])
    package.save(tmp_path / "rooms")
    np.savez(tmp_path / "rows.npz", x=np.array([[-1.0], [0.5]]), target=np.array([16.0, 24.0]))
    out = tmp_path / "rooms.tflite"
    files = ["--data", str(tmp_path / "rows.npz"), "--out", str(out)]
    made = CliRunner().invoke(cli, ["release", str(tmp_path / "rooms"), *files])
    assert made.exit_code == 0, made.stderr
    # Errors of 0 and .5 of the model's own: a mean of .25, 1 °C.
    assert re.search(r"mae +0.2500 +0.2500 \(1 °C\)", made.output)
    options = ["predict", "--model", str(out), "--data", str(tmp_path / "rows.npz")]
    done = CliRunner().invoke(agent_cli, options)
    assert done.output.splitlines() == ["row,prediction (°C)", "0,16", "1,22"]
    rows = CliRunner().invoke(agent_cli, [*options, "--json"]).output.splitlines()
    assert json.loads(rows[1]) == {"row": 1, "prediction": 22.0}


def regression(folder: Path) -> ModelPackage:
    """Writes a package whose outputs spread little beside their mean."""
    keras.utils.set_random_seed(4)
    model = keras.Sequential(
        [
            keras.Input((3,), name="sensors"),
            layers.Dense(8, activation="relu"),
            layers.Dense(1, bias_initializer=keras.initializers.Constant(20.0)),
        ]
    )
    model.compile(loss="mse", metrics=["mae"])
    package = export_model(model, name="pump")
    package.save(folder / "pump")
    return package


def sensors(count: int, seed: int = 1) -> Any:
    return np.random.default_rng(seed).standard_normal((count, 3)).astype(np.float32)


def with_outlier() -> Any:
    found = sensors(200)
    found[7, 0] = 1e6
    return found


@pytest.mark.parametrize(
    ("calibration", "says", "source"),
    [
        (with_outlier(), "reaches 1e+06 after scaling (row 7)", "held apart"),
        (sensors(1), "has 1 different row of 1", "random rows"),
        (np.repeat(sensors(1), 50, 0), "has 1 different row of 50", "random rows"),
    ],
    ids=["outlier", "one row", "equal rows"],
)
def test_an_int8_release_of_a_bad_calibration_is_not_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calibration: Any, says: str, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    package = regression(tmp_path)
    np.savez("rows.npz", sensors=calibration)
    command = ["release", "pump", "--int8", "--calibration", "rows.npz", "--out", "pump.tflite"]
    made = CliRunner().invoke(cli, [*command, "--json"])
    assert made.exit_code == 2
    (line,) = made.stderr.splitlines()
    assert line.startswith("error: pump.tflite is written, and not good: ")
    assert says in line
    report = json.loads(made.stdout)
    assert report["verdict"] == "not good"
    assert any(says in fault for fault in report["faults"])
    assert source in report["judged_on"]
    # The true difference: of a prediction that is constant for usual rows.
    tflite, description = load_release(tmp_path / "pump.tflite")
    runner = InferenceModel(tflite, description.inputs, description.outputs, 1)
    usual = {"sensors": sensors(100, seed=2)}
    got = runner.predict(usual)["prediction"]
    wanted = Program(package.program, package.spec).predict(package.initial, usual)["prediction"]
    assert got.std() < 0.3 * wanted.std()
    assert report["median_difference"] > 0.25
    assert report["worst_difference"] > 1
    card = (tmp_path / "pump.md").read_text()
    assert card.startswith("# pump\n\n**Not good, do not use it:** ")
    assert "| median |" in card


def test_a_sound_int8_release_is_judged_on_rows_that_do_not_calibrate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    package = regression(tmp_path)
    np.savez("rows.npz", sensors=sensors(200), y=np.full(200, 20.0))
    command = ["release", "pump", "--int8", "--calibration", "rows.npz", "--out", "pump.tflite"]
    made = CliRunner().invoke(cli, command)
    assert made.exit_code == 0, made.stderr
    assert "judged on 40 rows of --calibration held apart" in made.stdout
    assert "measured on 40 rows" in made.stdout
    tflite, description = load_release(tmp_path / "pump.tflite")
    assert (description.verdict, description.faults) == ("good", ())
    held = {"sensors": sensors(200)[4::5]}
    runner = InferenceModel(tflite, description.inputs, description.outputs, 1)
    got = runner.predict(held)["prediction"]
    wanted = Program(package.program, package.spec).predict(package.initial, held)["prediction"]
    far = np.sort(np.abs(wanted - np.median(wanted)))[:38]  # without the farthest twentieth
    differences = np.abs(got - wanted) / np.sqrt(np.square(far).mean())
    assert description.median_difference == pytest.approx(np.median(differences), rel=1e-3)
    assert description.worst_difference == pytest.approx(differences.max(), rel=1e-3)
    assert "## Compared row by row with the float model: good" in model_card(description)

    bad = msgspec.structs.replace(description, verdict="not good", faults=("one row",))
    (tmp_path / "pump.json").write_bytes(msgspec.json.encode(bad))
    command = ["predict", "--model", "pump.tflite", "--data", "rows.npz"]
    assert CliRunner().invoke(agent_cli, command).exit_code == 0
    assert "pump.tflite is not good: one row; release it again" in caplog.text


def test_missing_values_are_still_told_apart_in_int8() -> None:
    package = load_zoo("heart_disease")
    with np.load(ROOT / "examples/data/heart_hospitals.npz") as file:
        (patient,) = package.spec.inputs
        scaled = (file["x"].astype(np.float64) - patient.mean) / np.array(patient.std)
    scaled[np.isnan(scaled)] = patient.missing
    rows = {"patient": scaled.astype(np.float32)}
    made = release_model(package, 1.5 * package.initial, "int8", calibration=rows)
    assert made.release.faults == ()
