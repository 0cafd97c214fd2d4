"""What agents send, taken in: put together, checked, folded, answered with a receipt."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from broker.protocol import messages
from broker.protocol.messages import Receipt, Report, Resend, UpdateHeader
from broker.protocol.topics import InboxTopic, Topics, UpdateTopic
from broker.service.events import Publish
from coordinator.config import CoordinatorConfig
from coordinator.machine.admission import MAX_EXAMPLES, MIN_WEIGHT
from coordinator.machine.events import StoreUpdate
from coordinator.machine.open_round import OpenRound, Traffic
from coordinator.machine.roster import Roster
from coordinator.machine.uploads import Upload, Uploads, peek_header
from coordinator.rounds.round import (
    Admit,
    Again,
    Counted,
    Declined,
    Offered,
    Refused,
    Reject,
    Round,
    RoundAction,
    RoundEvent,
)
from fedge.errors import UpdateRejected, WireError
from learning.codecs import make_codec
from learning.vector.metrics import Sums, fits
from models.package.spec import ModelSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Taken:
    """What came of an answer: store, then send receipts, then tell the round."""

    store: StoreUpdate | None = None
    receipts: tuple[Publish, ...] = ()
    event: RoundEvent | None = None


class Intake:
    """Judges the answers of agents; the round itself is somebody else's.

    Args:
        config: of the federation.
        spec: of its model.
        session: of this start of the coordinator.
        roster: credited with the bytes that agents report.
        traffic: likewise.
    """

    def __init__(
        self,
        config: CoordinatorConfig,
        spec: ModelSpec,
        session: str,
        roster: Roster,
        traffic: Traffic,
    ) -> None:
        self._config = config
        self._spec = spec
        self._session = session
        self._roster = roster
        self._traffic = traffic
        self._topics = Topics(config.federation)
        self._codec = make_codec(config.codec)
        self._uploads = Uploads(config.round.stall_s)
        #: Kept after it closed: its agents may ask again for a receipt that was lost.
        self._last_training: Round | None = None

    @property
    def uploading(self) -> int:
        """Updates that are half there."""
        return len(self._uploads)

    def begin(self, opened: OpenRound) -> None:
        """A phase begins: what is half there of the one before is forgotten."""
        # The plan's codec, not the configuration's: that may have changed since a restart.
        self._codec = make_codec(opened.plan.codec)
        self._uploads.begin(self._codec.encoded_size(self._spec.size), self._spec.metrics)
        if opened.task == "train":
            self._last_training = opened.round

    def refusals(self) -> dict[str, int]:
        """Number of refused answers of the last learning phase, by reason."""
        return {} if self._last_training is None else dict(self._last_training.refusals)

    def tick(self, opened: OpenRound | None, now_s: float) -> list[Publish]:
        """Ask for the chunks of updates that stopped half-way."""
        if opened is None:
            return []
        return [
            Publish(
                self._topics.name(InboxTopic(agent_id)),
                messages.encode(
                    Resend(
                        session=self._session,
                        round_id=opened.plan.round_id,
                        sha256=sha256,
                        chunks=missing,
                    )
                ),
            )
            for agent_id, sha256, missing in self._uploads.stalled(now_s)
        ]

    def next_s(self) -> float | None:
        """When `tick` has something to do; None when never."""
        return self._uploads.next_s()

    def update(
        self, opened: OpenRound | None, topic: UpdateTopic, payload: bytes, now_s: float
    ) -> Taken:
        """Take one chunk of an update."""
        agent_id = topic.agent_id
        if (
            opened is None
            or opened.task != "train"
            or opened.plan.round_id != topic.round_id
            or agent_id not in opened.round.asked
        ):
            return self._unexpected(topic, payload)
        try:
            upload = self._uploads.add(agent_id, payload, now_s)
        except UpdateRejected as error:
            _log_refusal(error)
            return Taken(event=Refused(agent_id, error.reason))
        return Taken() if upload is None else self._whole_update(opened, agent_id, upload)

    def report(
        self, opened: OpenRound | None, agent_id: str, round_id: int, report: Report
    ) -> Taken:
        """Take an evaluation, or an agent's word that it cannot take part."""
        self._credit(agent_id, report.boot, report.received_bytes)
        if (
            opened is None
            or report.session != self._session
            or (round_id, report.round_id) != (opened.plan.round_id, opened.plan.round_id)
            or (report.task, report.version) != (opened.task, opened.plan.version)
        ):
            log.debug("%s reports on round %d, which is not open", agent_id, round_id)
            return Taken()
        if report.kind == "declined":
            log.info("%s declined (%s): %s", agent_id, report.reason, report.detail)
            return Taken(event=Declined(agent_id, report.reason, report.detail))
        try:
            self._check_evaluation(agent_id, report)
        except UpdateRejected as error:
            _log_refusal(error)
            return Taken(event=Refused(agent_id, error.reason))
        (verdict,) = opened.round.handle(Offered(agent_id, report.boot))
        if not isinstance(verdict, Admit):
            return Taken()
        if report.weight_sum > 0:
            sums = Sums(report.loss_sum, report.weight_sum, report.metric_sums)
            opened.evaluations[agent_id] = sums
        return Taken(event=Counted(agent_id, report.boot))

    def _check_evaluation(self, agent_id: str, report: Report) -> None:
        if report.task != "evaluate" or not fits(report.metric_sums, self._spec.metrics):
            detail = f"evaluation with metrics {sorted(report.metric_sums)}"
            raise UpdateRejected(agent_id, "metrics", detail)
        if report.weight_sum and not MIN_WEIGHT <= report.weight_sum <= MAX_EXAMPLES:
            detail = (
                f"evaluation of {report.weight_sum:g} rows, range {MIN_WEIGHT} to {MAX_EXAMPLES}"
            )
            raise UpdateRejected(agent_id, "examples", detail)

    def _unexpected(self, topic: UpdateTopic, payload: bytes) -> Taken:
        """An update outside its round: late, not asked for, or sent again for a lost receipt.

        It is not put together: its first chunk says enough for a receipt.
        """
        header, last = peek_header(payload), self._last_training
        if header is None:
            return Taken()
        agent_id = topic.agent_id
        verdict: RoundAction = Reject(agent_id, "late", f"round {topic.round_id} is not open")
        if last is not None and (header.session, header.round_id) == (self._session, last.round_id):
            (verdict,) = last.handle(Offered(agent_id, _answer_id(header)))
        elif last is not None:
            last.refusals["late"] += 1
        if isinstance(verdict, Again):
            return Taken(receipts=(self._receipt(agent_id, header),))
        return self._rejected(verdict, header) if isinstance(verdict, Reject) else Taken()

    def _whole_update(self, opened: OpenRound, agent_id: str, upload: Upload) -> Taken:
        header = upload.header
        self._credit(agent_id, header.boot, header.received_bytes)
        (verdict,) = opened.round.handle(Offered(agent_id, _answer_id(header)))
        if isinstance(verdict, Again):
            return Taken(receipts=(self._receipt(agent_id, header),))
        if isinstance(verdict, Reject):
            return self._rejected(verdict, header)
        if header.session != self._session:
            # Left over from a run before this one, which may have had a round of this number: the
            # agent will yet answer ours.
            opened.round.refusals["session"] += 1
            detail = f"{header.session} instead of {self._session}"
            return self._rejected(Reject(agent_id, "session", detail), header)
        try:
            upload.check_plan(agent_id, opened.plan, self._spec.size, self._spec.metrics)
            self._fold(opened, agent_id, upload)
        except UpdateRejected as error:
            _log_refusal(error)
            receipt = self._receipt(agent_id, header, error)
            return Taken(receipts=(receipt,), event=Refused(agent_id, error.reason))
        stored = StoreUpdate(header.round_id, agent_id, upload.frame)
        receipt = self._receipt(agent_id, header)
        return Taken(stored, (receipt,), Counted(agent_id, _answer_id(header)))

    def restore(self, opened: OpenRound, frames: Sequence[tuple[str, bytes]]) -> None:
        """Count the stored updates of a round that was open when the coordinator ended."""
        self.begin(opened)
        for agent_id, frame in frames:
            try:
                upload = Upload.from_frame(frame)
                upload.check_plan(agent_id, opened.plan, self._spec.size, self._spec.metrics)
                self._fold(opened, agent_id, upload)
            except (WireError, UpdateRejected) as error:
                log.warning("stored update of %s is left out: %s", agent_id, error)
                continue
            opened.round.handle(Counted(agent_id, _answer_id(upload.header)))

    def _rejected(self, verdict: Reject, header: UpdateHeader) -> Taken:
        error = UpdateRejected(verdict.agent_id, verdict.reason, verdict.detail)
        _log_refusal(error)
        return Taken(receipts=(self._receipt(verdict.agent_id, header, error),))

    def _fold(self, opened: OpenRound, agent_id: str, upload: Upload) -> None:
        header = upload.header
        delta = upload.vector(agent_id, self._codec, self._spec.size, self._config.max_update_norm)
        rows = float(header.num_examples)
        assert opened.aggregator is not None, "learning phases have one"
        opened.aggregator.add(delta, rows if self._config.weighting == "examples" else 1.0)
        opened.trained[agent_id] = Sums(header.loss_sum, header.weight_sum, header.metric_sums)

    def _credit(self, agent_id: str, boot: str, received_bytes: int) -> None:
        self._traffic.down += self._roster.credit(agent_id, boot, received_bytes)

    def _receipt(
        self, agent_id: str, header: UpdateHeader, error: UpdateRejected | None = None
    ) -> Publish:
        receipt = Receipt(
            session=header.session,
            round_id=header.round_id,
            boot=header.boot,
            attempt=header.attempt,
            accepted=error is None,
            reason="" if error is None else error.reason,
            detail="" if error is None else error.detail[:500],
        )
        return Publish(self._topics.name(InboxTopic(agent_id)), messages.encode(receipt))


def _answer_id(header: UpdateHeader) -> str:
    return f"{header.boot}/{header.attempt}"


def _log_refusal(error: UpdateRejected) -> None:
    log.warning("%s", error, extra={"event": "update_refused", "reason": error.reason})
