"""Keras models as functions of their variables: every caller passes and gets flat lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedge.errors import ExportError
from models.export.backend import Tensor, keras, tf


def call_model(
    model: Any, values: Mapping[int, Tensor], inputs: Sequence[Tensor], *, training: bool
) -> tuple[list[Tensor], dict[int, Tensor]]:
    """Outputs in the model's order, and by id what its other variables are afterwards.

    Args:
        model: built; nothing in it changes.
        values: of its variables, by `id(variable)`. Those left out are seeds of Keras's random
            numbers, which nothing reads: random layers are replaced or have nothing to do.
        inputs: in the model's order.
        training: as for `keras.Model`.

    Raises:
        ExportError: the model is not built to the end, adds losses of its own, which a program
            would ignore, or masks steps of an output, which a program would count.
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
        trained, others, arranged_inputs(model, inputs), training=training, return_losses=True
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


def arranged_inputs(model: Any, inputs: Sequence[Any]) -> Any:
    """A flat list of inputs as the model was built to take them: one, a list or a dict."""
    return inputs[0] if isinstance(model, keras.Sequential) else _arranged(model.input, inputs)


def arranged_outputs(model: Any, values: Sequence[Any]) -> Any:
    """A flat list of one value per output, arranged as the model's outputs are."""
    return values[0] if len(values) == 1 else _arranged(model.output, values)


def output_keys(model: Any) -> list[str] | None:
    """Keys of the outputs in the model's order, where it was built with a dict of them."""
    if isinstance(model, keras.Sequential) or not isinstance(model.output, dict):
        return None
    return sorted(model.output)  # Keras's order of a dict


def _arranged(like: Any, values: Sequence[Any]) -> Any:
    return keras.tree.pack_sequence_as(like, list(values))
