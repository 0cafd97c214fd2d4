"""The round under way, with all that came in for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from broker.protocol.messages import RoundPlan, Task
from coordinator.records.records import RoundRecord
from coordinator.rounds.round import Round
from learning.aggregation import Aggregator
from learning.vector.metrics import Sums


@dataclass(eq=False)
class OpenRound:
    """A round's plan, who answered, and what they said.

    Attributes:
        task: of the phase: learning first, measuring the new θ after the commit.
        plan: as announced.
        round: who answered.
        started_s: when the learning was announced.
        deadline_s: when answers of this phase are late, on the same clock.
        record: as far as it is known.
        aggregator: of the learning phase.
        trained: sums of the last local epoch, by agent whose update counts.
        evaluations: sums over held-out rows, by agent.
    """

    task: Task
    plan: RoundPlan
    round: Round
    started_s: float
    deadline_s: float
    record: RoundRecord
    aggregator: Aggregator | None = None
    trained: dict[str, Sums] = field(default_factory=dict)
    evaluations: dict[str, Sums] = field(default_factory=dict)


@dataclass
class Traffic:
    """Bytes since the last round ended: from agents, and to agents as they reported."""

    up: int = 0
    down: int = 0

    def take(self) -> tuple[int, int]:
        """Both, and begin anew."""
        found = (self.up, self.down)
        self.up = self.down = 0
        return found
