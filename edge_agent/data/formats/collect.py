"""Collector: blocks of a file's rows become the arrays of a table.

Numbers are scaled in float64 before they are kept as float32: epoch seconds and counters have more
digits than float32 holds. Nothing else of a file stays in memory.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_agent.data.config import DataConfig
from edge_agent.data.faults import Range
from edge_agent.data.formats.block import Block, CellError, Layout
from edge_agent.data.formats.cells import (
    Numbers,
    Parse,
    class_parser,
    unread_class,
    unread_number,
)
from edge_agent.data.formats.sources import check_names, example, find, key_of, numbers_needed
from edge_agent.data.formats.times import Times, feature_of
from edge_agent.data.normalise import Scale, conversion
from edge_agent.data.places import Places
from edge_agent.data.read_options import ReadOptions
from edge_agent.data.table import Array, Table, tensors, too_many_rows
from fedge.errors import DataError
from learning.vector.parameters import F64
from models.package.spec import ModelSpec, TensorSpec

if TYPE_CHECKING:
    from edge_agent.data.windows import WindowCutter

#: As `group` it tells files apart: each file is a recording.
FILE = "file.name"
#: float32 holds each class below exactly.
_EXACT_IN_FLOAT32 = 1 << 24


class _Tensor:
    """The columns of one tensor, and the numbers read from them so far.

    Args:
        tensor: of the spec, or the weight.
        config: of the data.
        spec: of the model.
        scale: where it is known, and one reading is one row.
        ready: whether numbers are scaled and rounded now.
    """

    def __init__(
        self,
        tensor: TensorSpec,
        config: DataConfig,
        spec: ModelSpec,
        scale: Scale | None,
        *,
        ready: bool,
    ) -> None:
        self.tensor = tensor
        self._config = config
        self._spec = spec
        target = config.target_sources.get(tensor.name) if tensor in spec.targets else None
        self._ignore_case = target is not None and target.ignore_case
        self._convert = conversion(config, spec, tensor, scale)
        self._ready = ready
        self._needed = numbers_needed(tensor, config, spec)
        self._range = Range.of(
            self._needed,
            scale if tensor in spec.inputs else None,
            target.scale if target else 1.0,
        )
        classes = spec.class_count(tensor)
        small = tensor.dtype == "float32" or 0 < classes <= _EXACT_IN_FLOAT32
        self._values = array("f" if ready and small else "d")
        self.names: Sequence[str] = ()
        self._places: list[int | Callable[[F64], F64]] = []
        self._numbers = Numbers()
        self._parse: Parse = self._numbers.parse

    def name(self, layout: Layout) -> None:
        """Checks how many columns are named."""
        self.names = check_names(layout.path, self.tensor, self._config, self._spec, layout.titles)

    def open(self, layout: Layout, times: Times | None) -> None:
        """Finds the columns in a file."""
        self._places = [self._place(layout, name, times) for name in self.names]
        self._numbers = layout.numbers
        self._parse = self._numbers.parse
        if self.tensor.classes:
            self._parse = class_parser(self.tensor, self._numbers, ignore_case=self._ignore_case)

    def _place(self, layout: Layout, name: str, times: Times | None) -> int | Callable[[F64], F64]:
        feature = feature_of(name, layout.titles, times)
        if feature is not None:
            return feature
        is_given = self.tensor.name in self._config.inputs or self.tensor not in self._spec.inputs
        advice = f"; name yours: `{example(self.tensor, self._spec, self._needed)}`"
        return find(layout.path, name, layout.titles, "" if is_given else advice)

    @property
    def plain(self) -> list[int]:
        """Places of the columns that hold numbers."""
        if self.tensor.classes:
            return []
        return [place for place in self._places if isinstance(place, int)]

    def read(self, block: Block, epoch: F64 | None) -> F64:
        """Returns the numbers of a block as they are to be kept.

        Raises:
            CellError: a cell is no number, or with `nan: refuse` none that can be used.
        """
        numbers = self._read(block, epoch)
        self._judge(numbers, block)
        return self._finished(numbers) if self._ready else numbers

    def keep(self, numbers: F64) -> None:
        """Keeps the numbers of a block."""
        with np.errstate(over="ignore"):  # infinite: dropped later
            kept = np.ascontiguousarray(numbers, self._values.typecode)
        self._values.frombytes(kept.reshape(-1).view(np.uint8).data)

    def _read(self, block: Block, epoch: F64 | None) -> F64:
        plain = self.plain
        if plain and len(plain) == len(self._places):
            quick = block.numbers(plain)
            if quick is not None:
                return quick
        numbers = np.empty((len(block.lines), len(self._places)))
        for column, place in enumerate(self._places):
            if isinstance(place, int):
                numbers[:, column] = self._parsed(block, place, self.names[column])
            elif epoch is not None:
                numbers[:, column] = place(epoch)
        return numbers

    def _parsed(self, block: Block, place: int, name: str) -> F64:
        cells, parse = block.cells(place), self._parse
        try:
            return np.fromiter(map(parse, cells), np.float64, len(cells))
        except (ValueError, OverflowError):
            for row, cell in enumerate(cells):
                try:
                    parse(cell)
                except (ValueError, OverflowError) as error:
                    what = f"column {name!r}: {self._unread(cell)}"
                    raise CellError(block, row, what, is_unread=True) from error
            raise

    def _unread(self, cell: object) -> str:
        shown = repr(cell[:40] if isinstance(cell, str | bytes) else cell)
        if self.tensor.classes:
            return f"{shown} is {unread_class(cell, self.tensor, key_of(self.tensor))}"
        return f"{shown} is {unread_number(cell, self.tensor, self._spec, self._numbers)}"

    def _judge(self, numbers: F64, block: Block) -> None:
        """Refuses what no model can take, or marks it as infinite."""
        wrong = self._range.outside(numbers)
        if not wrong.any():
            return
        wrong &= ~(np.isnan(numbers)) if self.tensor.missing is not None else True
        if self._config.nan == "refuse" and wrong.any():
            row, column = map(int, np.argwhere(wrong)[0])
            why = self._range.why(float(numbers[row, column]), column)
            raise CellError(
                block,
                row,
                f"column {self.names[column]!r}: {why}; with `nan: drop` such rows are left out",
            )
        numbers[wrong & ~np.isnan(numbers)] = np.inf

    def _finished(self, numbers: F64) -> F64:
        if self._convert is None:
            return numbers
        return self._convert(numbers.reshape(-1, *self.tensor.shape)).reshape(numbers.shape)

    def array(self) -> Array:
        """Returns the numbers, shape (n, *shape), without a copy."""
        numbers = np.frombuffer(self._values, self._values.typecode)
        return numbers.reshape(-1, *self.tensor.shape)


@dataclass(eq=False)
class _Groups:
    """Texts of the group columns, numbered in order of appearance."""

    names: Sequence[str]
    known: dict[tuple[str, ...], int] = field(default_factory=dict)
    codes: array[int] = field(default_factory=lambda: array("i"))
    places: list[int | None] = field(default_factory=list)

    def open(self, layout: Layout) -> None:
        self.places = [
            None
            if name == FILE and FILE not in layout.titles
            else find(layout.path, name, layout.titles)
            for name in self.names
        ]

    def numbers(self, block: Block) -> Array:
        """Returns the number of each row's group."""
        columns = [self._texts(block, place) for place in self.places]
        known = self.known
        keys = zip(*columns, strict=True)
        return np.array([known.setdefault(key, len(known)) for key in keys], np.int32)

    def keep(self, numbers: Array) -> None:
        """Keeps the numbers of a block."""
        self.codes.frombytes(numbers.tobytes())

    @staticmethod
    def _texts(block: Block, place: int | None) -> list[str]:
        if place is None:
            return [block.path.name] * len(block.lines)
        return ["" if cell is None else str(cell).strip() for cell in block.cells(place)]


