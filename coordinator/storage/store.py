"""Store: rounds, versions of θ and agents of one federation, in one SQLite file.

Beside it the updates of the open round (`update_log`).
"""

from __future__ import annotations

import logging
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from broker.protocol.messages import RoundPlan
from coordinator.config import KEPT_ROUNDS
from coordinator.machine.open_round import ClosedRound
from coordinator.machine.progress import Progress, StoredRound
from coordinator.machine.standing import Standing
from coordinator.records.course import Course, Rule
from coordinator.records.records import RoundRecord
from coordinator.storage.agent_tables import AGENT_SCHEMA, AgentTables
from coordinator.storage.folder import Latest, doubt, is_empty, leave_mark, leave_note, read_mark
from coordinator.storage.orders import ORDER_SCHEMA, OrderTable
from coordinator.storage.update_log import UpdateLog
from coordinator.storage.version_tables import VERSION_SCHEMA, VersionTables
from fedge.errors import ConfigError
from learning.algorithms.algorithm import ServerState
from learning.vector.parameters import F32
from models.package.package import ModelPackage
from models.package.stored_versions import STORE_FILE

T = TypeVar("T")

log = logging.getLogger(__name__)

_FORMAT = "5"
_SCHEMA = f"""
{VERSION_SCHEMA}
{AGENT_SCHEMA}
{ORDER_SCHEMA}
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE open_round (id INTEGER PRIMARY KEY CHECK (id = 1), round TEXT NOT NULL);
CREATE TABLE closed_rounds (round_id INTEGER PRIMARY KEY, round TEXT NOT NULL);
"""


class _OpenRound(msgspec.Struct, frozen=True):
    plan: RoundPlan
    cohort: tuple[str, ...]
    goal: int
    #: Of the update log; hexadecimal.
    token: str


