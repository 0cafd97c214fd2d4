"""Objective of a Keras model: read from `compile()` and from the options given beside the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedge.errors import ExportError
from learning.vector.metrics import MetricSpec
from models.export.backend import keras
from models.export.objective.compiled import (
    OUTPUT,
    compiled_loss_weights,
    compiled_losses,
    compiled_metrics,
    output_names,
)
from models.export.objective.identify import identify
from models.export.objective.losses import (
    BINARY,
    CATEGORICAL,
    SPARSE,
    Contrastive,
    OutputLoss,
    Triplet,
    output_loss,
    row_shape,
)
from models.export.objective.metrics import Metric, output_metric
from models.export.objective.objective import Objective, OutputObjective
from models.package.spec import TensorSpec

#: Cross-entropy -> the last activation that gives the probabilities it compares.
_FINAL_ACTIVATIONS = {SPARSE: "softmax", CATEGORICAL: "softmax", BINARY: "sigmoid"}


@dataclass(frozen=True)
class ObjectiveOptions:
    """Options of `export_model` that change what `compile()` says.

    Attributes:
        loss: in place of the compiled loss.
        reconstruct: name of the input that the output is compared with; "" for none.
        class_weight: weight of a row of each class in the loss; empty for 1.
        metrics: names, in addition to the compiled metrics, of the first output.
        classes: names of the classes of the first target.
    """

    loss: Triplet | Contrastive | None = None
    reconstruct: str = ""
    class_weight: Mapping[int, float] = field(default_factory=dict)
    metrics: Sequence[str] = ()
    classes: Sequence[str] = ()


def read_objective(
    model: Any, inputs: Sequence[TensorSpec], options: ObjectiveOptions
) -> Objective:
    """Returns the objective that `compile()` gave `model`, changed by `options`.

    Raises:
        ExportError: not compiled, or a loss or metric that programs do not know; names it and
            what to use instead.
    """
    if options.loss is not None:
        _check_no_conflicts(options, options.loss)
        return _embedding_objective(model, options.loss)
    names = output_names(model)
    losses = compiled_losses(model, names)
    weights = compiled_loss_weights(model, names)
    metrics = compiled_metrics(model, names)
    parts = []
    for index, (name, output) in enumerate(zip(names, model.outputs, strict=True)):
        shape = tuple(int(side) for side in output.shape[1:])
        loss = output_loss(*identify(losses[index], "loss"), shape)
        _check_final_activation(name, output, loss)
        wanted = [*metrics[index], *(options.metrics if index == 0 else ())]
        prefix = f"{name}_" if len(names) > 1 else ""
        parts.append(
            OutputObjective(
                name if len(names) > 1 else OUTPUT,
                _source(name, names, options, inputs, loss),
                loss,
                weights[index],
                _class_weight(loss, options.class_weight) if index == 0 else (),
                _metrics(wanted, loss, prefix),
            )
        )
    return _joined(parts, options)


def _check_final_activation(name: str, output: Any, loss: OutputLoss) -> None:
    """Raises ExportError where a cross-entropy does not fit the last layer's activation.

    Keras trains all the same: it takes the input of an activation that it knows, whatever
    `from_logits` says and whichever activation it is, and clips scores as if they were
    probabilities.
    """
    wanted = _FINAL_ACTIVATIONS.get(loss.name)
    layer = output._keras_history.operation
    found = getattr(getattr(layer, "activation", None), "__name__", "")
    if isinstance(layer, keras.layers.Softmax):
        found = "softmax"
    if wanted is None or found not in ("linear", *_FINAL_ACTIVATIONS.values()):
        return
    place = f"output {name!r} ends with activation={found!r} (layer {layer.name!r})"
    if loss.from_logits and found != "linear":
        raise ExportError(f"{place}, and {loss.name} has from_logits=True: keep one of them")
    if not loss.from_logits and found != wanted:
        also = " or from_logits=True" if found == "linear" else ""
        raise ExportError(f"{place}, {loss.name} needs probabilities: use {wanted!r}{also}")


def _joined(parts: list[OutputObjective], options: ObjectiveOptions) -> Objective:
    """Returns the objective of the whole model: the sum of its outputs' losses."""
    if options.reconstruct and options.classes:
        raise ExportError("classes given for a reconstruction, which has no target of its own")
    targets = tuple(
        TensorSpec(
            part.source,
            part.loss.target_shape,
            part.loss.target_dtype,
            classes=_classes(part.loss, options.classes) if part is parts[0] else (),
        )
        for part in parts
        if not options.reconstruct
    )
    names = "; ".join(f"{part.output}: {part.loss.name}" for part in parts)
    return Objective(
        name=names if len(parts) > 1 else parts[0].loss.name,
        targets=targets,
        outputs=tuple(TensorSpec(part.output, part.loss.output_shape) for part in parts),
        metrics=tuple(spec for part in parts for spec, _ in part.metrics),
        is_keras=True,
        parts=tuple(parts),
    )


