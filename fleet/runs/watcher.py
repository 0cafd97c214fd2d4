"""Watcher: what a run tells while it goes on."""

from __future__ import annotations

from typing import Protocol

from coordinator.config import CoordinatorConfig
from coordinator.records.records import RoundRecord
from fleet.participants import Participants


class Watcher(Protocol):
    """Observer that shows the progress of a run."""

    def begin(self, participants: Participants, config: CoordinatorConfig, broker: str) -> None:
        """Called before the processes start."""

    def round(self, record: RoundRecord) -> None:
        """Called when a round has ended."""

    def waiting(self, eligible: int, wanted: int) -> None:
        """Called while a round cannot begin: too few agents can take part."""

    def note(self, text: str) -> None:
        """Called with one line for people."""

    def working(self, what: str, done: int, of: int) -> None:
        """Called when a part of longer work is done.

        Args:
            what: "own" and "pooled" train baseline models; other names are phases of a round.
            done: parts that are done.
            of: all parts.
        """
