"""Block: some rows of a data file, whatever its format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edge_agent.data.formats.cells import Numbers
from fedge.errors import DataError
from learning.vector.parameters import F64


@dataclass(frozen=True, eq=False)
class Layout:
    """Layout of a file: its columns, and how its cells are to be understood.

    Attributes:
        path: of the file, for messages.
        titles: of its columns.
        numbers: parser of its numbers.
    """

    path: Path
    titles: Sequence[str]
    numbers: Numbers


class Block(Protocol):
    """Some rows of a file."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def lines(self) -> Sequence[int]:
        """Line or number of each row in the file."""

    @property
    def unit(self) -> str:
        """Word for what `lines` counts: "line" or "row"."""

    def cells(self, position: int) -> Sequence[Any]:
        """Returns what is written in a column, one item a row."""

    def numbers(self, positions: Sequence[int]) -> F64 | None:
        """Returns columns, shape (rows, columns); None: some cell is no plain number."""


class CellError(DataError):
    """A cell that cannot be used.

    Attributes:
        row: of the block, from 0.
        is_unread: whether its text was not understood, as of a line that was cut off.
    """

    def __init__(self, block: Block, row: int, what: str, *, is_unread: bool = False) -> None:
        super().__init__(f"{block.path}: {block.unit} {block.lines[row]}, {what}")
        self.row = row
        self.is_unread = is_unread
