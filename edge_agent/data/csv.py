"""Reader of .csv files: a header, commas, one row of numbers per line, oldest first.

Cells go straight into compact typed arrays: 4 bytes per input number, and never the file's text.
"""

from __future__ import annotations

import csv
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isnan, nan, prod
from pathlib import Path
from typing import TextIO

import numpy as np

from edge_agent.data.config import DataConfig
from edge_agent.data.table import Array, Table, tensors, too_many_rows, unknown_name
from fedge.errors import DataError
from models.package.spec import ModelSpec, TensorSpec

#: No row of sensor readings is longer; without a limit one line could fill the memory.
MAX_LINE_CHARS = 1 << 20

#: Spellings of "no reading": they count as NaN, so `nan: refuse | drop` decides about them.
_ABSENT = frozenset({"", "na", "n/a", "nan", "null", "none"})
_SHOWN_CLASSES = 12
_UNIT = re.compile(r"(?P<name>.*?)\s*(\(.*\)|\[.*\])")


def read_csv(path: Path, config: DataConfig, spec: ModelSpec) -> Table:
    """Reads the columns that the spec needs.

    Raises:
        DataError: not such a file, a column is missing, or a cell is no number (names file, line,
            column and value).
    """
    try:
        # utf-8-sig: spreadsheets begin their exports with a byte order mark.
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _read(path, file, config, spec)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason}); export it as UTF-8") from error


def _read(path: Path, file: TextIO, config: DataConfig, spec: ModelSpec) -> Table:
    reader = csv.reader(_lines(path, file), strict=True)
    try:
        header = next(reader, [])
        if not header:
            raise DataError(f"{path}: the file is empty, expected a header")
        columns = [
            _Column.of(path, tensor, config, spec, header) for tensor in tensors(config, spec)
        ]
        group = _Groups([_find(path, name, header) for name in config.groups])
        lines = array("l")
        for row in reader:
            if not row:
                continue  # a blank line
            if len(row) != len(header):
                found = f"{len(row)} cells, the header has {len(header)}"
                raise DataError(f"{path}: line {reader.line_num}: {found}")
            if len(lines) >= config.max_rows:
                raise too_many_rows(path, f"more than {config.max_rows}", config.max_rows)
            for column in columns:
                column.add(row, path, reader.line_num)
            if config.groups:
                group.add(row)
            lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: {error}") from error
    return Table(
        path,
        {column.tensor.name: column.values_array() for column in columns},
        np.frombuffer(group.codes, np.dtype("l")) if config.groups else None,
        {column.tensor.name: column.names for column in columns},
        {column.tensor.name: column.names for column in columns if column.tensor in spec.inputs},
        np.frombuffer(lines, np.dtype("l")),
        group.names,
    )


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    number = 0
    while line := file.readline(MAX_LINE_CHARS):
        number += 1
        if len(line) == MAX_LINE_CHARS:
            raise DataError(f"{path}: line {number}: longer than {MAX_LINE_CHARS} characters")
        yield line


@dataclass(frozen=True, eq=False)
class _Column:
    """Columns of one tensor, and the numbers read from them so far."""

    tensor: TensorSpec
    names: Sequence[str]
    positions: Sequence[int]
    numbers: array[float]
    parse: Callable[[str], float]
    #: What a cell is that cannot be parsed, in words.
    unread: str

    @classmethod
    def of(
        cls,
        path: Path,
        tensor: TensorSpec,
        config: DataConfig,
        spec: ModelSpec,
        header: Sequence[str],
    ) -> _Column:
        names = _names(tensor, config, spec)
        needed = prod(tensor.shape)
        if not names and tensor in spec.targets:
            key = "target" if tensor.name == "target" else f"targets.{tensor.name}"
            raise DataError(f"{path}: {key} is missing: name its column, {key}: {{column: ...}}")
        if len(names) != needed:
            raise DataError(
                f"{path}: {tensor.name} needs {needed} columns (shape {tensor.shape}), "
                f"{len(names)} are configured: {', '.join(names) or 'none'}"
            )
        positions = [_find(path, name, header) for name in names]
        # float64 holds every class index and every target before its scale is applied.
        code = "f" if tensor in spec.inputs and tensor.dtype == "float32" else "d"
        return cls(tensor, names, positions, array(code), _parser(tensor), _unread(tensor, spec))

    def add(self, row: Sequence[str], path: Path, line: int) -> None:
        for name, position in zip(self.names, self.positions, strict=True):
            try:
                self.numbers.append(self.parse(row[position]))
            except ValueError as error:
                raise DataError(
                    f"{path}: line {line}, column {name!r}: {row[position][:40]!r} is {self.unread}"
                ) from error

    def values_array(self) -> Array:
        """Returns the numbers in shape (n, *tensor.shape), without a copy."""
        numbers = np.frombuffer(self.numbers, self.numbers.typecode)
        return numbers.reshape(-1, *self.tensor.shape)


