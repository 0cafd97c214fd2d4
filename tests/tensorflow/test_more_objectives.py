"""Several outputs, reconstructions, embeddings, class weights, and metrics that are not means."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedge.errors import ExportError
from learning.vector.metrics import add_sums, metric_matrices, metric_values
from models.export.backend import keras
from models.export.exporter import export_model
from models.export.objective.losses import Contrastive, Triplet
from models.export.objective.reading import ObjectiveOptions, read_objective
from models.export.random_rows import random_batch
from models.export.reference import Reference
from models.export.verify import relative_error
from models.package.package import ModelPackage
from models.runtime.interpreters import available_runtimes
from models.runtime.program import Program
from models.runtime.rows import Array

layers = keras.layers
ROWS = 16
ROOT = Path(__file__).parents[2]


def rows_of(package: ModelPackage, seed: int = 4) -> dict[str, Array]:
    return random_batch(package.spec, np.random.default_rng(seed))


def assert_gradient(
    model: Any, package: ModelPackage, options: ObjectiveOptions | None = None
) -> None:
    rows = rows_of(package)
    got = Program(package.program, package.spec).gradient(package.initial, rows)
    objective = read_objective(model, package.spec.inputs, options or ObjectiveOptions())
    loss, gradient, _ = Reference(model, package, objective).gradient(package.initial, rows)
    assert got.sums.loss / package.spec.batch_size == pytest.approx(loss, rel=1e-5)
    assert relative_error(got.vector, gradient) <= 1e-5


def two_outputs() -> Any:
    keras.utils.set_random_seed(2)
    x = keras.Input((5,), name="sensors")
    hidden = layers.Dense(6, activation="tanh")(x)
    kind = layers.Dense(3, activation="softmax", name="kind")(hidden)
    age = layers.Dense(1, name="age")(hidden)
    return keras.Model(x, [kind, age])


def test_two_outputs_have_targets_losses_and_metrics_of_their_own() -> None:
    model = two_outputs()
    model.compile(
        loss={"kind": "sparse_categorical_crossentropy", "age": "mse"},
        loss_weights={"kind": 1.0, "age": 0.25},
        metrics={"kind": ["accuracy"], "age": ["mae"]},
    )
    package = export_model(model, name="two", batch_size=ROWS)
    spec = package.spec
    assert [t.name for t in spec.targets] == ["target_kind", "target_age"]
    assert [(t.name, t.shape) for t in spec.outputs] == [("kind", (3,)), ("age", ())]
    assert [m.name for m in spec.metrics] == ["kind_accuracy", "age_mae"]
    assert_gradient(model, package)
    rows = rows_of(package)
    predicted = Program(package.program, spec).predict(package.initial, rows)
    kind, age = model(rows["sensors"], training=False)
    assert predicted["kind"] == pytest.approx(np.asarray(kind), abs=1e-5)
    assert predicted["age"] == pytest.approx(np.asarray(age)[:, 0], abs=1e-5)
    sums = Program(package.program, spec).evaluate(package.initial, rows)
    expected = model.evaluate(
        rows["sensors"],
        {"kind": rows["target_kind"], "age": rows["target_age"][:, None]},
        batch_size=ROWS,
        verbose=0,
        return_dict=True,
    )
    values = metric_values(sums, spec.metrics)
    for name in ("loss", "kind_accuracy", "age_mae"):
        assert values[name] == pytest.approx(expected[name], rel=1e-5)


def autoencoder() -> Any:
    x = keras.Input((6,), name="sensors")
    model = keras.Model(x, layers.Dense(6)(layers.Dense(2, activation="relu")(x)))
    model.compile(loss="mse", metrics=["mae"])
    return model


def test_an_autoencoder_needs_no_target() -> None:
    model = autoencoder()
    package = export_model(model, name="auto", batch_size=ROWS, reconstruct="sensors")
    assert package.spec.targets == ()
    assert_gradient(model, package, ObjectiveOptions(reconstruct="sensors"))
    x = rows_of(package)["sensors"]
    program = Program(package.program, package.spec)
    rebuilt = program.predict(package.initial, {"sensors": x})["prediction"]
    sums = program.evaluate(package.initial, {"sensors": x})
    assert sums.loss == pytest.approx(float(np.square(rebuilt - x).mean(1).sum()), rel=1e-5)


@pytest.mark.parametrize("loss", ["mse", "binary_crossentropy"])
def test_a_grey_image_is_reconstructed(loss: str) -> None:
    """The input has a last axis of 1, which outputs do not have, and values from 0 to 1."""
    keras.utils.set_random_seed(3)
    x = keras.Input((4, 4, 1), name="image")
    small = layers.Conv2D(2, 3, strides=2, padding="same")(x)
    end = layers.Conv2D(1, 3, padding="same", activation="sigmoid")(layers.UpSampling2D(2)(small))
    model = keras.Model(x, end)
    model.compile(loss=loss, metrics=["mae"])
    package = export_model(model, name="grey", batch_size=ROWS, reconstruct="image")
    assert package.spec.outputs[0].shape == (4, 4)
    options = ObjectiveOptions(reconstruct="image")
    assert_gradient(model, package, options)
    image = np.random.default_rng(1).random((ROWS, 4, 4, 1), dtype=np.float32)
    sums = Program(package.program, package.spec).evaluate(package.initial, {"image": image})
    made = np.asarray(model(image))
    assert sums.metrics["mae"] == pytest.approx(float(np.abs(made - image).mean() * ROWS), rel=1e-4)
    expected = float(model.compute_loss(y=image, y_pred=made))
    assert sums.loss / ROWS == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("reconstruct", "says"),
    [("motor", r"the name of an input \(sensors\)"), ("sensors", "must have one shape and dtype")],
)
def test_invalid_reconstructions_are_rejected(reconstruct: str, says: str) -> None:
    x = keras.Input((6,), name="sensors")
    model = keras.Model(x, layers.Dense(5)(x))
    model.compile(loss="mse")
    with pytest.raises(ExportError, match=says):
        export_model(model, name="m", reconstruct=reconstruct)


def embeddings(names: list[str]) -> Any:
    keras.utils.set_random_seed(8)
    encoder = keras.Sequential([keras.Input((5,)), layers.Dense(4, activation="tanh")])
    inputs = [keras.Input((5,), name=name) for name in names]
    return keras.Model(inputs, [encoder(x) for x in inputs])


def test_triplet_loss_is_that_of_the_paper() -> None:
    model = embeddings(["anchor", "positive", "negative"])
    package = export_model(model, name="triplet", batch_size=ROWS, loss=Triplet(0.5))
    assert (package.spec.targets, package.spec.loss) == ((), "triplet")
    assert_gradient(model, package, ObjectiveOptions(loss=Triplet(0.5)))
    rows = rows_of(package)
    a, p, n = (np.asarray(e) for e in model([rows[t.name] for t in package.spec.inputs]))
    like, unlike = ((a - p) ** 2).sum(1), ((a - n) ** 2).sum(1)
    sums = Program(package.program, package.spec).evaluate(package.initial, rows)
    assert sums.loss == pytest.approx(float(np.maximum(like - unlike + 0.5, 0).sum()), rel=1e-5)
    assert sums.metrics == {"accuracy": float((like < unlike).sum())}


def test_contrastive_loss_is_that_of_the_paper_also_for_equal_embeddings() -> None:
    model = embeddings(["left", "right"])
    package = export_model(model, name="pair", batch_size=ROWS, loss=Contrastive(2.0))
    assert_gradient(model, package, ObjectiveOptions(loss=Contrastive(2.0)))
    rows = rows_of(package)
    left, right = (np.asarray(e) for e in model([rows["left"], rows["right"]]))
    d = np.sqrt(((left - right) ** 2).sum(1))
    alike = rows["target"]
    expected = 0.5 * (alike * d**2 + (1 - alike) * np.maximum(2.0 - d, 0) ** 2)
    program = Program(package.program, package.spec)
    assert program.evaluate(package.initial, rows).loss == pytest.approx(
        float(expected.sum()), rel=1e-5
    )
    same = {**rows, "right": rows["left"]}
    assert np.isfinite(program.gradient(package.initial, same).vector).all()


def test_embeddings_that_do_not_fit_the_loss_are_rejected() -> None:
    with pytest.raises(ExportError, match="needs a model of 3 embeddings of one shape"):
        export_model(embeddings(["left", "right"]), name="m", loss=Triplet())


def classifier(outputs: int, loss: Any, metrics: Any = None, activation: Any = "softmax") -> Any:
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [keras.Input((4,), name="sensors"), layers.Dense(outputs, activation=activation)]
    )
    model.compile(loss=loss, metrics=metrics)
    return model


def test_class_weights_are_those_of_keras() -> None:
    weights = {0: 0.5, 2: 4.0}
    model = classifier(3, "sparse_categorical_crossentropy", ["accuracy"])
    package = export_model(model, name="m", batch_size=ROWS, class_weight=weights)
    assert_gradient(model, package, ObjectiveOptions(class_weight=weights))
    rows = rows_of(package)
    each = -np.log(np.asarray(model(rows["sensors"]))[np.arange(ROWS), rows["target"]])
    counted = np.array([0.5, 1.0, 4.0])[rows["target"]]
    sums = Program(package.program, package.spec).evaluate(package.initial, rows)
    assert sums.loss == pytest.approx(float((counted * each).sum()), rel=1e-5)
    assert sums.weight == ROWS


@pytest.mark.parametrize("weights", [{3: 1.0}, {0: -1.0}, {0: float("nan")}])
def test_invalid_class_weights_are_rejected(weights: dict[int, float]) -> None:
    model = classifier(3, "sparse_categorical_crossentropy")
    with pytest.raises(ExportError, match="keys are classes from 0 to 2, values 0 or more"):
        export_model(model, name="m", class_weight=weights)


def measured(model: Any, batches: int = 3, **options: Any) -> tuple[Any, Array, Array]:
    """Returns metrics from the sums of several batches, and Keras's predictions of all rows."""
    package = export_model(model, name="m", batch_size=ROWS, **options)
    program = Program(package.program, package.spec)
    parts = [rows_of(package, seed) for seed in range(batches)]
    sums = add_sums(program.evaluate(package.initial, rows) for rows in parts)
    x, y = (np.concatenate([rows[name] for rows in parts]) for name in ("sensors", "target"))
    return (sums, package.spec.metrics), y, np.asarray(model(x))


