"""`export_model`: a compiled Keras model -> a model package that devices can train.

model = keras.Sequential([keras.Input((4,), name="sensors"), keras.layers.Dense(1)])
model.compile(loss="mean_squared_error", metrics=["mae"])
export_model(model, name="pump_wear").save(Path("pump_wear"))
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

from models.errors import ExportError
from models.export.backend import keras
from models.export.layers import check_layers, leaves
from models.export.losses import Objective, read_objective
from models.export.lowering import lower
from models.export.randomness import random_function
from models.export.verify import verify
from models.package import ModelPackage
from models.parameters import Layout, ParameterSpec
from models.spec import ModelSpec, TensorSpec

#: Name of what `predict` returns.
OUTPUT = "prediction"
_NUMBERED = re.compile(r"_\d+$")


def export_model(
    model: Any,
    *,
    name: str,
    source: str = "",
    batch_size: int = 32,
    inputs: Sequence[TensorSpec] = (),
    classes: Sequence[str] = (),
) -> ModelPackage:
    """The package of `model`: program, spec, and the model's present weights as initial θ.

    The program was run and its gradient compared with Keras's own before it is returned.

    Args:
        model: a built and compiled `keras.Model` with one output; `compile()`'s loss and metrics
            become the program's, its optimizer is ignored (devices choose their own).
        name: of the model, in the spec and in reports.
        source: where architecture or task come from, for people.
        batch_size: rows of one program call. Larger is faster per row; padding of the last batch
            costs as much as real rows.
        inputs: one `TensorSpec` per input, in the model's order, to add what Keras does not know:
            features, units, mean and std. Shapes and dtypes must agree with the model. Without
            them, names are those of `keras.Input(name=...)`.
        classes: names of the classes, for classification.

    Raises:
        ExportError: the model cannot become a program; names the layer, loss, metric or operator
            and what to use instead.
    """
    _check_model(model)
    check_layers(model)
    objective = read_objective(model)
    try:
        spec = ModelSpec(
            name=name,
            source=source,
            inputs=tuple(_inputs(model, inputs)),
            target=_target(objective, tuple(classes)),
            outputs=(TensorSpec(OUTPUT, objective.output_shape),),
            loss=objective.name,
            metrics=tuple(objective.metrics),
            batch_size=batch_size,
            layout=Layout(tuple(_parameters(model))),
            stochastic=any(map(random_function, leaves(model))) or msgspec.UNSET,
        )
    except ValueError as error:
        raise ExportError(f"model {name!r}: {error}") from error
    initial = spec.layout.flatten([np.asarray(v) for v in model.trainable_variables])
    package = ModelPackage(spec, lower(model, objective, spec), initial)
    verify(model, package)
    return package


def _check_model(model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise ExportError(
            f"expected a compiled keras.Model, got {type(model).__name__}: return the model after "
            "model.compile(loss=...)"
        )
    if not model.built or not getattr(model, "inputs", None):
        raise ExportError(
            f"model {model.name!r} does not know its input: begin it with "
            "keras.Input(shape, name=...), or use the functional API"
        )
    if len(model.outputs) != 1:
        raise ExportError(
            f"model {model.name!r} has {len(model.outputs)} outputs: a program has one"
        )
    if not model.trainable_variables:
        raise ExportError(f"model {model.name!r} has no trainable weights")


def _inputs(model: Any, given: Sequence[TensorSpec]) -> Iterator[TensorSpec]:
    """The inputs of the model, with what `given` adds."""
    if given and len(given) != len(model.inputs):
        raise ExportError(f"{len(given)} input specs for a model of {len(model.inputs)} inputs")
    for index, tensor in enumerate(model.inputs):
        shape, dtype = tuple(tensor.shape[1:]), tensor.dtype
        if None in shape:
            raise ExportError(
                f"input {tensor.name!r} has shape {shape}: every side must be known, "
                "give keras.Input a full shape"
            )
        if dtype not in ("float32", "int32"):
            raise ExportError(f"input {tensor.name!r} is {dtype}: use float32 or int32")
        if not given:
            yield TensorSpec(_input_name(tensor.name, index, len(model.inputs)), shape, dtype)
        elif (given[index].shape, given[index].dtype) == (shape, dtype):
            yield given[index]
        else:
            raise ExportError(
                f"input spec {given[index].name!r} is {given[index].dtype} {given[index].shape}, "
                f"the model's input {index} is {dtype} {shape}"
            )


def _input_name(name: str, index: int, count: int) -> str:
    # Keras numbers unnamed inputs through the life of the process; a package should not.
    if re.fullmatch(r"(keras_tensor|input|input_layer)(_\d+)?", name):
        return "input" if count == 1 else f"input_{index}"
    return name


def _target(objective: Objective, classes: tuple[str, ...]) -> TensorSpec:
    if classes and objective.target_dtype != "int32":
        raise ExportError(f"classes given for a regression ({objective.name})")
    if classes and objective.name == "sparse_categorical_crossentropy":
        count = objective.output_shape[-1]
        if len(classes) != count:
            raise ExportError(f"{len(classes)} class names for an output of {count} classes")
    return TensorSpec("target", objective.target_shape, objective.target_dtype, classes=classes)


def _parameters(model: Any) -> Iterator[ParameterSpec]:
    """Names and shapes in the order of `model.trainable_variables`."""
    names: dict[int, str] = {}
    for layer, layer_name in _layer_names(model):
        for variable in layer.trainable_variables:
            inner = variable.path.split("/")
            inner = inner[inner.index(layer.name) + 1 :] if layer.name in inner else inner[-1:]
            names.setdefault(id(variable), "/".join([layer_name, *inner]))
    for variable in model.trainable_variables:
        yield ParameterSpec(names[id(variable)], tuple(variable.shape))


def _layer_names(model: Any) -> Iterator[tuple[Any, str]]:
    """Layers with names that depend on the model only.

    Keras numbers unnamed layers through the life of the process (`dense_7`): such a number would
    make the layout, and its fingerprint, differ from one export to the next.
    """
    taken: set[str] = set()
    for layer in model.layers:
        kind = _NUMBERED.sub("", layer.name)
        automatic = kind.replace("_", "") == type(layer).__name__.lower()
        base = kind if automatic else layer.name
        name, number = base, 0
        while name in taken:
            number += 1
            name = f"{base}_{number}"
        taken.add(name)
        yield layer, name
