"""Rounds: from a plan to its answer."""

from __future__ import annotations

import logging
import math
from random import Random
from weakref import WeakValueDictionary

from broker.protocol.messages import BlobRef, CoordinatorStatus, Receipt, Resend, RoundPlan
from broker.protocol.topics import Topics
from edge_agent.machine.blob_fetcher import Fetcher
from edge_agent.machine.decoded_plan import DecodedPlan, PlanBlobs, decode_plan, wanted_blobs
from edge_agent.machine.events import (
    Action,
    CancelJob,
    JobDone,
    JobFailed,
    PackageLoaded,
    StartJob,
)
from edge_agent.machine.limits import Limits
from edge_agent.machine.package import CurrentPackage
from edge_agent.machine.pending_update import AgentMemory, LocalUpdate, SpooledUpdate
from edge_agent.machine.plan_order import PlanOrder, is_within_staleness
from edge_agent.machine.reports import ReportBuilder, is_same_plan
from edge_agent.machine.status import AgentFacts, check_available, check_model, rows_for
from edge_agent.machine.update_outbox import Outbox
from fedge.errors import DeclinedError, WireError
from learning.phases.registry import PHASES
from learning.vector.parameters import F32
from learning.vector.vectors import Vectors

log = logging.getLogger(__name__)