def test_metrics_of_two_classes_are_keras_own_over_all_rows() -> None:
    metrics = [keras.metrics.AUC(), keras.metrics.Precision(), keras.metrics.Recall()]
    model = classifier(1, "binary_crossentropy", metrics, "sigmoid")
    found, y, p = measured(model, metrics=["f1", "confusion"])
    values = metric_values(*found)
    for metric in metrics:
        metric.reset_state()
        metric.update_state(y, p[:, 0])
        name = type(metric).__name__.lower()
        assert values[name] == pytest.approx(float(metric.result()), abs=1e-5), name
    harmonic = 2 / (1 / values["precision"] + 1 / values["recall"])
    assert values["f1"] == pytest.approx(harmonic, rel=1e-5)
    said = p[:, 0] > 0.5
    table = [[float(((y == t) & (said == s)).sum()) for s in (0, 1)] for t in (0, 1)]
    assert metric_matrices(*found) == {"confusion": table}


def test_metrics_of_several_classes_are_means_over_classes() -> None:
    model = classifier(3, "sparse_categorical_crossentropy", [keras.metrics.F1Score("macro")])
    found, y, p = measured(model, metrics=["precision", "recall", "confusion"])
    values = metric_values(*found)
    keras_f1 = keras.metrics.F1Score("macro")
    keras_f1.update_state(np.eye(3, dtype=np.float32)[y], p)
    assert values["f1"] == pytest.approx(float(keras_f1.result()), rel=1e-5)
    said = p.argmax(1)
    table = np.array([[((y == t) & (said == s)).sum() for s in range(3)] for t in range(3)])
    assert metric_matrices(*found) == {"confusion": table.astype(float).tolist()}
    assert values["recall"] == pytest.approx((table.diagonal() / table.sum(1)).mean(), rel=1e-5)
    predicted = np.maximum(table.sum(0), 1)
    assert values["precision"] == pytest.approx((table.diagonal() / predicted).mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("metric", "says"),
    [
        (keras.metrics.Precision(class_id=1), "'precision' with class_id=1"),
        (keras.metrics.Recall(top_k=2), "'recall' with top_k=2"),
        (keras.metrics.FBetaScore(beta=2.0), "'f1' with beta=2.0"),
        (keras.metrics.F1Score(threshold=0.3), "a threshold for several classes"),
        (keras.metrics.Precision(thresholds=0.7), "a threshold for several classes"),
        (keras.metrics.F1Score("micro"), "with average='micro': use 'macro'"),
    ],
)
def test_unsupported_options_of_metrics_are_rejected(metric: Any, says: str) -> None:
    with pytest.raises(ExportError, match=says):
        export_model(classifier(3, "sparse_categorical_crossentropy", [metric]), name="m")


