"""State of a run's coordinator, read when its process has ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coordinator.config import CoordinatorConfig
from coordinator.records.records import RoundRecord
from coordinator.rounds.stopping import stop_rule
from coordinator.storage.folder import is_empty
from coordinator.storage.store import Store
from fedge.errors import FleetError
from learning.vector.parameters import F32
from models.package.stored_versions import STORE_FILE


def stored_rounds(state: Path) -> list[RoundRecord]:
    """Returns the records of all rounds; none before the coordinator has begun."""
    path = state / STORE_FILE
    if not path.is_file() or is_empty(path):  # also where it was ended while it made the file
        return []
    with _opened(state) as store:
        return list(store.rounds())


def best_theta(state: Path, config: CoordinatorConfig, size: int) -> F32:
    """Returns θ of the best version so far.

    Args:
        state: folder of the coordinator's state.
        config: of the federation.
        size: P of the model.

    Raises:
        FleetError: there is no version yet.
    """
    with _opened(state) as store:
        progress = store.load(size, stop_rule(config))
    if progress is None:
        raise FleetError("no round was committed")
    return progress.best[1]


def runtimes(state: Path) -> str:
    """Returns the interpreters of the agents, in words."""
    with _opened(state) as store:
        found = {agent.status.runtime for agent in store.agents()} - {""}
    return ", ".join(sorted(found))


@contextmanager
def _opened(state: Path) -> Iterator[Store]:
    store = Store.open_existing(state)
    try:
        yield store
    finally:
        store.close()
