"""Database: one SQLite file of the coordinator, its transactions and its errors.

Write-ahead logging with full synchronisation: a commit that returned survives a power cut, and
readers (`fedge coordinator status`) never wait for the writer.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from fedge.errors import ConfigError, StoreError
from fedge.files import touch_private

T = TypeVar("T")

#: Of a damaged file sqlite's own message may quote bytes that are no text.
_SQL_ERRORS = (sqlite3.Error, UnicodeDecodeError)


class Database:
    """One file. Used from one thread.

    Args:
        folder: made when absent; None keeps everything in memory.
        name: of the file.
        schema: SQL statements that make its tables; one of them is `meta (key, value)`.
        version: of the format.
        erase: overwrite what is deleted.

    Raises:
        ConfigError: the folder cannot be written, or the file is none of this format.
    """

    def __init__(
        self, folder: Path | None, name: str, schema: str, version: str, *, erase: bool = False
    ) -> None:
        self.path = Path(":memory:") if folder is None else folder / name
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                touch_private(self.path)  # what updates reveal is not for all
            self._db = sqlite3.connect(self.path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            # Many builds overwrite what is deleted, always: a third of all that is written.
            self._db.execute(f"PRAGMA secure_delete = {'ON' if erase else 'FAST'}")
            self._file_id = self._found_file()
            self._create(schema, version)
            self._data_version = self._read("PRAGMA data_version")[0][0]
        except (OSError, sqlite3.OperationalError, StoreError) as error:
            raise ConfigError(f"state_dir {folder} cannot be used: {error}") from error
        except _SQL_ERRORS as error:
            raise self._damaged("it", error) from error

    def close(self) -> None:
        """Release the file."""
        self._db.close()

    def meta(self, key: str) -> str | None:
        """A fact about the store: federation, model, fingerprint, finished."""
        rows = self._read("SELECT value FROM meta WHERE key = ?", key)
        return str(rows[0][0]) if rows else None

    def _add(self, statement: str, *values: object) -> None:
        try:
            if not self._db.in_transaction:
                self._db.execute("BEGIN IMMEDIATE")
            self._db.execute(statement, values)
        except _SQL_ERRORS as error:
            raise self._failed(error) from error

    def flush(self) -> None:
        """Writes what was added to disk; it is there when this returns."""
        self.check_place()
        self._commit_added()

    def check_place(self) -> None:
        """Raises StoreError when the file was deleted or replaced: all writes would be lost."""
        if self._file_id is not None and self._found_file() != self._file_id:
            raise StoreError(
                f"{self.path} was deleted or replaced while this process wrote to it: put the "
                "folder back, or a backup with `fedge coordinator restore FILE`, and start again"
            )

    def copy_into(self, path: Path) -> None:
        """Writes the content of this moment into a new file, while others write to this one.

        Raises:
            sqlite3.Error: it cannot be written.
        """
        self._db.execute("VACUUM INTO ?", (str(path),))

    def changed_elsewhere(self) -> bool:
        """Returns whether another process wrote to the file since this was last asked."""
        (number,) = self._read("PRAGMA data_version")[0]
        before, self._data_version = self._data_version, number
        return bool(number != before)

    def _checkpoint(self) -> None:
        """Moves what is in the write-ahead log into the file, as far as no reader needs it."""
        with contextlib.suppress(sqlite3.Error):  # the next one will
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def _found_file(self) -> tuple[int, int] | None:
        """Returns what tells the file at the path from others; None in memory."""
        if str(self.path) == ":memory:":
            return None
        try:
            found = self.path.stat()
        except OSError:
            return (0, 0)
        return found.st_dev, found.st_ino

    def _commit_added(self) -> None:
        if self._db.in_transaction:
            try:
                self._db.execute("COMMIT")
            except _SQL_ERRORS as error:
                raise self._failed(error) from error

    def lose_unflushed(self) -> None:
        """Drops what was added since the last `flush`, as a power cut does; for simulations."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def _read(self, query: str, *values: object) -> list[Any]:
        return list(self._rows(query, *values))

    def _rows(self, query: str, *values: object) -> Iterator[Any]:
        try:
            for row in self._db.execute(query, values):  # noqa: UP028  it would close the cursor
                yield row
        except _SQL_ERRORS as error:
            raise self._damaged("it", error) from error

    def _create(self, schema: str, version: str) -> None:
        if not self._read("SELECT name FROM sqlite_master WHERE type = 'table'"):
            with self._transaction() as db:
                for statement in filter(str.strip, schema.split(";")):
                    db.execute(statement)
                db.execute("INSERT INTO meta VALUES ('format', ?)", (version,))
        if (found := self.meta("format")) != version:
            raise ConfigError(f"{self.path} has format {found}, this version reads {version}")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            self.check_place()
            self._commit_added()
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except _SQL_ERRORS as error:
            raise self._failed(error) from error

    def _decoded(self, what: str, text: Any, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(text, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError) as error:
            # TypeError: a flipped bit made a number of it.
            raise self._damaged(what, error) from error

    def _damaged(self, what: str, error: object) -> ConfigError:
        # Nothing is set aside unasked: a federation that quietly began anew would lose its rounds.
        return ConfigError(
            f"{self.path}: {what} is damaged: {error}; move the folder away, "
            "then put a backup in its place (`fedge coordinator restore FILE`) or begin anew"
        )

    def _failed(self, error: Exception) -> StoreError:
        return StoreError(
            f"{self.path}: {error}; what was confirmed is safe: mend the disk and start again"
        )
