"""Lowering: Keras model and objective -> bytes of a TFLite program.

The model is traced unchanged, once per signature, with its weights cut from θ
(`Model.stateless_call`); gradients are taken under `gradients.overrides.OVERRIDES`.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from fedge.errors import ExportError, one_line
from models.export.backend import Operation, Tensor, suppress_tensorflow_output, tf
from models.export.calling import call_model
from models.export.gradients.convolutions import MAX_DEPTHWISE_CHANNELS
from models.export.gradients.overrides import OVERRIDES
from models.export.layers.substitutes import Training, substitute_layers
from models.export.layers.supported import leaf_layers
from models.export.objective.objective import Objective
from models.export.optimize import optimize_program
from models.export.progress import step
from models.export.variables import Variables
from models.package.signatures import expected_signatures
from models.package.spec import ModelSpec

# TensorFlow has no public name for its converter of a saved model that is not loaded.
with suppress_tensorflow_output():
    from tensorflow.lite.python.lite import TFLiteSavedModelConverterV2 as SavedModelConverter

# The two forms in which the converter names operators that it cannot express.
_FLEX = re.compile(r"(?:Flex|Custom) ops?: ([\w, ]+)|'tf\.(\w+)' op is neither")

#: Time of conversion and comparison by that of tracing: 1.5 to 3 for models that take seconds.
_REST_BY_TRACE = 2.0

#: Keras's own functions, one for each of `keras.ops`.
_BACKEND = re.compile(r"keras/src/backend/tensorflow/(numpy|nn|math|linalg|image|core)\.py$")
_PLACE = re.compile(r"^.*?error: loc\(.*\): ", re.MULTILINE)
#: (operator, what to use instead).
_ADVICE = (
    (re.compile("Erfc?"), "keras.activations.gelu"),
    (re.compile(".*Random.*"), "Dropout, GaussianNoise or another random layer of Keras"),
)


def lower(model: Any, objective: Objective, variables: Variables, spec: ModelSpec) -> bytes:
    """Returns the program: TFLite built-in operators only, tensor names stripped.

    Raises:
        ExportError: an operator has no TFLite built-in; names it and, where known, the layer.
    """
    began_s = time.perf_counter()
    functions = _trace(model, objective, variables, spec)
    _tell_conversion(functions, time.perf_counter() - began_s)
    module = tf.Module()
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    with tempfile.TemporaryDirectory() as folder, suppress_tensorflow_output():
        tf.saved_model.save(module, folder, signatures=functions, options=options)
        try:
            program = _converted(folder, list(functions))
        # ConverterError is not public, and some failures are RuntimeError or ValueError.
        except Exception as error:
            raise _conversion_error(error, model, functions) from error
    return _finish(program)


def _tell_conversion(functions: dict[str, Any], traced_s: float) -> None:
    operators = sum(len(function.graph.get_operations()) for function in functions.values())
    left_s = _REST_BY_TRACE * traced_s
    about = f", {left_s:.0f} s or so" if left_s >= 3 else ""
    step(f"converting {operators:,} operators{about}")


def _converted(folder: str, names: list[str]) -> bytes:
    """Converts a saved model.

    As `tf.lite.TFLiteConverter.from_saved_model(folder, names).convert()`, which in TensorFlow 2.21
    loads the model three times, for metrics and messages, and packs metadata that `_finish`
    removes: a quarter of the time of an unrolled recurrent layer.
    """
    converter = SavedModelConverter(folder, {tf.saved_model.SERVING}, names)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    return bytes(converter._convert_from_saved_model(tf.compat.v1.GraphDef()))


class _Signatures:
    """Signatures of the program: pure functions of θ, with keyword-only arguments."""

    def __init__(
        self, model: Any, objective: Objective, variables: Variables, spec: ModelSpec
    ) -> None:
        self._model = model
        self._objective = objective
        self._variables = variables
        self._spec = spec

    def gradient(
        self,
        *,
        theta: Tensor,
        weight: Tensor,
        frozen: Tensor | None = None,
        seed: Tensor | None = None,
        **columns: Tensor,
    ) -> Any:
        parts = self._variables.by_id(theta, frozen, _split)
        # The map applies to gradients of the operators made under it, and to nothing else.
        graph = tf.compat.v1.get_default_graph()
        with graph.gradient_override_map(OVERRIDES):
            outputs, after = self._forward(parts, columns, Training(weight, seed))
            losses = self._objective.loss(columns, outputs)
        shares = weight * (1 / tf.reduce_sum(weight))
        loss = tf.reduce_sum(losses * shares)
        vector = self._gradient(losses, shares, parts, after)
        metrics = self._objective.sums(columns, outputs, weight)
        return {"loss": loss, "gradient": vector, **metrics}

    def evaluate(
        self, *, theta: Tensor, weight: Tensor, frozen: Tensor | None = None, **columns: Tensor
    ) -> Any:
        parts = self._variables.by_id(theta, frozen, _split)
        outputs, _ = self._forward(parts, columns)
        loss_sum = tf.reduce_sum(self._objective.loss(columns, outputs) * weight)
        metrics = self._objective.sums(columns, outputs, weight)
        return {"loss_sum": loss_sum, "weight_sum": tf.reduce_sum(weight), **metrics}

    def predict(self, *, theta: Tensor, frozen: Tensor | None = None, **columns: Tensor) -> Any:
        outputs, _ = self._forward(self._variables.by_id(theta, frozen, _split), columns)
        return outputs

    def _gradient(
        self,
        losses: Tensor,
        shares: Tensor,
        parts: dict[int, Tensor],
        after: dict[int, Tensor],
    ) -> Tensor:
        """Returns one vector: gradient of Σ losses·shares, and change of tracked statistics."""
        learned = self._variables.learned
        stepped = [parts[id(variable)] for spec, variable in learned if not spec.tracked]
        # tf.gradients and not GradientTape: the tape ignores the override map.
        gradients = iter(tf.gradients(losses, stepped, shares, unconnected_gradients="zero"))
        pieces = [
            # With the sign of a gradient: before - after.
            parts[id(variable)] - after[id(variable)] if spec.tracked else next(gradients)
            for spec, variable in learned
        ]
        return tf.concat([tf.reshape(piece, [-1]) for piece in pieces], 0)

    def _forward(
        self,
        parts: dict[int, Tensor],
        columns: dict[str, Tensor],
        training: Training | None = None,
    ) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
        """Returns outputs by name, and non-trainable variables after the call, by id."""
        ordered = [columns[tensor.name] for tensor in self._spec.inputs]
        with substitute_layers(leaf_layers(self._model), training):
            found, after = call_model(self._model, parts, ordered, training=training is not None)
        outputs = {}
        for tensor, spec in zip(found, self._spec.outputs, strict=True):
            shape = (ordered[0].shape[0], *spec.shape)
            same = tuple(tensor.shape) == shape
            outputs[spec.name] = tensor if same else tf.reshape(tensor, shape)
        return outputs, after


def _split(vector: Tensor, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    parts = tf.split(vector, [prod(s) for s in shapes]) if len(shapes) > 1 else [vector]
    return [tf.reshape(part, shape) for part, shape in zip(parts, shapes, strict=True)]


def _trace(
    model: Any, objective: Objective, variables: Variables, spec: ModelSpec
) -> dict[str, Any]:
    """Returns one concrete function per signature."""
    signatures = _Signatures(model, objective, variables, spec)
    functions = {}
    for name, (inputs, _) in expected_signatures(spec).items():
        arguments = {
            argument: tf.TensorSpec(shape, dtype, name=argument)
            for argument, (shape, dtype) in inputs.items()
        }
        kind = name.partition("_")[0]
        step(f"tracing {name}")
        functions[name] = _traced(getattr(signatures, kind), arguments, name)
    return functions


def _traced(function: Callable[..., Any], arguments: dict[str, Any], name: str) -> Any:
    try:
        concrete = tf.function(function, autograph=False).get_concrete_function(**arguments)
    except ExportError:
        raise
    except Exception as error:  # a user's own layers may raise anything
        # LookupError, not a subclass: TensorFlow has no gradient for an operator.
        if type(error) in (NotImplementedError, LookupError):
            what = str(error).partition(". ")[0]
            raise ExportError(f"{name}: no gradient made of TFLite built-ins: {what}") from error
        # Two lines: Keras's first line names the layer.
        what = f"{type(error).__name__}: {one_line(error, 2)}"
        raise ExportError(f"{name} cannot be traced: {what}") from error
    if concrete.captured_inputs:
        raise ExportError(
            f"{name} reads state outside θ ({len(concrete.captured_inputs)} tensors captured while "
            "tracing): layers may use their trainable weights, and constants as NumPy arrays"
        )
    for op in concrete.graph.get_operations():
        if op.type == "ReverseV2" and op.inputs[1].shape[0] > 1:
            # tflite-runtime 2.14 reverses only the first axis, without an error.
            raise ExportError(f"{name}: {op.name} reverses several axes: reverse one at a time")
        if op.type == "DepthwiseConv2dNative" and op.outputs[0].shape[3] > MAX_DEPTHWISE_CHANNELS:
            raise ExportError(
                f"{name}: {op.name} has {op.outputs[0].shape[3]} channels, and TFLite's depthwise "
                f"convolution never ends with more than {MAX_DEPTHWISE_CHANNELS}: use fewer"
            )
    return concrete


def _conversion_error(error: Exception, model: Any, functions: dict[str, Any]) -> ExportError:
    """Returns the converter's error as one line that names operators and layers."""
    matches = [text for pair in _FLEX.findall(str(error)) for text in pair]
    found = sorted({operator for text in matches for operator in re.findall(r"\w+", text)})
    if not found:
        # The message begins with a page of locations in the graph.
        shown = RuntimeError(_PLACE.sub("", str(error)))
        return ExportError(f"TensorFlow's converter failed: {one_line(shown)}")
    layers = {layer.name: layer for layer in leaf_layers(model)}
    parts = []
    for operator in found:
        # The converter writes FlexErf or Erf.
        kind = operator.removeprefix("Flex")
        made = [
            op for f in functions.values() for op in f.graph.get_operations() if op.type == kind
        ]
        names = [op.name for op in made]
        # The second call of a layer has a number: dense_1 becomes dense_1_1.
        scopes = [part for name in names for part in name.split("/")]
        candidates = [key for part in scopes for key in (part, re.sub(r"_\d+$", "", part))]
        hit = next((layers[key] for key in candidates if key in layers), None)
        where = f" in layer {hit.name!r} ({type(hit).__name__})" if hit is not None else ""
        parts.append(f"{kind}{where}{_keras_function(made)}")
    advice = {text for pattern, text in _ADVICE if any(map(pattern.fullmatch, found))}
    return ExportError(
        f"no TFLite built-in operator for {'; '.join(parts)}: use "
        f"{' and '.join(sorted(advice)) or 'another layer or activation'} there"
    )


def _keras_function(made: Sequence[Operation]) -> str:
    """Returns the function of Keras's backend that made the operator or its forward operator."""
    for op in made:
        for frame in (op._original_op or op).traceback:
            if _BACKEND.search(frame.filename):
                return f" (made by keras.ops.{frame.name})"
    return ""


def _finish(program: bytes) -> bytes:
    """Removes names of tensors and subgraphs, metadata and description, and optimizes the program.

    Signatures keep their names. The removed names are half of a small program, and some of them
    differ from one conversion to the next.
    """
    from tensorflow.lite.tools import flatbuffer_utils

    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(program))
    for entry in model.metadata or []:
        # Buffers are addressed by number: empty them, do not remove them.
        model.buffers[entry.buffer].data = None
    model.metadata = None
    model.description = None
    for subgraph in model.subgraphs:
        subgraph.name = None
        for tensor in subgraph.tensors:
            tensor.name = None
    optimize_program(model)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))