def _check_no_conflicts(options: ObjectiveOptions, loss: Triplet | Contrastive) -> None:
    """Raises ExportError for options that a loss of embeddings does not take."""
    others = {
        "metrics": options.metrics,
        "class_weight": options.class_weight,
        "classes": options.classes,
        "reconstruct": options.reconstruct,
    }
    given = [name for name, value in others.items() if value]
    if given:
        raise ExportError(
            f"{given[0]} goes with a compiled loss, not with loss={loss.name!r}: leave it out"
        )


def _embedding_objective(model: Any, loss: Triplet | Contrastive) -> Objective:
    names = output_names(model)
    count = 3 if isinstance(loss, Triplet) else 2
    shapes = {tuple(output.shape[1:]) for output in model.outputs}
    if len(names) != count or len(shapes) != 1:
        raise ExportError(
            f"{loss.name} needs a model of {count} embeddings of one shape, this one has "
            f"{len(names)} outputs of {sorted(shapes)}"
        )
    (shape,) = shapes
    return Objective(
        name=loss.name,
        targets=() if isinstance(loss, Triplet) else (TensorSpec("target", (), "int32"),),
        outputs=tuple(TensorSpec(name, shape) for name in names),
        metrics=(MetricSpec("accuracy"),),
        is_keras=False,
        pair=loss,
    )


def _source(
    name: str,
    names: Sequence[str],
    options: ObjectiveOptions,
    inputs: Sequence[TensorSpec],
    loss: OutputLoss,
) -> str:
    """Returns the name of the column that an output is compared with."""
    if not options.reconstruct:
        return "target" if len(names) == 1 else f"target_{name}"
    tensor = next((t for t in inputs if t.name == options.reconstruct), None)
    if tensor is None or len(names) > 1:
        known = ", ".join(t.name for t in inputs)
        raise ExportError(
            f"reconstruct={options.reconstruct!r}: needs a model of one output and the name of an "
            f"input ({known})"
        )
    shape = tensor.shape if tensor.shape == loss.target_shape else row_shape(tensor.shape)
    # Binary labels are integers in data files; probabilities from 0 to 1 can be compared too.
    is_probability = loss.name == BINARY and tensor.dtype == "float32"
    if shape != loss.target_shape or not (is_probability or tensor.dtype == loss.target_dtype):
        raise ExportError(
            f"input {tensor.name!r} is {tensor.dtype} {tensor.shape}, the model's reconstruction "
            f"is {loss.target_dtype} {loss.target_shape}: both must have one shape and dtype"
        )
    return tensor.name


def _metrics(wanted: Sequence[Any], loss: OutputLoss, prefix: str) -> tuple[Metric, ...]:
    """Returns each metric once.

    Raises:
        ExportError: two metrics of one name have different options; a sum has one name.
    """
    found: dict[str, Metric] = {}
    options: dict[str, dict[str, Any]] = {}
    for item in wanted:
        name, given = identify(item, "metric")
        spec, per_row = output_metric(name, given, loss)
        given = {key: value for key, value in given.items() if key not in ("name", "dtype")}
        if options.setdefault(spec.name, given) != given:
            raise ExportError(
                f"two metrics are called {spec.name!r} here, of different options: keep one"
            )
        renamed = MetricSpec(f"{prefix}{spec.name}", spec.kind, spec.shape)
        found.setdefault(spec.name, (renamed, per_row))
    return tuple(found.values())


def _class_weight(loss: OutputLoss, given: Mapping[int, float]) -> tuple[float, ...]:
    if not given:
        return ()
    if loss.name not in (SPARSE, BINARY) or loss.target_shape or not loss.classes:
        raise ExportError(f"class_weight needs one class per row, the loss is {loss.name}")
    unknown = sorted(set(given) - set(range(loss.classes)))
    invalid = [value for value in given.values() if not 0 <= value < float("inf")]
    if unknown or invalid:
        raise ExportError(
            f"class_weight {dict(given)}: keys are classes from 0 to {loss.classes - 1}, "
            "values 0 or more"
        )
    return tuple(float(given.get(index, 1.0)) for index in range(loss.classes))


def _classes(loss: OutputLoss, classes: Sequence[str]) -> tuple[str, ...]:
    if classes and loss.target_dtype != "int32":
        raise ExportError(
            f"classes given, but the target of {loss.name} is not a class: leave them out"
        )
    if classes and loss.classes and len(classes) != loss.classes:
        raise ExportError(f"{len(classes)} class names for an output of {loss.classes} classes")
    return tuple(classes)
