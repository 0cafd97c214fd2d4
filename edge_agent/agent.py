"""The agent as a state machine: events in, actions out; no sockets, threads, files or clocks."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Literal
from zlib import crc32

import msgspec
import numpy as np

from broker import blobs, messages
from broker.link import publish_packet_bytes
from broker.machine import (
    Connected,
    MessageArrived,
    Publish,
    Started,
    Stopping,
    Subscribe,
    Unsubscribe,
)
from broker.messages import (
    AgentStatus,
    BlobRef,
    CoordinatorStatus,
    ProgramManifest,
    Receipt,
    Report,
    RoundPlan,
    Task,
    UpdateHeader,
)
from broker.topics import (
    AgentStatusTopic,
    ChunkTopic,
    CoordinatorStatusTopic,
    InboxTopic,
    ProgramTopic,
    ReportTopic,
    RoundTopic,
    Topics,
    UpdateTopic,
)
from edge_agent.events import (
    Action,
    CancelJob,
    Evaluated,
    Event,
    JobFailed,
    LoadPackage,
    PackageFailed,
    PackageLoaded,
    StartJob,
    Trained,
)
from models.codecs import CODECS, make_codec
from models.codecs.feedback import compensate
from models.errors import CodecError, ConfigError, WireError
from models.parameters import F32
from models.program import Sums

log = logging.getLogger(__name__)

#: A blob whose chunks arrive but whose digest is wrong is fetched so many times.
_FETCH_ATTEMPTS = 3

_JobKey = tuple[str, int, Task]


@dataclass(frozen=True)
class AgentFacts:
    """What does not change while the process lives.

    Attributes:
        boot: new at every start; receipts for an earlier boot are not ours.
        unable: why this device cannot take part at all (no interpreter); empty when it can.
        fingerprint: the only layout this device trains, when pinned by its configuration.
        max_blob_bytes: larger packages and weights are refused.
    """

    agent_id: str
    federation: str
    boot: str
    tasks: tuple[Task, ...] = ("train", "evaluate")
    tags: tuple[str, ...] = ()
    unable: str = ""
    memory_bytes: int = 0
    software: str = ""
    fingerprint: str | None = None
    max_blob_bytes: int = 64 << 20


@dataclass(frozen=True, eq=False)
class _PendingUpdate:
    """An update that was sent and has no receipt yet."""

    plan: RoundPlan
    attempt: int
    publications: tuple[Publish, ...]
    residual: F32


class Agent:
    """One device's part in one federation."""

    def __init__(self, facts: AgentFacts) -> None:
        self.facts = facts
        self.topics = Topics(facts.federation)
        #: Messages that were not understood, since the start.
        self.unreadable = 0
        #: What the next updates must make up for: lost by rounding in accepted ones (θ's length).
        self.residual: F32 | None = None
        self._coordinator: CoordinatorStatus | None = None
        self._manifest: ProgramManifest | None = None
        self._plan: RoundPlan | None = None
        self._loading: str | None = None
        self._loaded: PackageLoaded | None = None
        self._failed: PackageFailed | None = None
        self._theta: tuple[str, F32] | None = None
        self._fetching: dict[str, blobs.BlobReceiver] = {}
        self._bad_fetches: dict[str, int] = {}
        self._job: _JobKey | None = None
        self._answered: _JobKey | None = None
        self._pending: _PendingUpdate | None = None
        self._attempts = 0
        self._received_bytes = 0
        self._chunk_bytes = blobs.CHUNK_BYTES

    def handle(self, event: Event) -> list[Action]:
        """What to do about an event."""
        match event:
            case Started():
                return self._start()
            case Connected(max_payload_bytes):
                self._chunk_bytes = blobs.chunk_bytes_for(max_payload_bytes)
                return [self._status(), *self._resend()]
            case MessageArrived(topic, payload):
                return self._message(topic, payload)
            case PackageLoaded():
                return self._package_loaded(event)
            case PackageFailed():
                return self._package_failed(event)
            case Trained() | Evaluated() | JobFailed():
                return self._job_ended(event)
            case Stopping():
                return [*self._decline_running("stopping"), self._status(online=False)]

    @property
    def will(self) -> Publish:
        """What the broker says for us when we vanish."""
        return self._status(online=False)

    def _start(self) -> list[Action]:
        own = InboxTopic(self.facts.agent_id)
        topics = [CoordinatorStatusTopic(), ProgramTopic(), own, RoundTopic()]
        return [Subscribe(self.topics.name(topic)) for topic in topics]

    # -- messages -------------------------------------------------------------------------------

    def _message(self, name: str, payload: bytes) -> list[Action]:
        self._received_bytes += publish_packet_bytes(name, len(payload))
        if not payload:
            return []  # a retained message was cleared
        try:
            topic = self.topics.parse(name)
            match topic:
                case CoordinatorStatusTopic():
                    self._coordinator = messages.decode(payload, CoordinatorStatus)
                    return self._advance()
                case ProgramTopic():
                    return self._new_manifest(messages.decode(payload, ProgramManifest))
                case RoundTopic():
                    return self._new_plan(messages.decode(payload, RoundPlan))
                case InboxTopic():
                    self._receipt(messages.decode(payload, Receipt))
                case ChunkTopic(sha256):
                    return self._chunk(sha256, payload)
            return []
        except WireError as error:
            self.unreadable += 1
            log.warning("message dropped: %s", error, extra={"event": "unreadable"})
            return []

    def _new_manifest(self, manifest: ProgramManifest) -> list[Action]:
        self._manifest = manifest
        sha256 = manifest.package.sha256
        if self.facts.unable or sha256 in (self._loading, self._package):
            return []
        actions = [] if self._loading is None else self._stop_fetching(self._loading)
        if self._package is not None:
            # What rounding lost belongs to the model before.
            self.residual = self._pending = None
        self._loaded = self._failed = None
        self._loading = sha256
        try:
            return actions + self._fetch(manifest.package)
        except WireError as error:
            return actions + self._package_failed(PackageFailed(sha256, "no_program", str(error)))

    def _new_plan(self, plan: RoundPlan) -> list[Action]:
        actions: list[Action] = []
        old = self._plan
        if old is not None and old.weights.sha256 != plan.weights.sha256:
            actions += self._stop_fetching(old.weights.sha256)
        self._plan = plan
        if self._pending is not None and _later(plan, self._pending.plan):
            log.info("round %d ended without a receipt for our update", self._pending.plan.round_id)
            self._pending = None
        if self._job is not None and self._job != _key(plan):
            log.info("round %d is over, training stops", self._job[1])
            actions.append(CancelJob())
        return actions + self._advance()

    def _receipt(self, receipt: Receipt) -> None:
        pending = self._pending
        if (
            pending is None
            or receipt.boot != self.facts.boot
            or (receipt.session, receipt.round_id) != (pending.plan.session, pending.plan.round_id)
            or receipt.attempt != pending.attempt
        ):
            log.debug("receipt for nothing we wait for: round %d", receipt.round_id)
            return
        self._pending = None
        if receipt.accepted:
            self.residual = pending.residual
            log.info("round %d: update counted", receipt.round_id)
        else:
            log.warning(
                "round %d: update refused (%s): %s",
                receipt.round_id,
                receipt.reason,
                receipt.detail,
                extra={"event": "update_refused", "reason": receipt.reason},
            )

    # -- blobs ----------------------------------------------------------------------------------

    def _fetch(self, ref: BlobRef) -> list[Action]:
        if ref.sha256 in self._fetching:
            return []
        self._fetching[ref.sha256] = blobs.BlobReceiver(ref, self.facts.max_blob_bytes)
        return [Subscribe(self.topics.chunks_of(ref.sha256))]

    def _stop_fetching(self, sha256: str) -> list[Action]:
        if self._fetching.pop(sha256, None) is None:
            return []
        return [Unsubscribe(self.topics.chunks_of(sha256))]

    def _chunk(self, sha256: str, payload: bytes) -> list[Action]:
        receiver = self._fetching.get(sha256)
        if receiver is None:
            return []
        try:
            blob = receiver.add(blobs.parse_chunk(payload))
        except WireError as error:
            return self._bad_chunk(receiver, error)
        if blob is None:
            return []
        actions = self._stop_fetching(sha256)
        if sha256 == self._loading:
            return [*actions, LoadPackage(sha256, blob)]
        if self._plan is not None and sha256 == self._plan.weights.sha256:
            return actions + self._weights_arrived(sha256, blob)
        return actions

    def _bad_chunk(self, receiver: blobs.BlobReceiver, error: WireError) -> list[Action]:
        sha256 = receiver.ref.sha256
        self.unreadable += 1
        self._bad_fetches[sha256] = self._bad_fetches.get(sha256, 0) + 1
        log.warning("blob %s: %s", sha256[:12], error, extra={"event": "bad_chunk"})
        if self._bad_fetches[sha256] < _FETCH_ATTEMPTS:
            # Retained chunks come again to whoever subscribes again.
            topic_filter = self.topics.chunks_of(sha256)
            return [Unsubscribe(topic_filter), Subscribe(topic_filter)]
        actions = self._stop_fetching(sha256)
        if sha256 == self._loading:
            return actions + self._package_failed(PackageFailed(sha256, "no_program", str(error)))
        if self._plan is not None and sha256 == self._plan.weights.sha256:
            return actions + self._decline("weights", str(error))
        return actions

    def _weights_arrived(self, sha256: str, blob: bytes) -> list[Action]:
        theta = np.frombuffer(blob, "<f4").astype(np.float32) if len(blob) % 4 == 0 else None
        if theta is None or not np.isfinite(theta).all():
            return self._decline("weights", "the weights are no finite float32 vector")
        theta.setflags(write=False)
        self._theta = (sha256, theta)
        return self._advance()

    # -- program and data -----------------------------------------------------------------------

    @property
    def _package(self) -> str | None:
        ready = self._loaded or self._failed
        return None if ready is None else ready.package

    def _package_loaded(self, event: PackageLoaded) -> list[Action]:
        if event.package != self._loading:
            return []
        self._loaded, self._loading = event, None
        if self.facts.fingerprint not in (None, event.fingerprint):
            detail = f"layout {event.fingerprint}, this device trains {self.facts.fingerprint} only"
            self._failed = PackageFailed(event.package, "fingerprint", detail)
        log.info(
            "model ready on %s: %d rows to learn from, %d held out",
            event.runtime,
            event.train_examples,
            event.test_examples,
        )
        return [self._status(), *self._advance()]

    def _package_failed(self, event: PackageFailed) -> list[Action]:
        if event.package != self._loading:
            return []
        self._failed, self._loading = event, None
        log.error("cannot take part (%s): %s", event.reason, event.detail)
        return [self._status(), *self._advance()]

    # -- a round --------------------------------------------------------------------------------

    def _advance(self) -> list[Action]:
        """The next step of the current plan, if it is for us and everything is there."""
        plan, coordinator = self._plan, self._coordinator
        if (
            plan is None
            or plan.state != "open"
            or coordinator is None
            or coordinator.state != "online"
            or coordinator.session != plan.session  # a plan left over from an earlier run
            or self._job is not None
            or self._answered == _key(plan)
            or plan.task not in self.facts.tasks
            or not plan.cohort.includes(self.facts.agent_id)
        ):
            return []
        if refusal := self._refusal(plan):
            return self._decline(*refusal)
        if self._loaded is None or self._loaded.package != plan.package:
            return []  # the manifest or the package is on its way
        if self._theta is None or self._theta[0] != plan.weights.sha256:
            try:
                return self._fetch(plan.weights)
            except WireError as error:
                return self._decline("weights", str(error))
        return self._start_job(plan, self._loaded, self._theta[1])

    def _refusal(self, plan: RoundPlan) -> tuple[str, str] | None:
        if self.facts.unable:
            return "no_runtime", self.facts.unable
        if self._failed is not None and self._failed.package == plan.package:
            return self._failed.reason, self._failed.detail
        if plan.task == "train" and plan.codec.name not in CODECS:
            return "codec", f"codec {plan.codec.name!r} is unknown; known: {', '.join(CODECS)}"
        loaded = self._loaded
        if loaded is None or loaded.package != plan.package:
            return None
        if loaded.fingerprint != plan.fingerprint:
            detail = (
                f"the plan is for layout {plan.fingerprint}, the model has {loaded.fingerprint}"
            )
            return "fingerprint", detail
        rows = loaded.train_examples if plan.task == "train" else loaded.test_examples
        if rows == 0:
            return "no_data", f"no rows to {plan.task} on"
        return None

    def _start_job(self, plan: RoundPlan, loaded: PackageLoaded, theta: F32) -> list[Action]:
        self._job = _key(plan)
        if plan.task == "train":
            self._attempts += 1
            log.info("round %d: training on %d rows", plan.round_id, loaded.train_examples)
        return [StartJob(plan, theta)]

    def _job_ended(self, event: Trained | Evaluated | JobFailed) -> list[Action]:
        self._job = None
        if self._plan is None or _key(event.plan) != _key(self._plan):
            return self._advance()  # the round went on without us
        match event:
            case Trained(plan, result):
                if trouble := _not_finite(result.sums):
                    return self._decline("training", trouble)
                try:
                    return self._send_update(plan, result.delta, event)
                except (CodecError, ConfigError) as error:
                    return self._decline("training", str(error))
            case Evaluated(plan, sums):
                if trouble := _not_finite(sums):
                    return self._decline("evaluation", trouble)
                report = msgspec.structs.replace(
                    self._report(plan, "evaluation"),
                    loss_sum=sums.loss,
                    weight_sum=sums.weight,
                    metric_sums=sums.metrics,
                )
                return self._answer(plan, report)
            case JobFailed(_, detail):
                return self._decline("training", detail)

    def _send_update(self, plan: RoundPlan, delta: F32, event: Trained) -> list[Action]:
        rng = np.random.default_rng([plan.seed, crc32(self.facts.agent_id.encode()), 1])
        encoded = compensate(make_codec(plan.codec), delta, self.residual, rng)
        means = event.result.sums.means()
        header = UpdateHeader(
            session=plan.session,
            boot=self.facts.boot,
            round_id=plan.round_id,
            attempt=self._attempts,
            version=plan.version,
            fingerprint=plan.fingerprint,
            codec=plan.codec,
            size=len(delta),
            num_examples=event.result.num_examples,
            loss=means.pop("loss"),
            metrics=means,
            training_s=event.result.seconds,
            received_bytes=self._received_bytes,
        )
        frame = messages.encode_update(header, encoded.payload)
        _, payloads = blobs.split(frame, self._chunk_bytes)
        publications = tuple(
            Publish(
                self.topics.name(UpdateTopic(self.facts.agent_id, plan.round_id, index)),
                payload,
                expiry_s=math.ceil(plan.deadline_s),
            )
            for index, payload in enumerate(payloads)
        )
        self._pending = _PendingUpdate(plan, self._attempts, publications, encoded.residual)
        self._answered = _key(plan)
        return list(publications)

    def _resend(self) -> list[Action]:
        # A broker that lost our session may have lost what we sent; the coordinator counts once.
        return [] if self._pending is None else list(self._pending.publications)

    def _decline(self, reason: str, detail: str) -> list[Action]:
        plan = self._plan
        if plan is None:
            return []
        log.warning("round %d: declined (%s): %s", plan.round_id, reason, detail)
        return self._answer(plan, self._report(plan, "declined", reason, detail))

    def _decline_running(self, reason: str) -> list[Action]:
        return [] if self._job is None else self._decline(reason, "the agent is shutting down")

    def _answer(self, plan: RoundPlan, report: Report) -> list[Action]:
        self._answered = _key(plan)
        topic = ReportTopic(self.facts.agent_id, plan.round_id)
        return [Publish(self.topics.name(topic), messages.encode(report))]

    def _report(
        self,
        plan: RoundPlan,
        kind: Literal["declined", "evaluation"],
        reason: str = "",
        detail: str = "",
    ) -> Report:
        return Report(
            session=plan.session,
            boot=self.facts.boot,
            round_id=plan.round_id,
            kind=kind,
            task=plan.task,
            version=plan.version,
            reason=reason,
            detail=detail[:500],
            received_bytes=self._received_bytes,
        )

    def _status(self, *, online: bool = True) -> Publish:
        facts, loaded, failed = self.facts, self._loaded, self._failed
        unable = facts.unable or (f"{failed.reason}: {failed.detail}" if failed else "")
        status = AgentStatus(
            state="online" if online else "offline",
            boot=facts.boot,
            tasks=facts.tasks,
            train_examples=loaded.train_examples if loaded and not unable else 0,
            test_examples=loaded.test_examples if loaded and not unable else 0,
            unable=unable[:500],
            runtime=loaded.runtime if loaded else "",
            memory_bytes=facts.memory_bytes,
            codecs=tuple(CODECS),
            tags=facts.tags,
            software=facts.software,
        )
        topic = AgentStatusTopic(facts.agent_id)
        return Publish(self.topics.name(topic), messages.encode(status), retain=True)


def _key(plan: RoundPlan) -> _JobKey:
    return plan.session, plan.round_id, plan.task


def _not_finite(sums: Sums) -> str:
    """Which sum cannot be sent, in words; empty when all can."""
    values = {"loss": sums.loss, **sums.metrics}
    bad = [f"{name} is {value:g}" for name, value in values.items() if not abs(value) <= 1e100]
    return f"{bad[0]} (sum over {sums.weight:g} rows): training diverged" if bad else ""


def _later(plan: RoundPlan, than: RoundPlan) -> bool:
    # The evaluation of the same round may overtake the receipt; a later round may not.
    return plan.session != than.session or plan.round_id > than.round_id
