"""Version tables: rounds, the versions of θ that they made, and going back to one of these."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from functools import partial, reduce
from typing import NamedTuple

import msgspec
import numpy as np

from coordinator.records.course import Course, Rule
from coordinator.records.records import RoundRecord, RoundStatus
from coordinator.storage.database import Database
from coordinator.storage.folder import Latest
from fedge.errors import ConfigError, WireError
from learning.algorithms.algorithm import ServerState
from learning.algorithms.server_step import state_from_bytes, state_to_bytes
from learning.vector.parameters import F32
from models.package.stored_versions import VERSIONS_TABLE, checksum

_RECORD = "a round's record"
VERSION_SCHEMA = f"""
{VERSIONS_TABLE}
CREATE TABLE courses (version INTEGER PRIMARY KEY, course TEXT NOT NULL);
CREATE TABLE rounds (
    round_id INTEGER PRIMARY KEY, status TEXT NOT NULL, version INTEGER NOT NULL,
    summary TEXT NOT NULL, ended_at REAL NOT NULL, record TEXT NOT NULL
);
CREATE INDEX rounds_by_status ON rounds (status, version);
CREATE TABLE rollbacks (version INTEGER PRIMARY KEY, origin INTEGER NOT NULL, at REAL NOT NULL);
"""


class RolledBack(NamedTuple):
    """A version that has the θ of an earlier one."""

    version: int
    origin: int
    at: float


class EndedRound(NamedTuple):
    """A round's record, and when it ended, in seconds since 1970."""

    record: RoundRecord
    at: float


class Part(NamedTuple):
    """An agent's part in a round, and the version that was made with its update, if any."""

    round_id: int
    version: int | None


