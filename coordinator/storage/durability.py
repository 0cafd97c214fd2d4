"""Durability: what depends on an update waits until the update is on disk."""

from __future__ import annotations

import math
from collections.abc import Callable

from broker.protocol.messages import AgentStatus
from coordinator.machine.events import (
    Action,
    Commit,
    Finished,
    ForgetAgent,
    SaveAgent,
    SaveOpenRound,
    SaveRound,
    StoreUpdate,
)
from coordinator.storage.store import Store

#: Updates written to disk together, at most.
FLUSH_UPDATES = 32
#: Statuses alone are written at most so often: one agent may change its own many times a second.
STATUSES_EVERY_S = 5.0
#: A large status of one agent is written less often: not more than so many bytes a second of it.
STATUS_BYTES_PER_S = 2048


class Durability:
    """Performs the actions that store, and holds receipts and acknowledgements behind updates.

    Nothing depends on a status being on disk: only the latest one of each agent is written, with
    what else is, or when the last write was a while ago.

    Args:
        store: of the federation.

    Attributes:
        unflushed: updates that are not on disk yet.
    """

    def __init__(self, store: Store) -> None:
        self.unflushed = 0
        self._store = store
        self._is_dirty = False
        self._held: list[Callable[[], None]] = []
        #: Latest statuses by agent and when it was heard of, not in the store yet; None: forget it.
        self._statuses: dict[str, tuple[AgentStatus, float | None] | None] = {}
        self._flushed_s = -math.inf
        #: Agents whose last status was large, and when the next one may be written.
        self._large: dict[str, float] = {}

    def perform(self, action: Action, heard_at: float | None = None) -> bool:
        """Stores; returns whether the action was one that stores.

        Args:
            action: any.
            heard_at: when the agent of a `SaveAgent` was last heard, in seconds since 1970.
        """
        store = self._store
        match action:
            case SaveOpenRound(plan, cohort, goal):
                store.save_open_round(plan, cohort, goal)
            case StoreUpdate(agent_id=agent_id, version=version, frame=frame):
                store.add_update(agent_id, version, frame)
                self.unflushed += 1
                self._is_dirty = True
            case Commit(version, theta, state, record, closed, course, standings):
                store.commit(version, theta, state, record, closed, course, standings)
            case SaveRound(record, closed, course, standings):
                store.save_round(record, closed, course, standings)
            case SaveAgent(agent_id, status):
                self._statuses[agent_id] = (status, heard_at)
            case ForgetAgent(agent_id):
                self._statuses[agent_id] = None
            case Finished(reason):
                store.finish(reason)
            case _:
                return False
        return True

    def save_statuses(self, now_s: float = math.inf) -> None:
        """Adds the statuses that wait to the store, to be written with the next `flush`.

        Args:
            now_s: the time; a large status is not written soon after another of the same agent.
                Infinite: it is.
        """
        self._large = {name: due_s for name, due_s in self._large.items() if now_s < due_s}
        for agent_id in [name for name in self._statuses if name not in self._large]:
            latest = self._statuses.pop(agent_id)
            self._is_dirty = True
            if latest is None:
                self._store.forget_status(agent_id)
                continue
            pause_s = self._store.save_agent(agent_id, *latest) / STATUS_BYTES_PER_S
            if pause_s > STATUSES_EVERY_S:
                self._large[agent_id] = now_s + pause_s

    def touch(self) -> None:
        """Notes that something else was added to the store and not flushed."""
        self._is_dirty = True

    def after(self, confirm: Callable[[], None]) -> None:
        """Calls `confirm` now, or once the updates before it are on disk."""
        if self.unflushed:
            self._held.append(confirm)
        else:
            confirm()

    @property
    def is_full(self) -> bool:
        """Whether as many updates wait as are written together."""
        return self.unflushed >= FLUSH_UPDATES

    def flush(self, now_s: float = math.inf) -> list[Callable[[], None]]:
        """Writes what was added; returns what waited for it, to be called in order.

        Args:
            now_s: the time; statuses alone are not written soon after the last write. Infinite:
                they are.
        """
        if self._is_dirty or now_s >= self._flushed_s + STATUSES_EVERY_S:
            self.save_statuses(now_s)
        if not self._is_dirty:
            return []
        self._store.flush()
        self._is_dirty, self._flushed_s = False, now_s
        self.unflushed = 0
        held, self._held = self._held, []
        return held