class Rounds:
    """Works on one plan at a time: fetches its blobs, has its job done, answers.

    A new plan replaces the one at work, unless that trains and its update still counts
    (`max_staleness`): then the newest plan is worked on afterwards.

    Args:
        facts: of this instance.
        topics: of the federation.
        memory: of earlier instances.
        package: the model package.
        limits: whether the device pauses.
        fetcher: of blobs.
        rng: for jitter.
        vectors: by the SHA-256 of their blob, that other agents of the process hold.

    Attributes:
        coordinator: its status; None before the first.
        plan: the newest.
        outbox: the pending update and the device's state.
        reports: answers to plans.
        refusal: why updates cannot be sent; empty: they can.
    """

    def __init__(
        self,
        facts: AgentFacts,
        topics: Topics,
        memory: AgentMemory,
        package: CurrentPackage,
        limits: Limits,
        fetcher: Fetcher,
        rng: Random,
        vectors: WeakValueDictionary[str, F32],
    ) -> None:
        self._facts = facts
        self._package = package
        self._limits = limits
        self._fetcher = fetcher
        self.coordinator: CoordinatorStatus | None = None
        self.plan: RoundPlan | None = None
        self.refusal = ""
        self.outbox = Outbox(topics, facts.agent_id, memory, rng)
        self.reports = ReportBuilder(facts, topics)
        self._order = PlanOrder()
        self._blobs = PlanBlobs(vectors)
        #: Its blobs are being fetched, or its job runs.
        self._at_work: RoundPlan | None = None
        #: Of the job that runs, which may be cancelled by now.
        self._job: RoundPlan | None = None
        self._decoded: tuple[RoundPlan, DecodedPlan] | None = None
        #: When answers to the newest plan are late, as far as we know.
        self._late_s = math.inf

    # -- plans ----------------------------------------------------------------------------------

    def new_plan(self, plan: RoundPlan, now_s: float) -> list[Action]:
        """Takes a plan: a new one, the same again, or a late copy."""
        old = self.plan
        if old is not None and self._order.is_late(plan, old):
            log.info(
                "plan of round %d ignored: that of round %d is newer",
                plan.round_id,
                old.round_id,
                extra={"sender": "coordinator"},
            )
            return []
        actions: list[Action] = []
        if old is not None and self._order.follow(plan, old):
            log.warning(
                "the coordinator goes back from round %d to %d: its state is an earlier one",
                old.round_id,
                plan.round_id,
            )
            actions += self.outbox.gone_back(plan)
        before = self._plans()
        self.plan, self._late_s = plan, now_s + plan.deadline_s
        actions += self.outbox.new_plan(plan, now_s)
        if self.outbox.is_answer_to(plan):
            self.reports.mark_answered(plan)
        actions += self.reports.repeat(plan)
        actions += self._replace_work(plan)
        return [*actions, *self._forget_blobs(before), *self.advance(now_s)]

    def _plans(self) -> list[RoundPlan]:
        """The plan at work and the newest one."""
        work, newest = self._at_work, self.plan
        if work is None:
            return [] if newest is None else [newest]
        return [work] if newest is None else [work, newest]

    def _replace_work(self, plan: RoundPlan) -> list[Action]:
        work = self._at_work
        if work is None:
            return []
        if is_same_plan(work, plan) and plan.state == "open":
            if self._job is None:
                self._at_work = plan  # its blobs may be cut otherwise by now
        elif not self._still_counts(work, plan):
            self._at_work = None
            if self._job is not None:
                log.info("round %d is over, its job is cancelled", work.round_id)
                return [CancelJob()]
        return []

    def _still_counts(self, work: RoundPlan, plan: RoundPlan) -> bool:
        return (
            work.session == plan.session
            and work.round_id <= plan.round_id
            and self._is_training(work)
            and is_within_staleness(work.version, plan)
        )

    def _forget_blobs(self, before: list[RoundPlan]) -> list[Action]:
        """Frees blobs of plans that are over."""
        work, newest = self._at_work, self.plan
        over = [plan for plan in before if plan is not work and plan is not newest]
        if not over:
            return []
        plans = self._plans()
        blobs = [plan.blobs for plan in plans]
        if all(plan.blobs in blobs for plan in over):
            return []
        self._blobs.keep_only(plans)
        kept = {ref.sha256 for plan in plans for ref in plan.blobs.values()}
        named = {ref.sha256: ref for plan in over for ref in plan.blobs.values()}
        refs = [ref for sha256, ref in named.items() if sha256 not in kept]
        return [action for ref in refs for action in self._fetcher.forget(ref)]

    def _decode(self, plan: RoundPlan) -> DecodedPlan:
        """Raises DeclinedError; see `decode_plan`."""
        if self._decoded is None or self._decoded[0] is not plan:
            self._decoded = plan, decode_plan(plan)
        return self._decoded[1]

    def _is_training(self, plan: RoundPlan) -> bool:
        try:
            return self._decode(plan).phase.rows == "train"
        except DeclinedError:
            return False  # it came again with other settings, and nobody has worked on it yet

    # -- work -----------------------------------------------------------------------------------

    def advance(self, now_s: float) -> list[Action]:
        """Takes the next step of the plan at work, or begins with the newest."""
        plan = self._at_work or self.plan
        if plan is None or self._job is not None or not self._is_for_us(plan):
            return []
        loaded = self._package.loaded
        try:
            check_available(self._facts, plan, self._package.failed, self._limits.pause)
            self._check_phase(plan)
            decoded = self._decode(plan)
            if self.refusal and decoded.phase.rows == "train":
                raise DeclinedError("publish_refused", self.refusal)
            if loaded is None or loaded.package != plan.package:
                return []  # the manifest or the package is on its way
            check_model(plan, decoded.phase, loaded)
            wanted = wanted_blobs(plan, decoded.blob_names, self._facts.max_blob_bytes)
            self._at_work = plan
            if missing := self._blobs.missing(wanted):
                return self._fetch(missing, now_s, plan.fetch_jitter_s)
        except DeclinedError as error:
            return self._decline(plan, error.reason, str(error))
        return self._start_job(plan, decoded, loaded, self._blobs.vectors(wanted))

    @property
    def instance(self) -> str:
        """Start of the coordinator that is online; empty when none is."""
        coordinator = self.coordinator
        if coordinator is None or coordinator.state != "online":
            return ""
        return coordinator.coordinator_instance

    def _is_for_us(self, plan: RoundPlan) -> bool:
        coordinator = self.coordinator
        return (
            plan.state == "open"
            and coordinator is not None
            and coordinator.state == "online"
            and coordinator.session == plan.session  # else a plan left over from an earlier run
            and not self.reports.has_answered(plan)
            and plan.cohort.includes(self._facts.agent_id)
            # A rule asks whoever its hash hits, and means those that take part in the phase.
            and (plan.cohort.ids is not None or not self._is_left_out(plan))
        )

    def _is_left_out(self, plan: RoundPlan) -> bool:
        """Whether the device's owner has left out a phase that this software knows."""
        name = plan.phase_name
        return name not in self._facts.phases and name in PHASES

    def _check_phase(self, plan: RoundPlan) -> None:
        if self._is_left_out(plan):
            known = ", ".join(self._facts.phases)
            raise DeclinedError("phase", f"this device takes part in {known} only")

    def _fetch(self, refs: list[BlobRef], now_s: float, jitter_s: float) -> list[Action]:
        """Raises DeclinedError: a blob is too large."""
        actions: list[Action] = []
        for ref in refs:
            try:
                actions += self._fetcher.begin(ref, now_s, jitter_s).actions
            except WireError as error:
                raise DeclinedError("weights", str(error)) from error
        return actions

    def _start_job(
        self, plan: RoundPlan, decoded: DecodedPlan, loaded: PackageLoaded, vectors: Vectors
    ) -> list[Action]:
        self._job = plan
        state = self.outbox.state
        if decoded.phase.rows == "train":
            state = self.outbox.take_state()
            log.info("round %d: training on %d rows", plan.round_id, loaded.train_examples)
        return [StartJob(plan, vectors, state)]

    # -- blobs ----------------------------------------------------------------------------------

    def refs(self) -> list[BlobRef]:
        """Returns the blobs of the plan at work and of the newest."""
        return [ref for plan in self._plans() for ref in plan.blobs.values()]

    def _plan_of(self, sha256: str) -> RoundPlan | None:
        for plan in self._plans():
            if any(ref.sha256 == sha256 for ref in plan.blobs.values()):
                return plan
        return None

    def blob_arrived(self, sha256: str, blob: bytes, now_s: float) -> list[Action]:
        """Takes a complete blob, if a plan names it."""
        plan = self._plan_of(sha256)
        if plan is None:
            return []
        try:
            self._blobs.take(sha256, blob)
        except DeclinedError as error:
            return [*self._decline(plan, error.reason, str(error)), *self.advance(now_s)]
        return self.advance(now_s)

    def blob_failed(self, sha256: str, why: str, now_s: float) -> list[Action] | None:
        """Declines the plan whose blob cannot be had; None: it is no plan's."""
        plan = self._plan_of(sha256)
        if plan is None:
            return None
        return [*self._decline(plan, "weights", why), *self.advance(now_s)]

    def blob_stalled(self, sha256: str, now_s: float) -> list[Action] | None:
        """Gives up an earlier plan whose blobs the coordinator may have cleared; None: goes on."""
        work = self._at_work
        if work is None or self.plan is None or is_same_plan(work, self.plan):
            return None
        if self._plan_of(sha256) is not work or self._job is not None:
            return None
        before = self._plans()
        self._at_work = None
        return [*self._forget_blobs(before), *self.advance(now_s)]

    # -- jobs and answers -----------------------------------------------------------------------

    def job_ended(self, event: JobDone | JobFailed, now_s: float) -> list[Action]:
        """Answers the plan of a job, and goes on with the newest."""
        self._job = None
        work = self._at_work
        if work is None or not is_same_plan(event.plan, work):
            return self.advance(now_s)  # the round went on without us
        before = self._plans()
        answer = self._answer(event, now_s)
        self._at_work = None
        return [*answer, *self._forget_blobs(before), *self.advance(now_s)]

    def _answer(self, event: JobDone | JobFailed, now_s: float) -> list[Action]:
        if isinstance(event, JobFailed):
            reason = event.reason or ("training" if self._is_training(event.plan) else "evaluation")
            return self.reports.declined(event.plan, reason, event.detail)
        if not isinstance(event.result, LocalUpdate):
            return self.reports.result(event.plan, event.result, self._rows(event))
        update = self.reports.update(event.plan, event.result)
        if isinstance(update, SpooledUpdate):
            return self.outbox.put(update, now_s)
        return update

    def _rows(self, event: JobDone) -> int:
        loaded, phase = self._package.loaded, self._decode(event.plan).phase
        return event.result.num_examples or (rows_for(phase, loaded) if loaded else 0)

    def _decline(self, plan: RoundPlan, reason: str, detail: str) -> list[Action]:
        if self._at_work is not None and is_same_plan(plan, self._at_work):
            self._at_work = None
        return self.reports.declined(plan, reason, detail)

    def decline_running(self, reason: str, detail: str) -> list[Action]:
        """Declines the plan whose job runs."""
        if self._job is None or self._at_work is None:
            return []
        return self._decline(self._at_work, reason, detail)

    def update_refused(self, round_id: int, detail: str) -> list[Action]:
        """Declines the plan whose update the broker refused: nobody should wait for it."""
        plan = self.plan
        is_waited_for = plan is not None and self.outbox.is_answer_to(plan)
        actions = self.outbox.refused(round_id)
        if actions and plan is not None and is_waited_for and plan.state == "open":
            actions += self.reports.declined(plan, "publish_refused", detail)
        return actions

    def inbox(self, message: Receipt | Resend, now_s: float) -> list[Action]:
        """Takes the coordinator's answer to the pending update."""
        return self.outbox.inbox(message, now_s)

    # -- time -----------------------------------------------------------------------------------

    @property
    def _is_paused(self) -> bool:
        if self._limits.pause is None:
            return False
        return self._job is not None and self._at_work is not None

    def next_s(self) -> float:
        """Returns when `tick` has something to do; infinite when never."""
        due_s = self.outbox.next_s(self.plan)
        return min(due_s, self._late_s) if self._is_paused else due_s

    def tick(self, now_s: float) -> list[Action]:
        """Gives up a job that is still paused at the deadline; sends the update when due."""
        actions: list[Action] = []
        pause = self._limits.pause
        if self._is_paused and pause is not None and now_s >= self._late_s:
            self._late_s = math.inf
            detail = f"{pause.detail}; still so at the deadline, training was given up"
            actions = [CancelJob(), *self.decline_running(pause.reason, detail)]
        return actions + self.outbox.send_when_due(self.plan, now_s)
