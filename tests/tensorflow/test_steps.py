"""Steps of any number of rows with BatchNormalization, whose moments are those of the step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedge.errors import TrainingError
from models.export.backend import keras
from models.export.exporter import export_model
from models.export.random_rows import random_batch
from models.export.reference import Reference
from models.export.verify import relative_error
from models.package.package import ModelPackage
from models.runtime.program import Program

layers = keras.layers


def normalized() -> Any:
    keras.utils.set_random_seed(2)
    model = keras.Sequential(
        [
            keras.Input((5,), name="x"),
            layers.Dense(4),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Dense(2),
            layers.BatchNormalization(momentum=0.9),
            layers.Dense(1),
        ]
    )
    model.compile(loss="mse")
    return model


def compared(model: Any, package: ModelPackage, rows: int) -> float:
    """Returns how far the gradient of a step is from Keras's over all of its rows."""
    program = Program(package.program, package.spec, frozen=package.frozen)
    data = random_batch(package.spec, np.random.default_rng(rows), rows)
    _, gradient, _ = Reference(model, package).gradient(package.initial, data)
    return relative_error(program.gradient(package.initial, data).vector, gradient)


@pytest.fixture(scope="module")
def several() -> tuple[Any, ModelPackage]:
    model = normalized()
    return model, export_model(model, name="normal", batch_size=(32, 8, 64))


@pytest.mark.parametrize("rows", [2, 9, 10, 32, 33, 40, 63, 64])
def test_a_step_up_to_the_largest_batch_size_is_kerass(
    several: tuple[Any, ModelPackage], rows: int
) -> None:
    assert compared(*several, rows) <= 1e-5


@pytest.mark.parametrize("rows", [33, 64])
def test_a_step_of_more_rows_is_refused(rows: int) -> None:
    model = normalized()
    package = export_model(model, name="normal")
    assert compared(model, package, 32) <= 1e-5
    says = rf"32 rows at most, and a step of {rows} rows .* 1 to 32, .* --batch-size {rows}$"
    with pytest.raises(TrainingError, match=says):
        compared(model, package, rows)


def test_frozen_batch_normalization_has_no_moments_of_a_step() -> None:
    model = normalized()
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.trainable = False
    model.compile(loss="mse")
    assert compared(model, export_model(model, name="frozen"), 70) <= 1e-5
