"""Rounds that are abandoned one after the other: they end a run or a simulation."""

from __future__ import annotations

from coordinator.records.records import RoundRecord
from coordinator.report import decline_lines
from fedge.errors import FleetError

#: A coordinator by itself would go on for ever.
_MOST = 5


class AbandonedRounds:
    """Counts abandoned rounds.

    Attributes:
        in_a_row: so far.
    """

    def __init__(self) -> None:
        self.in_a_row = 0

    def count(self, record: RoundRecord) -> None:
        """Takes a round that has ended."""
        self.in_a_row = self.in_a_row + 1 if record.status == "abandoned" else 0

    def check(self, record: RoundRecord) -> None:
        """Raises FleetError when too many were abandoned, for the reasons of the last one."""
        if self.in_a_row >= _MOST:
            raise FleetError(f"{_MOST} rounds in a row were abandoned: {why_abandoned(record)}")


def why_abandoned(record: RoundRecord) -> str:
    """Returns why a round was abandoned: declined and refused updates, with their reasons."""
    refused = [f"{n} refused ({reason})" for reason, n in sorted(record.refusals.items())]
    why = "; ".join([*decline_lines(record), *refused])
    return why or record.held_back or "too few answered in time"
