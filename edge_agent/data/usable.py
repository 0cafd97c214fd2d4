"""Usable rows of a table: those without faults, in the order of time."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from math import prod

import numpy as np

from edge_agent.data.config import DataConfig
from edge_agent.data.faults import Range
from edge_agent.data.normalise import Scale
from edge_agent.data.table import Array, Index, Table, chunks, tensors
from fedge.console import counted
from fedge.errors import DataError
from models.package.spec import ModelSpec, TensorSpec

log = logging.getLogger(__name__)

_SHOWN_COLUMNS = 8


def all_rows(count: int) -> Index:
    """Returns the numbers of so many rows, in four bytes each where they fit."""
    numbers: Index = np.arange(count, dtype=np.int32 if count < 2**31 else np.int64)
    return numbers


def usable_rows(
    table: Table, config: DataConfig, spec: ModelSpec, rows: Index, scales: Mapping[str, Scale]
) -> Index:
    """Returns the rows without NaN, infinity and numbers that no sensor means.

    NaN stays where the spec says what stands for a missing value.

    Args:
        table: of the data.
        config: `nan` decides what happens to other rows.
        spec: of the model.
        rows: to look at.
        scales: of inputs, as far as they are known.

    Raises:
        DataError: there is one, and `nan` is `refuse`.
    """
    good = np.ones(len(rows), bool)
    lost: dict[str, int] = {}
    if table.epoch is not None:
        good &= np.isfinite(table.epoch[rows])
        if not good.all():
            lost["time"] = len(rows) - int(good.sum())
    for tensor in tensors(config, spec):
        if table.arrays[tensor.name].dtype.kind == "f":
            _look_at(table, config, spec, tensor, rows, scales.get(tensor.name), good, lost)
    dropped = len(rows) - int(good.sum())
    if not dropped:
        return rows
    most = sorted(lost.items(), key=lambda item: -item[1])
    told = ", ".join(f"{name} {count:,}" for name, count in most[:_SHOWN_COLUMNS])
    log.warning(
        "%s: %d of %d rows dropped: no reading, NaN or infinity (%s)",
        table.path, dropped, len(rows), told, extra={"event": "rows_dropped", "rows": dropped},
    )  # fmt: skip
    usable: Index = rows[good]
    return usable


def _look_at(
    table: Table,
    config: DataConfig,
    spec: ModelSpec,
    tensor: TensorSpec,
    rows: Index,
    scale: Scale | None,
    good: Array,
    lost: dict[str, int],
) -> None:
    """Clears `good` of rows whose numbers of this tensor cannot be used, and counts these."""
    array, names = table.arrays[tensor.name], table.columns[tensor.name]
    source = config.target_sources.get(tensor.name) if tensor in spec.targets else None
    # What is scaled already was judged when it was read.
    as_read = None if table.ready or tensor in spec.targets else scale
    allowed = Range.of(prod(array.shape[1:]), as_read, 1.0 if source is None else source.scale)
    for part, block in chunks(array, rows):
        flat = block.reshape(len(block), -1)
        wrong = ~np.isfinite(flat) if table.ready else allowed.outside(flat)
        if tensor.missing is not None:
            wrong &= ~np.isnan(flat)
        if not wrong.any():
            continue
        if config.nan == "refuse":
            row, column = map(int, np.argwhere(wrong)[0])
            raise DataError(
                f"{table.place(int(rows[part][row]))}, column {names[column]!r}: "
                f"{allowed.why(float(flat[row, column]), column)}; "
                "with `nan: drop` such rows are left out"
            )
        good[part] &= ~wrong.any(1)
        for column in np.flatnonzero(wrong.any(0)).tolist():
            name = names[column]
            lost[name] = lost.get(name, 0) + int(wrong[:, column].sum())


def in_time(table: Table, rows: Index) -> Index:
    """Returns the rows in the order of time; those of one time stay as they are."""
    if table.epoch is None:
        return rows
    epoch = table.epoch[rows]
    late = int((epoch[1:] < epoch[:-1]).sum())
    if not late:
        return rows
    log.info(
        "%s: %s earlier than the one before: put in the order of time",
        table.path, counted(late, "row"), extra={"event": "rows_sorted", "rows": late},
    )  # fmt: skip
    return rows[np.argsort(epoch, kind="stable")]
