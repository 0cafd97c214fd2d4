"""Metrics as sums that add across agents, and what the sums say once they are added up.

A program returns, for each metric, numbers that are sums over rows. Sums of batches, of epochs and
of agents add; only who shows a metric finishes it. So a fleet's RMSE, R² or AUC is that of all its
rows together, and not a mean of what the devices found each for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, prod, sqrt
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from learning.vector.parameters import F64

MetricKind = Literal["mean", "root_mean", "r2", "auc", "precision", "recall", "f1", "confusion"]

#: A sum over rows: one number, or the numbers of an array in row-major order.
Total = float | tuple[float, ...]

#: Numbers of one metric: a confusion matrix of 100 classes.
MAX_METRIC_NUMBERS = 10_000


class MetricSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One metric of a model.

    Attributes:
        name: in reports, and of the program's output.
        kind: how its sums become a value:
            `mean`: Σ w·m / Σ w;
            `root_mean`: the square root of that (RMSE);
            `r2`: 1 - Σ w·(y-p)² / Σ w·(y-ȳ)², from Σ w·(y-p)², Σ w·y, Σ w·y²; shape (3,). A call
            of a program returns four numbers instead (`sums_of_call`);
            `auc`: area under the ROC curve, from the weight of positive and of negative rows in
            equal bins of the predicted probability; shape (2, bins);
            `precision`, `recall`, `f1`: from true positives, false positives and false negatives
            per class; shape (3, classes), the mean over the classes that occur;
            `confusion`: weight of rows by true and predicted class; shape (classes, classes).
        shape: of the sums; () is one number.
    """

    name: str
    kind: MetricKind = "mean"
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not (self.name.isidentifier() and self.name.isascii() and len(self.name) <= 64):
            raise ValueError(f"metric name {self.name!r} must be a plain identifier")
        if not _KINDS[self.kind].fits(self.shape):
            raise ValueError(f"metric {self.name!r} of kind {self.kind} has shape {self.shape}")
        if prod(self.shape) > MAX_METRIC_NUMBERS:
            raise ValueError(
                f"metric {self.name!r} has {prod(self.shape):,} numbers {self.shape}, limit "
                f"{MAX_METRIC_NUMBERS:,}"
            )

    @property
    def size(self) -> int:
        """Returns the number of its sums."""
        return prod(self.shape)

    @property
    def call_shape(self) -> tuple[int, ...]:
        """Returns the shape of what one call of a program returns."""
        return _KINDS[self.kind].call_shape or self.shape

    @property
    def sums_of_call(self) -> Callable[[NDArray[Any], float], F64] | None:
        """Returns the function that makes sums of what one call returned, and its weight.

        None: they are its sums.
        """
        return _KINDS[self.kind].sums_of_call


class Sums(msgspec.Struct, frozen=True):
    """Weighted sums over rows; sums of several agents add.

    Attributes:
        loss: Σ weight · loss.
        weight: Σ weight.
        metrics: by name; one number, or as many as the metric's spec says.
    """

    loss: float
    weight: float
    metrics: Mapping[str, Total]


def add_sums(parts: Iterable[Sums]) -> Sums:
    """The sum of sums; of none, nothing."""
    loss = weight = 0.0
    metrics: dict[str, Total] = {}
    for part in parts:
        loss += part.loss
        weight += part.weight
        _add_totals(metrics, part.metrics)
    return Sums(loss, weight, metrics)


def _add_totals(into: dict[str, Total], more: Mapping[str, Total]) -> None:
    """Adds `more` to `into`, metric by metric."""
    for name, value in more.items():
        before = into.get(name)
        if before is None:
            into[name] = value
        elif isinstance(before, tuple) and isinstance(value, tuple) and len(before) == len(value):
            into[name] = tuple(map(float.__add__, before, value))
        elif isinstance(before, float) and isinstance(value, int | float):
            into[name] = before + value
        else:
            raise TypeError(f"{name}: sums of different shapes")


def add_arrays(into: dict[str, F64], more: Mapping[str, NDArray[Any]]) -> None:
    """Adds `more`, sums as a program returns them, to `into`, in float64."""
    for name, values in more.items():
        if name in into:
            into[name] += values
        else:
            into[name] = np.array(values, np.float64)


def as_totals(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Total]:
    """Sums as arrays in the form that is sent: a number, or numbers in row-major order."""
    return {
        name: tuple(values.reshape(-1).tolist()) if values.ndim else float(values)
        for name, values in arrays.items()
    }


def metric_values(sums: Sums, metrics: Sequence[MetricSpec]) -> dict[str, float]:
    """`loss` and each metric that is one number, from sums whose weight is not 0.

    What the rows say nothing about (AUC without a positive row, R² of equal targets, the loss of a
    model that diverged) is left out, and told by `absent_metrics`: all values are finite.
    """
    found = _values(sums, metrics)
    return {name: v for name, v in found.items() if v is not None and isfinite(v)}


def absent_metrics(sums: Sums, metrics: Sequence[MetricSpec]) -> dict[str, str]:
    """Returns why metrics are missing from `metric_values`, by name: a few words each."""
    found = _values(sums, metrics)
    specs = {spec.name: spec for spec in metrics}
    return {
        name: _KINDS[specs[name].kind].absent if value is None else "not a finite number"
        for name, value in found.items()
        if name in specs and (value is None or not isfinite(value))
    }


