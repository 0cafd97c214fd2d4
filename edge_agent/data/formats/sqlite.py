"""Reader of SQLite files: a table or a query, opened for reading only."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from edge_agent.data.config import DataConfig
from edge_agent.data.files import Progress
from edge_agent.data.formats.block import Layout
from edge_agent.data.formats.cells import Numbers
from edge_agent.data.formats.collect import Collector
from edge_agent.data.read_options import ReadOptions
from edge_agent.data.table import Table, unknown_name
from fedge.errors import DataError
from fedge.yaml_config import as_yaml
from learning.vector.parameters import F64

_BLOCK = 4096
#: Of another process that writes the file.
_BUSY_S = 10.0


def read_sqlite(options: ReadOptions) -> Table:
    """Reads the columns that the spec needs.

    Args:
        options: of reading; `table` or `query` of the data says which rows.

    Raises:
        OutOfOrderError: windows cannot be cut while reading.
        DataError: not such a file or table, a column is missing, or a value is no number.
    """
    path, config = options.path, options.config
    collector = Collector(options, unit="row")
    progress = Progress(path, [path])
    with closing(opened(path)) as database:
        try:
            cursor = database.execute(_query(path, config, database))
            titles = [column[0] for column in cursor.description or ()]
            collector.open(Layout(path, titles, Numbers()))
            for block in _blocks(path, cursor):
                collector.add(block)
                progress.read(path, None, collector.rows)
        except (sqlite3.Error, sqlite3.Warning, UnicodeDecodeError) as error:
            raise DataError(f"{path}: {error}") from error
    return collector.table()


def opened(path: Path) -> sqlite3.Connection:
    """Opens a file that is not changed, whatever a query says.

    Raises:
        DataError: there is no such file.
    """
    try:
        with path.open("rb"):
            pass
        address = f"file:{quote(str(path.absolute()))}?mode=ro"
        database = sqlite3.connect(address, uri=True, timeout=_BUSY_S)
        database.text_factory = lambda text: text.decode(errors="replace")
        return database
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except sqlite3.Error as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def table_names(database: sqlite3.Connection) -> list[str]:
    """Returns the names of tables and views.

    Raises:
        sqlite3.Error: not such a file.
    """
    found = database.execute(
        "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') "
        "AND name NOT LIKE 'sqlite_%' ORDER BY name"
    )
    return [str(name) for (name,) in found]


def select_all(table: str) -> str:
    """Returns the query for all rows of a table, in the order in which they were added."""
    name = table.replace('"', '""')
    return f'SELECT * FROM "{name}"'  # noqa: S608  quoted


def _query(path: Path, config: DataConfig, database: sqlite3.Connection) -> str:
    if config.query:
        return config.query
    names = table_names(database)
    if not config.table:
        if len(names) == 1:
            return select_all(names[0])
        which = as_yaml({"table": names[0] if names else "NAME"})
        raise DataError(
            f"{path}: which table? Write `{which}` into data; tables: {', '.join(names) or 'none'}"
        )
    if config.table not in names:
        raise unknown_name(path, "table", config.table, names)
    return select_all(config.table)


def _blocks(path: Path, cursor: sqlite3.Cursor) -> Iterator[RowsBlock]:
    first = 1
    while rows := cursor.fetchmany(_BLOCK):
        yield RowsBlock(path, range(first, first + len(rows)), rows)
        first += len(rows)


class RowsBlock:
    """Block of rows of a query."""

    unit = "row"

    def __init__(self, path: Path, lines: Sequence[int], rows: list[tuple[Any, ...]]) -> None:
        self.path = path
        self.lines = lines
        self._rows = rows

    def cells(self, position: int) -> list[Any]:
        """See `Block`."""
        return [row[position] for row in self._rows]

    def numbers(self, positions: Sequence[int]) -> F64 | None:
        """See `Block`."""
        columns = []
        for position in positions:
            cells = self.cells(position)
            if not all(type(cell) is float or type(cell) is int for cell in cells):
                return None
            columns.append(np.array(cells, np.float64))
        return np.stack(columns, 1)
