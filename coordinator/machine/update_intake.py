"""Update intake: puts answers together, checks and collects them, and replies with receipts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import msgspec

from broker.protocol import messages
from broker.protocol.messages import Receipt, Report, Resend, UpdateHeader
from broker.protocol.topics import InboxTopic, Topics, UpdateTopic
from broker.service.events import Publish
from coordinator.config import CoordinatorConfig
from coordinator.machine.admission import MAX_EXAMPLES, MIN_WEIGHT
from coordinator.machine.events import StoreUpdate
from coordinator.machine.open_round import ClosedRounds, OpenRound, Traffic
from coordinator.machine.roster import Roster
from coordinator.machine.uploads import ExpectedVectors, Upload, Uploads, peek_header
from coordinator.rounds.round import Accept, Duplicate, Reject, Verdict
from fedge.errors import UpdateRejected, WireError
from learning.phases.phase import Phase, Received
from learning.phases.registry import PHASES
from learning.vector.metrics import Sums, fits
from learning.vector.plausible import implausible
from models.package.spec import ModelSpec

log = logging.getLogger(__name__)

#: As `learning.phases.phase.Phase.rows`.
RowPart = Literal["train", "test", "any"]


class IntakeResult(msgspec.Struct, frozen=True):
    """Actions for an answer: store it, then send receipts."""

    store: StoreUpdate | None = None
    receipts: tuple[Publish, ...] = ()


class UpdateIntake:
    """Judges the answers of agents and tells the open round.

    Args:
        config: of the federation.
        spec: of its model.
        session: of the coordinator's state folder.
        roster: credited with the bytes that agents report.
        traffic: likewise.
        closed: the rounds before the open one.
    """

    def __init__(
        self,
        config: CoordinatorConfig,
        spec: ModelSpec,
        session: str,
        roster: Roster,
        traffic: Traffic,
        closed: ClosedRounds,
    ) -> None:
        self._config = config
        self._spec = spec
        self._session = session
        self._roster = roster
        self._traffic = traffic
        self._closed = closed
        self._topics = Topics(config.federation)
        self._expected: ExpectedVectors | None = None
        self._uploads = Uploads(config.round.stall_s)
        self._rows: RowPart = "any"

    @property
    def uploading(self) -> int:
        """Updates that arrived in part."""
        return len(self._uploads)

    def begin(self, opened: OpenRound) -> None:
        """A phase begins: what arrived in part for the one before is forgotten."""
        phase: Phase = PHASES.make(opened.settings)
        self._rows = phase.rows
        if opened.is_durable:
            self._expected = ExpectedVectors(opened.plan, self._spec.size)
            self._uploads.begin(self._expected.max_bytes, self._spec.metrics)
            self._closed.latest = opened.round
        else:
            self._uploads.begin(0)

    def refusals(self) -> dict[str, int]:
        """Number of refused answers of the last phase with updates, by reason."""
        latest = self._closed.latest
        return {} if latest is None else dict(latest.refusals)

    def tick(self, opened: OpenRound | None, now_s: float) -> list[Publish]:
        """Asks for the missing chunks of updates that stopped half-way."""
        if opened is None:
            return []
        return [
            Publish(
                self._topics.name(InboxTopic(agent_id)),
                messages.encode(
                    Resend(
                        session=self._session,
                        round_id=round_id,
                        sha256=sha256,
                        chunks=missing,
                    )
                ),
            )
            for agent_id, round_id, sha256, missing in self._uploads.stalled(now_s)
        ]

    def next_s(self) -> float | None:
        """Returns when `tick` is due; None when never."""
        return self._uploads.next_s()

    def update(
        self, opened: OpenRound | None, topic: UpdateTopic, payload: bytes, now_s: float
    ) -> IntakeResult:
        """Takes one chunk of an update."""
        agent_id = topic.agent_id
        if opened is None or not self._may_count(opened, topic):
            return self._unexpected(topic, payload)
        try:
            upload = self._uploads.add(agent_id, topic.round_id, payload, now_s)
        except UpdateRejected as error:
            # At a broker without access control anybody writes junk in an agent's name.
            self._note_refusal(error, is_fault=False)
            _refuse(opened, agent_id, topic.round_id, error)
            return IntakeResult()
        return IntakeResult() if upload is None else self._whole_update(opened, topic, upload)

    def _may_count(self, opened: OpenRound, topic: UpdateTopic) -> bool:
        """Whether an update of this topic is worth putting together."""
        if not opened.is_durable:
            return False
        if topic.round_id == opened.plan.round_id:
            return topic.agent_id in opened.round.cohort
        former = self._closed.get(topic.round_id)
        return (
            former is not None
            and former.committed
            and 1 <= opened.plan.version - former.version <= opened.plan.max_staleness
            and topic.agent_id in former.cohort
            and topic.agent_id not in former.counted
        )

    def report(
        self, opened: OpenRound | None, agent_id: str, round_id: int, report: Report
    ) -> IntakeResult:
        """Takes a result without vectors, or an agent's word that it cannot take part."""
        self._credit(agent_id, report.agent_instance, report.received_bytes)
        if (
            opened is None
            or report.session != self._session
            or (round_id, report.round_id) != (opened.plan.round_id, opened.plan.round_id)
            or (report.phase, report.version) != (opened.plan.phase_name, opened.plan.version)
        ):
            log.debug("report of %s for round %d ignored: not open", agent_id, round_id)
            return IntakeResult()
        if report.kind == "declined":
            facts = {"sender": agent_id, "reason": report.reason}
            log.info("%s declined (%s): %s", agent_id, report.reason, report.detail, extra=facts)
            opened.round.decline(agent_id, report.reason, report.detail)
        elif report.kind == "result" and not opened.is_durable:
            self._result(opened, agent_id, report)
        return IntakeResult()

    def _result(self, opened: OpenRound, agent_id: str, report: Report) -> None:
        if not isinstance(opened.round.offer(agent_id, report.agent_instance), Accept):
            return
        try:
            self._check_sums(agent_id, report)
            sums = Sums(report.loss_sum, report.weight_sum, report.metric_sums)
            self._check_claims(agent_id, report.num_examples, sums)
            received = Received({}, sums, report.values, report.num_examples)
            opened.collector.accept(agent_id, received)
        except UpdateRejected as error:
            self._note_refusal(error)
            opened.round.refuse(agent_id, error.reason)
            return
        opened.round.count(agent_id, report.agent_instance)

    def _check_sums(self, agent_id: str, report: Report) -> None:
        if report.weight_sum and not fits(report.metric_sums, self._spec.metrics):
            detail = f"evaluation with metrics {sorted(report.metric_sums)}"
            raise UpdateRejected(agent_id, "metrics", detail)
        if report.weight_sum and not MIN_WEIGHT <= report.weight_sum <= MAX_EXAMPLES:
            detail = (
                f"evaluation of {report.weight_sum:g} rows, range {MIN_WEIGHT} to {MAX_EXAMPLES}"
            )
            raise UpdateRejected(agent_id, "examples", detail)

    def _check_claims(self, agent_id: str, num_examples: int, sums: Sums) -> None:
        """Refuses more rows than the agent's birth named, and sums that cannot be of any rows."""
        known = self._roster.rows(agent_id, self._rows)
        if known is not None and num_examples > known.number:
            detail = f"{num_examples} examples, its status says {known.number}"
            raise UpdateRejected(agent_id, "examples", detail)
        if sums.weight:
            spec, most = self._spec, None if known is None else known.weight
            if reason := implausible(sums, spec.metrics, spec.loss, most):
                raise UpdateRejected(agent_id, "implausible", reason)

    def _unexpected(self, topic: UpdateTopic, payload: bytes) -> IntakeResult:
        """An update outside its round: late, not asked for, or sent again for a lost receipt.

        It is not put together: its first chunk says enough for a receipt.
        """
        header = peek_header(payload)
        if header is None or self._waits_for_next_round(topic, header):
            return IntakeResult()
        verdict = self._late_verdict(topic.agent_id, header)
        if isinstance(verdict, Duplicate):
            return IntakeResult(receipts=(self._receipt(topic.agent_id, header),))
        return self._rejected(topic.agent_id, verdict, header)

    def _waits_for_next_round(self, topic: UpdateTopic, header: UpdateHeader) -> bool:
        """Says whether an update may count in the next round, when its agent sends it again."""
        limit = self._config.max_staleness
        return header.session == self._session and self._closed.may_count_next(
            topic.agent_id, header.round_id, limit
        )

    def _late_verdict(self, agent_id: str, header: UpdateHeader) -> Duplicate | Reject:
        latest, answer_id = self._closed.latest, _answer_id(header)
        if header.session == self._session:
            if latest is not None and header.round_id == latest.round_id:
                verdict = latest.offer(agent_id, answer_id)
                if not isinstance(verdict, Accept):
                    return verdict
            if latest is not None and latest.stale.get((agent_id, header.round_id)) == answer_id:
                return Duplicate()
            former = self._closed.get(header.round_id)
            if former is not None and former.counted.get(agent_id) == answer_id:
                return Duplicate()
        asked = self._closed.get(header.round_id)
        if header.session == self._session and asked is not None and agent_id in asked.cohort:
            self._roster.standings.slow(agent_id, "train")
        if latest is not None:
            latest.refusals["late"] += 1
        return Reject("late", f"round {header.round_id} is not open")

    def _whole_update(self, opened: OpenRound, topic: UpdateTopic, upload: Upload) -> IntakeResult:
        header, agent_id = upload.header, topic.agent_id
        self._credit(agent_id, header.agent_instance, header.received_bytes)
        verdict = self._verdict(opened, agent_id, header)
        if isinstance(verdict, Duplicate):
            return IntakeResult(receipts=(self._receipt(agent_id, header),))
        if isinstance(verdict, Reject):
            return self._rejected(agent_id, verdict, header)
        if header.session != self._session:
            # Left over from a run before this one, which may have had a round of this number: the
            # agent will yet answer ours.
            opened.round.refusals["session"] += 1
            detail = f"{header.session} instead of {self._session}"
            return self._rejected(agent_id, Reject("session", detail), header)
        try:
            if header.round_id != topic.round_id:
                detail = f"header of round {header.round_id}, topic of round {topic.round_id}"
                raise UpdateRejected(agent_id, "round", detail)
            self._collect(opened, agent_id, upload)
        except UpdateRejected as error:
            self._note_refusal(error)
            _refuse(opened, agent_id, topic.round_id, error)
            return IntakeResult(receipts=(self._receipt(agent_id, header, error),))
        stored = StoreUpdate(opened.plan.round_id, agent_id, header.version, upload.frame)
        _count(opened, agent_id, header)
        return IntakeResult(stored, (self._receipt(agent_id, header),))

    def _verdict(self, opened: OpenRound, agent_id: str, header: UpdateHeader) -> Verdict:
        verdict = self._verdict_of_round(opened, agent_id, header)
        if isinstance(verdict, Accept) and self._roster.standings.is_quarantined(agent_id):
            reason = self._roster.standings.get(agent_id).quarantine_reason
            return Reject("quarantined", f"the agent is in quarantine: {reason}")
        return verdict

    def _verdict_of_round(self, opened: OpenRound, agent_id: str, header: UpdateHeader) -> Verdict:
        if header.round_id == opened.plan.round_id:
            return opened.round.offer(agent_id, _answer_id(header))
        former = self._closed.get(header.round_id)
        if former is None:
            return Accept()  # its content is refused: no such round
        if agent_id not in former.cohort:
            return Reject("not_asked", f"round {header.round_id} did not ask this agent")
        if agent_id in former.counted:
            return Reject("duplicate", "an answer of this agent counted in that round")
        others = (number for agent, number in opened.round.stale if agent == agent_id)
        if any(number != header.round_id for number in others):
            return Reject("duplicate", "an earlier update of this agent counts in this round")
        if _is_full(opened):
            return Reject("full", "the aggregator has room for the round's own updates only")
        return opened.round.offer_stale(agent_id, header.round_id, _answer_id(header))

    def _collect(self, opened: OpenRound, agent_id: str, upload: Upload) -> None:
        expected, header, plan = self._expected, upload.header, opened.plan
        assert expected is not None, "phases with updates have it"
        staleness = upload.check_plan(agent_id, plan, expected, self._spec.metrics)
        sums = Sums(header.loss_sum, header.weight_sum, header.metric_sums)
        self._check_claims(agent_id, header.num_examples, sums)
        seed = plan.seed
        if header.round_id != plan.round_id:
            former = self._closed.get(header.round_id)
            if former is None or not former.committed or former.version != header.version:
                detail = f"round {header.round_id} of version {header.version} is not open"
                raise UpdateRejected(agent_id, "round", detail)
            seed = former.seed
        vectors = upload.vectors(agent_id, expected, seed, opened.norms)
        length = opened.norms.length(agent_id)
        received = Received(vectors, sums, {}, header.num_examples, staleness, length)
        opened.collector.accept(agent_id, received)

    def restore(self, opened: OpenRound, frames: Sequence[tuple[str, bytes]]) -> None:
        """Counts the stored updates of a round that was open when the coordinator ended."""
        self.begin(opened)
        for agent_id, frame in frames:
            try:
                upload = Upload.from_frame(frame)
                self._collect(opened, agent_id, upload)
            except (WireError, UpdateRejected) as error:
                log.warning("stored update of %s is left out: %s", agent_id, error)
                continue
            _count(opened, agent_id, upload.header)

    def _rejected(self, agent_id: str, verdict: Reject, header: UpdateHeader) -> IntakeResult:
        error = UpdateRejected(agent_id, verdict.reason, verdict.detail)
        self._note_refusal(error)
        return IntakeResult(receipts=(self._receipt(agent_id, header, error),))

    def _note_refusal(self, error: UpdateRejected, *, is_fault: bool = True) -> None:
        facts = {"event": "update_refused", "sender": error.agent_id, "reason": error.reason}
        log.warning("%s", error, extra=facts)
        if self._roster.get(error.agent_id) is not None:  # else invented ids would pile up
            self._roster.standings.refused(error.agent_id, error.reason, is_fault=is_fault)

    def _credit(self, agent_id: str, agent_instance: str, received_bytes: int) -> None:
        self._traffic.down += self._roster.credit(agent_id, agent_instance, received_bytes)

    def _receipt(
        self, agent_id: str, header: UpdateHeader, error: UpdateRejected | None = None
    ) -> Publish:
        receipt = Receipt(
            session=header.session,
            round_id=header.round_id,
            agent_instance=header.agent_instance,
            attempt=header.attempt,
            accepted=error is None,
            reason="" if error is None else error.reason,
            detail="" if error is None else error.detail[:500],
        )
        return Publish(self._topics.name(InboxTopic(agent_id)), messages.encode(receipt))


def _refuse(opened: OpenRound, agent_id: str, round_id: int, error: UpdateRejected) -> None:
    """Notes a refusal; one of an earlier round's update is no answer to the open round."""
    if round_id == opened.plan.round_id:
        opened.round.refuse(agent_id, error.reason)
    else:
        opened.round.refusals[error.reason] += 1


def _is_full(opened: OpenRound) -> bool:
    """Says whether a stale update would take the place of an answer that may still come."""
    capacity, ended = opened.collector.capacity, opened.round
    held = len(ended.counted) + len(ended.stale) + len(ended.unanswered)
    return capacity is not None and held >= capacity


def _count(opened: OpenRound, agent_id: str, header: UpdateHeader) -> None:
    if header.round_id == opened.plan.round_id:
        opened.round.count(agent_id, _answer_id(header))
    else:
        opened.round.count_stale(agent_id, header.round_id, _answer_id(header))


def _answer_id(header: UpdateHeader) -> str:
    return f"{header.agent_instance}/{header.attempt}"
