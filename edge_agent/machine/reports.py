"""What an agent answers to plans: an update, figures, or why there are none."""

from __future__ import annotations

import logging
from typing import Literal
from zlib import crc32

import msgspec
import numpy as np

from broker.protocol import messages
from broker.protocol.messages import (
    MAX_MISSING,
    CoordinatorStatus,
    Report,
    RoundPlan,
    Task,
    UpdateHeader,
)
from broker.protocol.topics import ReportTopic, Topics
from broker.service.events import Publish
from edge_agent.machine.events import Action
from edge_agent.machine.pending_update import SpooledUpdate
from edge_agent.machine.status import AgentFacts
from edge_agent.training.result import TrainingResult
from fedge.errors import CodecError, ConfigError
from learning.codecs import compensate, make_codec
from learning.vector.metrics import Sums, Total
from learning.vector.parameters import F32

log = logging.getLogger(__name__)

PlanKey = tuple[str, int, Task, str]


def plan_key(plan: RoundPlan) -> PlanKey:
    """What tells a plan from others; that of an open round comes again, and is the same."""
    # The weights: a round of this number may have been before a backup was put back.
    return plan.session, plan.round_id, plan.task, plan.weights.sha256


class Answers:
    """Answers each plan once.

    Args:
        facts: of this boot.
        topics: of the federation.

    Attributes:
        received_bytes: of all messages of this boot; every answer says so.
    """

    def __init__(self, facts: AgentFacts, topics: Topics) -> None:
        self._facts = facts
        self._topics = topics
        self.received_bytes = 0
        #: Trainings of this boot, which tell two updates of one round apart.
        self._attempts = 0
        self._answered: PlanKey | None = None
        #: Sent again when that plan comes again; updates are the outbox's to send.
        self._last: tuple[PlanKey, Publish] | None = None

    def has(self, plan: RoundPlan) -> bool:
        """Whether the plan has its answer."""
        return self._answered == plan_key(plan)

    def by_update(self, plan: RoundPlan) -> None:
        """An update in the outbox is the answer."""
        self._answered = plan_key(plan)

    def again(self, plan: RoundPlan) -> list[Action]:
        """The answer to a plan that came again: the broker may have lost it."""
        return [self._last[1]] if self._last and self._last[0] == plan_key(plan) else []

    def training_begins(self) -> None:
        """Another attempt."""
        self._attempts += 1

    def trained(
        self, plan: RoundPlan, result: TrainingResult, residual: F32 | None
    ) -> SpooledUpdate | list[Action]:
        """The update of a finished training, for the outbox, or why there is none.

        Args:
            plan: that asked for it.
            result: of the training.
            residual: what the update must make up for; float32, shape (P,).
        """
        if trouble := _not_finite(result.sums):
            return self.declined(plan, "training", trouble)
        try:
            update = self._update(plan, result, residual)
        except (CodecError, ConfigError) as error:
            return self.declined(plan, "training", str(error))
        self.by_update(plan)
        return update

    def measured(self, plan: RoundPlan, sums: Sums) -> list[Action]:
        """The figures of this device's held-out rows."""
        if trouble := _not_finite(sums):
            return self.declined(plan, "evaluation", trouble)
        report = self._report(plan, "evaluation")
        return self._answer(
            plan,
            msgspec.structs.replace(
                report,
                loss_sum=sums.loss,
                weight_sum=sums.weight,
                metric_sums=dict(sums.metrics),
            ),
        )

    def failed(self, plan: RoundPlan, detail: str) -> list[Action]:
        """The job ended without a result."""
        return self.declined(plan, "training" if plan.task == "train" else "evaluation", detail)

    def declined(self, plan: RoundPlan, reason: str, detail: str) -> list[Action]:
        """Why this device does not do what the plan asks."""
        log.warning("round %d: declined (%s): %s", plan.round_id, reason, detail)
        return self._answer(plan, self._report(plan, "declined", reason, detail))

    def missing(
        self,
        coordinator: CoordinatorStatus,
        plan: RoundPlan | None,
        sha256: str,
        chunks: tuple[int, ...],
    ) -> Publish:
        """That the broker does not give chunks of a blob; no answer to the plan."""
        report = Report(
            session=coordinator.session,
            boot=self._facts.boot,
            round_id=0 if plan is None else plan.round_id,
            kind="missing",
            task="evaluate" if plan is None else plan.task,
            version=coordinator.version,
            sha256=sha256,
            chunks=chunks[:MAX_MISSING],
            received_bytes=self.received_bytes,
        )
        return self._publish(report)

    def _update(
        self, plan: RoundPlan, result: TrainingResult, residual: F32 | None
    ) -> SpooledUpdate:
        facts, sums = self._facts, result.sums
        # From the plan's seed and the agent's name: a repeated training rounds the same way.
        rng = np.random.default_rng([plan.seed, crc32(facts.agent_id.encode()), 1])
        encoded = compensate(make_codec(plan.codec), result.delta, residual, rng)
        header = UpdateHeader(
            session=plan.session,
            boot=facts.boot,
            round_id=plan.round_id,
            attempt=self._attempts,
            version=plan.version,
            fingerprint=plan.fingerprint,
            codec=plan.codec,
            size=len(result.delta),
            num_examples=result.num_examples,
            loss_sum=sums.loss,
            weight_sum=sums.weight,
            metric_sums=dict(sums.metrics),
            training_s=result.seconds,
            received_bytes=self.received_bytes,
        )
        return SpooledUpdate(
            session=plan.session,
            round_id=plan.round_id,
            boot=facts.boot,
            attempt=self._attempts,
            fingerprint=plan.fingerprint,
            deadline_s=plan.deadline_s,
            frame=messages.encode_update(header, encoded.payload),
            residual=encoded.residual,
        )

    def _report(
        self,
        plan: RoundPlan,
        kind: Literal["declined", "evaluation"],
        reason: str = "",
        detail: str = "",
    ) -> Report:
        return Report(
            session=plan.session,
            boot=self._facts.boot,
            round_id=plan.round_id,
            kind=kind,
            task=plan.task,
            version=plan.version,
            reason=reason,
            detail=detail[:500],
            received_bytes=self.received_bytes,
        )

    def _answer(self, plan: RoundPlan, report: Report) -> list[Action]:
        self._answered = plan_key(plan)
        answer = self._publish(report)
        self._last = (self._answered, answer)
        return [answer]

    def _publish(self, report: Report) -> Publish:
        topic = ReportTopic(self._facts.agent_id, report.round_id)
        return Publish(self._topics.name(topic), messages.encode(report))


def _not_finite(sums: Sums) -> str:
    """Which sum cannot be sent, in words; empty when all can."""
    totals: dict[str, Total] = {"loss": sums.loss, **sums.metrics}
    values = (
        (name, value)
        for name, total in totals.items()
        for value in (total if isinstance(total, tuple) else (total,))
    )
    bad = [f"{name} is {value:g}" for name, value in values if not abs(value) <= 1e100]
    return f"{bad[0]} (sum over {sums.weight:g} rows): training diverged" if bad else ""
