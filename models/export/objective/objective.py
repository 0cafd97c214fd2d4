"""What a model minimises and reports: read off a compiled Keras model, or given beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedge.errors import ExportError
from learning.vector.metrics import MetricSpec
from models.export.backend import Tensor, keras, tf
from models.export.calling import output_keys
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
from models.export.objective.metrics import Metric, output_metric, total
from models.export.variables import plain_name
from models.package.spec import TensorSpec

#: Name of what `predict` returns, of a model with one output.
OUTPUT = "prediction"

#: Cross-entropy -> the activation that makes the probabilities which it compares.
_ENDINGS = {SPARSE: "softmax", CATEGORICAL: "softmax", BINARY: "sigmoid"}

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class _Part:
    """One output: what is minimised there and what is measured."""

    output: str
    source: str
    loss: OutputLoss
    weight: float = 1.0
    class_weight: tuple[float, ...] = ()
    metrics: tuple[Metric, ...] = ()

    def label(self, columns: Tensors) -> Tensor:
        """What the output is compared with, in its shape: an input may have a last axis of 1."""
        y = columns[self.source]
        shape = (y.shape[0], *self.loss.target_shape)
        return y if tuple(y.shape) == shape else tf.reshape(y, shape)

    def per_row(self, y: Tensor, p: Tensor) -> Tensor:
        values = self.loss.per_row(y, p)
        if self.class_weight:
            picked = tf.one_hot(y, len(self.class_weight), dtype=tf.float32)
            values *= tf.reduce_sum(picked * tf.constant(self.class_weight), -1)
        return values if self.weight == 1 else self.weight * values


@dataclass(frozen=True)
class Objective:
    """What a model minimises and reports.

    Attributes:
        name: of the loss; of each output where there are several.
        targets: that come from the data.
        outputs: that `predict` returns.
        metrics: in the order of the program's outputs.
        is_keras: whether Keras computes the same loss (`keras_targets`).
    """

    name: str
    targets: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metrics: tuple[MetricSpec, ...]
    is_keras: bool
    _parts: tuple[_Part, ...] = ()
    _pair: Triplet | Contrastive | None = None

    @property
    def classifies(self) -> bool:
        """Whether the first output picks a class."""
        return bool(self._parts) and self._parts[0].loss.classes > 0

    @property
    def threshold(self) -> float:
        """Of a first output of one number: above it the class is 1."""
        return 0.0 if self._parts and self._parts[0].loss.from_logits else 0.5

    def loss(self, columns: Tensors, outputs: Tensors) -> Tensor:
        """float32, shape (rows,).

        Args:
            columns: inputs and targets by name.
            outputs: by name, in the shapes of `outputs`.
        """
        if self._pair is not None:
            return self._pair.loss(list(outputs.values()), columns.get("target"))
        losses = [part.per_row(part.label(columns), outputs[part.output]) for part in self._parts]
        return tf.add_n(losses) if len(losses) > 1 else losses[0]

    def sums(self, columns: Tensors, outputs: Tensors, weight: Tensor) -> dict[str, Tensor]:
        """The sums of each metric over rows, by name; `weight` has shape (rows,)."""
        if self._pair is not None:
            right = self._pair.right(list(outputs.values()), columns.get("target"))
            return {"accuracy": total(self.metrics[0], right, weight)}
        return {
            spec.name: total(spec, per_row(part.label(columns), outputs[part.output]), weight)
            for part in self._parts
            for spec, per_row in part.metrics
        }

    def keras_targets(self, columns: Tensors, outputs: Sequence[Tensor]) -> list[Tensor]:
        """What Keras's loss compares each output with, in the shape that it wants."""
        labels = [columns[part.source] for part in self._parts]
        # A target of one number per row has the axis that Keras's output has, so that nothing
        # broadcasts.
        return [
            y[..., None] if len(y.shape) == len(p.shape) - 1 and p.shape[-1] == 1 else y
            for y, p in zip(labels, outputs, strict=True)
        ]

    def keras_weights(self, columns: Tensors) -> list[Tensor] | None:
        """Keras's sample weights of each output for the class weights; None: there are none."""
        if not any(part.class_weight for part in self._parts):
            return None
        return [
            tf.gather(part.class_weight, columns[part.source])
            if part.class_weight
            else tf.ones(columns[part.source].shape[0])
            for part in self._parts
        ]


