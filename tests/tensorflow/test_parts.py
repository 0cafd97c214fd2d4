"""Frozen and personal layers, moving averages, and padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedge.errors import ExportError
from models.export.backend import keras
from models.export.exporter import export_model
from models.export.random_rows import random_batch
from models.export.reference import Reference
from models.export.variables import read_variables
from models.export.verify import relative_error
from models.package.package import ModelPackage, load_package, unpack_wire
from models.runtime.program import Program

layers = keras.layers
ROWS = 8


def build() -> Any:
    keras.utils.set_random_seed(4)
    model = keras.Sequential(
        [
            keras.Input((6,), name="sensors"),
            layers.Dense(40, activation="relu", name="backbone"),
            layers.BatchNormalization(name="norm"),
            layers.Dense(5, activation="relu", name="neck"),
            layers.Dense(3, activation="softmax", name="head"),
        ]
    )
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def export(model: Any, **options: Any) -> tuple[ModelPackage, Program]:
    package = export_model(model, name="parts", batch_size=ROWS, **options)
    return package, Program(package.program, package.spec, frozen=package.frozen)


def names(package: ModelPackage) -> list[str]:
    return [parameter.name for parameter in package.spec.layout.parameters]


def test_layers_not_named_by_train_are_frozen_and_rounded_to_bytes() -> None:
    model = build()
    package, program = export(model, train=["neck", "head"])
    assert names(package) == ["neck/kernel", "neck/bias", "head/kernel", "head/bias"]
    assert package.spec.frozen == 6 * 40 + 40 + 4 * 40
    # A byte a number of the kernel, four of vectors; a scale for the kernel, and six headers.
    assert len(package.frozen_bytes) == 6 * 40 + 4 + 4 * 5 * 40 + 5 * 6
    whole, _ = export(build())
    assert len(package.program) < len(whole.program)  # nothing is differentiated back there
    rows = random_batch(package.spec, np.random.default_rng(1))
    variables = read_variables(model)
    reference = Reference(model, package, variables=variables)
    got = program.gradient(package.initial, rows)
    loss, gradient, _ = reference.gradient(package.initial, rows)
    assert relative_error(got.vector, gradient) <= 1e-5
    assert got.sums.loss / ROWS == pytest.approx(loss, rel=1e-5)
    exact = np.asarray(model(rows["sensors"], training=False))
    rounded = program.predict(package.initial, rows)["prediction"]
    assert np.abs(rounded - exact).max() < 0.05


def test_frozen_and_personal_parts_survive_disk_and_wire(tmp_path: Any) -> None:
    package, _ = export(build(), train=["neck", "head"], personal=["head"])
    package.save(tmp_path)
    again = load_package(tmp_path)
    assert again.digest == package.digest
    content = unpack_wire(package.wire)
    assert np.array_equal(content.personal, package.personal)
    assert content.frozen is not None
    assert package.frozen is not None
    assert np.array_equal(content.frozen, package.frozen)


def test_personal_layers_follow_theta_in_the_program_s_vector() -> None:
    model = build()
    package, program = export(model, personal=["head", "norm"])
    assert names(package) == ["backbone/kernel", "backbone/bias", "neck/kernel", "neck/bias"]
    assert package.spec.personal is not None
    assert [p.name for p in package.spec.personal.parameters] == [
        *("norm/gamma", "norm/beta", "head/kernel", "head/bias"),
        *("norm/moving_mean", "norm/moving_variance"),
    ]
    rows = random_batch(package.spec, np.random.default_rng(1))
    whole = package.whole(package.initial)
    variables = read_variables(model, ["head", "norm"])
    _, gradient, _ = Reference(model, package, variables=variables).gradient(whole, rows)
    got = program.gradient(whole, rows)
    assert got.vector.shape == (package.spec.whole_size,) == gradient.shape
    assert relative_error(got.vector, gradient) <= 1e-5


def test_layers_of_an_inner_model_are_named_with_its_prefix() -> None:
    keras.utils.set_random_seed(8)
    x = keras.Input((6,), name="sensors")
    lower, upper = layers.Dense(5, name="lower"), layers.Dense(4, name="upper")
    backbone = keras.Model(x, upper(lower(x)), name="backbone")
    model = keras.Sequential([x, backbone, layers.Dense(1, name="head")])
    model.compile(loss="mse")
    package, _ = export(model, train=["backbone/up*", "head"], personal=["head"])
    assert names(package) == ["backbone/upper/kernel", "backbone/upper/bias"]
    assert package.spec.personal is not None
    assert [p.name for p in package.spec.personal.parameters] == ["head/kernel", "head/bias"]
    assert package.spec.frozen == 6 * 5 + 5
    whole, _ = export(model, train=["backbone", "head"])
    assert len(names(whole)) == 6


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"train": ["tail"]}, "no layer is called 'tail'; layers with weights: backbone, norm"),
        ({"personal": ["tail*"]}, r"no layer is called 'tail\*'"),
        ({"personal": ["*"]}, "nothing would be averaged"),
        ({"train": ["neck"], "personal": ["head"]}, "personal 'head': these layers are frozen"),
    ],
)
def test_patterns_without_a_layer_are_rejected(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ExportError, match=says):
        export(build(), **options)


def test_moving_averages_are_tracked_and_follow_the_data() -> None:
    package, program = export(build())
    spec = package.spec
    tracked = [p.name for p in spec.layout.parameters if p.tracked]
    assert tracked == ["norm/moving_mean", "norm/moving_variance"]
    rows = random_batch(spec, np.random.default_rng(1))
    got = spec.layout.unflatten(program.gradient(package.initial, rows).vector)
    weights = spec.layout.unflatten(package.initial)
    hidden = np.maximum(rows["sensors"] @ weights["backbone/kernel"] + weights["backbone/bias"], 0)
    change = 0.01 * (weights["norm/moving_mean"] - hidden.mean(0))  # momentum 0.99
    assert got["norm/moving_mean"] == pytest.approx(change, abs=1e-6)
    change = 0.01 * (weights["norm/moving_variance"] - hidden.var(0))
    assert got["norm/moving_variance"] == pytest.approx(change, abs=1e-6)


def test_batch_normalization_ignores_padding() -> None:
    package, program = export(build())
    rows = random_batch(package.spec, np.random.default_rng(1))
    few = {name: array[:3] for name, array in rows.items()}
    padded = program.gradient(package.initial, few)
    small = export_model(build(), name="parts", batch_size=3)
    exact = Program(small.program, small.spec).gradient(small.initial, few)
    assert np.array_equal(small.initial, package.initial)
    assert padded.vector == pytest.approx(exact.vector, rel=1e-4, abs=1e-6)


def test_a_negative_moving_variance_counts_as_zero() -> None:
    """Averages of quantized updates may be slightly below 0."""
    package, program = export(build())
    theta = package.initial.copy()
    for parameter, place in package.spec.layout.slices():
        if parameter.name == "norm/moving_variance":
            theta[place] = -1e-4
    rows = random_batch(package.spec, np.random.default_rng(1))
    assert np.isfinite(program.predict(theta, rows)["prediction"]).all()
