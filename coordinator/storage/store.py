"""Store: rounds, versions of θ and agents of one federation, in one SQLite file.

Beside it the updates of the open round (`update_log`).
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from broker.protocol.messages import AgentStatus, RoundPlan
from coordinator.config import KEPT_ROUNDS
from coordinator.machine.open_round import ClosedRound
from coordinator.machine.progress import Progress, StoredRound
from coordinator.machine.roster import MISSED_HEARTBEATS
from coordinator.machine.standing import Standing
from coordinator.records.records import RoundRecord
from coordinator.storage.database import Database
from coordinator.storage.update_log import UpdateLog
from fedge.errors import ConfigError, WireError
from learning.algorithms.algorithm import ServerState
from learning.algorithms.server_step import state_from_bytes, state_to_bytes
from learning.vector.parameters import F32
from models.package.package import ModelPackage
from models.package.stored_versions import STORE_FILE, VERSIONS_TABLE, checksum

T = TypeVar("T")

#: So often those who run a store write when agents were heard of (`note_heard`).
NOTED_EVERY_S = 60.0
_FORMAT = "3"
_RECORD = "a round's record"
_SCHEMA = f"""
{VERSIONS_TABLE}
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE rounds (round_id INTEGER PRIMARY KEY, record TEXT NOT NULL, ended_at REAL NOT NULL);
CREATE TABLE open_round (id INTEGER PRIMARY KEY CHECK (id = 1), round TEXT NOT NULL);
CREATE TABLE closed_rounds (round_id INTEGER PRIMARY KEY, round TEXT NOT NULL);
CREATE TABLE agents (agent_id TEXT PRIMARY KEY, status TEXT NOT NULL, heard_at REAL NOT NULL);
CREATE TABLE standings (agent_id TEXT PRIMARY KEY, standing TEXT NOT NULL);
"""


class _OpenRound(msgspec.Struct, frozen=True):
    plan: RoundPlan
    cohort: tuple[str, ...]
    goal: int
    #: Of the update log; hexadecimal.
    token: str


@dataclass(frozen=True)
class KnownAgent:
    """An agent as it last described itself.

    Attributes:
        agent_id: its name.
        status: its last one.
        heard_at: when it last said anything, in seconds since 1970.
    """

    agent_id: str
    status: AgentStatus
    heard_at: float

    def state(self, now: float) -> str:
        """`offline`, `online`, or `silent`: so long that nobody can say that it is online.

        Of a coordinator that does not run, all agents are silent after a few minutes.
        """
        beat_s = self.status.heartbeat_s
        late_s = now - self.heard_at - MISSED_HEARTBEATS * beat_s - NOTED_EVERY_S
        is_silent = self.status.state == "online" and beat_s > 0 and late_s > 0
        return "silent" if is_silent else self.status.state


class Store(Database):
    """One federation's file. Used from one thread.

    Args:
        folder: made when absent; None keeps everything in memory, for simulations.
        keep_versions: of θ; 0 keeps all.
        erase: overwrite updates, and what is deleted, before the space is given back.

    Raises:
        ConfigError: the folder cannot be written, or the file is no store of this format.
    """

    def __init__(self, folder: Path | None, keep_versions: int = 0, *, erase: bool = False) -> None:
        super().__init__(folder, STORE_FILE, _SCHEMA, _FORMAT, erase=erase)
        self._keep_versions = keep_versions
        self._updates = UpdateLog(folder, erase=erase)

    def close(self) -> None:
        """Releases the files."""
        self._updates.close()
        super().close()

    def flush(self) -> None:
        """Updates and all else that was added are on disk when this returns."""
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
        if not (folder / STORE_FILE).is_file():
            raise ConfigError(f"{folder / STORE_FILE}: no such file; was the coordinator started?")
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

    def commit(
        self,
        version: int,
        theta: F32,
        state: ServerState,
        record: RoundRecord,
        closed: Sequence[ClosedRound] = (),
    ) -> None:
        """Stores a new version, its round and who counted, all or nothing."""
        with self._transaction() as db:
            self._insert_version(db, version, theta, state)
            self._insert_round(db, record)
            self._insert_closed(db, closed)
            self._forget_open_round(db)
            if self._keep_versions:
                oldest = version - self._keep_versions
                db.execute("DELETE FROM versions WHERE version <= ?", (oldest,))
        self._updates.clear()  # not before: until then the open round is what counts

    def save_round(self, record: RoundRecord, closed: Sequence[ClosedRound] = ()) -> None:
        """Stores a round's record, replacing what is there of it; it takes no more updates."""
        with self._transaction() as db:
            self._insert_round(db, record)
            self._insert_closed(db, closed)
            self._forget_open_round(db)
        self._updates.clear()

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

    def save_agent(self, agent_id: str, status: AgentStatus, heard_at: float | None = None) -> None:
        """Stores an agent's latest status; on disk only after `flush`.

        A fleet is born in one moment, and nothing depends on its births being on disk.

        Args:
            agent_id: its name.
            status: what it said, or what its silence means.
            heard_at: when it last said anything, in seconds since 1970; None: now.
        """
        text = msgspec.json.encode(status).decode()
        heard_at = time.time() if heard_at is None else heard_at
        self._add("INSERT OR REPLACE INTO agents VALUES (?, ?, ?)", agent_id, text, heard_at)

    def note_heard(self, heard_at: Mapping[str, float]) -> None:
        """Stores when agents were last heard, in seconds since 1970; on disk only after `flush`."""
        for agent_id, moment in heard_at.items():
            self._add("UPDATE agents SET heard_at = ? WHERE agent_id = ?", moment, agent_id)

    def save_standing(self, agent_id: str, standing: Standing) -> None:
        """Stores how an agent stands; on disk only after `flush`."""
        text = msgspec.json.encode(standing).decode()
        self._add("INSERT OR REPLACE INTO standings VALUES (?, ?)", agent_id, text)

    def standings(self) -> dict[str, Standing]:
        """How agents stand, by id; those without a word on them have none."""
        rows = self._read("SELECT agent_id, standing FROM standings ORDER BY agent_id")
        what = "an agent's standing"
        return {name: self._decoded(what, text, Standing) for name, text in rows}

    def finish(self, reason: str) -> None:
        """Note that the federation has ended, and why; with "" that it goes on."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES ('finished', ?)", (reason,))

    def load(self, size: int) -> Progress | None:
        """Returns the federation's progress; None before `begin`.

        Raises:
            ConfigError: what is stored does not fit the model's P, or is damaged.
        """
        rows = self._read(
            "SELECT version, theta, server_state, digest FROM versions "
            "ORDER BY version DESC LIMIT 1"
        )
        if not rows:
            return None
        version, blob, state, digest = rows[0]
        if checksum(blob, state) != digest:
            raise self._damaged(f"version {version}", "its checksum is wrong")
        if len(blob) != 4 * size:
            found = f"{len(blob) / 4:g} parameters, not {size}"
            raise ConfigError(f"{self.path}: version {version} has {found}")
        theta = np.frombuffer(blob, "<f4").astype(np.float32)
        theta.setflags(write=False)
        try:
            return Progress(
                version,
                theta,
                state_from_bytes(state),
                self.history(),
                self._open_round(version),
                self._closed_rounds(),
                self.standings(),
            )
        except WireError as error:
            raise self._damaged(f"version {version}", error) from error

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

    def rounds(self, latest: int | None = None) -> list[RoundRecord]:
        """All rounds, or so many of the latest, in order."""
        rows = self._rows(
            "SELECT record FROM rounds ORDER BY round_id DESC LIMIT ?",
            -1 if latest is None else latest,
        )
        return [self._decoded(_RECORD, text, RoundRecord) for (text,) in rows][::-1]

    def history(self) -> list[RoundRecord]:
        """Summaries of all rounds, in order."""
        rows = self._rows("SELECT record FROM rounds ORDER BY round_id")
        return [self._decoded(_RECORD, text, RoundRecord).summary for (text,) in rows]

    def agents(self) -> list[KnownAgent]:
        """All agents ever heard of, by id."""
        rows = self._read("SELECT agent_id, status, heard_at FROM agents ORDER BY agent_id")
        return [
            KnownAgent(name, self._decoded("an agent's status", text, AgentStatus), heard)
            for name, text, heard in rows
        ]

    def versions(self) -> list[int]:
        """Versions of θ that are still kept."""
        return [row[0] for row in self._read("SELECT version FROM versions ORDER BY version")]

    @staticmethod
    def _forget_open_round(db: sqlite3.Connection) -> None:
        db.execute("DELETE FROM open_round")

    @staticmethod
    def _insert_version(
        db: sqlite3.Connection, version: int, theta: F32, state: ServerState
    ) -> None:
        parts = (theta.astype("<f4").tobytes(), state_to_bytes(state))
        values = (version, *parts, time.time(), checksum(*parts))
        db.execute("INSERT INTO versions VALUES (?, ?, ?, ?, ?)", values)

    @staticmethod
    def _insert_closed(db: sqlite3.Connection, closed: Sequence[ClosedRound]) -> None:
        for each in closed:
            text = msgspec.json.encode(each).decode()
            db.execute("INSERT OR REPLACE INTO closed_rounds VALUES (?, ?)", (each.round_id, text))
        if closed:
            newest = max(each.round_id for each in closed)
            db.execute("DELETE FROM closed_rounds WHERE round_id <= ?", (newest - KEPT_ROUNDS,))

    @staticmethod
    def _insert_round(db: sqlite3.Connection, record: RoundRecord) -> None:
        text = msgspec.json.encode(record).decode()
        values = (record.round_id, text, time.time())
        db.execute("INSERT OR REPLACE INTO rounds VALUES (?, ?, ?)", values)
