"""Statistics: counts, means, variances, extremes and histograms of columns, without training.

Each device sends, for each column, eight numbers and the counts of a histogram; nothing of a single
row but its part in them. Mean and variance of two parts are combined as in Chan, Golub & LeVeque
1979, "Updating formulae and a pairwise algorithm for computing sample variances", section 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, sqrt
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from fedge.errors import DeclinedError, UpdateRejected
from learning.phases.phase import (
    Answer,
    Collector,
    CollectorContext,
    Device,
    Received,
    Request,
    Values,
)
from learning.registry import Settings
from learning.vector.parameters import F64

#: Bounds an answer to some hundred kilobytes.
MAX_EDGES = 1000
MAX_COLUMNS = 1000
Edges = Annotated[tuple[float, ...], Meta(max_length=MAX_EDGES)]


class StatisticsSettings(Settings, frozen=True, tag="statistics"):
    """Columns and histograms that each device is asked for.

    Attributes:
        columns: names, each with the edges of its histogram in ascending order (none: no
            histogram); empty: all columns, no histograms.
        weighted: rows count by their weight instead of alike, where the data has weights.
    """

    columns: Annotated[dict[str, Edges], Meta(max_length=MAX_COLUMNS)] = msgspec.field(
        default_factory=dict
    )
    weighted: bool = False

    def __post_init__(self) -> None:
        for name, edges in self.columns.items():
            if not all(map(isfinite, edges)) or list(edges) != sorted(set(edges)):
                raise ValueError(f"columns.{name}: edges must be finite and ascend: {edges}")


class Moments(msgspec.Struct, frozen=True, kw_only=True):
    """One column, or the same column of several devices.

    Attributes:
        count: numbers that are not missing.
        missing: numbers that are.
        weight: sum of weights of the counted numbers.
        mean: weighted.
        m2: weighted sum of squared differences from the mean.
        minimum: smallest.
        maximum: largest.
        histogram: weight below the first edge, between edges (lower edge included), and from the
            last edge on; empty without edges.
    """

    count: float
    missing: float
    weight: float
    mean: float
    m2: float
    minimum: float
    maximum: float
    histogram: tuple[float, ...] = ()

    @property
    def sum(self) -> float:
        """Weighted sum."""
        return self.mean * self.weight

    @property
    def variance(self) -> float:
        """Weighted population variance."""
        return self.m2 / self.weight if self.weight else 0.0

    @property
    def std(self) -> float:
        """Standard deviation."""
        return sqrt(self.variance)


def moments(values: NDArray[Any], weights: F64 | None, edges: Sequence[float]) -> Moments | None:
    """Returns the moments of one column; None where every number is missing.

    Args:
        values: shape (n,) or (n, k).
        weights: shape (n,), or None.
        edges: of the histogram.
    """
    rows = np.asarray(values, np.float64).reshape(len(values), -1)
    present = np.isfinite(rows)
    if not present.any():
        return None
    row_weights = np.ones(len(rows)) if weights is None else np.asarray(weights, np.float64)
    weight = np.broadcast_to(row_weights[:, None], rows.shape)[present]
    numbers = rows[present]
    total = float(weight.sum())
    mean = float(np.average(numbers, weights=weight)) if total > 0 else 0.0
    histogram: tuple[float, ...] = ()
    if edges:
        places = np.searchsorted(np.asarray(edges), numbers, side="right")
        histogram = tuple(np.bincount(places, weight, len(edges) + 1).tolist())
    return Moments(
        count=float(numbers.size),
        missing=float(rows.size - numbers.size),
        weight=total,
        mean=mean,
        m2=float(np.dot(weight, (numbers - mean) ** 2)),
        minimum=float(numbers.min()),
        maximum=float(numbers.max()),
        histogram=histogram,
    )


def merged(one: Moments, other: Moments) -> Moments:
    """Returns the moments of both parts together."""
    weight = one.weight + other.weight
    share = other.weight / weight if weight else 0.0
    gap = other.mean - one.mean
    return Moments(
        count=one.count + other.count,
        missing=one.missing + other.missing,
        weight=weight,
        mean=one.mean + gap * share,
        m2=one.m2 + other.m2 + gap * gap * one.weight * share,
        minimum=min(one.minimum, other.minimum),
        maximum=max(one.maximum, other.maximum),
        histogram=tuple(a + b for a, b in zip(one.histogram, other.histogram, strict=True)),
    )


def to_values(columns: Mapping[str, Moments]) -> dict[str, tuple[float, ...]]:
    """Returns the numbers of an answer."""
    return {
        name: (m.count, m.missing, m.weight, m.mean, m.m2, m.minimum, m.maximum, *m.histogram)
        for name, m in columns.items()
    }


def from_values(values: Values, edges: Mapping[str, Sequence[float]]) -> dict[str, Moments]:
    """Returns the columns of an answer.

    Raises:
        ValueError: a column that was not asked for, or numbers that no device computes.
    """
    found = {}
    for name, numbers in values.items():
        if edges and name not in edges:
            raise ValueError(f"column {name[:80]!r} was not asked for")
        bins = len(edges.get(name, ())) + 1 if edges.get(name) else 0
        if len(numbers) != 7 + bins:
            raise ValueError(f"{name[:80]}: {len(numbers)} numbers, expected {7 + bins}")
        column = Moments(
            count=numbers[0],
            missing=numbers[1],
            weight=numbers[2],
            mean=numbers[3],
            m2=numbers[4],
            minimum=numbers[5],
            maximum=numbers[6],
            histogram=tuple(numbers[7:]),
        )
        if why := _implausible(column):
            raise ValueError(f"{name[:80]}: {why}")
        found[name] = column
    return found


def _implausible(column: Moments) -> str:
    slack = 1e-6 * (abs(column.mean) + 1e-300)
    if column.count < 1 or column.missing < 0 or column.weight < 0 or column.m2 < 0:
        return "negative counts, weights or squares"
    if column.weight and not (column.minimum - slack <= column.mean <= column.maximum + slack):
        return f"mean {column.mean:g} outside {column.minimum:g} to {column.maximum:g}"
    total = sum(column.histogram)
    if min(column.histogram, default=0.0) < 0:
        return "negative counts in the histogram"
    if column.histogram and abs(total - column.weight) > 1e-6 * max(total, column.weight):
        return f"histogram of weight {total:g}, column of {column.weight:g}"
    return ""


class Statistics:
    """See the module."""

    settings_type: ClassVar[type[Settings]] = StatisticsSettings
    rows: ClassVar[Literal["train", "test", "any"]] = "any"

    def __init__(self, settings: StatisticsSettings) -> None:
        self._settings = settings

    def answer(self, request: Request, device: Device) -> Answer:
        """Moments of the device's columns, if its owner allows it."""
        del request
        columns = device.columns()
        wanted = self._settings.columns or dict.fromkeys(columns.values, ())
        if unknown := sorted(set(wanted) - set(columns.values)):
            known = ", ".join(columns.values)
            raise DeclinedError("columns", f"no column {unknown[0]!r}; columns: {known}")
        weights = columns.weights if self._settings.weighted else None
        found = {
            name: column
            for name, edges in wanted.items()
            if (column := moments(columns.values[name], weights, edges)) is not None
        }
        rows = max((len(array) for array in columns.values.values()), default=0)
        return Answer(values=to_values(found), num_examples=rows)

    def collector(self, context: CollectorContext) -> Collector:
        """Merges the columns of all devices."""
        del context
        return StatisticsCollector(self._settings)


class StatisticsCollector:
    """The columns of all devices together.

    Attributes:
        columns: by name.
        agents: whose answers are in it.
        num_examples: rows by agent.
    """

    capacity: int | None = None

    def __init__(self, settings: StatisticsSettings) -> None:
        self.columns: dict[str, Moments] = {}
        self.num_examples: dict[str, int] = {}
        self._edges = settings.columns

    def accept(self, agent_id: str, received: Received) -> None:
        """Adds one device's columns."""
        try:
            columns = from_values(received.values, self._edges)
            both = {
                name: merged(self.columns[name], column) if name in self.columns else column
                for name, column in columns.items()
            }
        except ValueError as error:
            raise UpdateRejected(agent_id, "statistics", str(error)) from error
        if len(self.columns | both) > MAX_COLUMNS:
            detail = f"more than {MAX_COLUMNS} columns in all"
            raise UpdateRejected(agent_id, "statistics", detail)
        self.columns |= both
        self.num_examples[agent_id] = received.num_examples
