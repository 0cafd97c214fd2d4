"""Plausible sums: what sums over rows can be, whatever the model.

The bounds follow from what is summed: the weight of an agent's rows is known from its birth, an
accuracy is between 0 and 1, squares and absolute values are not negative. A sum outside them is a
fault or a lie. Each row counts once in an AUC, in a confusion matrix and among the right, false and
missed ones of a class: programs have these only for one class a row. Sums are of float32 numbers:
bounds are passed by a thousandth.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from learning.vector.metrics import MetricSpec, Sums
from learning.vector.parameters import F64

TOLERANCE = 1e-3

#: Sums of squares, absolute values or cross-entropies, as a model's spec names its loss.
_NOT_NEGATIVE = frozenset(
    (
        "mean_squared_error",
        "mean_absolute_error",
        "huber",
        "log_cosh",
        "binary_crossentropy",
        "categorical_crossentropy",
        "sparse_categorical_crossentropy",
        "triplet",
        "contrastive",
    )
)


def implausible(
    sums: Sums, metrics: Sequence[MetricSpec], loss: str, max_weight: float | None
) -> str:
    """Returns what cannot be of an agent's sums, in words; empty when all can.

    Args:
        sums: of loss and metrics; they fit the metrics.
        metrics: of the model.
        loss: its name in the model's spec.
        max_weight: sum of the weights of all its rows; None: not known.
    """
    weight = sums.weight
    if max_weight is not None and weight > max_weight * (1 + TOLERANCE):
        return f"rows of weight {weight:.6g}, the agent's own add up to {max_weight:.6g}"
    slack = TOLERANCE * weight
    if sums.loss < -slack and _is_never_negative(loss):
        return f"loss {sums.loss / weight:.6g}, {loss} is never below 0"
    for spec in metrics:
        total = sums.metrics[spec.name]
        least, most = (min(total), max(total)) if isinstance(total, tuple) else (total, total)
        low, high = _bounds(spec)
        if low is not None and least < low * weight - slack:
            return f"{spec.name} {least / weight:.6g}, it is never below {low:g}"
        if high is not None and most > high * weight + slack:
            return f"{spec.name} {most / weight:.6g}, it is never above {high:g}"
        if not isinstance(total, tuple):
            continue
        values = np.asarray(total, np.float64)
        rows = _rows(spec, values)
        if rows > weight + slack:
            return f"{spec.name} of rows of weight {rows:.6g}, measured were {weight:.6g}"
        # The sums of targets are differences of rounded ones: only that of squared errors is sure.
        if spec.kind == "r2" and values[0] < 0:
            return f"{spec.name} of squared errors that add up to {values[0]:.6g}"
    return ""


def _is_never_negative(loss: str) -> bool:
    parts = {part.rpartition(": ")[2] for part in loss.split("; ")}  # of each output
    return parts <= _NOT_NEGATIVE


def _rows(spec: MetricSpec, values: F64) -> float:
    """Returns the weight of all rows that a metric's sums count; 0 when they count none."""
    if spec.kind in ("auc", "confusion"):
        return float(values.sum())
    if spec.kind in ("precision", "recall", "f1"):
        return float(values.reshape(spec.shape).sum(0).max())  # of each class
    return 0.0


def _bounds(spec: MetricSpec) -> tuple[float | None, float | None]:
    """Returns the least and the largest of each of a metric's sums, for each unit of weight."""
    if spec.kind == "r2":
        return None, None  # its sums are of targets, of any size
    if spec.kind == "root_mean":
        return 0.0, None
    if spec.kind != "mean":
        return 0.0, 1.0  # weights of rows
    last = spec.name.rpartition("_")[2]
    if last == "accuracy":
        return 0.0, 1.0
    return (0.0, None) if last in ("mae", "mse") else (None, None)