class Store(VersionTables, AgentTables, OrderTable):
    """One federation's file. Used from one thread.

    Args:
        folder: made when absent; None keeps everything in memory, for simulations.
        keep_versions: of θ, and the best; 0 keeps all.
        keep_rounds: of their records, and that of the best version; 0 keeps all.
        erase: overwrite updates, and what is deleted, before the space is given back.

    Raises:
        ConfigError: the folder cannot be written, or the file is no store of this format.
    """

    def __init__(
        self,
        folder: Path | None,
        keep_versions: int = 0,
        *,
        keep_rounds: int = 0,
        erase: bool = False,
    ) -> None:
        mark = None if folder is None else read_mark(folder / STORE_FILE)  # first: it may move on
        super().__init__(folder, STORE_FILE, _SCHEMA, _FORMAT, erase=erase)
        self._keep_versions = keep_versions
        self._keep_rounds = keep_rounds
        self._updates = UpdateLog(folder, erase=erase)
        if folder is not None:
            self._warn_of_a_copy(mark)

    def _warn_of_a_copy(self, mark: Latest | None) -> None:
        is_begun = bool(self.versions())
        is_backup = self.meta("backup_at") is not None  # whole by itself
        if is_begun and not is_backup and (why := doubt(self.path, mark, self.latest())):
            log.warning("%s", why)

    def _mark(self) -> None:
        leave_mark(self.path, self.latest())

    def close(self) -> None:
        """Releases the files."""
        self._updates.close()
        super().close()

    def flush(self) -> None:
        """Updates and all else that was added are on disk when this returns."""
        self.check_place()
        self._updates.sync()
        super().flush()

    def lose_unflushed(self) -> None:
        """Drops what was added since the last `flush`, as a power cut does; for simulations."""
        self._updates.lose_unsynced()
        super().lose_unflushed()

    @classmethod
    def open_existing(cls, folder: Path) -> Store:
        """The store of a federation that was started before.

        Raises:
            ConfigError: there is none.
        """
        path = folder / STORE_FILE
        if not path.is_file():
            raise ConfigError(f"{path}: no such file; was the coordinator started?")
        if is_empty(path):
            raise ConfigError(
                f"{path} is empty: a copy of it alone lacks what is in {STORE_FILE}-wal beside it; "
                "copy with `fedge coordinator backup`"
            )
        return cls(folder)

    def adopt(self, federation: str, package: ModelPackage, algorithm: str | None = None) -> None:
        """Tie the store to a federation, its model and its algorithm, at its first use.

        Args:
            federation: its name.
            package: its model.
            algorithm: its name; None: θ stays as it is, whatever the algorithm.

        Raises:
            ConfigError: it belongs to another federation, model or algorithm.
        """
        facts = {
            "federation": federation,
            "model": package.spec.name,
            "fingerprint": package.spec.fingerprint,
        } | ({} if algorithm is None else {"algorithm": algorithm})
        for key, value in facts.items():
            self._check_fact(key, value)
            with self._transaction() as db:
                db.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (key, value))

    def check_algorithm(self, algorithm: str | None) -> None:
        """Raises ConfigError when the store is tied to another algorithm; see `adopt`."""
        if algorithm is not None:
            self._check_fact("algorithm", algorithm)

    def _check_fact(self, key: str, value: str) -> None:
        found = self.meta(key)
        if found is not None and found != value:
            raise ConfigError(
                f"{self.path} holds {key} {found!r}, the configuration says {value!r}: "
                "use another state_dir, or delete the folder to begin anew"
            )

    def begin(self, theta: F32, state: ServerState) -> None:
        """Store version 0, before anybody trains."""
        with self._transaction() as db:
            self._insert_version(db, 0, theta, state)
            self._insert_course(db, 0, Course())
        self._checkpoint()
        leave_note(self.path)
        self._mark()

    def commit(
        self,
        version: int,
        theta: F32,
        state: ServerState,
        record: RoundRecord,
        closed: Sequence[ClosedRound] = (),
        course: Course | None = None,
        standings: Iterable[tuple[str, Standing]] = (),
    ) -> None:
        """Stores a new version, its round and who counted, all or nothing.

        Args:
            version: of θ.
            theta: float32, shape (P,).
            state: of the algorithm's server half.
            record: of the round.
            closed: rounds whose counted answers are to be remembered.
            course: of the federation after it; None: what the records say.
            standings: of agents, that changed.
        """
        with self._transaction() as db:
            self._insert_version(db, version, theta, state)
            self._insert_round(db, record)
            self._insert_closed(db, closed)
            self._forget_open_round(db)
            self._insert_course(db, version, course)
            self._insert_standings(db, standings)
            self._forget_old(db, record.round_id, version, course)
        self._updates.clear()  # not before: until then the open round is what counts
        self._mark()

    def save_round(
        self,
        record: RoundRecord,
        closed: Sequence[ClosedRound] = (),
        course: Course | None = None,
        standings: Iterable[tuple[str, Standing]] = (),
    ) -> None:
        """Stores a round's record, replacing what is there of it; it takes no more updates.

        Args:
            record: of the round.
            closed: rounds whose counted answers are to be remembered.
            course: of the federation after it; None: what the records say.
            standings: of agents, that changed.
        """
        with self._transaction() as db:
            self._insert_round(db, record)
            self._insert_closed(db, closed)
            self._forget_open_round(db)
            self._insert_course(db, record.version, course)
            self._insert_standings(db, standings)
            self._forget_old(db, record.round_id, record.version, course)
        self._updates.clear()
        self._mark()

    def save_open_round(self, plan: RoundPlan, cohort: tuple[str, ...], goal: int) -> None:
        """Stores that a phase with updates begins; those of an earlier one are forgotten."""
        token = secrets.token_hex(8)
        text = msgspec.json.encode(_OpenRound(plan, cohort, goal, token)).decode()
        with self._transaction() as db:
            self._forget_open_round(db)
            db.execute("INSERT INTO open_round VALUES (1, ?)", (text,))
        self._updates.clear(bytes.fromhex(token))

    def add_update(self, agent_id: str, version: int, frame: bytes) -> None:
        """Stores an update of the open round, begun at `version`; on disk only after `flush`.

        Many are written together: a synchronisation of the disk costs more than an update.
        """
        self._updates.add(agent_id, version, frame)

    def roll_back(
        self, origin: int, size: int, without_devices: Callable[[F32, ServerState], ServerState]
    ) -> int:
        """Makes a new version of an earlier one, and a new session that goes on from it.

        In a new session devices drop what they had of the old one (an update under way, residuals,
        the algorithm's vectors), which belongs to versions that are undone.

        Args:
            origin: the earlier version.
            size: P of the model.
            without_devices: the algorithm's; see there.

        Returns:
            The new version.

        Raises:
            ConfigError: the version is not kept, or is damaged.
        """
        kept = self.versions()
        if origin not in kept:
            raise ConfigError(
                f"version {origin} is not kept; versions kept: {ranges(kept)} (keep_versions)"
            )
        theta, state = self._version(origin, size)
        with self._transaction() as db:
            version = self._roll_back(db, origin, theta, without_devices(theta, state))
            self._forget_open_round(db)
            self._new_session(db)
            db.execute("INSERT OR REPLACE INTO meta VALUES ('finished', '')")
        self._updates.clear()
        self._mark()
        return version

    def open_round(self) -> tuple[int, list[str]] | None:
        """The open round's number and the agents whose updates count in it; None without one."""
        found = self._read("SELECT round FROM open_round")
        if not found:
            return None
        stored = self._decoded("the open round", found[0][0], _OpenRound)
        updates = UpdateLog(None if str(self.path) == ":memory:" else self.path.parent)
        return stored.plan.round_id, [name for name, _ in updates.read(bytes.fromhex(stored.token))]

    def forget_agent(self, agent_id: str) -> None:
        """Deletes what is known of an agent; what it gave to versions of θ stays in these.

        An operator's quarantine stays, and for some rounds the ids of those whose updates counted.
        """
        with self._transaction() as db:
            self._forget_agent(db, agent_id)
            self._forget_in_rounds(db, agent_id)

    def begin_session(
        self, size: int, without_devices: Callable[[F32, ServerState], ServerState]
    ) -> None:
        """Goes on in a new session, after a restore: what devices hold may be of rounds since.

        Args:
            size: P of the model.
            without_devices: the algorithm's; where it changes the state that is a new version.
        """
        newest = self.versions()[-1]
        theta, state = self._version(newest, size)
        if without_devices(theta, state) is not state:
            self.roll_back(newest, size, without_devices)
            return
        with self._transaction() as db:
            self._new_session(db)
        self._mark()

    def _new_session(self, db: sqlite3.Connection) -> None:
        """Begins another run: answers to the one before count no more."""
        db.execute("DELETE FROM closed_rounds")
        db.execute("DELETE FROM meta WHERE key = 'backup_at'")
        db.execute("INSERT OR REPLACE INTO meta VALUES ('session', ?)", (secrets.token_hex(8),))

    def session(self, new: str) -> str:
        """The name of this store's run: `new` at its first use, the same ever after."""
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO meta VALUES ('session', ?)", (new,))
        return self.meta("session") or new

    @property
    def signed_until(self) -> int:
        """No number of a signed message up to this may be used again."""
        return int(self.meta("signed_until") or 0)

    def sign_until(self, number: int) -> None:
        """Put the above on disk, before a message above the one before is signed."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES ('signed_until', ?)", (str(number),))

    def note_keys(self, key_ids: Sequence[str]) -> None:
        """Which keys sign, the newest first, for `fedge coordinator status`."""
        with self._transaction() as db:
            values = (" ".join(key_ids),)
            db.execute("INSERT OR REPLACE INTO meta VALUES ('signing_keys', ?)", values)

    def finish(self, reason: str) -> None:
        """Note that the federation has ended, and why; with "" that it goes on."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES ('finished', ?)", (reason,))

    def load(self, size: int, rule: Rule | None = None) -> Progress | None:
        """Returns the federation's progress; None before `begin`.

        Args:
            size: P of the model.
            rule: says which version is the best; None: the one that is stored.

        Raises:
            ConfigError: what is stored does not fit the model's P, or is damaged.
        """
        rows = self._read("SELECT MAX(version) FROM versions")
        if not rows or rows[0][0] is None:
            return None
        version = int(rows[0][0])
        theta, state = self._version(version, size)
        course = self._course(version, rule)
        best = course.best_version
        is_other = best != version and best in self.versions()
        opened = self._open_round(version)
        return Progress(
            version,
            theta,
            state,
            course,
            opened,
            self._unmeasured(version) if course.is_unmeasured and opened is None else None,
            self._closed_rounds(),
            self.standings(),
            self._version(best, size)[0] if is_other else theta,
        )

    def _unmeasured(self, version: int) -> RoundRecord | None:
        """The record of the round that made a version, when nothing was measured since."""
        latest = self.rounds(latest=1)
        record = latest[-1] if latest else None
        if record is None or record.status != "committed" or record.version != version:
            return None
        return None if record.evaluated else record

    def _open_round(self, version: int) -> StoredRound | None:
        found = self._read("SELECT round FROM open_round")
        if not found:
            return None
        stored = self._decoded("the open round", found[0][0], _OpenRound)
        if stored.plan.version != version:
            return None
        updates = self._updates.read(bytes.fromhex(stored.token))
        frames = tuple((agent_id, frame) for (agent_id, _), frame in updates.items())
        return StoredRound(stored.plan, stored.cohort, stored.goal, frames)

    def _closed_rounds(self) -> tuple[ClosedRound, ...]:
        rows = self._read("SELECT round FROM closed_rounds ORDER BY round_id")
        return tuple(self._decoded("a closed round", text, ClosedRound) for (text,) in rows)

    @staticmethod
    def _forget_open_round(db: sqlite3.Connection) -> None:
        db.execute("DELETE FROM open_round")

    @staticmethod
    def _insert_closed(db: sqlite3.Connection, closed: Sequence[ClosedRound]) -> None:
        for each in closed:
            text = msgspec.json.encode(each).decode()
            db.execute("INSERT OR REPLACE INTO closed_rounds VALUES (?, ?)", (each.round_id, text))
        if closed:
            newest = max(each.round_id for each in closed)
            db.execute("DELETE FROM closed_rounds WHERE round_id <= ?", (newest - KEPT_ROUNDS,))

    def _forget_old(
        self, db: sqlite3.Connection, round_id: int, version: int, course: Course | None
    ) -> None:
        best = course.best if course is not None and course.best_version else None
        if self._keep_versions:
            old = (version - self._keep_versions, -1 if best is None else best.version)
            db.execute("DELETE FROM versions WHERE version <= ? AND version != ?", old)
            db.execute("DELETE FROM courses WHERE version <= ? AND version != ?", old)
        if self._keep_rounds:
            old = (round_id - self._keep_rounds, -1 if best is None else best.round_id)
            db.execute("DELETE FROM rounds WHERE round_id <= ? AND round_id != ?", old)


def ranges(numbers: Sequence[int]) -> str:
    """Returns sorted numbers as text: `2, 5 to 9`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ", ".join(" to ".join(map(str, part)) for part in parts) or "none"