class Collector:
    """Collector of the rows of one or more files that have the same columns.

    Args:
        options: of reading.
        unit: of places in the file.

    Attributes:
        rows: added so far.
        notes: what a reader found out about the files.
    """

    def __init__(self, options: ReadOptions, unit: str = "line") -> None:
        config, spec, ready = options.config, options.spec, options.ready
        self._path = options.path
        self._config = config
        self._spec = spec
        self._ready = ready
        self._cutter: WindowCutter | None = None
        if windows := config.window is not None:
            from edge_agent.data.windows import WindowCutter  # seldom needed

            self._cutter = WindowCutter(options, unit)
        self._tensors = [
            _Tensor(
                tensor,
                config,
                spec,
                None if windows else options.scales.get(tensor.name),
                ready=ready and not windows,
            )
            for tensor in tensors(config, spec)
        ]
        self._groups = _Groups(config.groups) if config.groups else None
        self._times = Times(config.time) if config.time else None
        self._time_place = -1
        self._places = Places(unit)
        self.rows = 0
        self.notes: list[str] = []

    def open(self, layout: Layout) -> list[int]:
        """Begins another file; returns the places of its columns of plain numbers.

        Raises:
            DataError: it lacks a column.
        """
        if self._times:
            name = self._times.config.column
            self._time_place = find(layout.path, name, layout.titles)
        for tensor in self._tensors:
            tensor.name(layout)
        # Targets first: their name is the one that a person is most likely to have wrong.
        for tensor in sorted(self._tensors, key=lambda one: one.tensor in self._spec.inputs):
            tensor.open(layout, self._times)
        if self._groups:
            self._groups.open(layout)
        self._places.begin(layout.path)
        if self._cutter:
            names = {one.tensor.name: one.names for one in self._tensors}
            self._cutter.begin(layout.path, names)
        return sorted({place for tensor in self._tensors for place in tensor.plain})

    def add(self, block: Block) -> None:
        """Adds the rows of a block.

        Raises:
            DataError: too many rows.
            CellError: a cell cannot be used.
        """
        limit = self._config.max_rows
        if not self._cutter and self.rows + len(block.lines) > limit:
            raise too_many_rows(self._path, f"more than {limit}", limit)
        epoch = None
        if self._times:
            epoch = self._times.read(block, self._time_place, drop=self._config.nan == "drop")
        read = [tensor.read(block, epoch) for tensor in self._tensors]
        # Nothing is kept of a block with a cell that cannot be used.
        group = self._groups.numbers(block) if self._groups else None
        self.rows += len(block.lines)
        if self._cutter:
            self._cutter.add(read, epoch, group, block.lines)
            return
        for tensor, numbers in zip(self._tensors, read, strict=True):
            tensor.keep(numbers)
        if self._times and epoch is not None:
            self._times.keep(epoch)
        if self._groups and group is not None:
            self._groups.keep(group)
        self._places.extend(block.lines)

    def table(self) -> Table:
        """Returns the rows that were added; not to be called twice.

        Raises:
            DataError: see `WindowCutter.table`.
        """
        groups, times = self._groups, self._times
        group_names = tuple(" ".join(key) for key in groups.known) if groups else ()
        notes = (*self.notes, *(times.notes if times else ()))
        if self._cutter:
            return self._cutter.table(group_names, notes)
        names = {one.tensor.name: one.names for one in self._tensors}
        return Table(
            self._path,
            {one.tensor.name: one.array() for one in self._tensors},
            np.frombuffer(groups.codes, np.int32) if groups else None,
            names,
            {tensor.name: names[tensor.name] for tensor in self._spec.inputs},
            self._places,
            group_names,
            epoch=times.epoch() if times else None,
            ready=self._ready,
            notes=notes,
        )


def no_rows(path: Path) -> DataError:
    """Returns the error for a file without even a header."""
    return DataError(f"{path}: the file is empty, expected a header")
