"""Targets of a device's rows: their classes or their spread, in the rows learned from and held out.

A file that is sorted by label holds out classes that nobody learns: all figures then look fine and
mean nothing. What is found here is said by `check`, `doctor` and the agent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import log, prod
from typing import Any

import numpy as np

from broker.protocol.messages import TargetSummary
from edge_agent.data.split import Array, Index, Split
from learning.vector.parameters import F64
from models.package.spec import ModelSpec, TensorSpec

#: Rows that a class should have among those held out before its absence is told.
_EXPECTED_ROWS = 10
#: Probability that chance alone holds out all rows of a class, below which that is told.
_CHANCE = 1e-3
#: Share of rows that would have to change their class for both parts to be alike.
_DISTANCE = 0.5
#: Standard errors between the shares of a class in both parts.
_FAR_APART = 4.0
#: Fewer rows on either side say nothing about a spread.
_FEW_ROWS = 10
#: Standard deviations (of the rows learned from) between the means of both parts.
_FAR = 2.0
#: Ratio of the standard deviations of both parts.
_WIDER = 4.0
#: A target that was scaled by its spec is of size 1; beyond these it is in another unit.
_SMALL, _LARGE = 1 / 50, 50.0
#: What a unit begins with, and from which size on it tells a file in the plain unit.
_MULTIPLE = re.compile(r"(\d[\d,]*)\s+(?=\S)")
_LARGE_MULTIPLE = 1000
_SHOWN_CLASSES = 8
#: Worked on at a time: beside a million rows no second million is held.
_ROWS = 1 << 16

#: What the splits that do not follow time may do to the figures.
LEAK = (
    "rows that are alike (windows that overlap, readings seconds apart) may be on both sides: "
    "the figures are then too good for new recordings"
)


#: Classes that a summary lists.
_LISTED_CLASSES = 1000


@dataclass(frozen=True)
class Finding:
    """Something odd about a target of a device's rows.

    Attributes:
        kind: `split`: both parts are not alike; `unit`: it seems to be in another unit.
        target: its name.
        found: in words.
        advice: what to do.
    """

    kind: str
    target: str
    found: str
    advice: str

    def __str__(self) -> str:
        """Returns one line for people."""
        return f"{self.target}: {self.found}: {self.advice}".replace("?: ", "? ")


@dataclass(frozen=True)
class ClassCounts:
    """Rows of each class of one target.

    Attributes:
        names: of the classes, by index.
        learn: rows to learn from, by class.
        measure: rows held out, by class.
    """

    names: tuple[str, ...]
    learn: tuple[int, ...]
    measure: tuple[int, ...]

    @property
    def total(self) -> tuple[int, ...]:
        """All rows, by class."""
        return tuple(map(sum, zip(self.learn, self.measure, strict=True)))


def class_counts(
    arrays: Mapping[str, Array], spec: ModelSpec, target: TensorSpec, learned: int
) -> ClassCounts | None:
    """Returns the rows of each class of a target; None if it holds no classes.

    A target of several classes a row counts each of them.

    Args:
        arrays: of a dataset, rows to learn from first.
        spec: of the model.
        target: of the spec.
        learned: number of rows to learn from.
    """
    names = spec.class_names(target)
    if not names:
        return None
    values = arrays[target.name]
    parts = (_count(part, target, len(names)) for part in (values[:learned], values[learned:]))
    return ClassCounts(names, *parts)


def _count(values: Array, target: TensorSpec, classes: int) -> tuple[int, ...]:
    """Rows of each class, a bounded number of rows at a time."""
    counts = np.zeros(classes, np.int64)
    for part in _parts(values):
        found = _classes(part, target, classes).reshape(-1)
        counts += np.bincount(found, minlength=classes)
    return tuple(counts.tolist())


def _parts(values: Array) -> Iterator[Array]:
    return (values[start : start + _ROWS] for start in range(0, len(values), _ROWS))


def row_classes(arrays: Mapping[str, Array], spec: ModelSpec, rows: Index) -> Array | None:
    """Returns the class of each of some rows, shape (n,), by the first target that has one a row.

    Args:
        arrays: as in a table or a dataset.
        spec: of the model.
        rows: indexes into the arrays.
    """
    for target in spec.targets:
        if names := spec.class_names(target):
            classes = _classes(arrays[target.name][rows], target, len(names))
            if classes.size == len(rows):
                flat: Array = classes.reshape(-1)
                return flat
    return None


def target_summaries(arrays: Mapping[str, Array], spec: ModelSpec) -> dict[str, TargetSummary]:
    """Returns a coarse description of each target, for the coordinator.

    Nothing of fewer than 10 rows, nor of targets of several numbers a row. Numbers are so coarse
    that they say no more than which unit they are in: a standard deviation to a factor of two, a
    mean to two of these.

    Args:
        arrays: of a dataset.
        spec: of the model.
    """
    found = {}
    for target in spec.targets:
        values = arrays[target.name]
        if len(values) < _FEW_ROWS:
            continue
        if (counts := class_counts(arrays, spec, target, len(values))) is not None:
            present = [index for index, rows in enumerate(counts.learn) if rows]
            found[target.name] = TargetSummary(classes=tuple(present[:_LISTED_CLASSES]))
        elif values[0].size == 1:
            found[target.name] = _coarse(*moments(values, target))
    return found


def _coarse(means: F64, stds: F64) -> TargetSummary:
    (mean,), (std,) = means, stds
    if std <= 1e-9 * abs(mean):  # all equal: the mean would be that of each row
        return TargetSummary()
    spread = 4.0 ** round(log(std, 4))
    return TargetSummary(level=round(mean / (4 * spread)) * 4 * spread, spread=spread)


def _classes(values: Array, target: TensorSpec, count: int) -> Array:
    """Class indexes, int64: (n, ...) as they are, or the largest of one-hot numbers."""
    if target.dtype == "int32":
        return values.astype(np.int64)
    largest: Array = values.reshape(-1, count).argmax(1)
    return largest


def target_findings(
    arrays: Mapping[str, Array], spec: ModelSpec, learned: int, split: Split
) -> Iterator[Finding]:
    """Yields what is odd: targets in another unit, or not alike in both parts.

    Args:
        arrays: of a dataset, rows to learn from first.
        spec: of the model.
        learned: number of rows to learn from.
        split: how the rows were held out.
    """
    measured = len(next(iter(arrays.values()))) - learned
    for target in spec.targets:
        if target.std and (found := _unit_finding(arrays[target.name], target)):
            yield Finding("unit", target.name, found, "data.target.scale and offset convert it")
        elif not target.std and (found := _plain_unit_finding(arrays[target.name], target)):
            advice = f"then write data.target.scale: {1 / _multiple(target):g}"
            yield Finding("unit", target.name, found, advice)
        if learned and measured:
            yield from _split_finding(arrays, spec, target, learned, split)


def _split_finding(
    arrays: Mapping[str, Array], spec: ModelSpec, target: TensorSpec, learned: int, split: Split
) -> Iterator[Finding]:
    counts = class_counts(arrays, spec, target, learned)
    if counts is None:
        found = _spread_warning(arrays[target.name], target, learned)
        remedy = "set data.split: random"
    else:
        found = _class_warning(counts)
        remedy = "add the label's column to data.group, or set data.split: stratified"
    if found and split == "time":
        yield Finding("split", target.name, found, f"are the rows sorted by it? Then {remedy}")
    elif found:
        advice = "the figures of the rows held out say little"
        yield Finding("split", target.name, found, advice)


def in_units(values: Any, target: TensorSpec) -> F64:
    """Returns a target's numbers, as the model learns them, in the unit of its spec.

    Args:
        values: one number for each number of a row, shape (numbers a row,).
        target: of the spec.
    """
    restored: F64 = values * _stds(target) + np.resize(target.mean or 0.0, prod(target.shape))
    return restored


def _stds(target: TensorSpec) -> F64:
    return np.resize(target.std or 1.0, prod(target.shape)).astype(np.float64)


def _unit_finding(values: Array, target: TensorSpec) -> str:
    """Returns how far a scaled target is from what the model's mean and std make of it."""
    if len(values) < _FEW_ROWS:
        return ""
    (means, stds), units = moments(values), " or ".join(dict.fromkeys(target.units))
    size = np.maximum(np.abs(means), stds)
    if _SMALL < size.max() < _LARGE:
        return ""
    at = int(size.argmax())
    raw, spread = in_units(means, target)[at], (stds * _stds(target))[at]
    return (
        f"{raw:.4g} ± {spread:.2g} in this file, {size[at]:.3g} of the model's standard "
        f"deviations: is it in another unit than {units or 'the model'}?"
    )


