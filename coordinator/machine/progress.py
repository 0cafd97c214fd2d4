"""Progress of a federation: what the store keeps and a restart goes on with."""

from __future__ import annotations

from dataclasses import dataclass, field

from broker.protocol.messages import RoundPlan
from coordinator.machine.open_round import ClosedRound
from coordinator.machine.standing import Standing
from coordinator.records.records import RoundRecord
from learning.algorithms.algorithm import ServerState
from learning.vector.parameters import F32


@dataclass(eq=False)
class Progress:
    """Everything a restart goes on with.

    Attributes:
        version: of θ.
        theta: float32, shape (P,).
        state: of the algorithm's server half.
        records: summaries of all rounds so far, in order: a federation may go on for years.
        open: the round that was collecting updates when the coordinator ended.
        closed: the latest rounds with those whose updates count.
        standings: of the agents that have one, by id.
    """

    version: int
    theta: F32
    state: ServerState
    records: list[RoundRecord] = field(default_factory=list)
    open: StoredRound | None = None
    closed: tuple[ClosedRound, ...] = ()
    standings: dict[str, Standing] = field(default_factory=dict)

    @property
    def last_round(self) -> int:
        """The last round's id; 0 before the first."""
        return self.records[-1].round_id if self.records else 0


@dataclass(frozen=True, eq=False)
class StoredRound:
    """A learning phase that was announced and not committed.

    Attributes:
        plan: as announced.
        cohort: agents that were asked.
        goal: reports that are enough.
        frames: (agent, update frame) of those that count, in the order of their arrival.
    """

    plan: RoundPlan
    cohort: tuple[str, ...]
    goal: int
    frames: tuple[tuple[str, bytes], ...]
