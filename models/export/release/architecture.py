"""Describes a Keras model as JSON in its package, and rebuilds it for a release.

Devices do not get the description. A user's own layers need their code (`fedge model release
--model`).
"""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np

from fedge.errors import ExportError, one_line
from learning.vector.parameters import F32
from models.export.backend import keras, suppress_tensorflow_output
from models.export.objective.losses import Contrastive, Triplet
from models.export.objective.reading import ObjectiveOptions
from models.export.variables import (
    Variables,
    constant_variables,
    is_normalization,
    is_seed,
    named_variables,
)
from models.package.package import ARCHITECTURE_FILE, ModelPackage

log = logging.getLogger(__name__)

#: Exceptions for layers without `get_config`, or with a configuration that is not JSON.
_NO_JSON = (
    *(NotImplementedError, TypeError, ValueError, AttributeError, KeyError, RuntimeError),
    OSError,  # a lambda without a source file
)
_NAME_FUNCTION = "name the function that builds it, --model FILE.py:FUNCTION"
_PAIRS: dict[str, type[Triplet | Contrastive]] = {"triplet": Triplet, "contrastive": Contrastive}


def describe(model: Any, told: ObjectiveOptions, variables: Variables) -> bytes:
    """Returns the model and the options of `export_model` as JSON.

    The model is left out if a layer has no JSON: a release then needs the function that builds it.
    """
    try:
        document = json.loads(model.to_json())
    except _NO_JSON as error:
        log.warning(
            "model %s cannot be described as JSON (%s): `fedge model release` will need --model",
            model.name, one_line(error), extra={"event": "no_architecture"},
        )  # fmt: skip
        document = None
    if document is not None:
        _add_adapted(document, model)
    if document is not None and (compiled := document.get("compile_config")) is not None:
        compiled["optimizer"] = "sgd"  # devices choose their own
    options = {
        "loss": None if told.loss is None else [told.loss.name, told.loss.margin],
        "reconstruct": told.reconstruct,
        "class_weight": {str(key): value for key, value in told.class_weight.items()},
        "metrics": list(told.metrics),
        "classes": list(told.classes),
    }
    # By position: JSON does not preserve Keras's paths of variables in nested models.
    known = {id(variable): spec.name for spec, variable in variables.learned}
    names = [known.get(id(variable)) for variable in _weights(model)]
    return json.dumps({"keras": document, "options": options, "variables": names}).encode() + b"\n"


def _add_adapted(document: Any, model: Any) -> None:
    """Adds mean and variance of adapted Normalization layers, which Keras keeps as weights only."""
    layers = {part.name: part for part in model._flatten_layers() if is_normalization(part)}
    pending = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending += value
        if not isinstance(value, dict):
            continue
        pending += value.values()
        config = value.get("config")
        if not isinstance(config, dict):
            continue
        layer = layers.get(config.get("name"))
        if layer is not None and layer.input_mean is None:
            config["mean"] = np.asarray(layer.adapt_mean).tolist()
            config["variance"] = np.asarray(layer.adapt_variance).tolist()


def rebuild(package: ModelPackage) -> Any:
    """Rebuilds the Keras model that the package was exported from, with random weights.

    Raises:
        ExportError: the package has no architecture, or Keras cannot rebuild it.
    """
    document = _document(package).get("keras")
    if document is None:
        raise ExportError(
            f"package {package.spec.name!r} has no description of its model: {_NAME_FUNCTION}"
        )
    try:
        with suppress_tensorflow_output():
            return keras.models.model_from_json(json.dumps(document))
    # A user's own layers may raise anything.
    except Exception as error:
        raise ExportError(
            f"{ARCHITECTURE_FILE} of {package.spec.name!r} cannot be rebuilt by this Keras "
            f"{keras.__version__}: {one_line(error)}; {_NAME_FUNCTION}"
        ) from error


def read_options(package: ModelPackage) -> ObjectiveOptions:
    """Returns the options of `export_model`; the defaults when the package does not hold them.

    Raises:
        ExportError: the description is damaged.
    """
    options = _document(package).get("options")
    if options is None:
        return ObjectiveOptions()
    try:
        pair = options["loss"]
        return ObjectiveOptions(
            loss=None if pair is None else _PAIRS[pair[0]](pair[1]),
            reconstruct=options["reconstruct"],
            class_weight={int(key): value for key, value in options["class_weight"].items()},
            metrics=tuple(options["metrics"]),
            classes=tuple(options["classes"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ExportError(
            f"{ARCHITECTURE_FILE} of {package.spec.name!r}: damaged options: {error!r}"
        ) from error


def _document(package: ModelPackage) -> dict[str, Any]:
    if not package.architecture:
        return {}
    try:
        document = json.loads(package.architecture)
    except ValueError as error:
        document = error
    if not isinstance(document, dict):
        raise ExportError(
            f"{ARCHITECTURE_FILE} of {package.spec.name!r} is damaged: export the model again"
        )
    return document


def assign_weights(model: Any, package: ModelPackage, theta: F32) -> None:
    """Assigns θ, the initial personal part and the frozen numbers to the model's variables.

    Raises:
        ExportError: the model lacks variables that the package's layouts name.
    """
    tensors = dict(package.spec.layout.unflatten(theta))
    if package.spec.personal is not None:
        tensors |= package.spec.personal.unflatten(package.personal)
    variables = _weights(model)
    names = _variable_names(model, variables, package)
    missing = sorted(set(tensors) - set(names))
    if missing:
        raise ExportError(
            f"the model does not fit the package: it lacks the weights {', '.join(missing[:3])}"
        )
    frozen = []
    for variable, name in zip(variables, names, strict=True):
        if name in tensors:
            _assign(variable, name, tensors[name])
        elif not is_seed(variable):
            frozen.append(variable)
    _assign_frozen(frozen, package)


def _weights(model: Any) -> list[Any]:
    """Returns the variables that a package holds; constants are part of the architecture."""
    constants = constant_variables(model)
    return [variable for variable in model.variables if id(variable) not in constants]


def _variable_names(model: Any, variables: list[Any], package: ModelPackage) -> list[str]:
    """Returns the layout's name of each variable of the model; "" if no layout has it."""
    names = [name or "" for name in _document(package).get("variables", ())]
    if len(names) == len(variables):
        return names
    known = {id(variable): name for name, variable in named_variables(model).items()}
    return [known.get(id(variable), "") for variable in variables]


def _assign(variable: Any, name: str, values: F32) -> None:
    if tuple(variable.shape) != values.shape:
        raise ExportError(
            f"the model does not fit the package: weights {name!r} have shape "
            f"{tuple(variable.shape)}, the package's {values.shape}"
        )
    variable.assign(values)


def _assign_frozen(variables: list[Any], package: ModelPackage) -> None:
    numbers = package.frozen if package.frozen is not None else np.zeros(0, np.float32)
    ends = np.cumsum([int(np.prod(variable.shape)) for variable in variables])
    if (int(ends[-1]) if variables else 0) != numbers.size:
        raise ExportError(
            f"the model does not fit the package: {int(ends[-1]) if variables else 0} frozen "
            f"numbers, the package has {numbers.size}"
        )
    parts = np.split(numbers, ends[:-1]) if variables else []
    for variable, values in zip(variables, parts, strict=True):
        variable.assign(values.reshape(variable.shape))
