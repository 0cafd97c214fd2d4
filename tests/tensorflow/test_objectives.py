"""Losses and metrics of exported programs, compared with Keras's own; row weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedge.errors import ExportError
from learning.vector.metrics import metric_values
from models.export.backend import keras
from models.export.exporter import export_model
from models.export.random_rows import random_batch
from models.export.reference import Reference
from models.export.verify import relative_error
from models.package.package import ModelPackage
from models.runtime.program import Program

ROWS = 6
losses = keras.losses

REGRESSIONS = [
    "mse",
    "mean_absolute_error",
    "huber",
    losses.MeanSquaredError(),
    losses.Huber(delta=0.3),
    "log_cosh",
    losses.LogCosh(),
]


def shown(value: Any) -> str:
    """Returns a test id that is the same in every process."""
    return str(getattr(value, "name", value))


def build(outputs: int, activation: str | None, loss: Any, metrics: Any = None) -> Any:
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [keras.Input((4,), name="sensors"), keras.layers.Dense(outputs, activation=activation)]
    )
    model.compile(loss=loss, metrics=metrics)
    return model


def export(model: Any) -> tuple[ModelPackage, Program]:
    package = export_model(model, name="objective", batch_size=ROWS)
    return package, Program(package.program, package.spec)


def assert_as_keras(model: Any, program: Program, package: ModelPackage) -> None:
    rows = random_batch(package.spec, np.random.default_rng(6))
    got = program.gradient(package.initial, rows)
    loss, gradient, _ = Reference(model, package).gradient(package.initial, rows)
    assert got.sums.loss / ROWS == pytest.approx(loss, rel=1e-5)
    assert relative_error(got.vector, gradient) <= 1e-5
    assert program.evaluate(package.initial, rows).loss == pytest.approx(got.sums.loss, rel=1e-6)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("loss", REGRESSIONS, ids=shown)
def test_regression_losses(loss: Any, outputs: int) -> None:
    model = build(outputs, None, loss, ["mae", keras.metrics.MeanSquaredError()])
    package, program = export(model)
    assert package.spec.targets[0].shape == (() if outputs == 1 else (3,))
    assert package.spec.targets[0].dtype == "float32"
    assert_as_keras(model, program, package)


def test_a_logistic_regression_may_start_at_zero() -> None:
    model = keras.Sequential(
        [
            keras.Input((4,), name="sensors"),
            keras.layers.Dense(1, activation="sigmoid", kernel_initializer="zeros"),
        ]
    )
    model.compile(loss="binary_crossentropy")
    package, program = export(model)
    x = np.arange(ROWS * 4, dtype=np.float32).reshape(ROWS, 4) / 10
    target = np.arange(ROWS, dtype=np.int32) % 2
    got = program.gradient(package.initial, {"sensors": x, "target": target})
    off = 0.5 - target  # every probability is one half
    expected = [*(off @ x / ROWS), off.mean()]
    assert got.vector == pytest.approx(np.array(expected), abs=1e-6)


def test_one_output_is_compared_row_by_row() -> None:
    """(rows, 1) minus (rows,) would be (rows, rows)."""
    package, program = export(build(1, None, "mse", ["mae", "mse"]))
    x = np.arange(ROWS * 4, dtype=np.float32).reshape(ROWS, 4) / 10
    target = np.arange(ROWS, dtype=np.float32)
    weights = package.spec.layout.unflatten(package.initial)
    predicted = (x @ weights["dense/kernel"] + weights["dense/bias"])[:, 0]
    sums = program.evaluate(package.initial, {"sensors": x, "target": target})
    assert sums.loss == pytest.approx(float(np.square(predicted - target).sum()), rel=1e-5)
    assert sums.metrics["mse"] == pytest.approx(sums.loss, rel=1e-6)
    assert sums.metrics["mae"] == pytest.approx(float(np.abs(predicted - target).sum()), rel=1e-5)
    assert program.predict(package.initial, {"sensors": x})["prediction"].shape == (ROWS,)


@pytest.mark.parametrize(
    ("activation", "from_logits"), [("softmax", False), (None, True), ("relu", True)]
)
def test_sparse_categorical_crossentropy(from_logits: bool, activation: str | None) -> None:
    loss = losses.SparseCategoricalCrossentropy(from_logits=from_logits)
    model = build(3, activation, loss, ["accuracy"])
    package, program = export(model)
    assert (package.spec.targets[0].shape, package.spec.targets[0].dtype) == ((), "int32")
    assert_as_keras(model, program, package)


@pytest.mark.parametrize(
    ("activation", "loss"),
    [
        ("softmax", "categorical_crossentropy"),
        ("softmax", losses.CategoricalCrossentropy(label_smoothing=0.2)),
        (None, losses.CategoricalCrossentropy(from_logits=True)),
    ],
    ids=shown,
)
def test_categorical_crossentropy(activation: str | None, loss: Any) -> None:
    model = build(4, activation, loss, ["accuracy"])
    package, program = export(model)
    assert (package.spec.targets[0].shape, package.spec.targets[0].dtype) == ((4,), "float32")
    assert_as_keras(model, program, package)


def test_gradients_of_unnormalized_categorical_targets_equal_keras_s() -> None:
    model = build(3, "softmax", "categorical_crossentropy")
    package, program = export(model)
    rows = dict(random_batch(package.spec, np.random.default_rng(6)))
    rows["target"] = np.tile(np.array([[1, 1, 0], [0, 0, 0.5]], np.float32), (ROWS // 2, 1))
    got = program.gradient(package.initial, rows)
    loss, gradient, _ = Reference(model, package).gradient(package.initial, rows)
    assert got.sums.loss / ROWS == pytest.approx(loss, rel=1e-5)
    assert relative_error(got.vector, gradient) <= 1e-5


@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", "categorical_crossentropy"])
def test_probabilities_without_softmax_have_keras_s_loss(loss: str) -> None:
    """Without logits the logarithm is taken of the output."""
    x = keras.Input((4,))
    mixed = keras.layers.Average()(
        [keras.layers.Dense(3, activation="softmax")(x) for _ in range(2)]
    )
    model = keras.Model(x, mixed)
    model.compile(loss=loss)
    package, program = export(model)
    assert_as_keras(model, program, package)


def test_sparse_classes_of_unnormalized_outputs_have_keras_s_loss() -> None:
    """Keras normalizes every row to 1 after clipping."""
    model = build(3, "relu", "sparse_categorical_crossentropy", ["accuracy"])
    package, program = export(model)
    assert_as_keras(model, program, package)


@pytest.mark.parametrize(
    ("activation", "loss", "says"),
    [
        ("softmax", losses.SparseCategoricalCrossentropy(from_logits=True), "from_logits=True: ke"),
        ("sigmoid", losses.BinaryCrossentropy(from_logits=True), "from_logits=True: keep one"),
        ("softmax", "binary_crossentropy", "needs probabilities: use 'sigmoid'$"),
        ("sigmoid", "sparse_categorical_crossentropy", "needs probabilities: use 'softmax'$"),
        (None, "categorical_crossentropy", "use 'softmax' or from_logits=True"),
    ],
    ids=shown,
)
def test_a_last_activation_that_does_not_fit_the_loss_is_rejected(
    activation: str | None, loss: Any, says: str
) -> None:
    with pytest.raises(ExportError, match=rf"'prediction' ends with .* \(layer 'dense.* {says}"):
        export(build(3, activation, loss, None))


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize(
    ("activation", "loss"),
    [
        ("sigmoid", "binary_crossentropy"),
        ("sigmoid", losses.BinaryCrossentropy(label_smoothing=0.1)),
        (None, losses.BinaryCrossentropy(from_logits=True)),
    ],
    ids=shown,
)
def test_binary_crossentropy(activation: str | None, loss: Any, outputs: int) -> None:
    model = build(outputs, activation, loss, ["accuracy"])
    package, program = export(model)
    assert package.spec.targets[0].dtype == "int32"
    assert_as_keras(model, program, package)


@pytest.mark.parametrize(
    ("outputs", "loss", "metric"),
    [
        (3, "sparse_categorical_crossentropy", "accuracy"),
        (3, "sparse_categorical_crossentropy", "sparse_categorical_accuracy"),
        (1, "binary_crossentropy", "accuracy"),
        (1, "binary_crossentropy", keras.metrics.BinaryAccuracy(threshold=0.6)),
        (
            *(7, "sparse_categorical_crossentropy"),
            keras.metrics.SparseTopKCategoricalAccuracy(k=3),
        ),
        (7, "categorical_crossentropy", "accuracy"),
        (7, "categorical_crossentropy", keras.metrics.TopKCategoricalAccuracy(k=2)),
        (1, "mse", "mean_absolute_error"),
        (2, "mse", keras.metrics.MeanSquaredError()),
    ],
    ids=shown,
)
def test_metrics_are_sums_of_keras_means(outputs: int, loss: str, metric: Any) -> None:
    activation = {7: "softmax", 3: "softmax", 1: "sigmoid"}.get(outputs)
    model = build(outputs, activation, loss, [metric])
    package, program = export(model)
    rows = random_batch(package.spec, np.random.default_rng(7))
    sums = program.evaluate(package.initial, rows)
    labels = rows["target"][:, None] if outputs == 1 else rows["target"]
    expected = model.evaluate(rows["sensors"], labels, verbose=0, return_dict=True)
    (metric_spec,) = package.spec.metrics
    name = metric_spec.name
    (keras_name,) = set(expected) - {"loss"}
    assert name in ("accuracy", "mae", "mse", "top_3_accuracy", "top_2_accuracy")
    values = metric_values(sums, package.spec.metrics)
    assert values[name] == pytest.approx(expected[keras_name], abs=1e-6)


def test_row_weights_scale_loss_gradient_and_metrics() -> None:
    package, program = export(build(3, "softmax", "sparse_categorical_crossentropy", ["accuracy"]))
    rows = random_batch(package.spec, np.random.default_rng(8))
    weight = np.array([2, 0, 1, 0, 0, 1], np.float32)
    taken = np.array([0, 0, 2, 5])  # weight 2 is the row twice, weight 0 is no row
    weighed = program.gradient(package.initial, {**rows, "weight": weight})
    repeated = program.gradient(package.initial, {k: array[taken] for k, array in rows.items()})
    assert relative_error(weighed.vector, repeated.vector) <= 1e-5
    assert weighed.sums.weight == repeated.sums.weight == 4
    assert weighed.sums.loss == pytest.approx(repeated.sums.loss, rel=1e-5)
    assert weighed.sums.metrics == pytest.approx(repeated.sums.metrics)


@pytest.mark.parametrize(
    ("loss", "metrics", "says"),
    [
        ("kl_divergence", None, "loss 'kl_divergence' cannot be exported: use one of"),
        (
            "mse",
            [keras.metrics.R2Score()],
            r"'r2' .* shape \(3,\) \(it needs a target of one number",
        ),
        (losses.MeanSquaredError(reduction="sum"), None, "reduction='sum'"),
        ("mse", ["accuracy"], "metric 'accuracy' cannot be exported with the loss mean_squ"),
        ("mse", ["mae", "cosine_similarity"], "metric 'cosine_similarity' .* of: mae, mse, rmse"),
        ("sparse_categorical_crossentropy", ["mae"], "metric 'mean_absolute_error' .* accuracy, "),
        (None, None, "has no loss: call model.compile"),
    ],
)
def test_unsupported_losses_and_metrics_are_named(loss: Any, metrics: Any, says: str) -> None:
    with pytest.raises(ExportError, match=says):
        export(build(3, "softmax", loss, metrics))


def test_one_output_for_sparse_classes_is_rejected() -> None:
    with pytest.raises(ExportError, match="for two classes and one output use binary_crossentr"):
        export(build(1, "sigmoid", "sparse_categorical_crossentropy"))
