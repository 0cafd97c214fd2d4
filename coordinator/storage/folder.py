"""State folder: a note for whoever looks into it, and copies that are not whole."""

from __future__ import annotations

import contextlib
import sqlite3
from contextlib import closing
from pathlib import Path

from coordinator.storage.update_log import LOG_FILE
from fedge.errors import ConfigError
from fedge.files import write_whole
from models.package.stored_versions import STORE_FILE

NOTE_FILE = "README.txt"
_NOTE = f"""State of a fedge coordinator. To keep a copy of it, also while it runs:

    fedge coordinator backup FILE --config coordinator.yaml

Do not copy {STORE_FILE} alone: what was written last is in {STORE_FILE}-wal, and the copy
would be old or empty. open_round.log holds the updates of the round under way.
Back with: fedge coordinator restore FILE --config coordinator.yaml
"""

#: What else a folder without a store may hold: notes, locks, and remains of a deleted store.
_OURS = frozenset(
    {NOTE_FILE, LOG_FILE, *(f"{STORE_FILE}-{ending}" for ending in ("wal", "shm", "journal"))}
)
_NAMED = 3


def strangers(folder: Path) -> str:
    """Names what a folder holds that no deleted store left behind; empty: nothing."""
    found = sorted(
        path.name
        for path in folder.iterdir()
        if path.name not in _OURS and path.suffix not in (".lock", ".partial")
    )
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return ", ".join(found[:_NAMED]) + more


def is_empty(path: Path) -> bool:
    """Returns whether a database has no tables; False for what is none."""
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as db:
            return not db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
    except (sqlite3.Error, UnicodeDecodeError):
        return False  # opening it says what is wrong


def leave_note(store: Path) -> None:
    """Says beside a store how to copy it: there somebody looks who is about to."""
    path = store.with_name(NOTE_FILE)
    with contextlib.suppress(OSError, ConfigError):
        if store.is_file() and not path.exists():
            write_whole(path, _NOTE.encode())
