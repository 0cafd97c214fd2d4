"""Loss and metrics per row, read off a compiled Keras model.

Keras reduces over the batch inside its losses; a program needs one number per row, because rows of
padding count 0 and sums of agents must add. So the losses are written out here, each checked
against Keras's own by the tests. All results are float32 of shape (rows,).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from models.errors import ExportError
from models.export.backend import Tensor, keras, tf
from models.spec import Dtype

PerRow = Callable[[Tensor, Tensor], Tensor]

#: Probabilities are kept this far from 0 and 1 before a logarithm (Keras's default epsilon).
_EPSILON = 1e-7

_REGRESSION = ("mean_squared_error", "mean_absolute_error", "huber", "log_cosh")
_BINARY = "binary_crossentropy"
_SPARSE = "sparse_categorical_crossentropy"
_CATEGORICAL = "categorical_crossentropy"
_LOSS_ADVICE = {
    "crossentropy": f"name it: {_SPARSE} or {_BINARY}",
}


@dataclass(frozen=True)
class Objective:
    """What a compiled model minimises and reports.

    Attributes:
        name: Keras's name of the loss.
        target_shape: of one row.
        target_dtype: int32 for classification, float32 for regression.
        output_shape: of one row of what `predict` returns (a lone axis of 1 is dropped for
            regression and binary classification, so that it has the target's shape).
        loss: per row.
        metrics: per row, by short name.
    """

    name: str
    target_shape: tuple[int, ...]
    target_dtype: Dtype
    output_shape: tuple[int, ...]
    loss: PerRow
    metrics: dict[str, PerRow] = field(default_factory=dict)


def read_objective(model: Any) -> Objective:
    """The objective that `compile()` gave `model`.

    Raises:
        ExportError: not compiled, or a loss or metric that programs do not know; names it and
            what to use instead.
    """
    if not getattr(model, "compiled", False) or model.loss is None:
        raise ExportError(
            f"model {model.name!r} has no loss: call model.compile(loss=..., metrics=[...]) "
            "before exporting"
        )
    name, options = _identify(_only(model.loss, "loss"), "loss")
    shape = tuple(int(side) for side in model.outputs[0].shape[1:])
    if name in (_SPARSE, _CATEGORICAL):
        objective = _classes(name, shape, options)
    elif name == _BINARY:
        objective = _binary(shape, options)
    elif name in _REGRESSION:
        objective = _regression(name, shape, options)
    else:
        known = ", ".join((*_REGRESSION, _SPARSE, _CATEGORICAL, _BINARY))
        advice = _LOSS_ADVICE.get(name, f"use one of: {known}")
        raise ExportError(f"loss {name!r} cannot be exported: {advice}")
    for metric in _metrics_of(model):
        short, per_row = _metric(metric, name, options)
        objective.metrics[short] = per_row
    return objective


def _regression(name: str, shape: tuple[int, ...], options: Mapping[str, Any]) -> Objective:
    delta = float(options.get("delta", 1.0))
    per_element: dict[str, Callable[[Tensor], Tensor]] = {
        "mean_squared_error": tf.square,
        "mean_absolute_error": tf.abs,
        "huber": lambda error: _huber(error, delta),
        # log(cosh(e)) that overflows nowhere.
        "log_cosh": lambda error: tf.abs(error) + _log1p_exp(-2.0 * tf.abs(error)) - math.log(2.0),
    }
    apart = per_element[name]
    row = _row_shape(shape)
    return Objective(name, row, "float32", row, lambda y, p: _row_mean(apart(p - y)))


def _huber(error: Tensor, delta: float) -> Tensor:
    # Huber 1964: quadratic up to delta, linear beyond.
    size = tf.abs(error)
    inner = tf.minimum(size, delta)
    return inner * (size - 0.5 * inner)


def _classes(name: str, shape: tuple[int, ...], options: Mapping[str, Any]) -> Objective:
    """Cross-entropy between classes; the target is a class index, or a probability per class."""
    if not shape or shape[-1] < 2:
        raise ExportError(
            f"{name} needs an output of one number per class, the model's last layer gives "
            f"{shape}: for two classes and one output use {_BINARY}"
        )
    from_logits = bool(options.get("from_logits", False))
    if options.get("ignore_class") is not None or options.get("axis", -1) != -1:
        raise ExportError(f"{name}: ignore_class and axis cannot be exported")
    smoothing = float(options.get("label_smoothing", 0.0))

    def loss(target: Tensor, output: Tensor) -> Tensor:
        logits = output if from_logits else _logits(output, "Softmax")
        if logits is None:
            share = output if name == _SPARSE else _shares(output)
            logarithm = tf.math.log(tf.clip_by_value(share, _EPSILON, 1 - _EPSILON))
        else:
            logarithm = _log_softmax(logits)
        wanted = tf.one_hot(target, shape[-1], dtype=tf.float32) if name == _SPARSE else target
        if smoothing:
            wanted = wanted * (1 - smoothing) + smoothing / shape[-1]
        return _row_mean(-tf.reduce_sum(wanted * logarithm, -1))

    if name == _SPARSE:
        return Objective(name, shape[:-1], "int32", shape, loss)
    return Objective(name, shape, "float32", shape, loss)


def _shares(output: Tensor) -> Tensor:
    # Keras makes every row sum to 1 here, and in the sparse loss it does not.
    return output / tf.reduce_sum(output, -1, keepdims=True)


def _log_softmax(logits: Tensor) -> Tensor:
    # Written out: the gradient is then made of operators every interpreter has.
    shifted = logits - tf.stop_gradient(tf.reduce_max(logits, -1, keepdims=True))
    return shifted - tf.math.log(tf.reduce_sum(tf.exp(shifted), -1, keepdims=True))


def _binary(shape: tuple[int, ...], options: Mapping[str, Any]) -> Objective:
    from_logits = bool(options.get("from_logits", False))
    smoothing = float(options.get("label_smoothing", 0.0))

    def loss(target: Tensor, output: Tensor) -> Tensor:
        wanted = tf.cast(target, tf.float32) * (1 - smoothing) + 0.5 * smoothing
        logits = output if from_logits else _logits(output, "Sigmoid")
        if logits is None:
            p = tf.clip_by_value(output, _EPSILON, 1 - _EPSILON)
            entropy = -wanted * tf.math.log(p) - (1 - wanted) * tf.math.log(1 - p)
        else:
            # max(z, 0) - z·y + log(1 + exp(-|z|)): never overflows.
            entropy = tf.nn.relu(logits) - logits * wanted + _log1p_exp(-tf.abs(logits))
        return _row_mean(entropy)

    row = _row_shape(shape)
    return Objective(_BINARY, row, "int32", row, loss)


def _log1p_exp(z: Tensor) -> Tensor:
    return tf.math.log(1 + tf.exp(z))


def _logits(output: Tensor, activation: str) -> Tensor | None:
    """What went into the last activation, which gives a stabler loss (Keras does the same)."""
    # A target without axes was compared with a reshaped output: look through the reshape.
    op = output.op
    if op.type == "Reshape" and op.inputs[0].op.type == activation:
        return tf.reshape(op.inputs[0].op.inputs[0], output.shape)
    return op.inputs[0] if op.type == activation else None


def _row_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    # Dense(1) gives (rows, 1) and its target is one number per row: compared as they are, they
    # would broadcast to (rows, rows).
    return shape[:-1] if shape and shape[-1] == 1 else shape


def _row_mean(values: Tensor) -> Tensor:
    """Mean over every axis but the first."""
    return tf.reduce_mean(values, list(range(1, len(values.shape)))) if values.shape[1:] else values


def _metric(identifier: Any, loss: str, options: Mapping[str, Any]) -> tuple[str, PerRow]:
    """Short name and function per row of one metric."""
    name, settings = _identify(identifier, "metric")
    if name in ("accuracy", "acc"):
        # As Keras does, the loss decides which accuracy is meant.
        name = _ACCURACY.get(loss, name)
        # Keras would compare a logit with 0.5 here; what is meant is a probability of one half.
        settings = {"threshold": 0.0 if options.get("from_logits") else 0.5}
    if name == "mean_absolute_error" and loss not in (_SPARSE, _CATEGORICAL):
        return "mae", lambda y, p: _row_mean(tf.abs(p - tf.cast(y, tf.float32)))
    if name == "mean_squared_error" and loss not in (_SPARSE, _CATEGORICAL):
        return "mse", lambda y, p: _row_mean(tf.square(p - tf.cast(y, tf.float32)))
    if name == "sparse_categorical_accuracy" and loss == _SPARSE:
        return "accuracy", lambda y, p: _equal(y, _best(p))
    if name == "categorical_accuracy" and loss == _CATEGORICAL:
        return "accuracy", lambda y, p: _equal(_best(y), _best(p))
    if name == _TOP.get(loss):
        k = int(settings.get("k", 5))
        return f"top_{k}_accuracy", lambda y, p: _in_top(y if loss == _SPARSE else _best(y), p, k)
    if name == "binary_accuracy" and loss == _BINARY:
        threshold = float(settings.get("threshold", 0.5))
        return "accuracy", lambda y, p: _row_mean(
            tf.cast(tf.equal(tf.cast(p > threshold, tf.int32), y), tf.float32)
        )
    raise ExportError(
        f"metric {name!r} cannot be exported with the loss {loss}: use " + _metrics_for(loss)
    )


_ACCURACY = {
    _SPARSE: "sparse_categorical_accuracy",
    _CATEGORICAL: "categorical_accuracy",
    _BINARY: "binary_accuracy",
}
_TOP = {
    _SPARSE: "sparse_top_k_categorical_accuracy",
    _CATEGORICAL: "top_k_categorical_accuracy",
}


def _metrics_for(loss: str) -> str:
    if loss in _TOP:
        return f"'accuracy' or {_TOP[loss]}"
    # The root of a sum is no sum: whoever reads 'mse' takes it.
    return "'accuracy'" if loss == _BINARY else "'mae' or 'mse'"


def _best(values: Tensor) -> Tensor:
    return tf.argmax(values, -1, output_type=tf.int32)


def _equal(left: Tensor, right: Tensor) -> Tensor:
    return _row_mean(tf.cast(tf.equal(left, right), tf.float32))


def _in_top(target: Tensor, output: Tensor, k: int) -> Tensor:
    """Whether fewer than k classes are more likely than the true one."""
    true = tf.one_hot(target, output.shape[-1], dtype=tf.float32)
    likely = tf.reduce_sum(true * output, -1, keepdims=True)
    ahead = tf.reduce_sum(tf.cast(output > likely, tf.float32), -1)
    return _row_mean(tf.cast(ahead < k, tf.float32))


def _metrics_of(model: Any) -> list[Any]:
    config = model.get_compile_config()
    found: list[Any] = []
    for key in ("metrics", "weighted_metrics"):
        value = config.get(key) or []
        value = (
            list(value.values()) if isinstance(value, dict) and "class_name" not in value else value
        )
        for item in value if isinstance(value, list | tuple) else [value]:
            found.extend(item if isinstance(item, list | tuple) else [item])
    return found


def _only(value: Any, what: str) -> Any:
    """The one element of a dict or list that Keras also takes."""
    if isinstance(value, dict) and "class_name" not in value:
        value = list(value.values())
    if isinstance(value, list | tuple):
        if len(value) != 1:
            raise ExportError(f"{len(value)} {what}es: a program has one {what} and one output")
        return value[0]
    return value


def _identify(identifier: Any, what: str) -> tuple[str, dict[str, Any]]:
    """Keras's snake-case name and the options of a loss or metric, however it was written."""
    if isinstance(identifier, keras.losses.Loss):
        _check_reduction(identifier)
        # Huber's delta is missing from its configuration (Keras 3.15); the wrapper has it.
        hidden = getattr(identifier, "_fn_kwargs", {})
        return _snake(type(identifier).__name__), {**identifier.get_config(), **hidden}
    if isinstance(identifier, dict):  # as serialised by Keras
        config = identifier.get("config")
        if isinstance(config, str):  # a function: its name
            return _ALIASES.get(config, config), {}
        return _snake(str(identifier.get("class_name"))), dict(config or {})
    name = identifier if isinstance(identifier, str) else getattr(identifier, "__name__", None)
    if name is None:
        raise ExportError(f"{what} {identifier!r} cannot be exported: name one of Keras's own")
    return _snake(name), {}


def _check_reduction(loss: Any) -> None:
    if loss.reduction not in ("sum_over_batch_size", "mean", "mean_with_sample_weight"):
        raise ExportError(
            f"loss {loss.name!r} has reduction={loss.reduction!r}: programs minimise the mean over "
            "rows; leave reduction at its default"
        )


_ALIASES = {
    "mse": "mean_squared_error",
    "mae": "mean_absolute_error",
    "bce": "binary_crossentropy",
    "huber_loss": "huber",
    "logcosh": "log_cosh",
}


def _snake(name: str) -> str:
    """`MeanSquaredError`, `MSE` and `mse` are `mean_squared_error`."""
    if name.upper() == name or name.islower():
        text = name.lower()
    else:
        text = "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
    return _ALIASES.get(text, text)
