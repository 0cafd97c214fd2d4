"""Backups of a coordinator's store: one file, whole at any moment, and the way back."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from coordinator.storage.folder import MARK_FILE, leave_note, strangers
from coordinator.storage.store import Store
from fedge.errors import ConfigError
from fedge.files import PRIVATE, sync_folder
from models.package.stored_versions import STORE_FILE

_COPIED_AT_ONCE = 1 << 20


def back_up(state_dir: Path, path: Path) -> int:
    """Writes a store into one file, whole or not at all; the coordinator may be running.

    Without the open round, whose updates count only where they are, and without orders.

    Args:
        state_dir: with the store.
        path: of the file, which must not exist.

    Returns:
        Its bytes.

    Raises:
        ConfigError: there is no store, or the file exists or cannot be written.
    """
    if path.exists():
        raise ConfigError(f"{path} exists: name a file that does not")
    partial = path.with_name(f".{path.name}.partial")
    with _partial(partial):
        with closing(Store.open_existing(state_dir)) as store:
            store.copy_into(partial)
        with closing(sqlite3.connect(partial, isolation_level=None)) as copy:
            copy.execute("DELETE FROM open_round")
            copy.execute("DELETE FROM orders")
            copy.execute(
                "INSERT OR REPLACE INTO meta VALUES ('backup_at', ?)", (str(int(time.time())),)
            )
            copy.execute("VACUUM")
        partial.chmod(PRIVATE)
        _put(partial, path)
    return path.stat().st_size


def copy_back(path: Path, state_dir: Path) -> None:
    """Puts a backup's file into an empty state folder.

    Raises:
        ConfigError: the folder has a store or other files, or the file is no whole store.
    """
    target = state_dir / STORE_FILE
    if target.exists():
        raise ConfigError(
            f"{state_dir} has a store: name an empty state_dir, or move the folder away"
        )
    if found := strangers(state_dir):
        raise ConfigError(
            f"{state_dir} is not empty ({found}): name an empty state_dir, or move them away"
        )
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    partial = target.with_name(f".{target.name}.partial")
    with _partial(partial):
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE)
        with os.fdopen(descriptor, "wb") as copy, path.open("rb") as file:
            while piece := file.read(_COPIED_AT_ONCE):
                copy.write(piece)
        _check_whole(partial, path)
        for ending in ("-wal", "-shm"):  # of a store that somebody deleted in part
            target.with_name(target.name + ending).unlink(missing_ok=True)
        target.with_name(MARK_FILE).unlink(missing_ok=True)
        _put(partial, target)
        leave_note(target)


def _check_whole(copy: Path, path: Path) -> None:
    try:
        with closing(sqlite3.connect(copy)) as db:
            (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
            meta = dict(db.execute("SELECT key, value FROM meta").fetchall())
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no backup of a coordinator: {error}") from error
    if found != "ok":
        raise ConfigError(f"{path} is damaged: {found.splitlines()[0]}; take another backup")
    if "backup_at" not in meta:
        raise ConfigError(
            f"{path} was not made by `fedge coordinator backup`: a copied {STORE_FILE} lacks what "
            "is in the file -wal beside it"
        )


@contextlib.contextmanager
def _partial(partial: Path) -> Iterator[None]:
    """Removes a partial file where something fails, and names the failure."""
    try:
        partial.unlink(missing_ok=True)
        yield
    except OSError as error:
        raise ConfigError(f"{error.filename or partial}: {error.strerror}") from error
    except sqlite3.Error as error:
        raise ConfigError(f"{partial.parent} cannot take the copy: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _put(partial: Path, path: Path) -> None:
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)
    sync_folder(path.parent)
