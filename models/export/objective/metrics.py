"""Metrics per row; their sums over rows add across agents (`learning.vector.metrics`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from typing import Any

from fedge.errors import ExportError, did_you_mean
from learning.vector.metrics import MetricKind, MetricSpec
from models.export.backend import Tensor, tf
from models.export.objective.losses import BINARY, CATEGORICAL, SPARSE, OutputLoss, PerRow, row_mean

#: Metric, and its function of targets and outputs: shape (rows, *shape of the metric).
Metric = tuple[MetricSpec, PerRow]

_ACCURACY = {
    SPARSE: "sparse_categorical_accuracy",
    CATEGORICAL: "categorical_accuracy",
    BINARY: "binary_accuracy",
}
_TOP = {
    SPARSE: "sparse_top_k_categorical_accuracy",
    CATEGORICAL: "top_k_categorical_accuracy",
}
#: Keras's name of a metric -> name in a spec.
_SHORT = {
    "f1_score": "f1",
    "f_beta_score": "f1",
    "r2_score": "r2",
    "root_mean_squared_error": "rmse",
    "confusion_matrix": "confusion",
}

#: Option of Keras's metrics that programs lack -> its allowed values, the defaults.
_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "class_id": (None,),
    "top_k": (None,),
    "beta": (1.0,),
    "summation_method": ("interpolation",),
    "multi_label": (False,),
    "label_weights": (None,),
    "num_regressors": (0,),
}


def output_metric(name: str, options: Mapping[str, Any], loss: OutputLoss) -> Metric:
    """Returns the metric with Keras's name `name` for an output with this loss.

    Raises:
        ExportError: programs do not have the metric, or not for this loss; names those they have.
    """
    name = _SHORT.get(name, name)
    if name in ("accuracy", "acc"):
        # As in Keras, the loss decides which accuracy is meant.
        name = _ACCURACY.get(loss.name, name)
        # Not Keras's threshold of 0.5, which it would compare with a logit.
        options = {}
    _check_options(name, options)
    makers = _regression() if loss.name not in _ACCURACY else _classification()
    if name not in makers or not _fits(name, loss):
        known = sorted(_friendly(key) for key in makers if _fits(key, loss))
        why = _NEEDS.get(name, "")
        raise ExportError(
            f"metric {name!r} cannot be exported with the loss {loss.name} and a target of shape "
            f"{loss.target_shape}{why}: {did_you_mean(name, known)}use one of: {', '.join(known)}"
        )
    return makers[name](loss, options)


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    for key, allowed in _DEFAULTS.items():
        if key in options and options[key] not in allowed:
            raise ExportError(
                f"metric {name!r} with {key}={options[key]!r} cannot be exported: leave it out"
            )


def _friendly(name: str) -> str:
    short = {"mean_absolute_error": "mae", "mean_squared_error": "mse"}
    return "accuracy" if name in _ACCURACY.values() else short.get(name, name)


def _fits(name: str, loss: OutputLoss) -> bool:
    if name in _ACCURACY.values():
        return name == _ACCURACY.get(loss.name)
    if name in _TOP.values():
        return name == _TOP.get(loss.name)
    if name == "auc":
        return loss.classes == 2 and not loss.target_shape and loss.name != CATEGORICAL
    if name in ("mean_absolute_error", "mean_squared_error"):
        return loss.name not in (SPARSE, CATEGORICAL)
    if name in ("precision", "recall", "f1", "confusion"):
        return loss.classes >= 2 and len(loss.output_shape) <= 1
    return name != "r2" or loss.target_shape == ()


_NEEDS = {
    "auc": " (it needs a target of two classes per row)",
    "r2": " (it needs a target of one number per row)",
}

_Maker = Callable[[OutputLoss, Mapping[str, Any]], Metric]


def _regression() -> dict[str, _Maker]:
    def mean(short: str, kind: MetricKind, of: Callable[[Tensor], Tensor]) -> _Maker:
        spec = MetricSpec(short, kind)
        return lambda *_: (spec, lambda y, p: row_mean(of(p - _number(y))))

    return {
        "mean_absolute_error": mean("mae", "mean", tf.abs),
        "mean_squared_error": mean("mse", "mean", tf.square),
        "rmse": mean("rmse", "root_mean", tf.square),
        "r2": lambda *_: (MetricSpec("r2", "r2", (3,)), _r2_sums),
    }


def _classification() -> dict[str, _Maker]:
    errors = _regression()
    return {
        "mean_absolute_error": errors["mean_absolute_error"],
        "mean_squared_error": errors["mean_squared_error"],
        "sparse_categorical_accuracy": lambda *_: _accuracy(lambda y, p: _equal(y, _best(p))),
        "categorical_accuracy": lambda *_: _accuracy(lambda y, p: _equal(_best(y), _best(p))),
        "binary_accuracy": _binary_accuracy,
        "sparse_top_k_categorical_accuracy": _top,
        "top_k_categorical_accuracy": _top,
        "auc": _auc,
        "precision": partial(_counts, "precision"),
        "recall": partial(_counts, "recall"),
        "f1": partial(_counts, "f1"),
        "confusion": _confusion,
    }


def _accuracy(per_row: PerRow) -> Metric:
    return MetricSpec("accuracy"), per_row


def _binary_accuracy(loss: OutputLoss, options: Mapping[str, Any]) -> Metric:
    cut = _threshold(loss, options)
    return _accuracy(lambda y, p: _equal(tf.cast(p > cut, y.dtype), y))


def _threshold(loss: OutputLoss, options: Mapping[str, Any]) -> float:
    given = options.get("threshold", options.get("thresholds"))
    if isinstance(given, list | tuple):
        if len(given) != 1:
            raise ExportError(f"metric with thresholds {given}: give one")
        given = given[0]
    if given is not None:
        return float(given)
    return 0.0 if loss.from_logits else 0.5


def _top(loss: OutputLoss, options: Mapping[str, Any]) -> Metric:
    k = int(options.get("k", 5))

    def in_top(y: Tensor, p: Tensor) -> Tensor:
        """Returns 1 where fewer than k classes are more likely than the true one."""
        true = tf.one_hot(y if loss.name == SPARSE else _best(y), p.shape[-1], dtype=tf.float32)
        likely = tf.reduce_sum(true * p, -1, keepdims=True)
        ahead = tf.reduce_sum(tf.cast(p > likely, tf.float32), -1)
        return row_mean(tf.cast(ahead < k, tf.float32))

    return MetricSpec(f"top_{k}_accuracy"), in_top


def _auc(loss: OutputLoss, options: Mapping[str, Any]) -> Metric:
    # As in Keras: equidistant thresholds from 0 to 1, trapezoids between them.
    bins = int(options.get("num_thresholds", 200)) - 1
    if options.get("curve", "ROC") not in ("ROC", "roc"):
        raise ExportError(f"metric 'auc' with curve {options['curve']!r}: use 'ROC'")
    if options.get("thresholds") is not None:
        raise ExportError("metric 'auc' with thresholds of your own: give num_thresholds")

    def counts(y: Tensor, p: Tensor) -> Tensor:
        share = _positive_share(loss, p)
        place = tf.cast(tf.minimum(tf.floor(share * float(bins)), bins - 1.0), tf.int32)
        where = tf.one_hot(place, bins, dtype=tf.float32)
        positive = _number(y)[:, None]
        return tf.stack([where * positive, where * (1 - positive)], 1)

    return MetricSpec("auc", "auc", (2, bins)), counts


def _positive_share(loss: OutputLoss, p: Tensor) -> Tensor:
    if loss.name == SPARSE:
        return tf.sigmoid(p[:, 1] - p[:, 0]) if loss.from_logits else p[:, 1]
    return tf.sigmoid(p) if loss.from_logits else p


def _counts(kind: MetricKind, loss: OutputLoss, options: Mapping[str, Any]) -> Metric:
    """Returns true positives, false positives, false negatives per class; binary: of class 1."""
    binary = loss.name == BINARY
    if options.get("average", "macro") not in (None, "macro") and not binary:
        raise ExportError(f"metric {kind!r} with average={options['average']!r}: use 'macro'")
    classes = 1 if binary else loss.classes
    one_hot = _one_hot_classes(loss, options)

    def counts(y: Tensor, p: Tensor) -> Tensor:
        true, predicted = one_hot(y, p)
        return tf.stack([true * predicted, (1 - true) * predicted, true * (1 - predicted)], 1)

    return MetricSpec(kind, kind, (3, classes)), counts


def _confusion(loss: OutputLoss, options: Mapping[str, Any]) -> Metric:
    classes, binary, one_hot = loss.classes, loss.name == BINARY, _one_hot_classes(loss, options)

    def counts(y: Tensor, p: Tensor) -> Tensor:
        true, predicted = one_hot(y, p)
        if binary:
            true, predicted = (tf.concat([1 - each, each], 1) for each in (true, predicted))
        return true[:, :, None] * predicted[:, None, :]

    return MetricSpec("confusion", "confusion", (classes, classes)), counts


def _one_hot_classes(
    loss: OutputLoss, options: Mapping[str, Any]
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Returns true and predicted class, one-hot: shape (rows, classes); (rows, 1) when binary."""
    if loss.name == BINARY:
        cut = _threshold(loss, options)
        return lambda y, p: (_number(y)[:, None], tf.cast(p > cut, tf.float32)[:, None])

    if options.get("threshold", options.get("thresholds")) is not None:
        raise ExportError(
            "a threshold for several classes cannot be exported: leave it out; the class with "
            "the largest output is predicted"
        )

    def classes_of(y: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        true = y if loss.name == SPARSE else _best(y)
        return (
            tf.one_hot(true, loss.classes, dtype=tf.float32),
            tf.one_hot(_best(p), loss.classes, dtype=tf.float32),
        )

    return classes_of


def _r2_sums(y: Tensor, p: Tensor) -> Tensor:
    from_first = y - y[:1]
    return tf.stack([tf.square(y - p), from_first, tf.square(from_first), y], 1)


def _number(y: Tensor) -> Tensor:
    return tf.cast(y, tf.float32)


def _best(values: Tensor) -> Tensor:
    return tf.argmax(values, -1, output_type=tf.int32)


def _equal(left: Tensor, right: Tensor) -> Tensor:
    return row_mean(tf.cast(tf.equal(left, right), tf.float32))


def total(spec: MetricSpec, per_row: Tensor, weight: Tensor) -> Tensor:
    """Returns the weighted sum over rows: float32, shape `spec.call_shape`."""
    shape = spec.call_shape
    if not shape:
        return tf.reduce_sum(per_row * weight)
    flat = tf.reshape(per_row, [weight.shape[0], prod(shape)])
    if spec.kind == "r2":  # the last number is the first target (`MetricSpec.sums_of_call`)
        return tf.concat([tf.reduce_sum(flat[:, :-1] * weight[:, None], 0), flat[0, -1:]], 0)
    return tf.reshape(tf.reduce_sum(flat * weight[:, None], 0), shape)
