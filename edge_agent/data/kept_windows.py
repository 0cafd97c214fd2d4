"""Kept windows: what is kept of each window, its numbers and its label, until all are cut."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np

from edge_agent.data.faults import Range
from edge_agent.data.file_settings import WindowConfig
from edge_agent.data.normalise import conversion
from edge_agent.data.places import Places
from edge_agent.data.read_options import ReadOptions
from edge_agent.data.table import Array, Index, Table, tensors, too_many_rows
from fedge.errors import DataError
from learning.vector.parameters import F64
from models.package.spec import TensorSpec

#: Numbers of windows worked on at a time.
_CHUNK_ELEMENTS = 1 << 18


@dataclass(frozen=True, eq=False)
class Readings:
    """Some readings of one group, or of several.

    Attributes:
        epoch: seconds since 1970, shape (n,); zeros where there are no times.
        values: float64, shape (n, numbers of all tensors).
        file: number of the file, shape (n,).
        line: in it, shape (n,).
        group: shape (n,).
        holes: unusable readings of the group before each, shape (n,).
    """

    epoch: F64
    values: F64
    file: Array
    line: Array
    group: Array
    holes: Array

    def __len__(self) -> int:
        return len(self.epoch)

    def chosen(self, rows: Index | slice) -> Readings:
        """Returns some of the readings."""
        return Readings(*(getattr(self, one.name)[rows] for one in fields(self)))

    @classmethod
    def joined(cls, parts: Sequence[Readings]) -> Readings:
        """Returns the readings of all parts, one behind the other."""
        return cls(*(np.concatenate([getattr(p, one.name) for p in parts]) for one in fields(cls)))


class KeptWindows:
    """Windows of a table, as they are cut.

    Args:
        options: of reading.
        unit: of places in files.
    """

    def __init__(self, options: ReadOptions, unit: str) -> None:
        config = options.config
        assert config.window is not None
        self._path = options.path
        self._config = config
        self._window: WindowConfig = config.window
        self._spec = options.spec
        self._scales = options.scales
        self._ready = options.ready
        self._unit = unit
        self._tensors = tensors(config, options.spec)
        self._kept = {
            tensor.name: array("f" if options.ready and tensor.dtype == "float32" else "d")
            for tensor in self._tensors
        }
        self._slices: dict[str, slice] = {}
        self._names: dict[str, Sequence[str]] = {}
        self._files: list[Path] = []
        self._last_file, self._last_line, self._group = array("i"), array("l"), array("i")

    def __len__(self) -> int:
        return len(self._last_line)

    @property
    def file(self) -> int:
        """Number of the file that is being read."""
        return len(self._files) - 1

    def begin(self, path: Path, names: Mapping[str, Sequence[str]]) -> None:
        """Begins another file; see `WindowCutter.begin`."""
        self._files.append(path)
        self._names = dict(names)
        first = 0
        for tensor in self._tensors:
            count = len(names[tensor.name])
            self._slices[tensor.name] = slice(first, first + count)
            first += count

    def columns_of(self, tensor: TensorSpec) -> slice:
        """Returns the places of a tensor's numbers in a reading."""
        return self._slices[tensor.name]

    def too_many(self) -> DataError:
        """Returns the error for more windows than rows are allowed."""
        limit = self._config.max_rows
        return too_many_rows(self._path, f"more than {limit} windows, that is", limit)

    def add(self, values: F64, readings: Readings, starts: Index) -> None:
        """Keeps the windows that begin at some readings.

        Args:
            values: of the readings, shape (n, numbers of all tensors).
            readings: where they come from, n.
            starts: of the windows.

        Raises:
            DataError: too many windows, or a number that cannot be used.
        """
        window = self._window
        if window.label == "only":
            starts = starts[self._of_one_class(values, starts)]
        if not len(starts):
            return
        if len(self) + len(starts) > self._config.max_rows:
            raise self.too_many()
        last = readings.chosen(starts + window.length - 1)
        for tensor in self._tensors:
            numbers = values[:, self._slices[tensor.name]]
            if tensor in self._spec.inputs:
                self._add_input(tensor, numbers, starts, last)
            elif tensor in self._spec.targets:
                self._keep(tensor, self._converted(tensor, self._labels(tensor, numbers, starts)))
            else:
                self._keep(tensor, numbers[starts + window.length - 1])
        self._last_file.frombytes(last.file.astype(np.int32).tobytes())
        self._last_line.frombytes(last.line.astype(np.dtype("l")).tobytes())
        self._group.frombytes(last.group.astype(np.int32).tobytes())

    def _add_input(self, tensor: TensorSpec, numbers: F64, starts: Index, last: Readings) -> None:
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
                names = self._names[tensor.name]
                file = self._files[int(last.file[part][row])]
                raise DataError(
                    f"{file}: {self._unit} {int(last.line[part][row])} (the window's last), "
                    f"column {names[column % len(names)]!r}: "
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
        if window.label == "mean" and tensor.dtype == "int32":
            raise DataError(
                f"{self._path}: window.label: mean is for numbers, {tensor.name} has "
                "classes; take last, majority or only"
            )
        if window.label in ("last", "only"):
            return np.asarray(numbers[starts + window.length - 1 + window.ahead])
        every = numbers[starts[:, None] + np.arange(window.length), 0]
        if window.label == "mean":
            means: F64 = every.mean(1, keepdims=True)
            return means
        return np.array([[_majority(labels)] for labels in every])

    def _of_one_class(self, values: F64, starts: Index) -> Array:
        """Returns for each window whether all its labels are the same."""
        within = np.arange(self._window.length)
        same = np.ones(len(starts), bool)
        for tensor in self._spec.targets:
            labels = values[starts[:, None] + within, self._slices[tensor.name].start]
            same &= (labels == labels[:, :1]).all(1)
        return same

    def _converted(self, tensor: TensorSpec, labels: F64) -> F64:
        scale = self._scales.get(tensor.name)
        convert = conversion(self._config, self._spec, tensor, scale) if self._ready else None
        return convert(labels) if convert else labels

    def _keep(self, tensor: TensorSpec, numbers: F64) -> None:
        values = self._kept[tensor.name]
        with np.errstate(over="ignore"):  # infinite: dropped later
            kept = np.ascontiguousarray(numbers, values.typecode)
        values.frombytes(kept.reshape(-1).view(np.uint8).data)

    def table(self, group_names: tuple[str, ...], notes: Sequence[str]) -> Table:
        """Returns all windows."""
        return Table(
            self._path,
            {
                tensor.name: np.frombuffer(kept, kept.typecode).reshape(-1, *tensor.shape)
                for tensor in self._tensors
                for kept in (self._kept[tensor.name],)
            },
            np.frombuffer(self._group, np.int32) if self._config.groups else None,
            self._columns(),
            {tensor.name: self._names[tensor.name] for tensor in self._spec.inputs},
            self._places(),
            group_names,
            ready=self._ready,
            notes=tuple(notes),
        )

    def _columns(self) -> dict[str, Sequence[str]]:
        columns = dict(self._names)
        for tensor in self._spec.inputs:
            columns[tensor.name] = [
                f"{name}[{moment}]"
                for moment in range(self._window.length)
                for name in self._names[tensor.name]
            ]
        return columns

    def _places(self) -> Places:
        """Returns the places of the windows' last readings."""
        places = Places(self._unit)
        file = np.frombuffer(self._last_file, np.int32)
        edges = [0, *(np.flatnonzero(np.diff(file)) + 1).tolist(), len(file)]
        for start, stop in pairwise(edges):
            places.begin(self._files[int(file[start])])
            places.extend(self._last_line[start:stop])
        return places


def _majority(labels: F64) -> float:
    """Returns the most frequent label; of several that are as frequent, the latest."""
    values, counts = np.unique(labels, return_counts=True)
    most = values[counts == counts.max()]
    return float(next(label for label in labels[::-1].tolist() if label in most))
