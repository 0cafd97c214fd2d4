"""A look at a data file: which columns or arrays it has, and what is in them."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from math import isnan
from pathlib import Path
from statistics import median
from typing import Any, Literal

from edge_agent.data.config import DataConfig
from edge_agent.data.file_settings import TimeConfig
from edge_agent.data.files import data_files
from edge_agent.data.formats.cells import ABSENT, Numbers
from edge_agent.data.formats.csv import Header
from edge_agent.data.formats.dialect import decimal_of, describing, find_decimal, split
from edge_agent.data.formats.text_lines import TextLines, not_text, open_text
from edge_agent.data.formats.times import Times
from fedge.errors import DataError
from models.package.npz import open_npz

Kind = Literal["number", "time", "text", "empty"]

#: Rows that are looked at.
LOOKED_AT = 1000
#: More different texts are names of nothing that is to be learned.
_VALUES = 200
#: So many different words among the numbers of a column are no words for "no reading".
_WORDS = 3
_TIME_WORDS = ("time", "date", "stamp", "epoch", "unix", "last_changed", "last_updated")
#: Words of which one is a name's last part or its first: `ts_ms`, `t`, `Zeit [ms]`.
_TIME_PARTS = {"t", "ts", "datum", "zeit", "uhrzeit", "zeitpunkt", "messzeit", "zeitstempel"}
_CLOCKS = ("%H:%M:%S", "%H:%M", "%H:%M:%S.%f")
_SLASHES = tuple(f"{day} {clock}" for day in ("%d/%m/%Y", "%m/%d/%Y") for clock in _CLOCKS)
#: 1973 to 2286 in seconds, and in the smaller units beyond.
_EPOCHS = (1e8, 2e19)


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: its title.
        kind: of what is in it.
        values: different texts in it, in order of appearance, at most 200.
        missing: cells without a reading among those that were looked at.
        format: of times that are not taken without being told.
        other_format: of times that can be read in two ways, the other way.
        apart_s: seconds between two times, the median; 0: unknown.
        changes: rows whose cell is another than the one before.
        words: among numbers, which may mean "no reading" where they are.
    """

    name: str
    kind: Kind
    values: tuple[str, ...] = ()
    missing: int = 0
    format: str = ""
    other_format: str = ""
    apart_s: float = 0.0
    changes: int = 0
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Array:
    """One array.

    Attributes:
        name: its name.
        shape: of a row.
        is_text: whether it holds texts.
    """

    name: str
    shape: tuple[int, ...]
    is_text: bool