@dataclass(frozen=True)
class Wishes:
    """What `export_model` is told beside the model.

    Attributes:
        loss: in place of the compiled one.
        reconstruct: name of the input that the output is compared with; "" for none.
        class_weight: what a row of each class counts in the loss; empty for 1.
        metrics: names, in addition to the compiled ones, of the first output.
        classes: names of the classes of the first target.
    """

    loss: Triplet | Contrastive | None = None
    reconstruct: str = ""
    class_weight: Mapping[int, float] = field(default_factory=dict)
    metrics: Sequence[str] = ()
    classes: Sequence[str] = ()


def read_objective(model: Any, inputs: Sequence[TensorSpec], wishes: Wishes) -> Objective:
    """The objective that `compile()` gave `model`, and `wishes` changed.

    Raises:
        ExportError: not compiled, or a loss or metric that programs do not know; names it and
            what to use instead.
    """
    if wishes.loss is not None:
        _check_no_others(wishes, wishes.loss)
        return _of_pairs(model, wishes.loss)
    if not getattr(model, "compiled", False) or model.loss is None:
        raise ExportError(
            f"model {model.name!r} has no loss: call model.compile(loss=..., metrics=[...]) "
            "before exporting"
        )
    names = _output_names(model)
    losses = _per_output(model.loss, names, "loss")
    loss_weights = model.get_compile_config().get("loss_weights")
    weights = _per_output(loss_weights, names, "loss weight")
    if loss_weights is not None and None in weights:
        missing = names[weights.index(None)]
        raise ExportError(f"loss_weights: none for output {missing!r}: give all or none of them")
    metrics = _compiled_metrics(model, names)
    parts = []
    for index, (name, output) in enumerate(zip(names, model.outputs, strict=True)):
        if losses[index] is None:
            raise ExportError(f"output {name!r} has no loss: give compile() one for every output")
        shape = tuple(int(side) for side in output.shape[1:])
        loss = output_loss(*identify(losses[index], "loss"), shape)
        _check_ending(name, output, loss)
        wanted = [*metrics[index], *(wishes.metrics if index == 0 else ())]
        prefix = f"{name}_" if len(names) > 1 else ""
        parts.append(
            _Part(
                name if len(names) > 1 else OUTPUT,
                _source(name, names, wishes, inputs, loss),
                loss,
                1.0 if weights[index] is None else float(weights[index]),
                _class_weight(loss, wishes.class_weight) if index == 0 else (),
                _metrics(wanted, loss, prefix),
            )
        )
    return _of_parts(parts, wishes)


def _check_ending(name: str, output: Any, loss: OutputLoss) -> None:
    """Raises ExportError where a cross-entropy is not of what the last layer gives.

    Keras trains all the same: it takes what went into an activation that it knows, whatever
    `from_logits` says and whichever activation it is, and clips scores as if they were
    probabilities.
    """
    wanted = _ENDINGS.get(loss.name)
    layer = output._keras_history.operation
    ending = getattr(getattr(layer, "activation", None), "__name__", "")
    if isinstance(layer, keras.layers.Softmax):
        ending = "softmax"
    if wanted is None or ending not in ("linear", *_ENDINGS.values()):
        return
    place = f"output {name!r} ends with activation={ending!r} (layer {layer.name!r})"
    if loss.from_logits and ending != "linear":
        raise ExportError(f"{place}, and {loss.name} has from_logits=True: keep one of them")
    if not loss.from_logits and ending != wanted:
        also = " or from_logits=True" if ending == "linear" else ""
        raise ExportError(f"{place}, {loss.name} needs probabilities: use {wanted!r}{also}")


def _of_parts(parts: list[_Part], wishes: Wishes) -> Objective:
    several = len(parts) > 1
    labels = "; ".join(f"{part.output}: {part.loss.name}" for part in parts)
    targets = tuple(
        TensorSpec(
            part.source,
            part.loss.target_shape,
            part.loss.target_dtype,
            classes=_classes(part.loss, wishes.classes) if part is parts[0] else (),
        )
        for part in parts
        if not wishes.reconstruct
    )
    if wishes.reconstruct and wishes.classes:
        raise ExportError("classes given for a reconstruction, which has no target of its own")
    return Objective(
        name=labels if several else parts[0].loss.name,
        targets=targets,
        outputs=tuple(TensorSpec(part.output, part.loss.output_shape) for part in parts),
        metrics=tuple(spec for part in parts for spec, _ in part.metrics),
        is_keras=True,
        _parts=tuple(parts),
    )


