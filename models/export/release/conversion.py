"""Conversion of a Keras model with its weights into one `.tflite` for predicting.

Full-integer quantization is TensorFlow Lite's own (Jacob et al. 2018, arXiv 1712.05877): int8
weights per channel, int8 activations whose ranges come from representative rows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from fedge.errors import ExportError, one_line
from models.export.backend import Tensor, suppress_tensorflow_output, tf
from models.export.calling import call_model
from models.export.layers.substitutes import substitute_layers
from models.export.layers.supported import leaf_layers
from models.export.objective.objective import Objective
from models.package.package import ModelPackage
from models.runtime.rows import Array, Rows, row_count

# TensorFlow has no public name for quantizing all but some operators.
with suppress_tensorflow_output():
    from tensorflow.lite.python.convert import mlir_quantize

Numbers = Literal["float32", "float16", "int8"]

#: Operators that tflite-runtime 2.14 lacks for int8, so that they stay float32.
_FLOAT_ONLY = ("DIV", "LOG", "SQRT")
#: More representative rows do not change the ranges, and cost time.
_MAX_CALIBRATION_ROWS = 500


def convert(
    model: Any,
    package: ModelPackage,
    objective: Objective,
    numbers: Numbers,
    calibration: Rows | None,
    batch_size: int,
) -> bytes:
    """Converts the model, whose weights are set, to a `.tflite` file.

    Args:
        model: with the weights to release.
        package: the model's package.
        objective: for the names and shapes of the outputs.
        numbers: format of weights and arithmetic.
        calibration: representative rows; needed for `int8`.
        batch_size: rows of one call.

    Raises:
        ExportError: TensorFlow's converter fails.
    """
    # TensorFlow 2.21 crashes when it calibrates a loop.
    function = _function(model, package, objective, batch_size, loops=numbers == "float32")
    with tempfile.TemporaryDirectory() as folder, suppress_tensorflow_output():
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
        # `convert` would quantize all operators; `_quantized` excludes some.
        converter._experimental_calibrate_only = True
    try:
        made = converter.convert()
        return bytes(made if numbers != "int8" else _quantized(made))
    # ConverterError is not public, and some failures are RuntimeError or ValueError.
    except Exception as error:
        advice = "; try --float16" if numbers == "int8" else ""
        raise ExportError(
            f"TensorFlow's converter cannot make {package.spec.name} {numbers}: "
            f"{one_line(error)}{advice}"
        ) from error


def _quantized(calibrated: bytes) -> bytes:
    """Quantizes a calibrated model to int8."""
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
    """Returns `predict` of the model as a concrete function with named inputs and outputs."""
    inputs = package.spec.inputs
    # Constants: a released model is not trained.
    values = {id(v): tf.constant(np.asarray(v)) for v in model.variables}

    def predict(**columns: Tensor) -> dict[str, Tensor]:
        ordered = [columns[tensor.name] for tensor in inputs]
        with substitute_layers(leaf_layers(model), loops=loops, gelu=False):
            outputs, _ = call_model(model, values, ordered, training=False)
        return {
            spec.name: tf.reshape(found, (batch_size, *spec.shape))
            for spec, found in zip(objective.outputs, outputs, strict=True)
        }

    arguments = {
        tensor.name: tf.TensorSpec((batch_size, *tensor.shape), tensor.dtype, name=tensor.name)
        for tensor in inputs
    }
    with suppress_tensorflow_output():
        return tf.function(predict, autograph=False).get_concrete_function(**arguments)


def _batches(
    names: list[str], rows: Rows, batch_size: int
) -> Iterator[tuple[str, dict[str, Array]]]:
    count = min(row_count(rows), _MAX_CALIBRATION_ROWS)
    # Evenly over the file: its beginning may be one person or one class. Whole batches: the last
    # one is filled from the first row on.
    whole = -(-count // batch_size) * batch_size
    index = np.linspace(0, row_count(rows) - 1, count).astype(np.int64)[np.arange(whole) % count]
    for start in range(0, whole, batch_size):
        taken = index[start : start + batch_size]
        yield "predict", {name: np.ascontiguousarray(rows[name][taken]) for name in names}