def _multiple(target: TensorSpec) -> float:
    """Returns the number that a target's unit begins with: 100,000 of `100,000 USD`; 1: none."""
    match = _MULTIPLE.match(target.units[0]) if len(set(target.units)) == 1 else None
    return float(match[1].replace(",", "")) if match else 1.0


def _plain_unit_finding(values: Array, target: TensorSpec) -> str:
    """Returns how large a target is that seems to be in dollars where the unit is 100,000 USD.

    Half-way between both, as factors go, is where one is told from the other.
    """
    multiple = _multiple(target)
    if multiple < _LARGE_MULTIPLE or len(values) < _FEW_ROWS:
        return ""
    means, stds = moments(values)
    at = int(np.maximum(np.abs(means), stds).argmax())
    if max(abs(means[at]), stds[at]) < multiple**0.5:
        return ""
    single = _MULTIPLE.sub("", target.units[0])
    return (
        f"{means[at]:.4g} ± {stds[at]:.2g} in this file, where the model's unit is "
        f"{target.units[0]}: is it in {single}?"
    )


def _class_warning(counts: ClassCounts) -> str:
    """Returns what the classes of both parts do not have in common; empty: nothing of weight."""
    learn, measure = np.array(counts.learn), np.array(counts.measure)
    unlearned = (measure > 0) & (learn == 0)
    rows, share = int(measure[unlearned].sum()), measure.sum() / (learn.sum() + measure.sum())
    if share ** int((measure * unlearned).max()) <= _CHANCE or 2 <= rows >= measure.sum() / 2:
        return (
            f"{_named(counts, unlearned)} held out and never learned "
            f"({rows:,} of the {int(measure.sum()):,} rows held out)"
        )
    expected = learn / learn.sum() * measure.sum()
    unmeasured = (measure == 0) & (expected >= _EXPECTED_ROWS)
    if unmeasured.any():
        return f"{_named(counts, unmeasured)} learned and never held out"
    shares = learn / learn.sum(), measure / measure.sum()
    apart = np.abs(shares[0] - shares[1])
    worst, all_rows = int(apart.argmax()), (learn + measure) / (learn.sum() + measure.sum())
    error = np.sqrt(all_rows * (1 - all_rows) * (1 / learn.sum() + 1 / measure.sum()))
    if 0.5 * apart.sum() >= _DISTANCE and apart[worst] >= _FAR_APART * error[worst]:
        return (
            f"class {counts.names[worst]} is {shares[0][worst]:.0%} of the rows to learn from and "
            f"{shares[1][worst]:.0%} of those held out"
        )
    return ""


