"""Train, commit, evaluate: the round of federated averaging and its successors.

Devices train from θ; their updates are aggregated and the algorithm's server half makes the next θ;
after the commit, when it is due, devices measure the new θ.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from coordinator.config import CohortConfig, CoordinatorConfig
from coordinator.records.course import Course
from coordinator.records.records import RoundRecord
from coordinator.records.results import with_evaluation, with_training
from coordinator.rounds.protocol import (
    Abandon,
    Agents,
    ClosedPhase,
    Commit,
    HoldBack,
    Outcome,
    PhaseOrder,
    Result,
    first_needs,
)
from coordinator.rounds.stopping import stop_reason
from fedge.errors import TrainingError
from learning.algorithms.algorithm import Algorithm, ServerState
from learning.algorithms.server_step import server_step
from learning.phases.evaluate import EvaluateCollector, EvaluateSettings
from learning.phases.train import TrainCollector, TrainSettings
from learning.vector.parameters import F32
from models.package.spec import ModelSpec


class TrainThenEvaluate:
    """See the module.

    Args:
        config: of the federation.
        spec: of its model.
        algorithm: whose server half makes the next θ.
        agents: says who can evaluate, and how many devices can train.
    """

    def __init__(
        self, config: CoordinatorConfig, spec: ModelSpec, algorithm: Algorithm, agents: Agents
    ) -> None:
        self._config = config
        self._spec = spec
        self._algorithm = algorithm
        self._agents = agents

    def eligible_agents(self) -> list[str]:
        """Agents with training rows that know the codec and the algorithm."""
        return self._agents.eligible_agents(*first_needs(self._config))

    def first(self, eligible: Sequence[str]) -> PhaseOrder:
        """Training."""
        config = self._config
        return PhaseOrder(
            TrainSettings(),
            eligible,
            config.cohort,
            config.round.deadline_s,
            minimum=config.round.minimum,
            is_durable=True,
        )

    def close(self, closed: ClosedPhase, theta: F32, state: ServerState) -> Outcome:
        """Commits the updates of a training, or adds the figures of an evaluation."""
        if isinstance(closed.collector, EvaluateCollector):
            return Result(self._evaluated(closed, closed.collector))
        assert isinstance(closed.collector, TrainCollector), "the phases of this protocol"
        return self._trained(closed, closed.collector, theta, state)

    def _trained(
        self, closed: ClosedPhase, collector: TrainCollector, theta: F32, state: ServerState
    ) -> Outcome:
        ended = closed.round
        record = msgspec.structs.replace(
            closed.record,
            reported=len(ended.counted),
            stale=len(ended.stale),
            declined=ended.declined,
            details=ended.details,
            closed=str(ended.closed),
        )
        minimum = self._config.round.minimum
        if len(ended.counted) < minimum:
            return Abandon(record, f"{record.reported} updates, minimum {minimum}")
        if closed.suspects:
            return HoldBack(record, closed.suspects)
        try:
            aggregate = collector.aggregate(self._agents.population("train"))
            after, after_state = server_step(
                self._algorithm, self._spec.layout, theta, state, aggregate
            )
        except TrainingError as error:
            return Abandon(record, str(error))
        record = msgspec.structs.replace(
            with_training(record, collector.sums, self._spec.metrics, closed.usual_loss),
            status="committed",
            version=record.version + 1,
            population=aggregate.population,
        )
        left_out = record.left_out | dict(aggregate.left_out)
        record = msgspec.structs.replace(record, left_out=left_out)
        return Commit(after, after_state, record)

    def after_commit(self, record: RoundRecord) -> PhaseOrder | None:
        """Evaluation, when it is due and somebody can."""
        evaluation, version = self._config.evaluation, record.version
        last = version >= self._config.rounds
        if not evaluation.every or not (version % evaluation.every == 0 or last):
            return None
        # By rule where the rounds are: the ids of a large fleet would travel to every agent of it.
        cohort = CohortConfig(fraction=evaluation.fraction, announce=self._config.cohort.announce)
        eligible = self._agents.eligible_agents("evaluate")
        return PhaseOrder(EvaluateSettings(), eligible, cohort, evaluation.deadline_s, stream=2)

    def _evaluated(self, closed: ClosedPhase, collector: EvaluateCollector) -> RoundRecord:
        unseen = {n for n in collector.sums if not self._agents.takes_part(n, "train")}
        record = closed.record
        return msgspec.structs.replace(
            with_evaluation(
                record,
                collector.sums,
                unseen,
                self._spec.metrics,
                closed.usual_loss,
                collector.label_shifts,
            ),
            declined=record.declined | closed.round.declined,
            details=record.details | closed.round.details,
        )

    def stop_reason(self, course: Course) -> str | None:
        """`rounds`, `target` or `patience`."""
        return stop_reason(self._config, course)
