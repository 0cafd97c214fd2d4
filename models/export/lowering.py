"""A Keras model and its objective -> the bytes of a TFLite program.

The model is traced unchanged, once per signature, with its weights cut from θ
(`Model.stateless_call`); gradients are taken under `gradients.OVERRIDES`.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from typing import Any

from models.errors import ExportError
from models.export.backend import Tensor, hushed, tf
from models.export.gradients import OVERRIDES
from models.export.layers import leaves
from models.export.losses import Objective
from models.export.substitutes import exportable
from models.program import expected_signatures
from models.spec import ModelSpec

# The two ways in which the converter names what it cannot express.
_FLEX = re.compile(r"(?:Flex|Custom) ops?: ([\w, ]+)|'tf\.(\w+)' op is neither")


def lower(model: Any, objective: Objective, spec: ModelSpec) -> bytes:
    """The program: three signatures, TFLite built-in operators only, names of tensors stripped.

    Raises:
        ExportError: an operator has no TFLite built-in; names it and, where known, the layer.
    """
    functions = _trace(model, objective, spec)
    module = tf.Module()
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    with tempfile.TemporaryDirectory() as folder, hushed():
        tf.saved_model.save(module, folder, signatures=functions, options=options)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, list(functions))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        try:
            program = bytes(converter.convert())
        # ConverterError is no public class, and some failures are RuntimeError or ValueError.
        except Exception as error:
            raise _explain(error, model, functions) from error
    return _strip(program)


class _Signatures:
    """The three pure functions of θ, as keyword-only TensorFlow functions."""

    def __init__(self, model: Any, objective: Objective, spec: ModelSpec) -> None:
        self._model = model
        self._objective = objective
        self._spec = spec

    def gradient(
        self,
        *,
        theta: Tensor,
        target: Tensor,
        weight: Tensor,
        seed: Tensor | None = None,
        **inputs: Tensor,
    ) -> Any:
        tensors = self._cut(theta)
        # Only here: the map changes nothing but gradients of the operators made under it.
        graph = tf.compat.v1.get_default_graph()
        with graph.gradient_override_map(OVERRIDES):
            output = self._forward(tensors, inputs, training=True, seed=seed)
            loss_sum = tf.reduce_sum(self._objective.loss(target, output) * weight)
            loss = loss_sum / tf.reduce_sum(weight)
        # tf.gradients and not GradientTape: the tape ignores the map.
        parts = tf.gradients(loss, tensors, unconnected_gradients="zero")
        vector = tf.concat([tf.reshape(part, [-1]) for part in parts], 0)
        return {"loss": loss, "gradient": vector, **self._metrics(target, output, weight)}

    def evaluate(self, *, theta: Tensor, target: Tensor, weight: Tensor, **inputs: Tensor) -> Any:
        output = self._forward(self._cut(theta), inputs, training=False)
        loss_sum = tf.reduce_sum(self._objective.loss(target, output) * weight)
        weight_sum = tf.reduce_sum(weight)
        metrics = self._metrics(target, output, weight)
        return {"loss_sum": loss_sum, "weight_sum": weight_sum, **metrics}

    def predict(self, *, theta: Tensor, **inputs: Tensor) -> Any:
        output = self._forward(self._cut(theta), inputs, training=False)
        return {self._spec.outputs[0].name: output}

    def _cut(self, theta: Tensor) -> list[Tensor]:
        parameters = self._spec.layout.parameters
        parts = tf.split(theta, [p.size for p in parameters]) if len(parameters) > 1 else [theta]
        return [tf.reshape(t, p.shape) for t, p in zip(parts, parameters, strict=True)]

    def _forward(
        self,
        tensors: list[Tensor],
        inputs: dict[str, Tensor],
        training: bool,
        seed: Tensor | None = None,
    ) -> Tensor:
        ordered = [inputs[tensor.name] for tensor in self._spec.inputs]
        # Seeds of Keras's random numbers, which nothing reads (`layers.check_layers`).
        state = [tf.zeros(v.shape, v.dtype) for v in self._model.non_trainable_variables]
        with exportable(leaves(self._model), seed):
            output, _ = self._model.stateless_call(
                tensors, state, ordered[0] if len(ordered) == 1 else ordered, training=training
            )
        output = output[0] if isinstance(output, list | tuple) else output
        shape = (self._spec.batch_size, *self._objective.output_shape)
        return output if tuple(output.shape) == shape else tf.reshape(output, shape)

    def _metrics(self, target: Tensor, output: Tensor, weight: Tensor) -> dict[str, Tensor]:
        return {
            name: tf.reduce_sum(per_row(target, output) * weight)
            for name, per_row in self._objective.metrics.items()
        }


def _trace(model: Any, objective: Objective, spec: ModelSpec) -> dict[str, Any]:
    """One concrete function per signature."""
    signatures = _Signatures(model, objective, spec)
    functions = {}
    for name, (inputs, _) in expected_signatures(spec).items():
        arguments = {
            argument: tf.TensorSpec(shape, dtype, name=argument)
            for argument, (shape, dtype) in inputs.items()
        }
        functions[name] = _traced(getattr(signatures, name), arguments, name)
    return functions


def _traced(function: Callable[..., Any], arguments: dict[str, Any], name: str) -> Any:
    try:
        concrete = tf.function(function, autograph=False).get_concrete_function(**arguments)
    except (NotImplementedError, LookupError) as error:
        # LookupError: TensorFlow itself has no gradient for an operator.
        raise ExportError(f"{name}: no gradient made of TFLite built-ins: {error}") from error
    if concrete.captured_inputs:
        raise ExportError(
            f"{name} reads state outside θ ({len(concrete.captured_inputs)} tensors captured while "
            "tracing): layers may use their trainable weights only"
        )
    for op in concrete.graph.get_operations():
        if op.type == "ReverseV2" and op.inputs[1].shape[0] > 1:
            # tflite-runtime 2.14 reverses the first only, and says nothing.
            raise ExportError(f"{name}: {op.name} reverses several axes: reverse one at a time")
    return concrete


def _explain(error: Exception, model: Any, functions: dict[str, Any]) -> ExportError:
    """The converter's page of text as one line that names operators and layers."""
    matches = [text for pair in _FLEX.findall(str(error)) for text in pair]
    found = sorted({operator for text in matches for operator in re.findall(r"\w+", text)})
    if not found:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return ExportError(f"TensorFlow's converter failed: {lines[0] if lines else error!r}")
    layers = {layer.name: layer for layer in leaves(model)}
    parts = []
    for operator in found:
        # The converter writes FlexErf or Erf.
        kind = operator.removeprefix("Flex")
        names = [
            op.name
            for f in functions.values()
            for op in f.graph.get_operations()
            if op.type == kind
        ]
        # A layer called for the second time has its name numbered: dense_1 is then dense_1_1.
        scopes = [part for name in names for part in name.split("/")]
        candidates = [key for part in scopes for key in (part, re.sub(r"_\d+$", "", part))]
        hit = next((layers[key] for key in candidates if key in layers), None)
        where = f" in layer {hit.name!r} ({type(hit).__name__})" if hit is not None else ""
        parts.append(f"{kind}{where}")
    return ExportError(
        f"no TFLite built-in operator for {'; '.join(parts)}: use another layer or activation there"
    )


def _strip(program: bytes) -> bytes:
    """Without what only a debugger reads: names of tensors and subgraphs, metadata, description.

    Signatures keep their own names. Half of a small program is such names, and some of them differ
    from one conversion to the next.
    """
    from tensorflow.lite.tools import flatbuffer_utils

    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(program))
    for entry in model.metadata or []:
        # Buffers are addressed by number: emptied, not removed.
        model.buffers[entry.buffer].data = None
    model.metadata = None
    model.description = None
    for subgraph in model.subgraphs:
        subgraph.name = None
        for tensor in subgraph.tensors:
            tensor.name = None
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))
