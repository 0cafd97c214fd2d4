"""Lines of a text file as loggers leave them: comments, and what a power cut does to the end."""

from __future__ import annotations

import logging
import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TextIO

from fedge.console import counted
from fedge.errors import DataError

log = logging.getLogger(__name__)

#: No row of sensor readings is longer; without a limit one line could fill the memory.
MAX_LINE_CHARS = 1 << 20
#: What a spreadsheet writes for an error is no comment.
_SPREADSHEET_ERROR = re.compile(r"#(N/A|NA|NULL!|NUM!|VALUE!|DIV/0!|REF!|NAME\?)", re.IGNORECASE)
#: Comments that may hold the header.
_KEPT_COMMENTS = 20


class TextLines:
    """Iterator of the lines of a text file that hold something, with their numbers.

    Args:
        path: of the file, for messages.
        file: open, without translation of line ends.
        comment: lines that begin with it are passed over; empty: none.

    Attributes:
        number: of the line that was read last, from 1.
        is_whole: whether that line ended as lines end; the last one of a file may be torn.
        comments: the latest comments before the first line.
    """

    def __init__(self, path: Path, file: TextIO, comment: str) -> None:
        self._path = path
        self._file = file
        self._comment = comment
        self.number = 0
        self.is_whole = True
        self.comments: list[str] = []
        self._begun = False
        self._nuls = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        """Returns the next line.

        Raises:
            DataError: a line is too long.
        """
        while line := self._file.readline(MAX_LINE_CHARS):
            self.number += 1
            if "\0" in line:
                self._pass_over(line)
                continue
            if len(line) == MAX_LINE_CHARS:
                raise DataError(
                    f"{self._path}: line {self.number}: longer than {MAX_LINE_CHARS} characters"
                )
            if self._comment and line.startswith(self._comment) and self._is_comment(line):
                continue
            if line.isspace():
                continue
            self._begun = True
            self.is_whole = line[-1] in "\r\n"
            return line
        if self._nuls:
            log.warning(
                "%s: %s with NUL bytes left out, as a power cut leaves them",
                self._path, counted(self._nuls, "line"),
                extra={"event": "torn_lines", "lines": self._nuls},
            )  # fmt: skip
            self._nuls = 0
        raise StopIteration

    def block(self, rows: int) -> tuple[list[str], list[int]]:
        """Returns the next lines and their numbers, at most so many."""
        lines, numbers = [], []
        for line in islice(self, rows):
            lines.append(line)
            numbers.append(self.number)
        return lines, numbers

    def _pass_over(self, line: str) -> None:
        """Counts a line that a power cut has damaged; reads a long run of NULs to its end."""
        self._nuls += 1
        while len(line) == MAX_LINE_CHARS and line[-1] == "\0":
            line = self._file.readline(MAX_LINE_CHARS)

    def _is_comment(self, line: str) -> bool:
        if _SPREADSHEET_ERROR.match(line):
            return False
        if not self._begun:
            self.comments = [*self.comments[1 - _KEPT_COMMENTS :], line]
        return True


def open_text(path: Path, encoding: str) -> TextIO:
    """Opens a text file; a byte order mark goes before the encoding.

    Raises:
        OSError: it cannot be opened.
    """
    with path.open("rb") as file:
        mark = file.read(3)
    if mark.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        encoding = "utf-16"
    elif mark == BOM_UTF8 or encoding.lower() in ("utf-8", "utf8"):
        encoding = "utf-8-sig"  # spreadsheets begin their exports with a byte order mark
    return path.open(encoding=encoding, newline="")


def not_text(path: Path, error: UnicodeError) -> DataError:
    """Returns the error for bytes that are no text of the expected encoding."""
    reason = error.reason if isinstance(error, UnicodeDecodeError) else "damaged"
    return DataError(
        f"{path}: not UTF-8 text ({reason}); export it as UTF-8, or name its encoding: "
        f"`csv: {{encoding: cp1252}}` in data reads what Windows in western Europe writes"
    )
