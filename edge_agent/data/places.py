"""Places: where a row stands in its file, for messages, at a few bytes a file."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Places:
    """File and line of each row.

    Lines follow each other but for blanks, comments and records of several lines, so only their
    jumps are kept.

    Args:
        unit: what is counted from 1: "line" or "row".
    """

    def __init__(self, unit: str = "line") -> None:
        self._unit = unit
        self._rows = 0
        self._starts = array("q")
        self._shifts = array("q")
        self._files: list[tuple[int, Path]] = []

    def begin(self, path: Path) -> None:
        """Says that the rows that follow are of this file."""
        self._files.append((self._rows, path))

    def extend(self, lines: Sequence[int] | NDArray[Any]) -> None:
        """Adds rows that end in these lines."""
        shifts = np.asarray(lines, np.int64) - np.arange(self._rows, self._rows + len(lines))
        jumps = np.flatnonzero(np.diff(shifts, prepend=self._shifts[-1] if self._shifts else -1))
        self._starts.extend((jumps + self._rows).tolist())
        self._shifts.extend(shifts[jumps].tolist())
        self._rows += len(lines)

    def line(self, row: int) -> int:
        """Returns the line in which a row ends."""
        found = bisect_right(self._starts, row) - 1
        return row + (self._shifts[found] if found >= 0 else -1)

    def path(self, row: int) -> Path:
        """Returns the file of a row."""
        found = bisect_right(self._files, row, key=lambda file: file[0]) - 1
        return self._files[found][1]

    def name(self, row: int) -> str:
        """Returns the place of a row for people: `data.csv: line 7`."""
        return f"{self.path(row)}: {self._unit} {self.line(row)}"
