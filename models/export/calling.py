"""Calls Keras models as pure functions of their variables, with flat inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedge.errors import ExportError
from models.export.backend import Tensor, keras, tf


def call_model(
    model: Any, values: Mapping[int, Tensor], inputs: Sequence[Tensor], *, training: bool
) -> tuple[list[Tensor], dict[int, Tensor]]:
    """Returns outputs in the model's order, and non-trainable variables after the call, by id.

    Args:
        model: a built model; it is not changed.
        values: values of its variables, by `id(variable)`. Seeds of Keras's random numbers may be
            missing: nothing reads them, because random layers are replaced or inactive.
        inputs: in the model's order.
        training: as for `keras.Model`.

    Raises:
        ExportError: a variable is not built, the model adds losses (a program would ignore them),
            or a mask reaches an output (a program would count masked steps).
    """
    for variable in model.trainable_variables:
        if id(variable) not in values:
            raise ExportError(
                f"weights {variable.path!r} are made only when the model is called: call it once "
                "with a row before it is exported"
            )
    trained = [values[id(variable)] for variable in model.trainable_variables]
    others = [
        values.get(id(variable), tf.zeros(variable.shape, variable.dtype))
        for variable in model.non_trainable_variables
    ]
    output, after, losses = model.stateless_call(
        trained, others, pack_inputs(model, inputs), training=training, return_losses=True
    )
    if losses:
        raise ExportError(
            f"model {model.name!r} adds {len(losses)} losses of its own (add_loss): programs "
            "minimise the compiled loss only; make the penalty an output with a loss"
        )
    outputs = tf.nest.flatten(output)
    for number, tensor in enumerate(outputs):
        if getattr(tensor, "_keras_mask", None) is not None:
            raise ExportError(
                f"model {model.name!r}: a mask reaches output {number}: Keras leaves masked steps "
                "out of the loss, a program counts them; end the mask with a layer that returns "
                "one result per row (pooling, return_sequences=False)"
            )
    pairs = zip(model.non_trainable_variables, after, strict=True)
    return outputs, {id(variable): value for variable, value in pairs}


def pack_inputs(model: Any, inputs: Sequence[Any]) -> Any:
    """Packs a flat list of inputs into the model's input structure: a tensor, list or dict."""
    return inputs[0] if isinstance(model, keras.Sequential) else _packed(model.input, inputs)


def pack_outputs(model: Any, values: Sequence[Any]) -> Any:
    """Packs a flat list of one value per output into the model's output structure."""
    return values[0] if len(values) == 1 else _packed(model.output, values)


def output_keys(model: Any) -> list[str] | None:
    """Returns the keys of a dict of outputs, in the model's order; None for other structures."""
    if isinstance(model, keras.Sequential) or not isinstance(model.output, dict):
        return None
    return sorted(model.output)  # Keras orders a dict by its keys


def _packed(like: Any, values: Sequence[Any]) -> Any:
    return keras.tree.pack_sequence_as(like, list(values))
