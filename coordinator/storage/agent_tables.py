"""Agent tables: agents as they last described themselves, and how they stand."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from broker.protocol.messages import AgentStatus
from coordinator.machine.roster import MISSED_HEARTBEATS
from coordinator.machine.standing import Standing
from coordinator.storage.database import Database

#: So often those who run a store write when agents were heard of (`note_heard`).
NOTED_EVERY_S = 60.0
_STANDING = "an agent's standing"
_SET_STANDING = "INSERT OR REPLACE INTO standings VALUES (?, ?)"
AGENT_SCHEMA = """
CREATE TABLE agents (agent_id TEXT PRIMARY KEY, status TEXT NOT NULL, heard_at REAL NOT NULL);
CREATE TABLE standings (agent_id TEXT PRIMARY KEY, standing TEXT NOT NULL);
"""


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


class AgentTables(Database):
    """The tables of agents; see `Database`."""

    def save_agent(self, agent_id: str, status: AgentStatus, heard_at: float | None = None) -> int:
        """Stores an agent's latest status; on disk only after `flush`.

        A fleet is born in one moment, and nothing depends on its births being on disk.

        Args:
            agent_id: its name.
            status: what it said, or what its silence means.
            heard_at: when it last said anything, in seconds since 1970; None: now.

        Returns:
            Characters that are stored.
        """
        text = msgspec.json.encode(status).decode()
        heard_at = time.time() if heard_at is None else heard_at
        self._add("INSERT OR REPLACE INTO agents VALUES (?, ?, ?)", agent_id, text, heard_at)
        return len(text)

    def note_heard(self, heard_at: Mapping[str, float]) -> None:
        """Stores when agents were last heard, in seconds since 1970; on disk only after `flush`."""
        for agent_id, moment in heard_at.items():
            self._add("UPDATE agents SET heard_at = ? WHERE agent_id = ?", moment, agent_id)

    def forget_status(self, agent_id: str) -> None:
        """Deletes what an agent said of itself; how it stands stays."""
        self._add("DELETE FROM agents WHERE agent_id = ?", agent_id)

    def save_standing(self, agent_id: str, standing: Standing) -> None:
        """Stores how an agent stands; on disk only after `flush`."""
        self._add(_SET_STANDING, agent_id, msgspec.json.encode(standing).decode())

    def _insert_standings(
        self, db: sqlite3.Connection, standings: Iterable[tuple[str, Standing]]
    ) -> None:
        texts = ((name, msgspec.json.encode(standing).decode()) for name, standing in standings)
        db.executemany(_SET_STANDING, texts)

    def standing(self, agent_id: str) -> Standing:
        """Returns an agent's standing; a clean one when none is stored."""
        rows = self._read("SELECT standing FROM standings WHERE agent_id = ?", agent_id)
        return self._decoded(_STANDING, rows[0][0], Standing) if rows else Standing()

    def standings(self) -> dict[str, Standing]:
        """Returns the stored standings, by agent id."""
        rows = self._read("SELECT agent_id, standing FROM standings ORDER BY agent_id")
        return {name: self._decoded(_STANDING, text, Standing) for name, text in rows}

    def forget_agents(self, heard_before: float) -> list[str]:
        """Deletes agents not heard of since a moment (seconds since 1970); returns their ids.

        An operator's quarantine stays.
        """
        rows = self._read("SELECT agent_id FROM agents WHERE heard_at < ?", heard_before)
        found = [str(agent_id) for (agent_id,) in rows]
        with self._transaction() as db:
            for agent_id in found:
                self._forget_agent(db, agent_id)
        return found

    def knows_agent(self, agent_id: str) -> bool:
        """Says whether an agent was ever heard of, and not forgotten."""
        tables = ("agents", "standings")
        queries = (f"SELECT 1 FROM {table} WHERE agent_id = ?" for table in tables)  # noqa: S608
        return any(self._read(query, agent_id) for query in queries)

    def _forget_agent(self, db: sqlite3.Connection, agent_id: str) -> None:
        db.execute("DELETE FROM agents WHERE agent_id = ?", (agent_id,))
        standing = self.standing(agent_id)
        if not standing.by_operator:
            db.execute("DELETE FROM standings WHERE agent_id = ?", (agent_id,))

    def agents(self) -> list[KnownAgent]:
        """All agents ever heard of, by id."""
        rows = self._read("SELECT agent_id, status, heard_at FROM agents ORDER BY agent_id")
        return [
            KnownAgent(name, self._decoded("an agent's status", text, AgentStatus), heard)
            for name, text, heard in rows
        ]