class VersionTables(Database):
    """The tables of rounds and versions; see `Database`."""

    # -- rounds ---------------------------------------------------------------------------------

    def rounds(self, latest: int | None = None) -> list[RoundRecord]:
        """All rounds, or so many of the latest, in order."""
        rows = self._rows(
            "SELECT record FROM rounds ORDER BY round_id DESC LIMIT ?",
            -1 if latest is None else latest,
        )
        return [self._decoded(_RECORD, text, RoundRecord) for (text,) in rows][::-1]

    def history(self) -> list[RoundRecord]:
        """Summaries of all rounds, in order."""
        rows = self._rows("SELECT summary FROM rounds ORDER BY round_id")
        return [self._decoded(_RECORD, text, RoundRecord) for (text,) in rows]

    def answer(self) -> RoundRecord | None:
        """The record of the latest round that answered a task; None when there is none."""
        rows = self._read(
            "SELECT record FROM rounds WHERE status = 'answered' ORDER BY version, round_id DESC "
            "LIMIT 1"
        )
        return self._decoded(_RECORD, rows[0][0], RoundRecord) if rows else None

    def number_of_rounds(self) -> int:
        """Records of rounds that are kept."""
        return int(self._read("SELECT COUNT(*) FROM rounds")[0][0])

    def latest(self) -> Latest:
        """Returns the last round and the newest version."""
        ((round_id, version),) = self._read(
            "SELECT (SELECT MAX(round_id) FROM rounds), (SELECT MAX(version) FROM versions)"
        )
        return Latest(round_id or 0, version or 0)

    def ended_rounds(self, latest: int) -> list[EndedRound]:
        """So many of the latest rounds, in order, with their moments."""
        rows = self._rows(
            "SELECT record, ended_at FROM rounds ORDER BY round_id DESC LIMIT ?", latest
        )
        return [EndedRound(self._decoded(_RECORD, text, RoundRecord), at) for text, at in rows][
            ::-1
        ]

    @staticmethod
    def _insert_round(db: sqlite3.Connection, record: RoundRecord) -> None:
        summary, text = _texts(record)
        values = (record.round_id, record.status, record.version, summary, time.time(), text)
        db.execute("INSERT OR REPLACE INTO rounds VALUES (?, ?, ?, ?, ?, ?)", values)

    def _change_record(
        self, db: sqlite3.Connection, round_id: int, change: Callable[[RoundRecord], RoundRecord]
    ) -> None:
        """Rewrites the record of a round; one at a time: those of a large fleet are large."""
        (text,) = self._read("SELECT record FROM rounds WHERE round_id = ?", round_id)[0]
        record = change(self._decoded(_RECORD, text, RoundRecord))
        db.execute(
            "UPDATE rounds SET status = ?, summary = ?, record = ? WHERE round_id = ?",
            (record.status, *_texts(record), round_id),
        )

    def parts_of(self, agent_id: str) -> list[Part]:
        """The agent's parts in rounds: it trained, measured, declined, or was left out."""
        rows = self._rows(
            "SELECT record FROM rounds WHERE instr(record, ?) ORDER BY round_id", f'"{agent_id}"'
        )
        records = (self._decoded(_RECORD, text, RoundRecord) for (text,) in rows)
        return [
            Part(each.round_id, each.version if _trained(each, agent_id) else None)
            for each in records
            if _without(each, agent_id) != each
        ]

    def _forget_in_rounds(self, db: sqlite3.Connection, agent_id: str) -> None:
        for part in self.parts_of(agent_id):
            self._change_record(db, part.round_id, lambda record: _without(record, agent_id))

    # -- versions -------------------------------------------------------------------------------

    def versions(self) -> list[int]:
        """Versions of θ that are still kept."""
        return [row[0] for row in self._read("SELECT version FROM versions ORDER BY version")]

    def _version(self, version: int, size: int) -> tuple[F32, ServerState]:
        query = "SELECT theta, server_state, digest FROM versions WHERE version = ?"
        blob, state, digest = self._read(query, version)[0]
        if checksum(blob, state) != digest:
            raise self._damaged(f"version {version}", "its checksum is wrong")
        if len(blob) != 4 * size:
            found = f"{len(blob) / 4:g} parameters, not {size}"
            raise ConfigError(f"{self.path}: version {version} has {found}")
        theta = np.frombuffer(blob, "<f4").astype(np.float32)
        theta.setflags(write=False)
        try:
            return theta, state_from_bytes(state)
        except WireError as error:
            raise self._damaged(f"version {version}", error) from error

    def _course(self, version: int, rule: Rule | None) -> Course:
        """Returns the course after a version; reads all records only when its rule is another."""
        rows = self._read("SELECT course FROM courses WHERE version = ?", version)
        if not rows:
            return reduce(Course.after, self.history(), Course(rule or Rule()))
        course = self._decoded("the federation's course", rows[0][0], Course)
        return course if rule in (None, course.rule) else course.by(rule, self.history())

    def course(self) -> Course:
        """Returns the course of the federation, by the rule of its last run."""
        rows = self._read("SELECT MAX(version) FROM versions")
        return self._course(rows[0][0] or 0, None)

    @staticmethod
    def _insert_version(
        db: sqlite3.Connection, version: int, theta: F32, state: ServerState
    ) -> None:
        parts = (theta.astype("<f4").tobytes(), state_to_bytes(state))
        values = (version, *parts, time.time(), checksum(*parts))
        db.execute("INSERT INTO versions VALUES (?, ?, ?, ?, ?)", values)

    @staticmethod
    def _insert_course(db: sqlite3.Connection, version: int, course: Course | None) -> None:
        db.execute("DELETE FROM courses WHERE version = ?", (version,))
        if course is not None:
            text = msgspec.json.encode(course).decode()
            db.execute("INSERT INTO courses VALUES (?, ?)", (version, text))

    # -- going back -----------------------------------------------------------------------------

    def rollbacks(self) -> list[RolledBack]:
        """Versions that were made by going back, in order."""
        rows = self._read("SELECT version, origin, at FROM rollbacks ORDER BY version")
        return [RolledBack(*row) for row in rows]

    def line(self, version: int) -> set[int]:
        """Versions that a version was made of, itself among them."""
        origins = {each.version: each.origin for each in self.rollbacks()}
        found = set()
        while version >= 0:
            found.add(version)
            version = origins.get(version, version - 1)
        return found

    def _roll_back(
        self, db: sqlite3.Connection, origin: int, theta: F32, state: ServerState
    ) -> int:
        """Makes a new version of an earlier one's θ; returns it.

        Numbers are not used again: agents, records and releases name θ by them.
        """
        newest = int(self._read("SELECT MAX(version) FROM versions")[0][0])
        version, course = newest + 1, self._course(origin, None)
        last_round = self._course(newest, None).last_round
        db.execute("INSERT INTO rollbacks VALUES (?, ?, ?)", (version, origin, time.time()))
        self._insert_version(db, version, theta, state)
        self._insert_course(db, version, msgspec.structs.replace(course, last_round=last_round))
        line = self.line(version)

        query = (
            "SELECT round_id, version, status FROM rounds WHERE status IN ('committed', 'undone')"
        )
        for round_id, made, before in self._read(query):
            status: RoundStatus = "committed" if made in line else "undone"
            if status != before:
                with_status = partial(msgspec.structs.replace, status=status)
                self._change_record(db, round_id, with_status)
        return version


def _trained(record: RoundRecord, agent_id: str) -> bool:
    """Says whether an agent's update is in the version that a round made."""
    part = record.agents.get(agent_id)
    return record.status in ("committed", "undone") and part is not None and part.task == "train"


def _without(record: RoundRecord, agent_id: str) -> RoundRecord:
    """Returns a record without what it says of one agent; sums and counts stay."""
    named = {
        name: {key: value for key, value in getattr(record, name).items() if key != agent_id}
        for name in ("agents", "declined", "left_out", "clipped")
    }
    details = {r: text for r, text in record.details.items() if not text.startswith(f"{agent_id}:")}
    return msgspec.structs.replace(record, details=details, **named)


def _texts(record: RoundRecord) -> tuple[str, str]:
    """Returns a record's summary and the record as JSON."""
    return msgspec.json.encode(record.summary).decode(), msgspec.json.encode(record).decode()