@pytest.mark.parametrize(
    ("metric", "says"),
    [
        (keras.metrics.AUC(thresholds=[0.2, 0.5]), "thresholds of your own: give num_thresholds"),
        (keras.metrics.AUC(curve="PR"), "curve 'PR': use 'ROC'"),
        (keras.metrics.AUC(summation_method="majoring"), "summation_method='majoring'"),
    ],
)
def test_unsupported_kinds_of_auc_are_rejected(metric: Any, says: str) -> None:
    with pytest.raises(ExportError, match=says):
        export_model(classifier(1, "binary_crossentropy", [metric], "sigmoid"), name="m")


def test_a_metric_of_too_many_numbers_is_rejected() -> None:
    model = classifier(101, "sparse_categorical_crossentropy")
    with pytest.raises(ExportError, match=r"'confusion' has 10,201 numbers \(101, 101\), limit"):
        export_model(model, name="m", metrics=["confusion"])


@pytest.mark.parametrize("k", [1, 2])
def test_top_k_is_keras_own(k: int) -> None:
    metric = keras.metrics.SparseTopKCategoricalAccuracy(k)
    found, y, p = measured(classifier(4, "sparse_categorical_crossentropy", [metric]))
    metric.reset_state()
    metric.update_state(y, p)
    values = metric_values(*found)
    assert values[f"top_{k}_accuracy"] == pytest.approx(float(metric.result()), rel=1e-6)


