"""Dialect of a .csv file: separator and decimal sign, found in its first lines where not given."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from edge_agent.data.file_settings import CsvConfig
from edge_agent.data.formats.cells import ABSENT
from fedge.errors import DataError

_SEPARATORS = (",", ";", "\t", "|")
_NAMES = {"\t": "tab"}
_SEP_LINE = re.compile(r"\s*\"?sep=(.)\"?\s*", re.IGNORECASE)
_COMMA = re.compile(r"[-+]?\d+,\d+([eE][-+]?\d+)?")
_POINT = re.compile(r"[-+]?\d*\.\d+([eE][-+]?\d+)?")
#: A comma with three digits behind it, or several of them: 1,234 may be 1.234 or 1234.
_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2}(,\d{3})+")
#: So many cells that all have three digits behind a comma have them as decimals.
_FEW_CELLS = 20


def separator_line(line: str) -> str:
    """Returns the separator that a first line `sep=;` names (Excel); empty: it is no such line."""
    match = _SEP_LINE.fullmatch(line)
    return match[1] if match else ""


def find_separator(config: CsvConfig, header: str, sample: Sequence[str], named: str = "") -> str:
    """Returns the separator of a file.

    Args:
        config: what is given.
        header: the line of titles.
        sample: the first lines behind it.
        named: the separator that the file names itself; empty: it does not.
    """
    if config.separator != "auto":
        return "\t" if config.separator == "tab" else config.separator
    return named or _separator(header, sample)


def find_decimal(
    path: Path, config: CsvConfig, separator: str, sample: Sequence[str], columns: Sequence[int]
) -> str:
    """Returns the decimal sign of a file, "." or ",".

    Args:
        path: for messages.
        config: what is given.
        separator: of the file.
        sample: its first lines.
        columns: places of those that hold numbers.

    Raises:
        DataError: it cannot be told; says what to write.
    """
    if config.decimal != "auto":
        return config.decimal
    if separator == "," or config.thousands == ",":
        return "."
    rows = [split(line, separator) for line in sample]
    return decimal_of(path, config, [row[at] for row in rows for at in columns if at < len(row)])


def decimal_of(path: Path, config: CsvConfig, found: Sequence[str]) -> str:
    """Returns the decimal sign of cells, of which some are numbers; see `find_decimal`."""
    cells = [cell.strip() for cell in found]
    cells = [cell for cell in cells if cell.lower() not in ABSENT]
    if config.thousands:
        cells = [cell.replace(config.thousands, "") for cell in cells]
    commas = [cell for cell in cells if _COMMA.fullmatch(cell)]
    grouped = [cell for cell in commas if _THOUSANDS.fullmatch(cell)]
    points = [cell for cell in cells if _POINT.fullmatch(cell)]
    if not commas:
        return "."
    if points:
        raise _unclear(path, f"both {commas[0]} and {points[0]}")
    # Numbers of a fixed three decimals all have a comma; of thousands the small ones have none.
    is_fixed = len(cells) >= _FEW_CELLS and len(commas) == len(cells)
    if len(grouped) == len(commas) and not config.thousands and not is_fixed:
        raise _unclear(path, f"{grouped[0]}, which may be a decimal number or thousands")
    return ","


def describing(config: CsvConfig, separator: str, decimal: str) -> dict[str, str]:
    """Returns the settings that were found and are not the usual ones."""
    found = {}
    if config.separator == "auto" and separator != ",":
        found["separator"] = _NAMES.get(separator, separator)
    if config.decimal == "auto" and decimal != ".":
        found["decimal"] = decimal
    return found


def split(line: str, separator: str) -> list[str]:
    """Returns the cells of one line; what quotes leave open ends with the line."""
    if '"' not in line:
        return line.rstrip("\r\n").split(separator)
    return next(csv.reader([line], delimiter=separator), [])


def _separator(header: str, sample: Sequence[str]) -> str:
    """Returns the separator that gives the most lines as many cells as the header has."""

    def score(separator: str) -> tuple[int, int]:
        cells = len(split(header, separator))
        if cells == 1:
            return 0, 0
        return sum(len(split(line, separator)) == cells for line in sample) + 1, cells

    best = max(_SEPARATORS, key=score)
    return best if score(best)[0] else ","


def _unclear(path: Path, what: str) -> DataError:
    return DataError(
        f'{path}: has {what}: write `csv: {{decimal: ","}}` or '
        '`csv: {decimal: ".", thousands: ","}` into data'
    )
