"""Reader of .csv files: a header, one row of numbers per line.

Lines are read some thousand at a time. Where they hold nothing but numbers in the columns that are
asked for, numpy reads them; what it does not take goes cell by cell.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from edge_agent.data.config import DataConfig
from edge_agent.data.files import Progress
from edge_agent.data.formats.block import CellError, Layout
from edge_agent.data.formats.cells import Numbers
from edge_agent.data.formats.collect import Collector, no_rows
from edge_agent.data.formats.dialect import (
    describing,
    find_decimal,
    find_separator,
    separator_line,
    split,
)
from edge_agent.data.formats.text_lines import TextLines, not_text, open_text
from edge_agent.data.read_options import ReadOptions
from edge_agent.data.table import Table
from fedge.errors import DataError
from fedge.yaml_config import as_yaml
from learning.vector.parameters import F64

log = logging.getLogger(__name__)

#: Lines read at a time: half a megabyte of text.
_BLOCK = 4096
#: Lines by which separator and decimal sign are found.
_SAMPLE = 1000


def read_csv(paths: Sequence[Path], options: ReadOptions) -> Table:
    """Reads the columns that the spec needs.

    Args:
        paths: files of the same columns, in their order.
        options: of reading.

    Raises:
        OutOfOrderError: windows cannot be cut while reading.
        DataError: not such a file, a column is missing, or a cell is no number (names file, line,
            column and value).
    """
    collector = Collector(options)
    progress = Progress(options.path, paths)
    for path in paths:
        read_file(path, options.config, collector, progress)
    return collector.table()


def read_file(path: Path, config: DataConfig, collector: Collector, progress: Progress) -> None:
    """Reads one file into a collector; see `read_csv`."""
    try:
        with open_text(path, config.csv.encoding) as file:
            lines = TextLines(path, file, config.csv.comment)
            reader = _Reader(path, lines, config, collector)
            for rows in reader.blocks():
                progress.read(path, file.buffer.tell(), rows)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeError as error:
        raise not_text(path, error) from error
    except csv.Error as error:
        raise DataError(f"{path}: line {lines.number}: {error}") from error


class Header:
    """Titles and first lines of a .csv file.

    Args:
        path: of the file.
        lines: of the file, from its start.
        config: of the data.

    Raises:
        DataError: the file is empty.

    Attributes:
        titles: of the columns.
        separator: of the file.
        sample: lines behind the header, which have been read from `lines`.
        numbers: of the lines in the sample.
        is_whole: whether the last line of the sample ended as lines end.
        comment: the comment that is the header; empty: it is the first line.
    """

    def __init__(self, path: Path, lines: TextLines, config: DataConfig) -> None:
        first = next(lines, "")
        named = separator_line(first)
        if named:
            first = next(lines, "")
        if not first:
            raise no_rows(path)
        number = lines.number
        self.sample, self.numbers = lines.block(_SAMPLE)
        self.is_whole = lines.is_whole
        self.separator = find_separator(config.csv, first, self.sample, named)
        self.titles = [title.strip() for title in split(first, self.separator)]
        self.comment = self._commented(lines.comments, config)
        if self.comment:
            self.sample.insert(0, first)
            self.numbers.insert(0, number)
            self.titles = [title.strip() for title in split(self.comment, self.separator)]

    def _commented(self, comments: Sequence[str], config: DataConfig) -> str:
        """Returns the comment above rows that have no other header: `# time,temperature`."""
        if not comments or not all(map(_is_number, self.titles)):
            return ""
        found = comments[-1][len(config.csv.comment) :].strip()
        return found if len(split(found, self.separator)) == len(self.titles) else ""


class _Reader:
    """Reader of the rows of one file."""

    def __init__(
        self, path: Path, lines: TextLines, config: DataConfig, collector: Collector
    ) -> None:
        self._path = path
        self._lines = lines
        self._collector = collector
        head = Header(path, lines, config)
        self._head = head
        self._separator = head.separator
        self._width = len(head.titles)
        self._numbers = Numbers(".", config.csv.thousands, config.csv.missing)
        self._plain = collector.open(Layout(path, head.titles, self._numbers))
        self._numbers.decimal = find_decimal(
            path, config.csv, head.separator, head.sample, self._plain
        )
        self._say(config)

    def _say(self, config: DataConfig) -> None:
        found = describing(config.csv, self._separator, self._numbers.decimal)
        if found:
            self._note(f"read with `{as_yaml({'csv': found})}`, found by looking")
        if self._head.comment:
            self._note(f"header taken from the comment {self._head.comment[:60]!r}")

    def _note(self, note: str) -> None:
        if note not in self._collector.notes:
            self._collector.notes.append(note)
            log.info("%s: %s", self._path, note, extra={"event": "data_format"})

    def blocks(self) -> Iterator[int]:
        """Reads all rows; yields after each block how many there are by now."""
        lines, numbers, whole = self._head.sample, self._head.numbers, self._head.is_whole
        while lines:
            if any('"' in line for line in lines):
                self._quoted(lines, numbers)
            else:
                self._plain_lines(lines, numbers, is_whole=whole)
            yield self._collector.rows
            lines, numbers = self._lines.block(_BLOCK)
            whole = self._lines.is_whole

    def _plain_lines(self, lines: list[str], numbers: list[int], *, is_whole: bool) -> None:
        commas = self._width - 1
        separator = self._separator
        for row, line in enumerate(lines):
            if line.count(separator) != commas:
                if row == len(lines) - 1 and not is_whole:
                    self._torn(numbers[row])
                    del lines[row], numbers[row]
                    break
                raise self._wrong_width(numbers[row], line.count(separator) + 1)
        block = LinesBlock(self._path, numbers, lines, self._separator, self._numbers, self._plain)
        self._add(block, is_whole=is_whole)

    def _quoted(self, lines: list[str], numbers: list[int]) -> None:
        """Reads lines with quotes: a record may go on in lines beyond the block."""
        places = chain(numbers, iter(lambda: self._lines.number, None))
        current = 0

        def feed() -> Iterator[str]:
            nonlocal current
            for line in chain(lines, self._lines):
                current = next(places)
                yield line

        reader = csv.reader(feed(), delimiter=self._separator, strict=True)
        records: list[list[str]] = []
        ends: list[int] = []
        try:
            while reader.line_num < len(lines) and (record := next(reader, None)) is not None:
                records.append(record)
                ends.append(current)
        except csv.Error as error:
            if self._lines.is_whole:
                raise DataError(f"{self._path}: line {current}: {error}") from error
            self._torn(current)
        is_whole = self._lines.is_whole
        for row, record in enumerate(records):
            if len(record) != self._width:
                if row == len(records) - 1 and not is_whole:
                    self._torn(ends[row])
                    del records[row], ends[row]
                    break
                raise self._wrong_width(ends[row], len(record))
        self._add(RecordsBlock(self._path, ends, records), is_whole=is_whole)

    def _add(self, block: LinesBlock | RecordsBlock, *, is_whole: bool) -> None:
        if not block.lines:
            return
        try:
            self._collector.add(block)
        except CellError as error:
            last = len(block.lines) - 1
            if is_whole or not error.is_unread or error.row != last:
                raise
            self._torn(block.lines[last])
            self._add(block.without_last(), is_whole=True)

    def _torn(self, line: int) -> None:
        self._collector.notes.append(f"line {line}, the last, is torn: left out")
        log.warning(
            "%s: line %d, the last, is torn: left out", self._path, line,
            extra={"event": "torn_lines", "lines": 1},
        )  # fmt: skip

    def _wrong_width(self, line: int, cells: int) -> DataError:
        return DataError(f"{self._path}: line {line}: {cells} cells, the header has {self._width}")


class LinesBlock:
    """Block of lines without quotes."""

    unit = "line"

    def __init__(
        self,
        path: Path,
        numbers: list[int],
        lines: list[str],
        separator: str,
        parser: Numbers,
        plain: Sequence[int],
    ) -> None:
        self.path = path
        self.lines: Sequence[int] = numbers
        self._texts = lines
        self._separator = separator
        self._parser = parser
        self._plain = plain
        self._matrix: F64 | None = None
        self._tried = False
        self._rows: list[list[str]] | None = None

    def without_last(self) -> LinesBlock:
        """Returns the block without its last line."""
        return LinesBlock(
            self.path,
            list(self.lines[:-1]),
            self._texts[:-1],
            self._separator,
            self._parser,
            self._plain,
        )

    def cells(self, position: int) -> list[str]:
        """See `Block`."""
        if self._rows is None:
            separator = self._separator
            self._rows = [line.rstrip("\r\n").split(separator) for line in self._texts]
        return [row[position] for row in self._rows]

    def numbers(self, positions: Sequence[int]) -> F64 | None:
        """See `Block`."""
        if not self._tried:
            self._tried = True
            self._matrix = self._loaded()
        if self._matrix is None:
            return None
        return self._matrix[:, [self._plain.index(position) for position in positions]]

    def _loaded(self) -> F64 | None:
        if self._parser.thousands:
            return None
        texts = self._texts
        if self._parser.decimal == ",":
            texts = [line.replace(",", ".") for line in texts]
        try:
            matrix: F64 = np.loadtxt(
                texts, delimiter=self._separator, usecols=self._plain, comments=None, ndmin=2
            )
        except ValueError:
            return None  # a cell that is no plain number: which, the caller finds out
        for number in self._parser.absent_numbers:
            matrix[matrix == number] = np.nan
        return matrix


class RecordsBlock:
    """Block of records, of which some have quotes."""

    unit = "line"

    def __init__(self, path: Path, lines: list[int], records: list[list[str]]) -> None:
        self.path = path
        self.lines: Sequence[int] = lines
        self._records = records

    def without_last(self) -> RecordsBlock:
        """Returns the block without its last record."""
        return RecordsBlock(self.path, list(self.lines[:-1]), self._records[:-1])

    def cells(self, position: int) -> list[str]:
        """See `Block`."""
        return [record[position] for record in self._records]

    def numbers(self, positions: Sequence[int]) -> F64 | None:
        """See `Block`."""
        return None


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", "."))
    except ValueError:
        return False
    return True
