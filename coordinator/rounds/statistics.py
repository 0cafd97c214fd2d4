"""Statistics: one phase, whose answers become a table of columns."""

from __future__ import annotations

import msgspec

from coordinator.config import CoordinatorConfig
from coordinator.records.records import RoundRecord
from coordinator.rounds.protocol import Agents
from coordinator.rounds.single_phase import SinglePhase
from fedge.errors import ConfigError, did_you_mean
from learning.phases.phase import Collector
from learning.phases.registry import PHASES
from learning.phases.statistics import MAX_COLUMNS, StatisticsCollector, StatisticsSettings
from learning.registry import Choice
from models.package.columns import named_columns
from models.package.spec import ModelSpec


class StatisticsRound(SinglePhase):
    """See the module.

    Args:
        config: of the federation; `task` holds the phase's settings.
        spec: of its model.
        agents: says who can be asked.

    Raises:
        ConfigError: see `statistics_settings`.
    """

    def __init__(self, config: CoordinatorConfig, spec: ModelSpec, agents: Agents) -> None:
        super().__init__(config, statistics_settings(config.task, spec), agents)

    def with_result(self, record: RoundRecord, collector: Collector) -> RoundRecord:
        """The record with the table."""
        assert isinstance(collector, StatisticsCollector), "the phase of this protocol"
        columns = dict(sorted(collector.columns.items()))
        return msgspec.structs.replace(record, statistics=columns)


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
