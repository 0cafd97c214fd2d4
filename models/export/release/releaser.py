"""`release_model`: weights of a model -> one `.tflite` for predicting, with its description."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedge.errors import ExportError
from learning.vector.parameters import F32
from models.export.backend import keras, suppress_tensorflow_output, tf
from models.export.calling import pack_inputs
from models.export.objective.objective import Objective
from models.export.objective.reading import read_objective
from models.export.progress import step
from models.export.random_rows import random_batch, representative_rows
from models.export.release.architecture import assign_weights, read_options, rebuild
from models.export.release.calibration import Split, split_rows
from models.export.release.conversion import Numbers, convert
from models.export.release.judging import difference_faults, row_differences
from models.export.release.measuring import compared_metrics, program_seconds
from models.package.package import ModelPackage
from models.package.spec import ModelSpec
from models.package.units import with_units
from models.runtime.inference import InferenceModel, Release
from models.runtime.program import Program
from models.runtime.rows import Array, Rows, row_count

#: Largest difference of predictions, relative to the largest prediction. Float32 sums in another
#: order differ by less; weights of float16 are off by 2^-11.
_TOLERANCES = {"float32": 1e-3, "float16": 5e-2}
#: Rows that judge where the calibration has none to spare.
_RANDOM_ROWS = 64
_MODEL_DIFFERS = (
    "the model predicts otherwise than the package's program (by {difference:.1e} at {name!r}): "
    "was it built by another function, or other code?"
)
_FILE_DIFFERS = (
    "the converted file predicts otherwise than the package's program (by {difference:.1e} at "
    "{name!r}): TensorFlow's converter changed the model"
)


@dataclass(frozen=True, eq=False)
class ReleasedModel:
    """A released model.

    Attributes:
        tflite: the model file.
        release: its description.
    """

    tflite: bytes
    release: Release


@dataclass(frozen=True)
class Origin:
    """Origin of the weights, for the description; attributes as in `Release`.

    Attributes:
        evaluation: loss and metrics on the agents' held-out rows.
    """

    federation: str = ""
    version: int | None = None
    trained_at: str = ""
    agents: int = 0
    evaluation: Mapping[str, float] = field(default_factory=dict)
    licence: str = ""
    made_at: str = ""
    machine: str = ""


def release_model(
    package: ModelPackage,
    theta: F32,
    numbers: Numbers,
    *,
    calibration: Rows | None = None,
    data: Rows | None = None,
    origin: Origin | None = None,
    build: Callable[[], Any] | None = None,
    batch_size: int = 1,
    runtime: str | None = None,
) -> ReleasedModel:
    """Returns the released form of a model, after comparing it with the package's program.

    Args:
        package: of the model, with its architecture unless `build` is given.
        theta: float32, shape (P,), the version to release.
        numbers: `float32`; `float16` halves the file (weights only); `int8` makes all of it
            integer, a quarter of the size.
        calibration: representative rows, scaled; needed for `int8`. Every fifth one is held apart
            to judge the release unless `data` has rows of its own.
        data: rows with targets on which both models are measured, scaled. None: for `int8` those of
            the calibration that are held apart, where they have targets.
        origin: of θ.
        build: builds the Keras model, for layers that Keras cannot rebuild from JSON.
        batch_size: rows of one call.
        runtime: that runs both models; see `models.runtime.interpreters`.

    Raises:
        ExportError: the model cannot be rebuilt or converted; says what to do.
        ModelError: the interpreter refuses the file.
    """
    if numbers == "int8" and calibration is None:
        raise ExportError("int8 needs representative rows: --calibration DATA.npz")
    spec, whole = package.spec, package.whole(theta)
    step("building the model")
    model = rebuild(package) if build is None else _built(build)
    assign_weights(model, package, theta)
    with suppress_tensorflow_output():  # the interpreters announce their delegates
        program = Program(package.program, spec, frozen=package.frozen, runtime=runtime)
    rows = random_batch(spec, np.random.default_rng(0))
    expected = program.predict(whole, rows)
    predicted = _keras_predictions(model, spec, rows)
    _check_alike(predicted, expected, _TOLERANCES["float32"], _MODEL_DIFFERS)
    objective = read_objective(model, spec.inputs, read_options(package))
    split = None
    if numbers == "int8":
        assert calibration is not None, "checked above"
        split = split_rows(
            spec,
            calibration,
            data,
            lambda: representative_rows(model, spec, np.random.default_rng(0), _RANDOM_ROWS),
        )
        calibration = split.calibrating
    step(f"converting to {numbers}")
    tflite = convert(model, package, objective, numbers, calibration, batch_size)
    step("comparing with the float program")
    with suppress_tensorflow_output():
        released = InferenceModel(
            tflite, spec.inputs, objective.outputs, batch_size, runtime=runtime
        )
    facts = _described(spec, objective, origin or Origin())
    if split is None:
        _check_alike(released.predict(rows), expected, _TOLERANCES[numbers], _FILE_DIFFERS)
    else:  # int8 covers only the ranges of its representative rows
        facts |= _judged(split, program, whole, released)
        data = split.measured(spec)
    timed = data if data is not None else calibration
    if timed is not None:
        facts["program_seconds"] = program_seconds(program, whole, timed)
        facts["seconds"] = released.seconds(timed)
    if data is not None:
        facts |= compared_metrics(program, whole, released, objective, data)
    return ReleasedModel(
        tflite,
        Release(
            numbers=numbers,
            batch_size=batch_size,
            sha256=hashlib.sha256(tflite).hexdigest(),
            bytes=len(tflite),
            **facts,
        ),
    )


def _judged(split: Split, program: Program, whole: F32, released: InferenceModel) -> dict[str, Any]:
    """Returns the verdict on an int8 release, and the figures that it comes from."""
    difference = row_differences(
        program.predict(whole, split.judging), released.predict(split.judging)
    )
    count = row_count(split.judging)
    faults = (*split.faults, *difference_faults(difference, split.source, split.numbers))
    return {
        "verdict": "not good" if faults else "good",
        "faults": faults,
        "judged_on": split.source,
        "judged_rows": count,
        "median_difference": None if difference is None else difference.median,
        "worst_difference": None if difference is None else difference.worst,
    }


def _described(spec: ModelSpec, objective: Objective, origin: Origin) -> dict[str, Any]:
    """Returns the fields of the description that do not depend on the converted file."""
    return {
        "name": spec.name,
        "inputs": spec.inputs,
        "outputs": with_units(objective.outputs, spec),
        "loss": spec.loss,
        "classes": spec.targets[0].classes if spec.targets else (),
        "threshold": objective.threshold,
        "verdict": "good",
        "classifies": objective.classifies,
        "federation": origin.federation,
        "version": origin.version,
        "trained_at": origin.trained_at,
        "agents": origin.agents,
        "federation_metrics": dict(origin.evaluation),
        "personal": spec.whole_size - spec.size,
        "source": spec.source,
        "licence": origin.licence,
        "made_at": origin.made_at,
        "machine": origin.machine,
    }


def _built(build: Callable[[], Any]) -> Any:
    model = build()
    if not isinstance(model, keras.Model) or not model.built:
        what = type(model).__name__
        raise ExportError(f"--model must name a function that returns a keras.Model, not {what}")
    return model


def _keras_predictions(model: Any, spec: ModelSpec, rows: Rows) -> dict[str, Array]:
    """Returns Keras's predictions by output."""
    outputs = model(pack_inputs(model, [rows[t.name] for t in spec.inputs]), training=False)
    return {
        tensor.name: np.asarray(found).reshape(-1, *tensor.shape)
        for tensor, found in zip(spec.outputs, tf.nest.flatten(outputs), strict=True)
    }


def _check_alike(
    found: Mapping[str, Array], expected: Mapping[str, Array], limit: float, message: str
) -> None:
    """Raises ExportError if predictions differ by more than `limit` of the largest of them."""
    for name, values in expected.items():
        difference = float(np.abs(found[name] - values).max())
        if not difference <= limit * max(1.0, float(np.abs(values).max())):
            raise ExportError(message.format(difference=difference, name=name))
