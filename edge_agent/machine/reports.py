"""Answers of an agent to plans: updates, results, and reasons to decline."""

from __future__ import annotations

import logging
import re
from collections import deque

import msgspec

from broker.protocol import messages
from broker.protocol.messages import (
    MAX_MISSING,
    CoordinatorStatus,
    Report,
    RoundPlan,
    UpdateHeader,
)
from broker.protocol.topics import ReportTopic, Topics
from broker.service.events import Publish
from edge_agent.machine.decoded_plan import is_too_deep
from edge_agent.machine.events import Action
from edge_agent.machine.pending_update import LocalReport, LocalUpdate, SpooledUpdate
from edge_agent.machine.status import AgentFacts
from learning.vector.metrics import Sums, Total

log = logging.getLogger(__name__)

#: Answered plans that are remembered: the newest, and those that work went on with (staleness).
_REMEMBERED = 8

#: Characters of a detail: a plan may have a name of a million.
_DETAIL = 500

#: As `broker.protocol.messages.Name`.
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")

PlanKey = tuple[str, int, str, str]


def plan_key(plan: RoundPlan) -> PlanKey:
    """Returns what tells a plan from others; that of an open round comes again, and is the same."""
    # A round of this number may have been before: with other weights, before a backup was put
    # back; with other settings of its phase, before a coordinator started again.
    # One that is nested too deep is declined, whatever is in it, and encodes to a RecursionError.
    phase = plan.phase
    if not isinstance(phase, str):
        deep = is_too_deep(phase)
        phase = "" if deep else msgspec.json.encode(phase, order="sorted").decode()
    return plan.session, plan.round_id, phase, plan.weights.sha256


def is_same_plan(one: RoundPlan, other: RoundPlan) -> bool:
    """Whether two plans are the same, perhaps announced again."""
    return one is other or plan_key(one) == plan_key(other)


class ReportBuilder:
    """Builds the answer to each plan, and remembers which plans have one.

    Args:
        facts: of this instance.
        topics: of the federation.

    Attributes:
        received_bytes: of all messages of this instance; every answer carries it.
    """

    def __init__(self, facts: AgentFacts, topics: Topics) -> None:
        self._facts = facts
        self._topics = topics
        self.received_bytes = 0
        #: Updates of this boot: tells two updates of one round apart.
        self._attempts = 0
        self._answered: deque[PlanKey] = deque(maxlen=_REMEMBERED)
        #: Sent again when that plan comes again; updates are the outbox's to send.
        self._last: tuple[PlanKey, Publish] | None = None

    def has_answered(self, plan: RoundPlan) -> bool:
        """Whether the plan has its answer."""
        return plan_key(plan) in self._answered

    def mark_answered(self, plan: RoundPlan) -> None:
        """Notes that an update in the outbox is the answer."""
        key = plan_key(plan)
        if key not in self._answered:
            self._answered.append(key)

    def repeat(self, plan: RoundPlan) -> list[Action]:
        """Returns the report for a plan that came again: the broker may have lost it."""
        return [self._last[1]] if self._last and self._last[0] == plan_key(plan) else []

    def update(self, plan: RoundPlan, result: LocalUpdate) -> SpooledUpdate | list[Action]:
        """Returns the update of a finished job, for the outbox, or the report that declines."""
        if problem := _not_finite(result.sums):
            return self.declined(plan, "training", problem)
        self._attempts += 1
        sums = result.sums
        header = UpdateHeader(
            session=plan.session,
            agent_instance=self._facts.agent_instance,
            round_id=plan.round_id,
            attempt=self._attempts,
            version=plan.version,
            fingerprint=plan.fingerprint,
            vectors=dict(result.vectors),
            num_examples=result.num_examples,
            loss_sum=sums.loss,
            weight_sum=sums.weight,
            metric_sums=dict(sums.metrics),
            training_s=result.seconds,
            received_bytes=self.received_bytes,
        )
        self.mark_answered(plan)
        return SpooledUpdate(
            session=plan.session,
            round_id=plan.round_id,
            phase=plan.phase_name,
            agent_instance=self._facts.agent_instance,
            attempt=self._attempts,
            version=plan.version,
            deadline_s=plan.deadline_s,
            frame=messages.encode_update(header, result.body),
            state=result.state,
        )

    def result(self, plan: RoundPlan, result: LocalReport, rows: int) -> list[Action]:
        """Returns the report of a job that uploads no vectors, and looked at so many rows."""
        sums = result.sums
        if problem := _not_finite(sums):
            return self.declined(plan, "evaluation", problem)
        # What leaves the device is its owner's to know.
        log.info("round %d: sent %s of %d rows", plan.round_id, plan.phase_name, rows)
        report = Report(
            session=plan.session,
            agent_instance=self._facts.agent_instance,
            round_id=plan.round_id,
            kind="result",
            phase=_phase_of(plan),
            version=plan.version,
            loss_sum=sums.loss,
            weight_sum=sums.weight,
            metric_sums=dict(sums.metrics),
            values=dict(result.values),
            num_examples=result.num_examples,
            received_bytes=self.received_bytes,
        )
        return self._answer(plan, report)

    def declined(self, plan: RoundPlan, reason: str, detail: str) -> list[Action]:
        """Returns the report that declines a plan."""
        detail = detail[:_DETAIL]
        log.warning("round %d: declined (%s): %s", plan.round_id, reason, detail)
        report = Report(
            session=plan.session,
            agent_instance=self._facts.agent_instance,
            round_id=plan.round_id,
            kind="declined",
            phase=_phase_of(plan),
            version=plan.version,
            reason=reason,
            detail=detail,
            received_bytes=self.received_bytes,
        )
        return self._answer(plan, report)

    def missing(
        self,
        coordinator: CoordinatorStatus,
        plan: RoundPlan | None,
        sha256: str,
        chunks: tuple[int, ...],
    ) -> Publish:
        """Returns the report of chunks that the broker does not deliver; no answer to the plan."""
        report = Report(
            session=coordinator.session,
            agent_instance=self._facts.agent_instance,
            round_id=0 if plan is None else plan.round_id,
            kind="missing",
            phase=_phase_of(plan),
            version=coordinator.version,
            sha256=sha256,
            chunks=chunks[:MAX_MISSING],
            received_bytes=self.received_bytes,
        )
        return self._publish(report)

    def _answer(self, plan: RoundPlan, report: Report) -> list[Action]:
        self.mark_answered(plan)
        answer = self._publish(report)
        self._last = (plan_key(plan), answer)
        return [answer]

    def _publish(self, report: Report) -> Publish:
        topic = ReportTopic(self._facts.agent_id, report.round_id)
        return Publish(self._topics.name(topic), messages.encode(report))


def _phase_of(plan: RoundPlan | None) -> str:
    """The plan's phase as reports name it; a name that no report can carry is "unnamed"."""
    name = "" if plan is None else plan.phase_name
    return name if _NAME.fullmatch(name) else "unnamed"


def _not_finite(sums: Sums) -> str:
    """Names a sum that cannot be sent; empty when all can."""
    totals: dict[str, Total] = {"loss": sums.loss, **sums.metrics}
    for name, total in totals.items():
        for value in total if isinstance(total, tuple) else (total,):
            if not abs(value) <= 1e100:
                return f"{name} is {value:g} (sum over {sums.weight:g} rows): training diverged"
    return ""
