"""Durability: what depends on an update waits until the update is on disk."""

from __future__ import annotations

from collections.abc import Callable

from coordinator.machine.events import (
    Action,
    Commit,
    Finished,
    ForgetAgent,
    SaveAgent,
    SaveOpenRound,
    SaveRound,
    SaveStanding,
    StoreUpdate,
)
from coordinator.storage.store import Store

#: Updates written to disk together, at most.
FLUSH_UPDATES = 32


class Durability:
    """Performs the actions that store, and holds receipts and acknowledgements behind updates.

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
            case Commit(version, theta, state, record, closed, course):
                store.commit(version, theta, state, record, closed, course)
            case SaveRound(record, closed, course):
                store.save_round(record, closed, course)
            case SaveAgent(agent_id, status):
                store.save_agent(agent_id, status, heard_at)
                self._is_dirty = True
            case SaveStanding(agent_id, standing):
                store.save_standing(agent_id, standing)
                self._is_dirty = True
            case ForgetAgent(agent_id):
                store.forget_status(agent_id)
                self._is_dirty = True
            case Finished(reason):
                store.finish(reason)
            case _:
                return False
        return True

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

    def flush(self) -> list[Callable[[], None]]:
        """Writes what was added; returns what waited for it, to be called in order."""
        if not self._is_dirty:
            return []
        self._store.flush()
        self._is_dirty = False
        self.unflushed = 0
        held, self._held = self._held, []
        return held
