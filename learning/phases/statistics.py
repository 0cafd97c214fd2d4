"""Statistics: counts, means, variances, extremes and histograms of columns, without training.

Each device sends, for each column, seven numbers and the weights of a histogram: of a single row
no more than its part in them, but for the smallest and the largest number. Mean and variance of
two parts are combined as in Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise
algorithm for computing sample variances", section 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from math import isfinite, prod, sqrt
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

#: More rows on one small device are a mistake.
MAX_ROWS = 1_000_000_000
MAX_COLUMNS = 1000
#: Of all histograms together: an answer stays below half a megabyte, a plan below a quarter.
MAX_EDGES = 5000
#: Of a number in an answer: what messages carry (`Measured`). The squares of a fleet stay finite.
MAX_NUMBER = 1e100
#: Of counts and weights of one device, as of an update's (`MAX_WEIGHT` of aggregators).
MAX_WEIGHT = 1e18

#: Numbers worked on at a time, in float64, so that no step needs a second copy of a column.
_PIECE = 1 << 16
#: Relative; far above the rounding of a device's sums, far below what changes a table.
_TOLERANCE = 1e-6
#: Numbers of a column in an answer, before its histogram.
_NUMBERS = 7

Edges = tuple[float, ...]


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
        if (total := sum(map(len, self.columns.values()))) > MAX_EDGES:
            raise ValueError(f"columns: {total:,} edges in all, limit {MAX_EDGES:,}")


class Moments(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One column, or the same column of several devices; all 0 where every number is missing.

    Attributes:
        count: numbers that are not missing.
        missing: numbers that are.
        weight: sum of weights of the counted numbers.
        mean: weighted.
        m2: weighted sum of squared differences from the mean.
        minimum: smallest.
        maximum: largest.
        edges: of the histogram.
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
    edges: Edges = ()
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


def moments(values: NDArray[Any], weights: F64 | None, edges: Sequence[float]) -> Moments:
    """Returns the moments of one column; NaN and infinity are missing numbers.

    Args:
        values: shape (n, ...): any numbers a row.
        weights: shape (n,), or None.
        edges: of the histogram.
    """
    step = max(1, _PIECE // max(1, prod(values.shape[1:])))
    parts = [slice(start, start + step) for start in range(0, max(1, len(values)), step)]
    with np.errstate(over="ignore", invalid="ignore"):  # the caller names what is not finite
        return reduce(
            merged,
            (_piece(values[p], None if weights is None else weights[p], edges) for p in parts),
        )


def _piece(values: NDArray[Any], weights: F64 | None, edges: Sequence[float]) -> Moments:
    rows = np.asarray(values, np.float64).reshape(len(values), prod(values.shape[1:]))
    present = np.isfinite(rows)
    numbers = rows[present]
    row_weights = np.ones(len(rows)) if weights is None else np.asarray(weights, np.float64)
    weight = np.broadcast_to(row_weights[:, None], rows.shape)[present]
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
        m2=float(np.dot(weight, (numbers - mean) ** 2)) if total > 0 else 0.0,
        minimum=float(numbers.min()) if numbers.size else 0.0,
        maximum=float(numbers.max()) if numbers.size else 0.0,
        edges=tuple(edges),
        histogram=histogram,
    )


def merged(one: Moments, other: Moments) -> Moments:
    """Returns the moments of both parts together."""
    if (other.weight, other.count) > (one.weight, one.count):
        one, other = other, one  # the mean moves from the heavier part: less rounding
    weight = one.weight + other.weight
    share = other.weight / weight if weight else 0.0
    gap = other.mean - one.mean
    known = [part for part in (one, other) if part.count]
    return Moments(
        count=one.count + other.count,
        missing=one.missing + other.missing,
        weight=weight,
        mean=one.mean + gap * share,
        m2=one.m2 + other.m2 + gap * gap * one.weight * share,
        minimum=min((part.minimum for part in known), default=0.0),
        maximum=max((part.maximum for part in known), default=0.0),
        edges=one.edges,
        histogram=tuple(a + b for a, b in zip(one.histogram, other.histogram, strict=True)),
    )


def to_values(columns: Mapping[str, Moments]) -> dict[str, tuple[float, ...]]:
    """Returns the numbers of an answer."""
    return {
        name: (m.count, m.missing, m.weight, m.mean, m.m2, m.minimum, m.maximum, *m.histogram)
        for name, m in columns.items()
    }


def from_values(values: Values, wanted: Mapping[str, Edges]) -> dict[str, Moments]:
    """Returns the columns of an answer.

    Args:
        values: of the answer.
        wanted: names with the edges of their histograms; empty: any columns without.

    Raises:
        ValueError: other columns than were asked for, or numbers that no device computes.
    """
    if not values:
        raise ValueError("no columns")
    if wanted and (odd := set(values) ^ set(wanted)):
        name = min(odd)
        what = "was not asked for" if name in values else "is missing"
        raise ValueError(f"column {name[:80]!r} {what}")
    found = {}
    for name, numbers in values.items():
        edges = wanted.get(name, ())
        expected = _NUMBERS + (len(edges) + 1 if edges else 0)
        if len(numbers) != expected:
            raise ValueError(f"{name[:80]}: {len(numbers)} numbers, expected {expected}")
        column = Moments(
            count=numbers[0],
            missing=numbers[1],
            weight=numbers[2],
            mean=numbers[3],
            m2=numbers[4],
            minimum=numbers[5],
            maximum=numbers[6],
            edges=edges,
            histogram=tuple(numbers[_NUMBERS:]),
        )
        if why := _implausible(column):
            raise ValueError(f"{name[:80]}: {why}")
        found[name] = column
    return found


def _implausible(column: Moments) -> str:
    """Returns why one device's column is implausible; empty when it is plausible.

    A mean lies between the extremes, and a variance is at most a quarter of the squared range
    (Popoviciu 1935).
    """
    counts = (column.count, column.missing, column.weight)
    if not _is_sendable(column):
        return f"numbers beyond {MAX_NUMBER:g}, or not finite"
    if min(*counts, column.m2, *column.histogram) < 0:
        return "negative counts, weights or squares"
    if max(counts) > MAX_WEIGHT or not (column.count.is_integer() and column.missing.is_integer()):
        return f"counts {column.count:g} and {column.missing:g}, weight {column.weight:g}"
    moments = (column.mean, column.m2)
    if (not column.weight and any(moments)) or (
        not column.count and any((*moments, column.weight, column.minimum, column.maximum))
    ):
        return "moments of no numbers"
    slack = _TOLERANCE * max(abs(column.minimum), abs(column.maximum))
    low, high = column.minimum - slack, column.maximum + slack
    if column.minimum > column.maximum or (column.weight and not low <= column.mean <= high):
        return f"mean {column.mean:g} outside {column.minimum:g} to {column.maximum:g}"
    if column.m2 > (0.25 + _TOLERANCE) * column.weight * (high - low) ** 2:
        return f"variance {column.variance:g} between {column.minimum:g} and {column.maximum:g}"
    total = sum(column.histogram)
    if column.histogram and abs(total - column.weight) > _TOLERANCE * max(total, column.weight):
        return f"histogram of weight {total:g}, column of {column.weight:g}"
    return ""


class Statistics:
    """Asks devices to describe their columns, and merges what they send."""

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
            raise DeclinedError("statistics", f"no column {unknown[0]!r}; columns: {known}"[:500])
        if len(wanted) > MAX_COLUMNS:
            detail = f"{len(wanted):,} columns, limit {MAX_COLUMNS:,}: the task must name some"
            raise DeclinedError("statistics", detail)
        weights = columns.weights if self._settings.weighted else None
        found, rows = {}, 0
        for name, edges in wanted.items():
            values = columns.values[name]
            found[name], rows = moments(values, weights, edges), len(values)
            if not _is_sendable(found[name]):
                detail = f"numbers of column {name[:80]!r} are too large to square and add up"
                raise DeclinedError("statistics", detail)
        return Answer(values=to_values(found), num_examples=rows)

    def collector(self, context: CollectorContext) -> Collector:
        """Merges the columns of all devices."""
        del context
        return StatisticsCollector(self._settings)


def _is_sendable(column: Moments) -> bool:
    (numbers,) = to_values({"": column}).values()
    return all(abs(number) <= MAX_NUMBER for number in numbers)  # NaN is not


class StatisticsCollector:
    """The columns of all devices together.

    Attributes:
        columns: by name.
    """

    capacity: int | None = None

    def __init__(self, settings: StatisticsSettings) -> None:
        self.columns: dict[str, Moments] = {}
        self._wanted = settings.columns
        self._weighted = settings.weighted

    @property
    def values(self) -> Values:
        """The columns as numbers."""
        return to_values(self.columns)

    def accept(self, agent_id: str, received: Received) -> None:
        """Adds one device's columns."""
        try:
            columns = from_values(received.values, self._wanted)
            _check_rows(columns, received.num_examples, weighted=self._weighted)
        except ValueError as error:
            raise UpdateRejected(agent_id, "statistics", str(error)[:500]) from error
        both = {
            name: merged(self.columns[name], column) if name in self.columns else column
            for name, column in columns.items()
        }
        if len(self.columns | both) > MAX_COLUMNS:
            detail = f"more than {MAX_COLUMNS} columns in all"
            raise UpdateRejected(agent_id, "statistics", detail)
        self.columns |= both


def _check_rows(columns: Mapping[str, Moments], rows: int, *, weighted: bool) -> None:
    """Raises ValueError for numbers that so many rows cannot hold."""
    if not 1 <= rows <= MAX_ROWS:
        raise ValueError(f"{rows} rows, range 1 to {MAX_ROWS:,}")
    for name, column in columns.items():
        if not weighted and column.weight != column.count:
            raise ValueError(f"{name[:80]}: weight {column.weight:g} of {column.count:.0f} numbers")
        if column.count == 1 and column.minimum != column.maximum:
            raise ValueError(f"{name[:80]}: two extremes of one number")
        numbers = column.count + column.missing
        if numbers < rows or numbers % rows:
            raise ValueError(f"{name[:80]}: {numbers:.0f} numbers in {rows} rows")
