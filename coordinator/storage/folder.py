"""State folder: a note for whoever looks into it, and copies that are not whole.

A store's latest rounds are in its write-ahead log, and nothing in the file says whether there was
one. So how far the store is also stands in a small file beside it: where that is missing or ahead,
the store is a copy that was made without its log.
"""

from __future__ import annotations

import contextlib
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from coordinator.storage.update_log import LOG_FILE
from fedge.errors import ConfigError
from fedge.files import touch_private, write_whole
from models.package.stored_versions import STORE_FILE

NOTE_FILE = "README.txt"
MARK_FILE = "latest_round.txt"
_NOTE = f"""State of a fedge coordinator. To keep a copy of it, also while it runs:

    fedge coordinator backup FILE --config coordinator.yaml

Do not copy {STORE_FILE} alone: what was written last is in {STORE_FILE}-wal, and the copy
would be old or empty. open_round.log holds the updates of the round under way.
Back with: fedge coordinator restore FILE --config coordinator.yaml
"""


class Latest(NamedTuple):
    """Last round and newest version of a store; 0 before there is one."""

    round_id: int
    version: int


#: What else a folder without a store may hold: notes, locks, and remains of a deleted store.
_REMAINS = tuple(f"{STORE_FILE}-{ending}" for ending in ("wal", "shm", "journal"))
_OURS = frozenset({NOTE_FILE, MARK_FILE, LOG_FILE, *_REMAINS})
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


def leave_mark(store: Path, latest: Latest) -> None:
    """Notes beside a store how far it is, once that is on disk; the note may come to be older."""
    path = store.with_name(MARK_FILE)
    with contextlib.suppress(OSError):
        if store.is_file():
            touch_private(path)
            path.write_text(f"round {latest.round_id}, version {latest.version}\n")


def read_mark(store: Path) -> Latest | None:
    """Returns what `leave_mark` noted; zeros where it cannot be read, None where nothing is."""
    try:
        words = store.with_name(MARK_FILE).read_text().replace(",", "").split()
        return Latest(int(words[1]), int(words[3]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, IndexError):  # torn by a power cut
        return Latest(0, 0)


def doubt(store: Path, mark: Latest | None, latest: Latest) -> str:
    """Says in one line why a store may lack its latest rounds; empty: nothing says so.

    Args:
        store: its file.
        mark: that was found beside it before the store was read.
        latest: that the store holds.
    """
    has = f"{store} ends with round {latest.round_id}, version {latest.version}"
    if mark is None:
        return (
            f"{has}, and there is no {MARK_FILE} beside it: if it was copied without its "
            f"{STORE_FILE}-wal, later rounds are missing; copy with `fedge coordinator backup`"
        )
    if mark.round_id > latest.round_id or mark.version > latest.version:
        return (
            f"{has}, but round {mark.round_id}, version {mark.version} was reached here: it is an "
            f"older copy, or lost its {STORE_FILE}-wal; if you have a later backup move the folder "
            "away and take it (`fedge coordinator restore FILE`)"
        )
    return ""
