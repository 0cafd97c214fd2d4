"""`export_model`: compiled Keras model -> model package that devices can train.

model = keras.Sequential([keras.Input((4,), name="sensors"), keras.layers.Dense(1)])
model.compile(loss="mean_squared_error", metrics=["mae"])
export_model(model, name="pump_wear").save(Path("pump_wear"))
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from fedge.errors import ExportError
from models.export.backend import keras
from models.export.inputs import input_specs, target_specs
from models.export.layers.randomness import random_function
from models.export.layers.supported import check_layers, leaf_layers
from models.export.lowering import lower
from models.export.objective.losses import Contrastive, Triplet
from models.export.objective.objective import Objective
from models.export.objective.reading import ObjectiveOptions, read_objective
from models.export.reference import Reference
from models.export.release.architecture import describe
from models.export.variables import Variables, freeze_all_but, is_seed, read_variables
from models.export.verify import outputs_differ_by, verify
from models.package.package import ModelPackage, encode_frozen
from models.package.spec import ModelSpec, TensorSpec

log = logging.getLogger(__name__)

#: Relative change of the outputs (norms) above which frozen layers are stored unrounded.
MAX_ROUNDING_CHANGE = 0.1


def export_model(
    model: Any,
    *,
    name: str,
    source: str = "",
    batch_size: int | Sequence[int] = 32,
    inputs: Sequence[TensorSpec] = (),
    classes: Sequence[str] = (),
    targets: Sequence[TensorSpec] = (),
    metrics: Sequence[str] = (),
    class_weight: Mapping[int, float] | None = None,
    loss: Triplet | Contrastive | None = None,
    reconstruct: str = "",
    train: Sequence[str] = (),
    personal: Sequence[str] = (),
) -> ModelPackage:
    """Exports `model` as a package: program, spec, and its present weights as initial θ.

    The program is run and its gradient compared with Keras's own before it is returned. Layers
    with `trainable = False` are frozen: the package holds their weights once, matrices at one byte
    per number unless that changes the outputs by more than a tenth; updates do not contain them.

    Args:
        model: a built and compiled `keras.Model`; `compile()`'s losses, loss weights and metrics
            become the program's, its optimizer is ignored (devices choose their own).
        name: name of the model, in the spec and in reports.
        source: source of architecture or task, for people.
        batch_size: rows of one program call. Larger is faster per row; padding of the last batch
            costs as much as real rows. With several sizes the program has signatures for each; the
            first one is the main size.
        inputs: one `TensorSpec` per input, in the model's order, to add what Keras lacks: features,
            units, mean, std and the substitute for missing values. Shapes and dtypes must
            agree with the model. Without them, names are those of `keras.Input(name=...)`.
        classes: names of the classes, for classification.
        targets: one `TensorSpec` per target, in the outputs' order, to add what Keras lacks:
            features (what is estimated), units, and the mean and std by which the data become
            what the model learns. Shapes and dtypes must agree with the loss.
        metrics: names of additional metrics of the first output; also "confusion", which Keras
            lacks.
        class_weight: weight of a row of each class in the loss; 1 for classes not named.
        loss: loss of a model whose outputs are embeddings, in place of a compiled one.
        reconstruct: name of the input that the output is compared with (an autoencoder): the data
            then needs no target.
        train: names of layers, or patterns (`head*`), to train; all others are frozen.
        personal: names of layers, or patterns, that each device trains for itself and never sends.

    Raises:
        ExportError: the model cannot become a program; names the layer, loss, metric or operator
            and what to use instead.
    """
    _check_types(class_weight, classes=classes, metrics=metrics, train=train, personal=personal)
    main, *more = _batch_sizes(batch_size)
    _check_model(model)
    if train:
        freeze_all_but(model, train)
    check_layers(model)
    variables = read_variables(model, personal)
    _check_finite(model)
    is_random = any(map(random_function, leaf_layers(model)))
    named = input_specs(model, inputs, {"seed"} if is_random else set())
    tensors = tuple(named.values())
    if reconstruct in named:
        reconstruct = named[reconstruct].name
    options = ObjectiveOptions(loss, reconstruct, class_weight or {}, metrics, classes)
    try:
        objective = read_objective(model, tensors, options)
        spec = ModelSpec(
            name=name,
            source=source,
            inputs=tensors,
            targets=tuple(target_specs(objective.targets, targets)),
            outputs=objective.outputs,
            loss=objective.name,
            metrics=objective.metrics,
            batch_size=main,
            layout=variables.layout,
            stochastic=is_random,
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
        describe(model, options, variables),
    )
    package = _with_precise_frozen_layers(model, package, objective, variables)
    verify(model, package, objective, variables)
    return package


def _check_types(class_weight: object, **lists: object) -> None:
    """Raises ExportError for a text in place of a list, and for class weights in a list."""
    for option, value in lists.items():
        if isinstance(value, str) and value:  # a text is a sequence of letters
            raise ExportError(f"{option}={value!r}: give a list, [{value!r}]")
    if not isinstance(class_weight or {}, Mapping):
        raise ExportError(
            f"class_weight={class_weight!r}: give a weight for each class, {{0: 1.0}}"
        )


def _batch_sizes(given: int | Sequence[int]) -> list[int]:
    sizes = [given] if isinstance(given, int | np.integer) else list(given)
    if not sizes:
        raise ExportError("batch_size is empty: give a number of rows, or several")
    return [int(size) for size in sizes]


def _with_precise_frozen_layers(
    model: Any, package: ModelPackage, objective: Objective, variables: Variables
) -> ModelPackage:
    """Returns the package with unrounded frozen layers, if rounding changes the outputs much."""
    if not variables.frozen:
        return package
    exact = replace(package, frozen_bytes=encode_frozen(variables.frozen_tensors, rounded=False))
    pair = (Reference(model, made, objective, variables) for made in (package, exact))
    change = outputs_differ_by(model, package.spec, *pair)
    if change <= MAX_ROUNDING_CHANGE:
        return package
    log.warning(
        "model %s: frozen layers are stored at four bytes a number: at one byte a number its "
        "outputs would change by %.0f %% (limit %.0f %%)",
        package.spec.name, 100 * change, 100 * MAX_ROUNDING_CHANGE, extra={"event": "frozen_exact"},
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