def _values(sums: Sums, metrics: Sequence[MetricSpec]) -> dict[str, float | None]:
    values: dict[str, float | None] = {"loss": sums.loss / sums.weight}
    with np.errstate(over="ignore", invalid="ignore"):
        for spec in metrics:
            if spec.kind != "confusion" and spec.name in sums.metrics:
                found = _KINDS[spec.kind].finish(_array(spec, sums), sums.weight)
                values[spec.name] = found
    return values


def metric_matrices(sums: Sums, metrics: Sequence[MetricSpec]) -> dict[str, list[list[float]]]:
    """Each metric that is a matrix: rows are true classes, columns predicted ones; all finite."""
    matrices = {
        spec.name: _array(spec, sums)
        for spec in metrics
        if spec.kind == "confusion" and spec.name in sums.metrics
    }
    return {name: m.tolist() for name, m in matrices.items() if np.isfinite(m).all()}


def fits(totals: Mapping[str, Total], metrics: Sequence[MetricSpec]) -> bool:
    """Whether these are sums of exactly these metrics, and no weight of rows is below 0."""
    if len(totals) != len(metrics):
        return False
    for spec in metrics:
        total = totals.get(spec.name)
        if isinstance(total, tuple) != bool(spec.shape) or total is None:
            return False
        if isinstance(total, tuple) and len(total) != spec.size:
            return False
        if _KINDS[spec.kind].of_rows and not np.min(total) >= 0:
            return False
    return True


def _array(spec: MetricSpec, sums: Sums) -> F64:
    return np.array(sums.metrics[spec.name], np.float64).reshape(spec.shape)


@dataclass(frozen=True)
class _Kind:
    fits: Callable[[tuple[int, ...]], bool]
    finish: Callable[[F64, float], float | None]
    of_rows: bool = False  # its sums are weights of rows
    absent: str = "no rows to tell by"  # why `finish` returns None
    call_shape: tuple[int, ...] = ()
    sums_of_call: Callable[[NDArray[Any], float], F64] | None = None


def _r2(sums: F64, weight: float) -> float | None:
    residual, total, squares = sums
    spread = squares - total * total / weight
    # Sums in float64 are off by some 1e-15 of the squares: what is left is right to 1e-3. Targets
    # are float32, whose own rounding is below.
    return float(1 - residual / spread) if spread > 1e-12 * squares else None


def _r2_sums(found: NDArray[Any], weight: float) -> F64:
    """Returns Σ w·(y-p)², Σ w·y and Σ w·y² in float64.

    Programs compute in float32, in which the squares of 101,325 ± 30 hide the spread. So they
    return Σ w·(y-p)², Σ w·(y-c), Σ w·(y-c)² and c, the first target of the call. Moved back, sums
    of all calls and agents add; float64 has digits enough for them.
    """
    residual, total, squares, c = found.astype(np.float64)
    return np.array([residual, total + c * weight, squares + c * (2 * total + c * weight)])


def _auc(sums: F64, weight: float) -> float | None:
    del weight
    positive, negative = sums
    if not (positive.sum() > 0 and negative.sum() > 0):
        return None
    # From the highest probability down: each bin moves along both axes at once, a trapezoid.
    hits = np.concatenate(([0.0], np.cumsum(positive[::-1]))) / positive.sum()
    alarms = np.concatenate(([0.0], np.cumsum(negative[::-1]))) / negative.sum()
    return float(np.sum(np.diff(alarms) * (hits[1:] + hits[:-1]) / 2))


def _ratio(parts: Callable[[F64], tuple[F64, F64]]) -> Callable[[F64, float], float | None]:
    def finish(sums: F64, weight: float) -> float | None:
        del weight
        true, false_alarms, missed = sums
        occurs = true + false_alarms + missed > 0
        if not occurs.any():
            return None
        above, below = parts(sums[:, occurs])
        # Of a class that is never predicted the precision is 0, as with Keras and scikit-learn.
        return float(np.mean(np.divide(above, below, out=np.zeros_like(above), where=below > 0)))

    return finish


def _per_class(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and shape[0] == 3 and shape[1] >= 1


_KINDS: dict[str, _Kind] = {
    "mean": _Kind(lambda shape: shape == (), lambda sums, weight: float(sums / weight)),
    "root_mean": _Kind(
        lambda shape: shape == (), lambda sums, weight: sqrt(max(0.0, float(sums / weight)))
    ),
    "r2": _Kind(
        lambda shape: shape == (3,),
        _r2,
        absent="the targets are all alike, or differ by less than a millionth of their size",
        call_shape=(4,),
        sums_of_call=_r2_sums,
    ),
    "auc": _Kind(
        lambda shape: len(shape) == 2 and shape[0] == 2 and shape[1] >= 2,
        _auc,
        True,
        "the rows are of one class",
    ),
    "precision": _Kind(_per_class, _ratio(lambda s: (s[0], s[0] + s[1])), True),
    "recall": _Kind(_per_class, _ratio(lambda s: (s[0], s[0] + s[2])), True),
    "f1": _Kind(_per_class, _ratio(lambda s: (2 * s[0], 2 * s[0] + s[1] + s[2])), True),
    "confusion": _Kind(
        lambda shape: len(shape) == 2 and shape[0] == shape[1] >= 2, lambda *_: None, True
    ),
}
