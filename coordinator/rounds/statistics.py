"""Statistics: one phase, whose answers become a table of columns; θ stays as it is."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from coordinator.config import CoordinatorConfig
from coordinator.records.records import RoundRecord
from coordinator.rounds.protocol import Abandon, Agents, ClosedPhase, Outcome, PhaseOrder, Result
from fedge.errors import ConfigError, did_you_mean
from learning.algorithms.algorithm import ServerState
from learning.phases.registry import PHASES
from learning.phases.statistics import MAX_COLUMNS, StatisticsCollector, StatisticsSettings
from learning.registry import Choice
from learning.vector.parameters import F32
from models.package.columns import named_columns
from models.package.spec import ModelSpec


class StatisticsRound:
    """See the module.

    Args:
        config: of the federation; `task` holds the phase's settings.
        spec: of its model.
        agents: says who can be asked.

    Raises:
        ConfigError: see `statistics_settings`.
    """

    def __init__(self, config: CoordinatorConfig, spec: ModelSpec, agents: Agents) -> None:
        self._config = config
        self._settings = statistics_settings(config.task, spec)
        self._agents = agents

    def eligible_agents(self) -> list[str]:
        """Agents that know the phase."""
        return self._agents.eligible_agents(self._settings.name)

    def first(self, eligible: Sequence[str]) -> PhaseOrder:
        """The only phase."""
        config = self._config
        minimum = config.round.minimum
        deadline_s = config.round.deadline_s
        return PhaseOrder(self._settings, eligible, config.cohort, deadline_s, minimum)

    def close(self, closed: ClosedPhase, theta: F32, state: ServerState) -> Outcome:
        """Keeps the table."""
        del theta, state
        ended, collector = closed.round, closed.collector
        assert isinstance(collector, StatisticsCollector), "the phase of this protocol"
        record = msgspec.structs.replace(
            closed.record,
            reported=len(ended.counted),
            declined=ended.declined,
            details=ended.details,
            closed=str(ended.closed),
            refusals=dict(ended.refusals),
            refused=sum(ended.refusals.values()),
        )
        minimum = self._config.round.minimum
        if len(ended.counted) < minimum:
            return Abandon(record, f"{record.reported} answers, minimum {minimum}")
        return Result(
            msgspec.structs.replace(
                record, status="answered", statistics=dict(sorted(collector.columns.items()))
            )
        )

    def after_commit(self, record: RoundRecord) -> PhaseOrder | None:
        """Nothing is committed."""
        del record
        return None

    def stop_reason(self, records: Sequence[RoundRecord]) -> str | None:
        """`answered`: the table is there."""
        return "answered" if any(record.status == "answered" for record in records) else None


def statistics_settings(task: Choice, spec: ModelSpec) -> StatisticsSettings:
    """Returns the phase's settings with every column by its name, so that no agent adds others.

    Raises:
        ConfigError: a setting is wrong, a column is none of the model's, or there are too many.
    """
    settings = PHASES.settings(task, key="task")
    assert isinstance(settings, StatisticsSettings), "the task of this protocol"
    known = list(named_columns(spec))
    for name in settings.columns:
        if name not in known:
            raise ConfigError(
                f"task.columns: {name!r} is no column of {spec.name}; {did_you_mean(name, known)}"
                f"columns: {', '.join(known)}"
            )
    if not settings.columns and len(known) > MAX_COLUMNS:
        raise ConfigError(
            f"task: {spec.name} has {len(known):,} columns, limit {MAX_COLUMNS:,}; name those that"
            " are wanted in task.columns"
        )
    columns = settings.columns or dict.fromkeys(known, ())
    return msgspec.structs.replace(settings, columns=columns)