def _named(counts: ClassCounts, chosen: Array) -> str:
    names = [counts.names[index] for index in np.flatnonzero(chosen)]
    rest = len(names) - _SHOWN_CLASSES
    listed = ", ".join(names[:_SHOWN_CLASSES]) + (f" and {rest} more" if rest > 0 else "")
    return f"class {listed} is" if len(names) == 1 else f"classes {listed} are"


def _spread_warning(values: Array, target: TensorSpec, learned: int) -> str:
    """Returns how far the targets of both parts are apart; empty: not far."""
    if min(learned, len(values) - learned) < _FEW_ROWS:
        return ""
    (mean, std), (other, other_std) = (
        moments(part, target) for part in (values[:learned], values[learned:])
    )
    far = np.abs(other - mean) > _FAR * np.maximum(std, 1e-6 * np.abs(mean))
    wide = np.maximum(other_std, std) > _WIDER * np.minimum(other_std, std)
    if not (far | wide).any():
        return ""
    at = int(np.argmax(far | wide))
    return (
        f"{mean[at]:.4g} ± {std[at]:.2g} in the rows to learn from, "
        f"{other[at]:.4g} ± {other_std[at]:.2g} in those held out"
    )


def moments(values: Array, target: TensorSpec | None = None) -> tuple[F64, F64]:
    """Returns mean and standard deviation of each number of a row, float64.

    Args:
        values: as the model learns them, shape (n, ...), at least one row.
        target: in whose unit they are wanted; None: as the model learns them.
    """
    flat = values.reshape(len(values), -1)
    mean: F64 = flat.mean(0, dtype=np.float64)
    variance = sum((np.square(part - mean).sum(0) for part in _parts(flat)), np.zeros(len(mean)))
    std = np.sqrt(variance / len(flat))
    return (mean, std) if target is None else (in_units(mean, target), std * _stds(target))
