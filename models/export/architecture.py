"""A Keras model as JSON beside its package, and back: what a release is made of.

Devices never see it. Layers of a user's own need their code again (`fedge model release --model`).
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from models.errors import ExportError
from models.export.backend import hushed, keras
from models.export.losses import Contrastive, Triplet
from models.export.objective import Wishes
from models.export.variables import Variables, is_seed, named_variables
from models.package import ARCHITECTURE_FILE, ModelPackage
from models.parameters import F32

_PAIRS: dict[str, type[Triplet | Contrastive]] = {"triplet": Triplet, "contrastive": Contrastive}


def describe(model: Any, wishes: Wishes, variables: Variables) -> bytes:
    """The model and what `export_model` was told beside it, as JSON."""
    document = json.loads(model.to_json())
    if (compiled := document.get("compile_config")) is not None:
        compiled["optimizer"] = "sgd"  # devices choose their own
    options = {
        "loss": None if wishes.loss is None else [wishes.loss.name, wishes.loss.margin],
        "reconstruct": wishes.reconstruct,
        "class_weight": {str(key): value for key, value in wishes.class_weight.items()},
        "metrics": list(wishes.metrics),
        "classes": list(wishes.classes),
    }
    # By position: the paths that Keras gives to variables of nested models do not survive JSON.
    known = {id(variable): spec.name for spec, variable in variables.learned}
    names = [known.get(id(variable)) for variable in model.variables]
    return json.dumps({"keras": document, "options": options, "variables": names}).encode() + b"\n"


def rebuild(package: ModelPackage) -> tuple[Any, Wishes]:
    """The Keras model that the package was exported from, with its initial weights unset.

    Raises:
        ExportError: the package has no architecture, or Keras cannot rebuild it.
    """
    if not package.architecture:
        raise ExportError(
            f"package {package.spec.name!r} has no {ARCHITECTURE_FILE}: name the function that "
            "builds the model, --model FILE.py:FUNCTION"
        )
    try:
        document = json.loads(package.architecture)
        options = document["options"]
        with hushed():
            model = keras.models.model_from_json(json.dumps(document["keras"]))
        pair = options["loss"]
        wishes = Wishes(
            loss=None if pair is None else _PAIRS[pair[0]](pair[1]),
            reconstruct=options["reconstruct"],
            class_weight={int(key): value for key, value in options["class_weight"].items()},
            metrics=tuple(options["metrics"]),
            classes=tuple(options["classes"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(
            f"{ARCHITECTURE_FILE} of {package.spec.name!r} cannot be rebuilt by this Keras "
            f"{keras.__version__}: {str(error).strip().splitlines()[0][:200]}; name the function "
            "that builds the model, --model FILE.py:FUNCTION"
        ) from error
    return model, wishes


def fill(model: Any, package: ModelPackage, theta: F32) -> None:
    """Put θ, the initial personal part and the frozen numbers into the model's variables.

    Raises:
        ExportError: the model has not the variables that the package's layouts name.
    """
    tensors = dict(package.spec.layout.unflatten(theta))
    if package.spec.personal is not None:
        tensors |= package.spec.personal.unflatten(package.personal)
    names = _variable_names(model, package)
    missing = sorted(set(tensors) - set(names))
    if missing:
        raise ExportError(
            f"the model does not fit the package: it has no weights {', '.join(missing[:3])}"
        )
    frozen = []
    for variable, name in zip(model.variables, names, strict=True):
        if name in tensors:
            _assign(variable, name, tensors[name])
        elif not is_seed(variable):
            frozen.append(variable)
    _assign_frozen(frozen, package)


def _variable_names(model: Any, package: ModelPackage) -> list[str]:
    """The layout's name of each variable of the model; "" for those that no layout has."""
    if package.architecture:
        names = [name or "" for name in json.loads(package.architecture)["variables"]]
        if len(names) == len(model.variables):
            return names
    known = {id(variable): name for name, variable in named_variables(model).items()}
    return [known.get(id(variable), "") for variable in model.variables]


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