@pytest.mark.parametrize(("activation", "from_logits"), [("softmax", False), (None, True)])
def test_auc_of_a_softmax_of_two(activation: str | None, from_logits: bool) -> None:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
    found, y, p = measured(classifier(2, loss, None, activation), metrics=["auc"])
    share = 1 / (1 + np.exp(p[:, 0] - p[:, 1])) if from_logits else p[:, 1]
    expected = keras.metrics.AUC()
    expected.update_state(y, share)
    assert metric_values(*found)["auc"] == pytest.approx(float(expected.result()), abs=1e-5)


def test_root_mean_square_and_r2_are_those_of_all_rows_together() -> None:
    metrics = [keras.metrics.RootMeanSquaredError(), keras.metrics.R2Score()]
    found, y, p = measured(classifier(1, "mse", metrics, None))
    values = metric_values(*found)
    assert values["rmse"] == pytest.approx(np.sqrt(np.square(y - p[:, 0]).mean()), rel=1e-5)
    expected = keras.metrics.R2Score()
    expected.update_state(y[:, None], p)
    assert values["r2"] == pytest.approx(float(expected.result()), rel=1e-4)


_R2 = """
import json, sys
from pathlib import Path
import numpy as np
from learning.vector.metrics import Sums, add_sums, metric_values
from models.package.package import load_package
from models.runtime.program import Program

package = load_package(Path(sys.argv[1]))
program = Program(package.program, package.spec, runtime=sys.argv[2])
found = {"evaluate": [], "gradient": []}
with np.load(sys.argv[3]) as rows:
    x, y = rows["x"], rows["y"]
for part in (slice(0, 70), slice(70, 71), slice(71, None)):  # three devices
    data = {"x": x[part], "target": y[part]}
    found["evaluate"].append(program.evaluate(package.initial, data))
    found["gradient"].append(program.gradient(package.initial, data).sums)
metrics = package.spec.metrics
print(json.dumps({k: metric_values(add_sums(v), metrics)["r2"] for k, v in found.items()}))
"""


@pytest.mark.parametrize(("mean", "std"), [(293.15, 0.3), (101_325.0, 30.0)])
def test_r2_of_temperatures_in_kelvin_and_of_pressures_is_right(
    tmp_path: Path, mean: float, std: float
) -> None:
    rng = np.random.default_rng(7)
    x = rng.standard_normal((128, 2)).astype(np.float32)
    y = (mean + std * (x @ [0.6, 0.7] + rng.normal(0, 0.4, 128))).astype(np.float32)
    model = keras.Sequential([keras.Input((2,), name="x"), keras.layers.Dense(1)])
    model.compile(loss="mse", metrics=[keras.metrics.R2Score()])
    model.layers[-1].set_weights([std * np.array([[0.6], [0.7]]), np.array([mean])])
    export_model(model, name="r2", batch_size=32).save(tmp_path / "r2")
    np.savez(tmp_path / "rows.npz", x=x, y=y)
    exact, p = y.astype(np.float64), np.asarray(model(x), np.float64)[:, 0]
    expected = 1 - np.square(exact - p).sum() / np.square(exact - exact.mean()).sum()
    for runtime in available_runtimes():
        code = [sys.executable, "-c", _R2, str(tmp_path / "r2"), runtime]
        done = subprocess.run(
            [*code, str(tmp_path / "rows.npz")], check=True, capture_output=True, cwd=ROOT
        )
        found = json.loads(done.stdout)
        assert found == pytest.approx({"evaluate": expected, "gradient": expected}, abs=1e-3)
