"""Releasing a model: θ baked into one `.tflite` for predicting, measured against the float program.

Full-integer quantization is TensorFlow Lite's own (Jacob et al. 2018, arXiv 1712.05877): int8
weights per channel, int8 activations whose ranges come from representative rows.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from fedge.errors import ExportError, one_line
from learning.vector.metrics import Sums, as_totals, metric_matrices, metric_values
from learning.vector.parameters import F32
from models.export.backend import Tensor, hushed, keras, tf
from models.export.calling import arranged_inputs, call_model
from models.export.layers.substitutes import exportable
from models.export.layers.supported import leaves
from models.export.objective.objective import Objective, read_objective
from models.export.release.architecture import fill, rebuild, wishes
from models.export.release.verify import random_batch
from models.package.package import ModelPackage
from models.package.spec import ModelSpec
from models.runtime.inference import InferenceModel, Release
from models.runtime.program import Array, Program, Rows, row_count

# TensorFlow has no public name for quantizing all but some operators.
with hushed():
    from tensorflow.lite.python.convert import mlir_quantize

Numbers = Literal["float32", "float16", "int8"]

#: Float32 sums in another order differ by less; weights of float16 are off by 2^-11.
_SAME = {"float32": 1e-3, "float16": 5e-2}
_OTHER_MODEL = (
    "the model predicts otherwise than the package's program (by {difference:.1e} at {name!r}): "
    "was it built by another function, or other code?"
)
_OTHER_FILE = (
    "the converted file predicts otherwise than the package's program (by {difference:.1e} at "
    "{name!r}): TensorFlow's converter changed the model"
)
#: Operators that tflite-runtime 2.14 has not for int8, so that they stay float32.
_FLOAT_ONLY = ("DIV", "LOG", "SQRT")
#: More representative rows change no range and cost time.
_MOST_CALIBRATION_ROWS = 500


@dataclass(frozen=True, eq=False)
class Made:
    """A released model: the file and its description."""

    tflite: bytes
    release: Release


@dataclass(frozen=True)
class Origin:
    """Where θ comes from, for the description."""

    federation: str = ""
    version: int | None = None
    trained_at: str = ""
    agents: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)
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
) -> Made:
    """The released form of a model.

    Args:
        package: of the model, with its architecture unless `build` is given.
        theta: float32, shape (P,), the version to release.
        numbers: `float32`; `float16` halves the file (weights only); `int8` makes all of it
            integer, a quarter of the size.
        calibration: representative rows, scaled; needed for `int8`.
        data: rows with targets to measure both models on, scaled; None compares nothing.
        origin: where θ comes from.
        build: makes the Keras model again, for layers that Keras cannot rebuild from JSON.
        batch_size: rows of one call.
        runtime: that measures; see `models.runtime.interpreters`.

    Raises:
        ExportError: the model cannot be rebuilt or converted; says what to do.
        ModelError: the interpreter refuses the file.
    """
    if numbers == "int8" and calibration is None:
        raise ExportError("int8 needs representative rows: --calibration DATA.npz")
    model = rebuild(package) if build is None else _built(build)
    fill(model, package, theta)
    with hushed():  # the interpreters announce their delegates
        program = Program(package.program, package.spec, frozen=package.frozen, runtime=runtime)
    whole = package.whole(theta)
    rows = random_batch(package.spec, np.random.default_rng(0))
    expected = program.predict(whole, rows)
    _check_alike(_predicted(model, package.spec, rows), expected, _SAME["float32"], _OTHER_MODEL)
    objective = read_objective(model, package.spec.inputs, wishes(package))
    tflite = _convert(model, package, objective, numbers, calibration, batch_size)
    with hushed():
        released = InferenceModel(
            tflite, package.spec.inputs, objective.outputs, batch_size, runtime=runtime
        )
    if numbers != "int8":  # which knows the ranges of its representative rows only
        _check_alike(released.predict(rows), expected, _SAME[numbers], _OTHER_FILE)
    origin = origin or Origin()
    spec = package.spec
    facts: dict[str, Any] = {
        "name": spec.name,
        "numbers": numbers,
        "inputs": spec.inputs,
        "outputs": objective.outputs,
        "batch_size": batch_size,
        "loss": spec.loss,
        "classes": spec.targets[0].classes if spec.targets else (),
        "threshold": objective.threshold,
        "classifies": objective.classifies,
        "sha256": hashlib.sha256(tflite).hexdigest(),
        "federation": origin.federation,
        "version": origin.version,
        "trained_at": origin.trained_at,
        "agents": origin.agents,
        "federation_metrics": dict(origin.figures),
        "personal": spec.whole_size - spec.size,
        "source": spec.source,
        "licence": origin.licence,
        "made_at": origin.made_at,
        "machine": origin.machine,
        "bytes": len(tflite),
    }
    measured = data if data is not None else calibration
    if measured is not None:
        facts["program_seconds"] = _program_seconds(program, whole, measured)
        facts["seconds"] = released.seconds(measured)
    if data is not None:
        facts |= _compared(program, whole, released, objective, data)
    return Made(tflite, Release(**facts))


def _built(build: Callable[[], Any]) -> Any:
    model = build()
    if not isinstance(model, keras.Model) or not model.built:
        what = type(model).__name__
        raise ExportError(f"--model must name a function that returns a keras.Model, not {what}")
    return model


def _predicted(model: Any, spec: ModelSpec, rows: Rows) -> dict[str, Array]:
    """What Keras predicts, by output."""
    outputs = model(arranged_inputs(model, [rows[t.name] for t in spec.inputs]), training=False)
    return {
        tensor.name: np.asarray(found).reshape(-1, *tensor.shape)
        for tensor, found in zip(spec.outputs, tf.nest.flatten(outputs), strict=True)
    }


def _check_alike(
    found: Mapping[str, Array], expected: Mapping[str, Array], limit: float, message: str
) -> None:
    """Raises ExportError unless predictions are within `limit` of the largest number."""
    for name, values in expected.items():
        difference = float(np.abs(found[name] - values).max())
        if not difference <= limit * max(1.0, float(np.abs(values).max())):
            raise ExportError(message.format(difference=difference, name=name))


def _convert(
    model: Any,
    package: ModelPackage,
    objective: Objective,
    numbers: Numbers,
    calibration: Rows | None,
    batch_size: int,
) -> bytes:
    # TensorFlow 2.21 crashes when it measures the ranges inside a loop.
    function = _function(model, package, objective, batch_size, loops=numbers == "float32")
    with tempfile.TemporaryDirectory() as folder, hushed():
        tf.saved_model.save(tf.Module(), folder, signatures={"predict": function})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, ["predict"])
        return _converted(converter, package, numbers, calibration, batch_size)


def _converted(
    converter: Any,
    package: ModelPackage,
    numbers: Numbers,
    calibration: Rows | None,
    batch_size: int,
) -> bytes:
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if numbers != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if numbers == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if numbers == "int8":
        assert calibration is not None, "checked by the caller"
        names = [tensor.name for tensor in package.spec.inputs]
        converter.representative_dataset = lambda: _batches(names, calibration, batch_size)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
        # What `convert` would do next knows no exceptions.
        converter._experimental_calibrate_only = True
    try:
        made = converter.convert()
        return bytes(made if numbers != "int8" else _integers(made))
    # ConverterError is no public class, and some failures are RuntimeError or ValueError.
    except Exception as error:
        advice = "; --float16 asks for less" if numbers == "int8" else ""
        raise ExportError(
            f"TensorFlow's converter cannot make {package.spec.name} {numbers}: "
            f"{one_line(error)}{advice}"
        ) from error


def _integers(calibrated: bytes) -> bytes:
    """The model in int8, which knows the ranges of its numbers."""
    return bytes(
        mlir_quantize(
            calibrated,
            input_data_type=tf.int8,
            output_data_type=tf.int8,
            denylisted_ops=list(_FLOAT_ONLY),
        )
    )


def _function(
    model: Any, package: ModelPackage, objective: Objective, batch_size: int, *, loops: bool
) -> Any:
    """`predict` of the model as one concrete function with named inputs and outputs."""
    inputs = package.spec.inputs
    # As constants: there is nothing left to train.
    values = {id(v): tf.constant(np.asarray(v)) for v in model.variables}

    def predict(**columns: Tensor) -> dict[str, Tensor]:
        ordered = [columns[tensor.name] for tensor in inputs]
        with exportable(leaves(model), loops=loops, gelu=False):
            outputs, _ = call_model(model, values, ordered, training=False)
        return {
            spec.name: tf.reshape(found, (batch_size, *spec.shape))
            for spec, found in zip(objective.outputs, outputs, strict=True)
        }

    arguments = {
        tensor.name: tf.TensorSpec((batch_size, *tensor.shape), tensor.dtype, name=tensor.name)
        for tensor in inputs
    }
    with hushed():
        return tf.function(predict, autograph=False).get_concrete_function(**arguments)


def _batches(
    names: list[str], rows: Rows, batch_size: int
) -> Iterator[tuple[str, dict[str, Array]]]:
    count = min(row_count(rows), _MOST_CALIBRATION_ROWS)
    # Evenly over the file: its beginning may be one person or one class. Whole batches: the last
    # one begins again at the first row.
    whole = -(-count // batch_size) * batch_size
    index = np.linspace(0, row_count(rows) - 1, count).astype(np.int64)[np.arange(whole) % count]
    for start in range(0, whole, batch_size):
        taken = index[start : start + batch_size]
        yield "predict", {name: np.ascontiguousarray(rows[name][taken]) for name in names}


def _program_seconds(program: Program, whole: F32, rows: Rows) -> float:
    """Median time of one row in the program that devices train with."""
    size = program.spec.batch_size
    index = np.arange(size) % row_count(rows)
    batch = {t.name: rows[t.name][index] for t in program.spec.inputs}
    times = []
    for _ in range(23):
        began_s = time.perf_counter()
        program.predict(whole, batch)
        times.append(time.perf_counter() - began_s)
    return float(np.median(times[3:])) / size


def _compared(
    program: Program, whole: F32, released: InferenceModel, objective: Objective, data: Rows
) -> dict[str, Any]:
    """Metrics of both models over the same rows, and how far they agree."""
    float_outputs = program.predict(whole, data)
    outputs = released.predict(data)
    specs = objective.metrics
    sums = _sums(objective, data, outputs)
    first = objective.outputs[0].name
    return {
        "metrics": metric_values(_sums(objective, data, float_outputs), specs),
        "released_metrics": metric_values(sums, specs),
        "released_matrices": metric_matrices(sums, specs),
        "rows": row_count(data),
        "agreement": _agreement(objective, float_outputs[first], outputs[first]),
    }


def _sums(objective: Objective, data: Rows, outputs: dict[str, Array]) -> Sums:
    columns = {name: tf.constant(array) for name, array in data.items()}
    found = {spec.name: tf.constant(outputs[spec.name]) for spec in objective.outputs}
    weight = tf.ones(row_count(data))
    loss = float(tf.reduce_sum(objective.loss(columns, found) * weight))
    sums = objective.sums(columns, found, weight)
    totals = {spec.name: np.reshape(sums[spec.name], spec.shape) for spec in objective.metrics}
    return Sums(loss, float(tf.reduce_sum(weight)), as_totals(totals))


def _agreement(objective: Objective, left: Array, right: Array) -> float:
    """Share of rows with one best class; of a regression, the relative distance."""
    if objective.classifies:
        if left.ndim > 1:
            return float(np.mean(left.argmax(-1) == right.argmax(-1)))
        cut = objective.threshold
        return float(np.mean((left > cut) == (right > cut)))
    scale = float(np.sqrt(np.mean(np.square(left, dtype=np.float64)))) or 1.0
    return float(np.sqrt(np.mean(np.square(left - right, dtype=np.float64)))) / scale
