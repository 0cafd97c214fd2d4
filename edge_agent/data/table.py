"""Table: the content of a data file in its stored types, no row selected, nothing scaled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.data.config import DataConfig
from edge_agent.data.places import Places
from fedge.errors import DataError, did_you_mean
from learning.vector.parameters import F64
from models.package.spec import ModelSpec, TensorSpec

Array = NDArray[Any]
Index = NDArray[np.integer[Any]]

#: What stands in examples, and in a first agent.yaml, where a person has to name a column or array.
PLACEHOLDER = "NAME"
#: Numbers worked on at a time: 2 MiB in float64, so that no step needs a second copy of the data.
_CHUNK_ELEMENTS = 1 << 18

_WEIGHT = TensorSpec("weight")


class EmptyDataError(DataError):
    """No row can be used; an agent declines with `no_data` and stays in the roster."""


@dataclass(frozen=True, eq=False)
class Table:
    """Content of a data file, or of several.

    Attributes:
        path: the file, or the pattern, for messages.
        arrays: per column (inputs, targets, `weight`), numbers of any type, shape (n, *shape).
        group: shape (n,), equal values belong together; None if all rows do.
        columns: likewise the names of its numbers in row-major order.
        sources: per input, what was configured or assumed: columns, or the one array.
        places: of the rows in their files.
        group_names: where `group` holds numbers that stand for texts (.csv), these texts.
        epoch: seconds since 1970 of each row, float64, shape (n,), NaN where a row has no time;
            None: the order of rows is the order of time.
        ready: whether float32 columns are scaled already.
        notes: what reading found out about the file, for people.
        readings: of which the rows are windows; 0: they are not.
    """

    path: Path
    arrays: Mapping[str, Array]
    group: Array | None
    columns: Mapping[str, Sequence[str]]
    sources: Mapping[str, Sequence[str]]
    places: Places
    group_names: tuple[str, ...] = ()
    epoch: F64 | None = None
    ready: bool = False
    notes: tuple[str, ...] = ()
    readings: int = 0

    @property
    def rows(self) -> int:
        """Number of rows, n."""
        return len(next(iter(self.arrays.values())))

    def place(self, row: int) -> str:
        """Returns the place of a row for people: `data.csv: line 7`, `data.npz: row 5` (from 0)."""
        return self.places.name(row)


def chunks(array: Array, rows: Index) -> Iterator[tuple[slice, Array]]:
    """Yields the chosen rows of `array`, a bounded number at a time, with their place in `rows`."""
    step = max(1, _CHUNK_ELEMENTS // max(1, prod(array.shape[1:])))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        yield part, array[rows[part]]


def tensors(config: DataConfig, spec: ModelSpec) -> tuple[TensorSpec, ...]:
    """Returns inputs, targets and weight: all tensors that come from the data file."""
    return (*spec.columns, _WEIGHT) if config.weight else spec.columns


def feature_names(tensor: TensorSpec, source: str) -> list[str]:
    """Returns a name for every number of one row: `x[3]`, or `x[3, ax]` with a feature."""
    names = []
    for index in np.ndindex(*tensor.shape):
        parts = [str(i) for i in index]
        if tensor.features and len(tensor.features) == (tensor.shape or (1,))[-1]:
            parts[-1:] = [tensor.features[index[-1] if index else 0]]
        names.append(f"{source}[{', '.join(parts)}]" if parts else source)
    return names


def unknown_name(
    path: Path, kind: str, name: str, known: Sequence[str], short: Sequence[str] = ()
) -> DataError:
    """Returns the error for an array or a column that the file does not have.

    Args:
        path: the file.
        kind: "array" or "column".
        name: what was asked for.
        known: what there is.
        short: other names of the same things, which may come closer to what was meant.
    """
    if name == PLACEHOLDER:
        return DataError(
            f"{path}: no {kind} {name!r}, which is a placeholder: replace it by the {kind} that is "
            f"meant; {kind}s: {', '.join(known) or 'none'}"
        )
    meant = did_you_mean(name, short or known)
    return DataError(f"{path}: no {kind} {name!r}; {meant}{kind}s: {', '.join(known) or 'none'}")


def too_many_rows(path: Path, rows: str, limit: int) -> DataError:
    """Returns the error for a file above `max_rows`."""
    return DataError(
        f"{path}: {rows} rows, max_rows is {limit}; raise it if the device can hold them"
    )