@dataclass(frozen=True)
class Look:
    """Content of a data file.

    Attributes:
        path: as it was given.
        config: its `data` section as far as the file itself says.
        settings: of `csv` that were found and are not the usual ones.
        columns: of a table.
        arrays: of an .npz file.
        tables: of an SQLite file.
        files: number of files.
        rows: that were looked at, at most 1,000.
        faults: that keep it from being read, in words.
    """

    path: str
    config: DataConfig
    settings: dict[str, str] = field(default_factory=dict)
    columns: tuple[Column, ...] = ()
    arrays: tuple[Array, ...] = ()
    tables: tuple[str, ...] = ()
    files: int = 1
    rows: int = 0
    faults: tuple[str, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """Words among numbers, of all columns."""
        return tuple(dict.fromkeys(word for column in self.columns for word in column.words))

    @property
    def missing(self) -> int:
        """Cells without a reading among those that were looked at."""
        return sum(column.missing for column in self.columns)


def look(path: str, table: str = "") -> Look:
    """Looks at a data file.

    Args:
        path: of the file, or a pattern.
        table: of an SQLite file; empty: the one with the most rows.

    Raises:
        DataError: it cannot be read.
    """
    try:
        config = DataConfig(path=path, table=table)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    _, paths = data_files(path, Path())
    if config.format == "npz":
        return Look(path, config, arrays=_arrays(paths[0]), files=len(paths))
    if config.format == "sqlite":
        return _database(path, paths[0], config)
    return _text(path, paths, config)


def _arrays(path: Path) -> tuple[Array, ...]:
    with open_npz(path) as file:
        headers = {name: file.header(name) for name in file.names}
    return tuple(
        Array(name, shape[1:], dtype.kind in "US") for name, (shape, dtype) in headers.items()
    )


def _text(path: str, paths: Sequence[Path], config: DataConfig) -> Look:
    first = paths[0]
    encodings = ["utf-8", "cp1252"]
    for encoding in encodings:
        try:
            with open_text(first, encoding) as file:
                lines = TextLines(first, file, config.csv.comment)
                head = Header(first, lines, config)
                faults = _faults(first, head, lines)
            break
        except UnicodeError as error:
            if encoding == encodings[-1]:
                raise not_text(first, error) from error
        except OSError as error:
            raise DataError(f"{first}: cannot be read: {error.strerror}") from error
        except csv.Error as error:
            raise DataError(f"{first}: {error}") from error
    rows = [split(line, head.separator) for line in head.sample]
    rows = [row for row in rows if len(row) == len(head.titles)]
    every = range(len(head.titles))
    numbers = Numbers()
    try:
        if head.separator == ",":  # where numbers with a comma stand in quotes
            decimal = decimal_of(first, config.csv, [cell for row in rows for cell in row])
        else:
            decimal = find_decimal(first, config.csv, head.separator, head.sample, every)
        numbers.decimal = decimal
    except DataError as error:  # 1,234: a person has to say what it is
        decimal, numbers = ".", Numbers(".", ",")
        faults.append(str(error))
    settings = describing(config.csv, head.separator, decimal)
    if encoding != encodings[0]:
        settings["encoding"] = encoding
    columns = tuple(
        _column(title, [row[place] for row in rows], numbers)
        for place, title in enumerate(head.titles)
    )
    found = Look(path, config, settings, columns, files=len(paths))
    return replace(found, rows=len(rows), faults=tuple(faults))


def _faults(path: Path, head: Header, lines: TextLines) -> list[str]:
    """Returns what is wrong with the lines of a file; all of them are looked at."""
    if not head.sample:
        return [f"{path}: has a header and no rows yet"]
    width = len(head.titles)
    for line, number in chain(
        zip(head.sample, head.numbers, strict=True), ((line, lines.number) for line in lines)
    ):
        if '"' in line:  # what is in quotes may go on in the next line
            break
        cells = line.count(head.separator) + 1
        if cells != width and line[-1] in "\r\n":  # a torn last line is left out
            return [
                f"{path}: line {number}: {cells} cells, the header has {width}: torn, or two files "
                "in one? Mend or delete the line"
            ]
    return []


def _database(path: str, file: Path, config: DataConfig) -> Look:
    import sqlite3

    from edge_agent.data.formats.sqlite import opened, select_all, table_names

    with closing(opened(file)) as database:
        try:
            tables = table_names(database)
            if not tables:
                raise DataError(f"{file}: there is no table in it")
            counts = {
                name: database.execute(f"SELECT count(*) FROM ({select_all(name)})").fetchone()[0]  # noqa: S608
                for name in tables
            }
            chosen = config.table or max(tables, key=lambda name: counts[name])
            cursor = database.execute(f"{select_all(chosen)} LIMIT {LOOKED_AT}")
            titles = [column[0] for column in cursor.description]
            rows = cursor.fetchall()
        except (sqlite3.Error, sqlite3.Warning, UnicodeDecodeError) as error:
            raise DataError(f"{file}: {error}") from error
    config = DataConfig(path=path, table=chosen if len(tables) > 1 else "")
    columns = tuple(
        _column(title, [row[place] for row in rows], Numbers())
        for place, title in enumerate(titles)
    )
    faults = () if rows else (f"{file}: the table {chosen} has no rows yet",)
    found = Look(path, config, columns=columns, tables=tuple(tables))
    return replace(found, rows=len(rows), faults=faults)


def _column(name: str, cells: Sequence[Any], numbers: Numbers) -> Column:
    changes = sum(one != next_one for one, next_one in pairwise(cells))
    return replace(_kind_of(name, cells, numbers), changes=changes)


def _kind_of(name: str, cells: Sequence[Any], numbers: Numbers) -> Column:
    present = [cell for cell in cells if cell is not None and _is_present(cell)]
    missing = len(cells) - len(present)
    texts = tuple(dict.fromkeys(str(cell).strip() for cell in present))[:_VALUES]
    if not present:
        return Column(name, "empty", missing=missing)
    values = [_number(cell, numbers) for cell in present]
    if not any(map(isnan, values)):
        is_time = _is_called_time(name) and _EPOCHS[0] <= min(values) <= max(values) <= _EPOCHS[1]
        if is_time and (times := _seconds(present, "auto")):
            return Column(name, "time", texts, missing, apart_s=_apart(times))
        return Column(name, "number", texts, missing)
    for form in ("auto", *_SLASHES):
        if times := _seconds(present, form):
            others = [one for one in _SLASHES if one != form and _seconds(present, one)]
            told, other = "" if form == "auto" else form, "".join(others[:1])
            return Column(name, "time", texts, missing, told, other, _apart(times))
    words = tuple(dict.fromkeys(text for text, v in zip(present, values, strict=True) if isnan(v)))
    if len(words) <= _WORDS and sum(map(isnan, values)) < len(values) / 2:
        numeric = tuple(text for text in texts if text not in words)
        return Column(name, "number", numeric, missing, words=tuple(map(str, words)))
    return Column(name, "text", texts, missing)


def _is_present(cell: Any) -> bool:
    return str(cell).strip().lower() not in ABSENT


def _number(cell: Any, numbers: Numbers) -> float:
    with suppress(ValueError, OverflowError):
        return numbers.parse(cell)
    return float("nan")


def _seconds(cells: Sequence[Any], form: str) -> list[float]:
    """Returns seconds since 1970 of cells; empty: they are no times of this form."""
    times = Times(TimeConfig(column="t", format=form))
    try:
        return [times.seconds(cell) for cell in cells]
    except (ValueError, OverflowError, TypeError):
        return []


def _apart(times: Sequence[float]) -> float:
    """Returns the median of the seconds between two times; rounded, as clocks jitter."""
    apart = [after - before for before, after in pairwise(times) if after > before]
    return float(f"{median(apart):.3g}") if apart else 0.0


def _is_called_time(name: str) -> bool:
    lower = name.lower()
    parts = set(re.findall(r"[^\W\d_]+", lower))
    return bool(parts & _TIME_PARTS) or any(word in lower for word in _TIME_WORDS)
