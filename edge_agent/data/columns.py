"""Columns: the numbers of a device's data file by name, for statistics that its owner allows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from edge_agent.data.dataset import LocalDataset
from edge_agent.data.table import Array
from fedge.errors import DeclinedError
from learning.phases.phase import Columns
from learning.vector.parameters import F64
from models.package.columns import Column, named_columns
from models.package.spec import ModelSpec

#: Of a number that was rounded to float32 (unit roundoff).
_ROUNDING = 2.0**-24
#: 1, 10 ... correctly rounded, as `10.0 ** n` need not be; float32's range and its digits.
_POWERS = np.array([float(f"1e{n}") for n in range(64)])


class StatisticsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The `statistics:` section of an agent's configuration: the word of the device's owner.

    Attributes:
        allow: statistics of this device's columns may leave it.
        min_rows: with fewer rows than this the device declines all the same: statistics of a few
            rows reveal them.
    """

    allow: bool = False
    min_rows: Annotated[int, Meta(ge=1, le=1_000_000_000)] = 10


NOT_ALLOWED = StatisticsConfig()


def allowed_columns(dataset: LocalDataset, spec: ModelSpec, config: StatisticsConfig) -> Columns:
    """Returns the columns of all rows, those for training and those held out.

    Inputs are in the units of the data file; targets in those of the model, after their `scale`, so
    that they mean the same on every device.

    Args:
        dataset: of this device.
        spec: says which columns there are.
        config: what the owner allows.

    Raises:
        DeclinedError: `not_allowed`, `no_data` or `too_few_rows`.
    """
    if not config.allow:
        detail = "statistics.allow is false in this device's configuration; its owner may set it"
        raise DeclinedError("not_allowed", detail)
    rows = len(dataset.rows)
    if not rows:
        raise DeclinedError("no_data", "no rows to make statistics of")
    if rows < config.min_rows:
        detail = f"{rows} rows, statistics.min_rows is {config.min_rows}"
        raise DeclinedError("too_few_rows", detail)
    weights = dataset.arrays.get("weight")
    return Columns(
        DataColumns(dataset, spec), None if weights is None else _restored(weights, 0.0, 1.0)
    )


class DataColumns(Mapping[str, F64]):
    """Columns of a dataset as float64, each made when it is asked for.

    Args:
        dataset: whose scaling is undone.
        spec: names the columns.
    """

    def __init__(self, dataset: LocalDataset, spec: ModelSpec) -> None:
        self._dataset = dataset
        self._columns = named_columns(spec)

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __getitem__(self, name: str) -> F64:
        """The column; shape (n, numbers a row), NaN where a number is missing."""
        column = self._columns[name]
        tensor = column.tensor
        array, scale = self._dataset.arrays[tensor.name], self._dataset.scales.get(tensor.name)
        mean, std = ([0.0], [1.0]) if scale is None else (scale.mean, scale.std)
        numbers = _part(array, column)
        restored = _restored(numbers, _factor(mean, column, array), _factor(std, column, array))
        if (absent := self._dataset.absent.get(tensor.name)) is not None:
            bits = np.unpackbits(absent, axis=1, count=prod(tensor.shape)).astype(bool)
            restored[_part(bits, column)] = np.nan
        return restored


def _part(array: Array, column: Column) -> Array:
    """The column's numbers, shape (n, numbers a row)."""
    flat = array.reshape(len(array), -1)
    if column.feature is None:
        return flat
    return flat[:, column.feature :: len(column.tensor.features)]


def _factor(values: Any, column: Column, array: Array) -> Any:
    """The column's mean or std: a number, or one for each number of a row."""
    last = (column.tensor.shape or (1,))[-1]
    if len(values) == 1:
        return values[0]
    if column.feature is not None:
        return values[column.feature % last]
    return np.tile(values, array[0].size // last)


def _restored(numbers: Array, mean: Any, std: Any) -> F64:
    """The numbers before they were scaled and rounded to float32.

    A data file holds decimal numbers. Of all that become this very float32 one with few decimals is
    taken: 50 and 0.7 come back as they were, and fall into the right bin of a histogram.
    """
    if numbers.dtype.kind != "f":
        return numbers.astype(np.float64)
    scaled = numbers.astype(np.float64) * std
    raw: F64 = scaled + mean

    def becomes_these(candidate: F64) -> Any:
        as_float32 = candidate.astype(np.float32).astype(np.float64)  # as .csv files are read
        scaled = ((each - mean) / std for each in (candidate, as_float32))
        one, other = (each.astype(np.float32) == numbers for each in scaled)
        return one | other

    for error in (
        _ROUNDING * np.abs(scaled) + 2.0**-52 * np.abs(raw),
        _ROUNDING * (np.abs(scaled) + np.abs(raw)),  # the file's number was a float32 too
    ):
        candidate = _with_few_decimals(scaled + mean, error)
        with np.errstate(over="ignore"):
            raw = np.where(becomes_these(candidate), candidate, raw)
    return raw


def _with_few_decimals(raw: F64, error: F64) -> F64:
    """The numbers, rounded to the decimals that an error leaves."""
    with np.errstate(divide="ignore"):
        places = np.floor(-np.log10(2 * error))
    places = np.clip(places, 1 - len(_POWERS), len(_POWERS) - 1).astype(np.int64)
    power = _POWERS[np.abs(places)]
    rounded: F64 = np.where(places < 0, np.rint(raw / power) * power, np.rint(raw * power) / power)
    return rounded
