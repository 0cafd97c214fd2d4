"""Roster: births and wills of agents, and the bytes that each agent's link received."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import msgspec

from broker.protocol.messages import AgentStatus
from coordinator.config import QuarantineConfig
from coordinator.machine.standing import Standings

#: A fleet larger than this needs another coordinator; bounds memory against invented ids.
MAX_AGENTS = 1_000_000

Part = Literal["train", "test"]
PARTS: tuple[Part, ...] = ("train", "test")
Change = Literal["none", "changed", "heartbeat", "duplicate"]

#: Heartbeats that may be missed before an agent is marked offline.
MISSED_HEARTBEATS = 3
#: Instances that are remembered: a replaced one that publishes a birth is a second process.
_FORMER_INSTANCES = 4
_UNAVAILABLE = "unavailable"
_QUARANTINED = "in quarantine"
#: Different texts and lists of statuses that are kept to be shared.
_MOST_SHARED = 10_000
#: Of an agent without heartbeats, from when it was asked: a long training on a slow device.
_LONGEST_SILENCE_S = 3600.0


class Rows(NamedTuple):
    """Rows of an agent, and the sum of their weights."""

    number: int
    weight: float


@dataclass(slots=True)
class Entry:
    """One agent, as it last described itself.

    Attributes:
        status: of its current instance.
        heard_s: when it last said anything.
        received_bytes: by its link in this boot, as it last reported.
        former: its instances before this one, latest last.
        asked_s: when a round last asked it; only of an agent without heartbeats.
        is_expired: it is offline because nothing was heard of it.
    """

    status: AgentStatus
    heard_s: float
    received_bytes: int = 0
    former: tuple[str, ...] = ()
    asked_s: float = -math.inf
    is_expired: bool = False
    #: Rows that an earlier status has named, where these were more.
    _more: tuple[tuple[Part, Rows], ...] = ()

    def __post_init__(self) -> None:
        self.received_bytes = self.status.received_bytes

    def update(self, status: AgentStatus) -> None:
        """Replaces the status."""
        before: dict[Part, Rows] = {part: self.rows(part) for part in PARTS}
        self.status = status
        self.is_expired = False
        # What came before the coordinator's start belongs to no round of its own.
        self.received_bytes = max(self.received_bytes, status.received_bytes)
        self._more = tuple((p, rows) for p, rows in before.items() if rows > _rows(status, p))

    def rows(self, part: Part) -> Rows:
        """Returns the most rows that a status of it has named.

        A new instance has none until it has loaded the model, and may send an update of the one
        before.
        """
        for name, rows in self._more:
            if name == part:
                return rows
        return _rows(self.status, part)

    @property
    def online(self) -> bool:
        """Whether it was born and not yet lost."""
        return self.status.state == "online"


def _rows(status: AgentStatus, part: Part) -> Rows:
    if part == "train":
        return Rows(status.train_examples, status.train_weight or status.train_examples)
    return Rows(status.test_examples, status.test_weight or status.test_examples)


class _Shared:
    """What statuses of many agents say alike, each in memory once; most of a status is."""

    _FIELDS = (
        *("state", "phases", "runtime", "codecs", "algorithms", "tags", "software"),
        *("coordinator_instance", "keys", "warnings", "unavailable_reason", "pause_reason"),
    )

    def __init__(self) -> None:
        self._known: dict[object, object] = {}

    def status(self, status: AgentStatus) -> AgentStatus:
        """Returns a status that shares what others said before."""
        known = self._known
        if len(known) > _MOST_SHARED:
            known.clear()  # invented ones must not stay for ever
        common = {}
        for name in self._FIELDS:
            value = getattr(status, name)
            if value:
                common[name] = known.setdefault(value, value)
        return msgspec.structs.replace(status, **common)


class Roster:
    """All agents that were heard of.

    Args:
        instance: of the coordinator: an agent that names it was there when it had started; births
            that were retained or queued before say nothing. None: every agent is believed.
        standings: of agents that are not to be asked.
        least: agents of a round; with fewer, those that were silent are asked too.

    Attributes:
        standings: of all agents.
    """

    def __init__(
        self,
        instance: str | None = None,
        standings: Standings | None = None,
        least: int = 1,
    ) -> None:
        self.standings = standings or Standings(QuarantineConfig(), {})
        self._instance = instance
        self._least = least
        self._entries: dict[str, Entry] = {}
        self._shared = _Shared()
        #: Agents that are online and have answered this coordinator's start, and those of them that
        #: have named rows to learn from.
        self._present = self._learners = 0
        #: Before that nobody's patience can be over.
        self._first_expiry_s = math.inf
        #: Until then silence says nothing.
        self._deaf_until_s = -math.inf

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[tuple[str, Entry]]:
        return iter(self._entries.items())

    def get(self, agent_id: str) -> Entry | None:
        """The agent's entry; None for one never heard of."""
        return self._entries.get(agent_id)

    def heard(self, agent_id: str, now_s: float) -> bool:
        """Notes that an agent sent a message; returns whether that brings it back."""
        entry = self._entries.get(agent_id)
        if entry is None:
            return False
        entry.heard_s = now_s
        if not entry.is_expired:
            return False
        self._describe(entry, msgspec.structs.replace(entry.status, state="online"))
        self._watch(entry)
        return True

    def asked(self, agents: Iterable[str], now_s: float) -> None:
        """Notes that a round asks agents: of those without heartbeats silence means something."""
        for agent_id in agents:
            entry = self._entries.get(agent_id)
            if entry is not None and not entry.status.heartbeat_s:
                entry.asked_s = now_s
                self._watch(entry)

    def forget(self, agent_id: str) -> None:
        """Drops an agent, until its next birth."""
        entry = self._entries.pop(agent_id, None)
        if entry is not None:
            self._count(entry, -1)

    def set_offline(self, agent_id: str) -> None:
        """Takes an agent for offline, until it says something else."""
        entry = self._entries[agent_id]
        self._describe(entry, msgspec.structs.replace(entry.status, state="offline"))

    def _describe(self, entry: Entry, status: AgentStatus) -> None:
        """Replaces an entry's status."""
        self._count(entry, -1)
        entry.update(status)
        self._count(entry, 1)

    def _count(self, entry: Entry, change: int) -> None:
        status = entry.status
        if status.state == "online" and self._is_confirmed(status):
            self._present += change
            if status.train_examples:
                self._learners += change

    def present(self, phase: str) -> int:
        """Returns how many agents are here for a phase: no more than these can be asked."""
        return self._learners if phase == "train" else self._present

    def rows(self, agent_id: str, part: Literal["train", "test", "any"]) -> Rows | None:
        """Returns how many rows of a part an agent said that it has; None: not known."""
        entry = self._entries.get(agent_id)
        if entry is None:
            return None
        if part != "any":
            rows = entry.rows(part)
            return rows if rows.number else None
        parts = [entry.rows(name) for name in PARTS]
        number = sum(rows.number for rows in parts)
        return Rows(number, sum(rows.weight for rows in parts)) if number else None

    def restart_heartbeat_timers(self, now_s: float) -> None:
        """Restarts all heartbeat timers, after the coordinator was disconnected."""
        self._deaf_until_s = now_s

    def update(self, agent_id: str, status: AgentStatus, now_s: float) -> Change:
        """Takes a birth, a heartbeat or a will, and says what changed.

        A will of an earlier instance may be published after the new birth: it changes nothing. A
        birth of an earlier instance means that two processes use one id.
        """
        entry = self._entries.get(agent_id)
        if entry is None:
            if len(self._entries) >= MAX_AGENTS or status.state == "offline":
                return "none"
            entry = self._entries[agent_id] = Entry(self._shared.status(status), now_s)
            self._count(entry, 1)
            self._watch(entry)
            return "changed"
        is_same_instance = status.agent_instance == entry.status.agent_instance
        if status.state == "offline" and not is_same_instance:
            return "none"
        entry.heard_s = now_s
        if is_same_instance:
            same = status == entry.status
            if not same or entry.is_expired:
                self._describe(entry, entry.status if same else self._shared.status(status))
            self._watch(entry)
            return "heartbeat" if same else "changed"
        duplicate = status.agent_instance in entry.former
        entry.former = (*entry.former, entry.status.agent_instance)[-_FORMER_INSTANCES:]
        entry.received_bytes = 0
        self._describe(entry, self._shared.status(status))
        self._watch(entry)
        return "duplicate" if duplicate else "changed"

    def expire(self, now_s: float) -> list[str]:
        """Agents whose heartbeats stopped; they are offline from now on."""
        if now_s <= self._first_expiry_s:
            return []  # asked after every message: a look at everybody would be most of the work
        self._first_expiry_s = math.inf
        silent = []
        for agent_id, entry in self._entries.items():
            if now_s > self._watch(entry):
                self.set_offline(agent_id)
                entry.is_expired = True
                silent.append(agent_id)
        return silent

    def _watch(self, entry: Entry) -> float:
        """Returns when the agent has been silent for too long; infinite if that means nothing."""
        status = entry.status
        if status.state == "offline":
            return math.inf
        if status.heartbeat_s:
            since_s, patience_s = entry.heard_s, MISSED_HEARTBEATS * status.heartbeat_s
        elif entry.asked_s >= entry.heard_s:
            since_s, patience_s = entry.asked_s, _LONGEST_SILENCE_S
        else:
            return math.inf
        expiry_s = max(since_s, self._deaf_until_s) + patience_s
        self._first_expiry_s = min(self._first_expiry_s, expiry_s)
        return expiry_s

    def credit(self, agent_id: str, agent_instance: str, received_bytes: int) -> int:
        """Bytes the agent took in since it last said so; 0 for another instance."""
        entry = self._entries.get(agent_id)
        if entry is None or entry.status.agent_instance != agent_instance:
            return 0
        new = max(0, received_bytes - entry.received_bytes)
        entry.received_bytes += new
        return new

    @property
    def resting(self) -> int:
        """Agents that are here and take no part for now."""
        statuses = (entry.status for entry in self._entries.values())
        return sum(status.state == "online" and bool(status.pause_reason) for status in statuses)

    def eligible_agents(
        self, phase: str, codec: str | None = None, algorithm: str | None = None
    ) -> list[str]:
        """Returns the agents that can be asked for a phase now, sorted by id.

        Args:
            phase: name.
            codec: that they must be able to encode; None: any.
            algorithm: that they must be able to run; None: any.
        """
        able = self._able(phase, codec, algorithm)
        standings = self.standings
        patient = [name for name in able if not standings.is_backed_off(name, phase)]
        return sorted(patient if len(patient) >= self._least else able)

    def left_out(self, asked: Collection[str], phase: str) -> list[str]:
        """Returns the agents that are online and are not to take part in a phase, sorted."""
        return sorted(
            name
            for name in self.standings.left_out(phase)
            if name not in asked and (entry := self.get(name)) is not None and entry.online
        )

    def _able(self, phase: str, codec: str | None, algorithm: str | None) -> list[str]:
        def can(status: AgentStatus) -> bool:
            return (
                status.state == "online"
                and self._is_confirmed(status)
                and not status.unavailable_reason
                and not status.pause_reason
                and _has_part(status, phase)
                and (codec is None or codec in status.codecs)
                and (algorithm is None or algorithm in status.algorithms)
            )

        return [
            name
            for name, entry in self._entries.items()
            if can(entry.status) and not self.standings.is_quarantined(name)
        ]

    def _is_confirmed(self, status: AgentStatus) -> bool:
        return self._instance in (None, status.coordinator_instance)

    def lacking(
        self, phase: str, codec: str | None = None, algorithm: str | None = None
    ) -> Counter[str]:
        """Counts agents that are online and do not pause by what they lack; see `lacking_text`.

        Args:
            phase: as for `eligible_agents`, like the others.
            codec: see there.
            algorithm: see there.
        """
        return Counter(
            lack
            for name, entry in self
            if entry.online
            and not entry.status.pause_reason
            and (lack := self._lack(name, entry.status, phase, codec, algorithm))
        )

    def _lack(
        self,
        agent_id: str,
        status: AgentStatus,
        phase: str,
        codec: str | None,
        algorithm: str | None,
    ) -> str:
        if self.standings.is_quarantined(agent_id):
            return _QUARANTINED
        if not self._is_confirmed(status):
            return "not answer yet"
        return _lack(status, phase, codec, algorithm)

    def takes_part(self, agent_id: str, phase: str) -> bool:
        """Says whether an agent takes part in a phase; one never heard of is believed to."""
        entry = self._entries.get(agent_id)
        return entry is None or phase in entry.status.phases

    def population(self, phase: str) -> int:
        """Returns how many agents take part in a phase, whether they are online or not.

        One that has just started again, and has yet to load its model, is none the less.
        """
        part: Part = "train" if phase == "train" else "test"
        return sum(
            phase in entry.status.phases
            and (phase not in ("train", "evaluate") or entry.rows(part).number > 0)
            for entry in self._entries.values()
        )


def _lack(status: AgentStatus, phase: str, codec: str | None, algorithm: str | None) -> str:
    """Returns what an agent lacks, after "does"; empty also while it loads the model."""
    if status.unavailable_reason:
        return _UNAVAILABLE
    if phase not in status.phases:
        return f"not take part in phase {phase!r}"
    if algorithm is not None and algorithm not in status.algorithms:
        return f"not know algorithm {algorithm!r}"
    if codec is not None and codec not in status.codecs:
        return f"not know codec {codec!r}"
    if status.runtime and not _has_part(status, phase):
        return f"not have rows for phase {phase!r}"
    return ""


def lacking_text(lacking: Counter[str]) -> str:
    """Returns how many agents lack what, in words; empty when none lacks anything."""
    return ", ".join(_counted(count, lack) for lack, count in lacking.most_common())


def _counted(count: int, lack: str) -> str:
    if lack in (_UNAVAILABLE, _QUARANTINED):
        return f"{count} {lack}"
    return f"{count} {'does' if count == 1 else 'do'} {lack}"


def _has_part(status: AgentStatus, phase: str) -> bool:
    if phase not in status.phases:
        return False
    if phase == "train":
        return status.train_examples > 0
    return phase != "evaluate" or status.test_examples > 0
