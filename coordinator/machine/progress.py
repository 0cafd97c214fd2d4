"""Where a federation stands: what the store keeps and a restart goes on with."""

from __future__ import annotations

from dataclasses import dataclass, field

from broker.protocol.messages import RoundPlan
from coordinator.records.records import RoundRecord
from learning.algorithms import State
from learning.vector.parameters import F32


@dataclass(eq=False)
class Progress:
    """What a restart goes on with.

    Attributes:
        version: of θ.
        theta: float32, shape (P,).
        strategy_state: of the server optimizer.
        records: summaries of all rounds so far, in order: a federation may go on for years.
        open: the round that was collecting updates when the coordinator ended.
    """

    version: int
    theta: F32
    strategy_state: State
    records: list[RoundRecord] = field(default_factory=list)
    open: StoredRound | None = None

    @property
    def last_round(self) -> int:
        """The last round's id; 0 before the first."""
        return self.records[-1].round_id if self.records else 0


@dataclass(frozen=True, eq=False)
class StoredRound:
    """A learning phase that was announced and not committed.

    Attributes:
        plan: as announced.
        asked: agents.
        goal: reports that are enough.
        frames: (agent, update frame) of those that count, in the order of their arrival.
    """

    plan: RoundPlan
    asked: tuple[str, ...]
    goal: int
    frames: tuple[tuple[str, bytes], ...]
