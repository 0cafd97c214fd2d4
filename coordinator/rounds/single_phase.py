"""Single phase: a task that is one phase, asked until it is answered; θ stays as it is."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from coordinator.config import CoordinatorConfig
from coordinator.records.course import Course
from coordinator.records.records import RoundRecord
from coordinator.rounds.protocol import (
    Abandon,
    Agents,
    ClosedPhase,
    Outcome,
    PhaseOrder,
    Result,
    first_needs,
)
from learning.algorithms.algorithm import ServerState
from learning.phases.phase import Collector
from learning.registry import Settings
from learning.vector.parameters import F32


class SinglePhase:
    """See the module.

    Args:
        config: of the federation.
        settings: of the phase.
        agents: says who can be asked.
    """

    def __init__(self, config: CoordinatorConfig, settings: Settings, agents: Agents) -> None:
        self._config = config
        self._settings = settings
        self._agents = agents

    def eligible_agents(self) -> list[str]:
        """Agents that take part in the phase."""
        return self._agents.eligible_agents(*first_needs(self._config))

    def first(self, eligible: Sequence[str]) -> PhaseOrder:
        """The only phase."""
        config = self._config
        minimum = config.round.minimum
        deadline_s = config.round.deadline_s
        return PhaseOrder(self._settings, eligible, config.cohort, deadline_s, minimum)

    def close(self, closed: ClosedPhase, theta: F32, state: ServerState) -> Outcome:
        """Keeps the result."""
        del theta, state
        ended = closed.round
        record = msgspec.structs.replace(
            closed.record,
            reported=len(ended.counted),
            declined=ended.declined,
            details=ended.details,
            closed=str(ended.closed),
        )
        minimum = self._config.round.minimum
        if len(ended.counted) < minimum:
            return Abandon(record, f"{record.reported} answers, minimum {minimum}")
        record = msgspec.structs.replace(record, status="answered")
        return Result(self.with_result(record, closed.collector))

    def with_result(self, record: RoundRecord, collector: Collector) -> RoundRecord:
        """The record with the result of the phase."""
        return msgspec.structs.replace(record, values=dict(sorted(collector.values.items())))

    def after_commit(self, record: RoundRecord) -> PhaseOrder | None:
        """Nothing is committed."""
        del record
        return None

    def stop_reason(self, course: Course) -> str | None:
        """`answered`: the result is there."""
        return "answered" if course.answered else None
