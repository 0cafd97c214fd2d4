"""Windows: stretches of readings that follow each other, each one row of the model."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

import numpy as np

from edge_agent.data.config import DataConfig
from edge_agent.data.faults import Range
from edge_agent.data.file_settings import WindowConfig
from edge_agent.data.normalise import Scale, conversion
from edge_agent.data.table import Array, EmptyDataError, Index, Table, tensors, too_many_rows
from edge_agent.data.usable import all_rows, in_time, usable_rows
from fedge.errors import DataError
from learning.vector.parameters import F64
from models.package.spec import ModelSpec, TensorSpec

log = logging.getLogger(__name__)

#: Numbers of windows worked on at a time.
_CHUNK_ELEMENTS = 1 << 18


@dataclass(frozen=True, eq=False)
class _Run:
    """Readings that follow each other without a gap.

    Attributes:
        rows: of the table, one for each reading: the last one that goes into it.
        values: per tensor, float64, shape (readings, numbers).
    """

    rows: Index
    values: Mapping[str, F64]


def cut_windows(
    table: Table,
    config: DataConfig,
    spec: ModelSpec,
    scales: Mapping[str, Scale],
    *,
    ready: bool,
) -> Table:
    """Returns a table of windows, made of a table of readings.

    Args:
        table: of readings, as they are in the file.
        config: of the data; its `window` says how.
        spec: of the model.
        scales: of inputs, as far as they are known.
        ready: whether numbers are scaled and rounded now.

    Raises:
        EmptyDataError: no run of readings is long enough for a window.
        DataError: too many windows; or with `nan: refuse` a reading that cannot be used.
    """
    window = config.window
    assert window is not None
    cutter = _Cutter(table, config, spec, window, scales, ready=ready)
    longest = 0
    for run in _runs(table, config, spec, window):
        longest = max(longest, len(run.rows))
        cutter.add(run)
    if not cutter.windows:
        pause = (
            f" with pauses of at most {window.longest_pause_s:g} s"
            if table.epoch is not None and window.longest_pause_s
            else ""
        )
        raise EmptyDataError(
            f"{table.path}: no window of {window.length} readings: the longest run{pause} has "
            f"{longest}{_typical(table)}; see window.length and window.gap_s"
        )
    return cutter.table()


def _typical(table: Table) -> str:
    if table.epoch is None or len(table.epoch) < 2:
        return ""
    times = np.sort(table.epoch[np.isfinite(table.epoch)])
    return f", readings are {float(np.median(np.diff(times))):g} s apart" if len(times) > 1 else ""


def _runs(
    table: Table, config: DataConfig, spec: ModelSpec, window: WindowConfig
) -> Iterator[_Run]:
    """Yields runs of usable readings, group by group, each in the order of time."""
    everything = all_rows(table.rows)
    usable = usable_rows(table, config, spec, everything, {})
    timed = everything if table.epoch is None else everything[np.isfinite(table.epoch)]
    rows = in_time(table, timed)
    group = np.zeros(len(rows), np.int32) if table.group is None else table.group[rows]
    if table.group is not None:
        order = np.argsort(group, kind="stable")
        rows, group = rows[order], group[order]
    good = np.zeros(table.rows, bool)
    good[usable] = True
    good = good[rows]
    breaks = group[1:] != group[:-1]
    if not window.every:  # no reading may be missing: nothing fills the hole
        holes = np.cumsum(~good)[good]
        rows, group = rows[good], group[good]
        breaks = (group[1:] != group[:-1]) | (holes[1:] != holes[:-1])
    else:
        rows, group = rows[good], group[good]
        breaks = group[1:] != group[:-1]
    if table.epoch is not None and window.longest_pause_s:
        breaks = breaks | (np.diff(table.epoch[rows]) > window.longest_pause_s)
    edges = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(rows)]
    for start, stop in pairwise(edges):
        if start < stop:
            run = _run(table, config, spec, rows[start:stop])
            yield _resampled(run, table, spec, window.every) if window.every else run


def _run(table: Table, config: DataConfig, spec: ModelSpec, rows: Index) -> _Run:
    values = {}
    for tensor in tensors(config, spec):
        numbers = table.arrays[tensor.name]
        values[tensor.name] = numbers[rows].reshape(len(rows), -1).astype(np.float64, copy=False)
    return _Run(rows, values)


def _resampled(run: _Run, table: Table, spec: ModelSpec, every_s: float) -> _Run:
    """Returns a run of readings that are exactly `every_s` apart.

    Readings nearest to one moment are averaged, then values are interpolated linearly. Classes and
    other whole numbers are those of the latest reading.
    """
    assert table.epoch is not None
    times = table.epoch[run.rows]
    times = times - times[0]
    nearest = np.floor(times / every_s + 0.5).astype(np.int64)
    starts = np.flatnonzero(np.diff(nearest, prepend=-1))
    counts = np.diff(starts, append=len(times))
    moments = np.arange(int(times[-1] / every_s + 1e-9) + 1) * every_s
    latest = np.searchsorted(times, moments + 1e-9 * every_s, "right") - 1
    centres = np.add.reduceat(times, starts) / counts
    values = {}
    for name, numbers in run.values.items():
        if _is_whole(spec, name):
            values[name] = numbers[latest]
            continue
        means = np.add.reduceat(numbers, starts, axis=0) / counts[:, None]
        values[name] = np.stack([np.interp(moments, centres, one) for one in means.T], 1)
    return _Run(run.rows[latest], values)


def _is_whole(spec: ModelSpec, name: str) -> bool:
    """Whether there is nothing between two values of a column."""
    return any(tensor.name == name and tensor.dtype == "int32" for tensor in spec.columns)


class _Cutter:
    """Cutter of runs into windows."""

    def __init__(
        self,
        table: Table,
        config: DataConfig,
        spec: ModelSpec,
        window: WindowConfig,
        scales: Mapping[str, Scale],
        *,
        ready: bool,
    ) -> None:
        self._table = table
        self._config = config
        self._spec = spec
        self._window = window
        self._scales = scales
        self._ready = ready
        self._values = {
            tensor.name: array("f" if ready and tensor.dtype == "float32" else "d")
            for tensor in tensors(config, spec)
        }
        self._last = array("l")
        self._runs = 0

    @property
    def windows(self) -> int:
        """Number of windows so far."""
        return len(self._last)

    def add(self, run: _Run) -> None:
        """Cuts a run.

        Raises:
            DataError: too many windows, or a number that cannot be used.
        """
        window = self._window
        needed = window.length + window.ahead
        starts = np.arange(0, len(run.rows) - needed + 1, window.step)
        if window.label == "only":
            starts = starts[self._of_one_class(run, starts)]
        if not len(starts):
            return
        self._runs += 1
        limit = self._config.max_rows
        if self.windows + len(starts) > limit:
            raise too_many_rows(self._table.path, f"more than {limit} windows, that is", limit)
        last = run.rows[starts + window.length - 1]
        for tensor in tensors(self._config, self._spec):
            numbers = run.values[tensor.name]
            if tensor in self._spec.inputs:
                self._add_input(tensor, numbers, starts, last)
            elif tensor in self._spec.targets:
                self._keep(tensor, self._converted(tensor, self._labels(tensor, numbers, starts)))
            else:
                self._keep(tensor, numbers[starts + window.length - 1])
        self._last.extend(last.tolist())

    def _add_input(self, tensor: TensorSpec, numbers: F64, starts: Index, last: Index) -> None:
        """Adds the windows of an input, some at a time."""
        scale = self._scales.get(tensor.name)
        per_window = prod(tensor.shape)
        allowed = Range.of(per_window, scale)
        step = max(1, _CHUNK_ELEMENTS // per_window)
        within = np.arange(self._window.length)
        for first in range(0, len(starts), step):
            part = slice(first, first + step)
            block = numbers[starts[part, None] + within].reshape(-1, per_window)
            wrong = allowed.outside(block)
            if tensor.missing is not None:
                wrong &= ~np.isnan(block)
            if wrong.any() and self._config.nan == "refuse":
                row, column = map(int, np.argwhere(wrong)[0])
                names = self._table.columns[tensor.name]
                raise DataError(
                    f"{self._table.place(int(last[part][row]))} (the window's last), column "
                    f"{names[column % len(names)]!r}: "
                    f"{allowed.why(float(block[row, column]), column)}; "
                    "with `nan: drop` such windows are left out"
                )
            block[wrong] = np.inf
            if self._ready and scale is not None:
                block = scale.apply(block.reshape(-1, *tensor.shape))
            self._keep(tensor, block)

    def _labels(self, tensor: TensorSpec, numbers: F64, starts: Index) -> F64:
        """Returns the label of each window."""
        window = self._window
        rule = window.label
        if rule == "mean" and tensor.dtype == "int32":
            raise DataError(
                f"{self._table.path}: window.label: mean is for numbers, {tensor.name} has "
                "classes; take last, majority or only"
            )
        if rule in ("last", "only"):
            return np.asarray(numbers[starts + window.length - 1 + window.ahead])
        every = numbers[starts[:, None] + np.arange(window.length), 0]
        if rule == "mean":
            means: F64 = every.mean(1, keepdims=True)
            return means
        return np.array([[_majority(labels)] for labels in every])

    def _of_one_class(self, run: _Run, starts: Index) -> Array:
        """Returns for each window whether all its labels are the same."""
        within = np.arange(self._window.length)
        same = np.ones(len(starts), bool)
        for tensor in self._spec.targets:
            labels = run.values[tensor.name][starts[:, None] + within, 0]
            same &= (labels == labels[:, :1]).all(1)
        return same

    def _converted(self, tensor: TensorSpec, labels: F64) -> F64:
        scale = self._scales.get(tensor.name)
        convert = conversion(self._config, self._spec, tensor, scale) if self._ready else None
        return convert(labels) if convert else labels

    def _keep(self, tensor: TensorSpec, numbers: F64) -> None:
        values = self._values[tensor.name]
        values.frombytes(np.ascontiguousarray(numbers, values.typecode).tobytes())

    def table(self) -> Table:
        """Returns the windows."""
        table, window = self._table, self._window
        last = np.frombuffer(self._last, np.dtype("l"))
        note = (
            f"{self.windows:,} windows of {window.length} readings in {self._runs:,} runs of "
            f"{table.rows:,} rows"
        )
        log.info("%s: %s", table.path, note, extra={"event": "windows", "windows": self.windows})
        shapes = {tensor.name: tensor.shape for tensor in tensors(self._config, self._spec)}
        arrays = {
            name: np.frombuffer(values, values.typecode).reshape(-1, *shapes[name])
            for name, values in self._values.items()
        }
        columns = dict(table.columns)
        for tensor in self._spec.inputs:
            columns[tensor.name] = [
                f"{name}[{moment}]"
                for moment in range(window.length)
                for name in table.columns[tensor.name]
            ]
        return replace(
            table,
            arrays=arrays,
            group=None if table.group is None else table.group[last],
            columns=columns,
            places=table.places.chosen(last),
            epoch=None,
            ready=self._ready,
            notes=(*table.notes, note),
        )


def _majority(labels: F64) -> float:
    """Returns the most frequent label; of several that are as frequent, the latest."""
    values, counts = np.unique(labels, return_counts=True)
    most = values[counts == counts.max()]
    return float(next(label for label in labels[::-1].tolist() if label in most))