class _Groups:
    """Texts of the group columns, numbered in order of appearance."""

    def __init__(self, positions: Sequence[int]) -> None:
        self._positions = positions
        self._known: dict[tuple[str, ...], int] = {}
        self.codes = array("l")

    def add(self, row: Sequence[str]) -> None:
        key = tuple(row[position].strip() for position in self._positions)
        self.codes.append(self._known.setdefault(key, len(self._known)))

    @property
    def names(self) -> tuple[str, ...]:
        """Text of each number; several columns are joined."""
        return tuple(" ".join(key) for key in self._known)


def _names(tensor: TensorSpec, config: DataConfig, spec: ModelSpec) -> Sequence[str]:
    if tensor in spec.inputs:
        source = config.inputs.get(tensor.name)
        return source.columns if source and source.columns is not None else tensor.features
    single = config.target_sources.get(tensor.name) if tensor in spec.targets else config.weight
    return [single.column] if single and single.column else tensor.features


def _find(path: Path, name: str, header: Sequence[str]) -> int:
    """Returns the position of a column by its full title, or by its title without the unit."""
    titles = [title.strip() for title in header]
    bare = [match["name"] if (match := _UNIT.fullmatch(title)) else title for title in titles]
    for candidates in (titles, bare):
        found = [position for position, title in enumerate(candidates) if title == name.strip()]
        if len(found) == 1:
            return found[0]
        if found:
            same = ", ".join(titles[position] for position in found)
            raise DataError(f"{path}: column {name!r} is ambiguous: {same}")
    raise unknown_name(path, "column", name, titles, bare)


def _parser(tensor: TensorSpec) -> Callable[[str], float]:
    """Returns the parser of a cell: a number or a class index; NaN: no reading; else ValueError.

    Classes may be called like numbers ("1", "2", "3"): then a number is a name, and no index.
    """
    if not tensor.classes:
        return _number
    classes = {name: float(index) for index, name in enumerate(tensor.classes)}
    numbers = {}
    for name, index in classes.items():
        with suppress(ValueError):
            if not isnan(value := _number(name)):
                numbers[value] = index

    def parse(cell: str) -> float:
        text = cell.strip()
        if text in classes:
            return classes[text]
        value = _number(text)
        if not numbers or isnan(value):
            return value
        if value not in numbers:
            raise ValueError(text)
        return numbers[value]

    return parse


def _unread(tensor: TensorSpec, spec: ModelSpec) -> str:
    if tensor.classes:
        more = ", …" if len(tensor.classes) > _SHOWN_CLASSES else ""
        names = ", ".join(tensor.classes[:_SHOWN_CLASSES])
        return f"none of the {len(tensor.classes)} classes ({names}{more})"
    count = spec.class_count(tensor)
    return f"no number; the model's classes are 0 to {count - 1}" if count else "no number"


def _number(cell: str) -> float:
    text = cell.strip()
    if text.lower() in _ABSENT:
        return nan
    if "_" in text:  # Python reads 1_000 as a number, no device writes it
        raise ValueError(text)
    return float(text)
