"""Exports the cases, several per model, with the part of θ that belongs to each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learning.vector.parameters import F32
from models.export.backend import keras
from models.export.exporter import export_model
from models.export.random_rows import random_batch
from models.export.reference import Reference
from models.export.variables import read_variables
from models.package.package import ModelPackage
from tests.tensorflow.cases import FRAMES, Case

ROWS = 5
SEED = 11
#: Branches of one model: large enough to be quick, small enough to find what failed.
_BRANCHES = 20


@dataclass(frozen=True, eq=False)
class Exported:
    """Exported group of cases, with Keras's results for a batch.

    Attributes:
        parts: case name -> indexes into θ.
        rows: inputs and target.
        output: Keras's prediction.
    """

    package: ModelPackage
    parts: dict[str, NDArray[np.intp]]
    rows: dict[str, NDArray[Any]]
    loss: float
    gradient: F32
    output: F32


def grouped(cases: list[Case]) -> dict[str, list[Case]]:
    """Returns the cases that share a model, by the model's name."""
    together: dict[str, list[Case]] = {}
    for case in cases:
        last = case.family.rpartition(", ")[2]  # each in models of its own
        kind = f"{case.frame} {last}" if last in ("random", "masked") else case.frame
        number = sum(key.startswith(f"{kind}.") for key in together)
        if not number or len(together[f"{kind}.{number}"]) == _BRANCHES:
            number += 1
        together.setdefault(f"{kind}.{number}", []).append(case)
    return together


def export_group(cases: list[Case]) -> Exported:
    """Exports the model whose branches are `cases`."""
    keras.utils.set_random_seed(3)
    shape, dtype, stem = FRAMES[cases[0].frame]
    start = keras.Input(shape, dtype=dtype, name="x")
    ends = {case.name: case.piece(stem(start) if stem else start) for case in cases}
    flat = [keras.layers.Flatten()(end) for end in ends.values()]
    joined = keras.layers.Concatenate()(flat) if len(flat) > 1 else flat[0]
    model = keras.Model(start, keras.layers.Dense(3, activation="softmax")(joined))
    model.compile(loss="sparse_categorical_crossentropy")
    rng = np.random.default_rng(4)
    for _, variable in read_variables(model).shared:  # zero biases would hide mistakes
        variable.assign(variable + 0.1 * rng.standard_normal(variable.shape))
    package = export_model(model, name="group", batch_size=ROWS)
    rows = random_batch(package.spec, rng)
    if dtype == "int32":
        rows["x"] = rng.integers(0, 9, rows["x"].shape, dtype=np.int32)
    reference = Reference(model, package)
    loss, gradient, _ = reference.gradient(package.initial, rows, SEED)
    (output,) = reference.outputs(package.initial, rows)
    parts = {name: _part(model, start, end, package) for name, end in ends.items()}
    return Exported(package, parts, rows, loss, gradient, output)


def _part(model: Any, start: Any, end: Any, package: ModelPackage) -> NDArray[np.intp]:
    """Returns the indexes in θ of the weights between `start` and `end`."""
    mine = {id(variable) for variable in keras.Model(start, end).variables}
    slices = [place for _, place in package.spec.layout.slices()]
    places = [
        np.arange(place.start, place.stop)
        for (_, variable), place in zip(read_variables(model).shared, slices, strict=True)
        if id(variable) in mine
    ]
    return np.concatenate(places)
