"""`export_model`: a compiled Keras model -> a model package that devices can train.

model = keras.Sequential([keras.Input((4,), name="sensors"), keras.layers.Dense(1)])
model.compile(loss="mean_squared_error", metrics=["mae"])
export_model(model, name="pump_wear").save(Path("pump_wear"))
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from fedge.errors import ExportError
from models.export.backend import keras
from models.export.layers.randomness import random_function
from models.export.layers.supported import check_layers, leaves
from models.export.lowering import lower
from models.export.objective.losses import Contrastive, Triplet
from models.export.objective.objective import Objective, Wishes, read_objective
from models.export.release.architecture import describe
from models.export.release.verify import Reference, outputs_differ_by, verify
from models.export.variables import Variables, freeze_all_but, is_seed, read_variables
from models.package.package import ModelPackage, encode_frozen
from models.package.spec import ModelSpec, TensorSpec

log = logging.getLogger(__name__)

#: Change of the outputs, norm over norm, above which frozen layers are not rounded.
MOST_ROUNDING = 0.1


def export_model(
    model: Any,
    *,
    name: str,
    source: str = "",
    batch_size: int | Sequence[int] = 32,
    inputs: Sequence[TensorSpec] = (),
    classes: Sequence[str] = (),
    metrics: Sequence[str] = (),
    class_weight: Mapping[int, float] | None = None,
    loss: Triplet | Contrastive | None = None,
    reconstruct: str = "",
    train: Sequence[str] = (),
    personal: Sequence[str] = (),
) -> ModelPackage:
    """The package of `model`: program, spec, and the model's present weights as initial θ.

    The program was run and its gradient compared with Keras's own before it is returned. Layers
    with `trainable = False` are frozen: the package holds their weights once, matrices at a byte a
    number unless that changes the outputs by more than a tenth, and they never travel again.

    Args:
        model: a built and compiled `keras.Model`; `compile()`'s losses, loss weights and metrics
            become the program's, its optimizer is ignored (devices choose their own).
        name: of the model, in the spec and in reports.
        source: where architecture or task come from, for people.
        batch_size: rows of one program call. Larger is faster per row; padding of the last batch
            costs as much as real rows. Several make the program larger by signatures for each; the
            first is the one that training uses.
        inputs: one `TensorSpec` per input, in the model's order, to add what Keras does not know:
            features, units, mean, std and what stands for a missing value. Shapes and dtypes must
            agree with the model. Without them, names are those of `keras.Input(name=...)`.
        classes: names of the classes, for classification.
        metrics: more metrics of the first output by name: also "confusion", which Keras has not.
        class_weight: what a row of each class counts in the loss; 1 for those not named.
        loss: of a model whose outputs are embeddings, in place of a compiled one.
        reconstruct: name of the input that the output is compared with (an autoencoder): the data
            then needs no target.
        train: names of layers, or patterns (`head*`): all others are frozen.
        personal: names of layers, or patterns, that each device learns for itself and never sends.

    Raises:
        ExportError: the model cannot become a program; names the layer, loss, metric or operator
            and what to use instead.
    """
    lists = {"classes": classes, "metrics": metrics, "train": train, "personal": personal}
    for option, value in lists.items():
        if isinstance(value, str) and value:  # a text is a sequence too, of letters
            raise ExportError(f"{option}={value!r}: give a list, [{value!r}]")
    if not isinstance(class_weight or {}, Mapping):
        raise ExportError(
            f"class_weight={class_weight!r}: give a weight for each class, {{0: 1.0}}"
        )
    _check_model(model)
    if train:
        freeze_all_but(model, train)
    check_layers(model)
    variables = read_variables(model, personal)
    _check_finite(model)
    tensors = tuple(_inputs(model, inputs))
    wishes = Wishes(loss, reconstruct, class_weight or {}, metrics, classes)
    sizes = [batch_size] if isinstance(batch_size, int | np.integer) else list(batch_size)
    if not sizes:
        raise ExportError("batch_size is empty: give a number of rows, or several")
    main, *more = (int(size) for size in sizes)
    try:
        objective = read_objective(model, tensors, wishes)
        spec = ModelSpec(
            name=name,
            source=source,
            inputs=tensors,
            targets=objective.targets,
            outputs=objective.outputs,
            loss=objective.name,
            metrics=objective.metrics,
            batch_size=main,
            layout=variables.layout,
            stochastic=any(map(random_function, leaves(model))),
            personal=variables.personal_layout,
            frozen=sum(tensor.size for tensor in variables.frozen_tensors),
            more_batch_sizes=tuple(more) or msgspec.UNSET,
        )
    except ValueError as error:
        raise ExportError(f"model {name!r}: {error}") from error
    package = ModelPackage(
        spec,
        lower(model, objective, variables, spec),
        variables.values(variables.shared),
        variables.values(variables.personal),
        encode_frozen(variables.frozen_tensors),
        describe(model, wishes, variables),
    )
    package = _without_harm(model, package, objective, variables)
    verify(model, package, objective, variables)
    return package


def _without_harm(
    model: Any, package: ModelPackage, objective: Objective, variables: Variables
) -> ModelPackage:
    """The package; with exact frozen layers where rounded ones would change the outputs much."""
    if not variables.frozen:
        return package
    exact = replace(package, frozen_bytes=encode_frozen(variables.frozen_tensors, rounded=False))
    pair = (Reference(model, made, objective, variables) for made in (package, exact))
    change = outputs_differ_by(model, package.spec, *pair)
    if change <= MOST_ROUNDING:
        return package
    log.warning(
        "model %s: frozen layers are stored at four bytes a number: at one byte each its outputs "
        "would change by %.0f %% (limit %.0f %%)",
        package.spec.name, 100 * change, 100 * MOST_ROUNDING, extra={"event": "frozen_exact"},
    )  # fmt: skip
    return exact


def _check_model(model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise ExportError(
            f"expected a compiled keras.Model, got {type(model).__name__}: return the model after "
            "model.compile(loss=...)"
        )
    if not model.built or not getattr(model, "inputs", None):
        raise ExportError(
            f"model {model.name!r} does not know its input: begin it with "
            "keras.Input(shape, name=...); a subclass of keras.Model becomes a layer, "
            "keras.Model(x, model(x)) with x = keras.Input(shape, name=...)"
        )
    for method in ("train_step", "compute_loss"):
        owner = next(base for base in type(model).__mro__ if method in vars(base))
        if not owner.__module__.startswith("keras."):
            raise ExportError(
                f"model {model.name!r} has a {method} of its own ({owner.__name__}), which devices "
                "would not run: export keras.Model(model.inputs, model.outputs), compiled"
            )


def _check_finite(model: Any) -> None:
    for variable in model.variables:
        if not is_seed(variable) and not np.isfinite(np.asarray(variable)).all():
            raise ExportError(
                f"weights {variable.path!r} have NaN or inf: initialize or train the model again"
            )


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
            name = _input_name(tensor.name, index, len(model.inputs))
            try:
                yield TensorSpec(name, shape, dtype)
            except ValueError as error:
                raise ExportError(f"input {index}: {error}: keras.Input(name=...)") from error
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