def _check_no_others(wishes: Wishes, loss: Triplet | Contrastive) -> None:
    others = {
        "metrics": wishes.metrics,
        "class_weight": wishes.class_weight,
        "classes": wishes.classes,
        "reconstruct": wishes.reconstruct,
    }
    given = [name for name, value in others.items() if value]
    if given:
        raise ExportError(
            f"{given[0]} goes with a compiled loss, not with loss={loss.name!r}: leave it out"
        )


def _of_pairs(model: Any, loss: Triplet | Contrastive) -> Objective:
    names = _output_names(model)
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
        _pair=loss,
    )


def _source(
    name: str,
    names: Sequence[str],
    wishes: Wishes,
    inputs: Sequence[TensorSpec],
    loss: OutputLoss,
) -> str:
    """Which column an output is compared with."""
    if not wishes.reconstruct:
        return "target" if len(names) == 1 else f"target_{name}"
    tensor = next((t for t in inputs if t.name == wishes.reconstruct), None)
    if tensor is None or len(names) > 1:
        known = ", ".join(t.name for t in inputs)
        raise ExportError(
            f"reconstruct={wishes.reconstruct!r}: needs a model of one output and the name of an "
            f"input ({known})"
        )
    shape = tensor.shape if tensor.shape == loss.target_shape else row_shape(tensor.shape)
    # Yes-or-no questions are ints in data files; shares from 0 to 1 can be compared too.
    shares = loss.name == BINARY and tensor.dtype == "float32"
    if shape != loss.target_shape or not (shares or tensor.dtype == loss.target_dtype):
        raise ExportError(
            f"input {tensor.name!r} is {tensor.dtype} {tensor.shape}, what the model makes of it "
            f"{loss.target_dtype} {loss.target_shape}: they must be alike to be compared"
        )
    return tensor.name


def _output_names(model: Any) -> list[str]:
    """Identifiers that depend on the model only."""
    if len(model.outputs) == 1:
        return [OUTPUT]
    names: list[str] = []
    for index, name in enumerate(output_keys(model) or model.output_names):
        base = plain_name(model, name, f"output_{index}")
        names.append(base if base not in names else f"{base}_{index}")
    return names


def _per_output(value: Any, names: Sequence[str], what: str) -> list[Any]:
    """One entry per output of what Keras takes as one value, a list or a dict."""
    if isinstance(value, dict) and "class_name" not in value:
        if len(names) == 1 and len(value) == 1:
            return list(value.values())
        unknown = sorted(set(value) - set(names))
        if unknown:
            raise ExportError(f"{what} for {unknown[0]!r}: the outputs are {', '.join(names)}")
        return [value.get(name) for name in names]
    if isinstance(value, list | tuple):
        if len(value) != len(names):
            raise ExportError(f"{what}: {len(value)} given for {len(names)} outputs")
        return list(value)
    return [value] * len(names)


def _compiled_metrics(model: Any, names: Sequence[str]) -> list[list[Any]]:
    """The metrics of each output."""
    config = model.get_compile_config()
    found: list[list[Any]] = [[] for _ in names]
    for key in ("metrics", "weighted_metrics"):
        value = config.get(key) or []
        if len(names) == 1:
            values = _flat(value)
            found[0] += values
            continue
        for index, item in enumerate(_per_output(value or None, names, "metric list")):
            found[index] += _flat(item)
    return found


def _flat(value: Any) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, dict) and "class_name" not in value:
        return [item for entry in value.values() for item in _flat(entry)]
    if isinstance(value, list | tuple):
        return [item for entry in value for item in _flat(entry)]
    return [value]


def _metrics(wanted: Sequence[Any], loss: OutputLoss, prefix: str) -> tuple[Metric, ...]:
    """Each once; two of one name that differ are refused, since a sum has one name."""
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
    bad = [value for value in given.values() if not 0 <= value < float("inf")]
    if unknown or bad:
        raise ExportError(
            f"class_weight {dict(given)}: keys are classes from 0 to {loss.classes - 1}, "
            "values 0 or more"
        )
    return tuple(float(given.get(index, 1.0)) for index in range(loss.classes))


def _classes(loss: OutputLoss, classes: Sequence[str]) -> tuple[str, ...]:
    if classes and loss.target_dtype != "int32":
        raise ExportError(f"classes given, but a target of {loss.name} is no class: leave them out")
    if classes and loss.classes and len(classes) != loss.classes:
        raise ExportError(f"{len(classes)} class names for an output of {loss.classes} classes")
    return tuple(classes)
