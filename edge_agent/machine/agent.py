"""The agent as a state machine: events in, actions out; no sockets, threads, files or clocks."""

from __future__ import annotations

import logging
import math
from random import Random

import numpy as np

from broker.link.link import publish_packet_bytes
from broker.protocol import blobs, messages
from broker.protocol.messages import (
    BlobRef,
    CoordinatorStatus,
    ProgramManifest,
    RoundPlan,
)
from broker.protocol.topics import (
    AgentStatusTopic,
    ChunkTopic,
    CoordinatorStatusTopic,
    InboxTopic,
    ProgramTopic,
    RoundTopic,
    Topic,
    Topics,
)
from broker.service.events import (
    Connected,
    Disconnected,
    MessageArrived,
    Publish,
    Started,
    Stopping,
    Subscribe,
    Tick,
    Unsubscribe,
)
from edge_agent.machine.blob_fetcher import Fetcher, Progressed
from edge_agent.machine.events import (
    Action,
    BlobRecalled,
    CancelJob,
    Evaluated,
    Event,
    Felt,
    JobFailed,
    KeepTrust,
    LoadPackage,
    PackageFailed,
    PackageLoaded,
    PauseJobs,
    ResumeJobs,
    StartJob,
    Trained,
)
from edge_agent.machine.limits import Limits, Readings, Rest
from edge_agent.machine.package import CurrentPackage
from edge_agent.machine.pending_update import AgentMemory, SpooledUpdate
from edge_agent.machine.plan_order import PlanOrder
from edge_agent.machine.reports import Answers, PlanKey, plan_key
from edge_agent.machine.status import AgentFacts, agent_status, refusal
from edge_agent.machine.trust import Trust
from edge_agent.machine.update_outbox import Outbox
from fedge.errors import UntrustedError, WireError
from learning.vector.parameters import F32

log = logging.getLogger(__name__)


class Agent:
    """One device's part in one federation.

    Args:
        facts: of this boot.
        memory: of earlier boots.
        rng: for jitter.
    """

    def __init__(
        self, facts: AgentFacts, memory: AgentMemory | None = None, rng: Random | None = None
    ) -> None:
        self.facts = facts
        self.topics = Topics(facts.federation)
        #: Messages that were not understood, since the start.
        self.unreadable = 0
        memory = memory or AgentMemory()
        self._trust = Trust(self.topics, facts.trusted_keys, memory.trust)
        #: Why the coordinator that is there is not believed; empty when it is.
        self._distrust = ""
        self._coordinator: CoordinatorStatus | None = None
        self._plan: RoundPlan | None = None
        self._plan_order = PlanOrder()
        self._theta: tuple[str, F32] | None = None
        rng = rng or Random()  # noqa: S311  jitter
        self._package = CurrentPackage(rng)
        self._fetcher = Fetcher(self.topics, facts.max_blob_bytes, rng, facts.stall_s)
        self._outbox = Outbox(self.topics, facts.agent_id, memory, rng)
        self._answers = Answers(facts, self.topics)
        self._job: PlanKey | None = None
        self._heartbeat_s = math.inf
        self._limits = Limits(facts.limits)
        #: When answers to the plan are late, as far as we know.
        self._late_s = math.inf
        self._is_connected = False

    def handle(self, event: Event, now_s: float) -> list[Action]:
        """What to do about an event at `now_s` (any steady clock, in seconds)."""
        match event:
            case Started():
                return self._start()
            case Connected(max_payload_bytes):
                return self._connected(max_payload_bytes, now_s)
            case Disconnected():
                return self._disconnected()
            case MessageArrived(topic, payload):
                return self._message(topic, payload, now_s)
            case Tick():
                return self._tick(now_s)
            case BlobRecalled(sha256, payloads):
                return self._progressed(self._fetcher.recalled(sha256, payloads, now_s), now_s)
            case PackageLoaded():
                return self._package_loaded(event, now_s)
            case PackageFailed():
                return self._package_failed(event, now_s)
            case Trained() | Evaluated() | JobFailed():
                return self._job_ended(event, now_s)
            case Felt(readings):
                return self._felt(readings, now_s)
            case Stopping():
                return [*self._decline_running("stopping"), self._status(online=False)]

    def wait_s(self, now_s: float) -> float:
        """Seconds until a Tick is due."""
        moments = [
            self._heartbeat_s,
            self._fetcher.next_s(),
            self._outbox.next_s(self._plan),
            self._package.next_s() if self._is_connected else None,
            self._late_s if self._is_paused else None,
        ]
        due = min((moment for moment in moments if moment is not None), default=math.inf)
        return max(0.0, due - now_s)

    @property
    def is_watchful(self) -> bool:
        """Whether it wants to be told how the device feels."""
        failed = self._package.failed
        return self.facts.limits.watched or bool(failed and failed.needs_bytes)

    @property
    def plan(self) -> RoundPlan | None:
        """The newest that it heard of."""
        return self._plan

    @property
    def trusted_keys(self) -> tuple[str, ...]:
        """Names of the keys of which one must have signed what it acts on; none: any will do."""
        return self._trust.key_ids

    @property
    def fetching(self) -> int:
        """Blobs under way."""
        return len(self._fetcher)

    @property
    def residual(self) -> F32 | None:
        """What the next update must make up for; float32, shape (P,)."""
        return self._outbox.residual

    @property
    def will(self) -> Publish:
        """What the broker says for us when we vanish."""
        return self._status(online=False)

    def _start(self) -> list[Action]:
        own = InboxTopic(self.facts.agent_id)
        topics = [CoordinatorStatusTopic(), ProgramTopic(), own, RoundTopic()]
        return [Subscribe(self.topics.name(topic)) for topic in topics]

    def _connected(self, max_payload_bytes: int, now_s: float) -> list[Action]:
        self._is_connected = True
        self._fetcher.connected(now_s)
        self._outbox.connected(blobs.chunk_bytes_for(max_payload_bytes), now_s)
        self._package.try_again()
        return [self._beat(now_s), *self._get_package(now_s)]

    def _disconnected(self) -> list[Action]:
        """What is said now would wait in the link's queue, and a day of it fill the queue: the next
        connection begins with a beat, and the plan that comes again has the update sent.
        """
        self._is_connected = False
        self._heartbeat_s = math.inf
        self._fetcher.disconnected()
        self._outbox.disconnected()
        return []

    # -- messages -------------------------------------------------------------------------------

    def _tick(self, now_s: float) -> list[Action]:
        actions: list[Action] = []
        if now_s >= self._heartbeat_s:
            actions += [self._beat(now_s), *self._ask_again()]
        if self._is_connected and now_s >= self._package.next_s():
            self._package.try_again()
            actions += self._get_package(now_s)
        for progressed in self._fetcher.tick(now_s):
            actions += self._progressed(progressed, now_s)
        if self._is_paused and now_s >= self._late_s:
            actions += self._give_up_paused()
        return actions + self._outbox.send_when_due(self._plan, now_s)

    def _beat(self, now_s: float) -> Publish:
        every = self.facts.heartbeat_s
        self._heartbeat_s = now_s + every if every else math.inf
        return self._status()

    def _ask_again(self) -> list[Action]:
        """Retained messages that should be here: a broker drops them in silence when a queue is
        full, and gives them again to whoever subscribes again.
        """
        coordinator, manifest, plan = self._coordinator, self._package.manifest, self._plan
        lacking: list[Topic] = []
        if coordinator is None or coordinator.state != "online":
            lacking.append(CoordinatorStatusTopic())
        if manifest is None or (plan is not None and plan.package != manifest.package.sha256):
            lacking.append(ProgramTopic())
        if plan is None or (coordinator is not None and coordinator.session != plan.session):
            lacking.append(RoundTopic())
        names = [self.topics.name(topic) for topic in lacking]
        return [action for name in names for action in (Unsubscribe(name), Subscribe(name))]

    def _message(self, name: str, payload: bytes, now_s: float) -> list[Action]:
        self._answers.received_bytes += publish_packet_bytes(name, len(payload))
        if not payload:
            return []  # a retained message was cleared
        try:
            topic = self.topics.parse(name)
            try:
                message = self._trust.opened(topic, payload)
            except UntrustedError as error:
                return self._untrusted(topic, error)
            actions = self._opened(topic, message, now_s)
            record = self._trust.unsaved()
            return actions if record is None else [KeepTrust(record), *actions]
        except WireError as error:
            self.unreadable += 1
            log.warning("message dropped: %s", error, extra={"event": "unreadable"})
            return []

    def _opened(self, topic: Topic, payload: bytes, now_s: float) -> list[Action]:
        match topic:
            case CoordinatorStatusTopic():
                return self._new_status(messages.decode(payload, CoordinatorStatus), now_s)
            case ProgramTopic():
                return self._new_manifest(messages.decode(payload, ProgramManifest), now_s)
            case RoundTopic():
                return self._new_plan(messages.decode(payload, RoundPlan), now_s)
            case InboxTopic():
                return self._outbox.inbox(messages.decode_inbox(payload), now_s)
            case ChunkTopic(sha256):
                return self._progressed(self._fetcher.chunk(sha256, payload, now_s), now_s)
        return []

    def _untrusted(self, topic: Topic, error: UntrustedError) -> list[Action]:
        """Goes on as if it had not come; says so to the coordinator when there is no other."""
        self._trust.refused(topic, error)
        coordinator = self._coordinator
        is_served = coordinator is not None and coordinator.state == "online"
        is_birth = isinstance(topic, CoordinatorStatusTopic)
        if is_served or not is_birth or self._distrust == error.reason:
            return []
        self._distrust = error.reason
        return [self._status()]

    def _new_status(self, status: CoordinatorStatus, now_s: float) -> list[Action]:
        self._coordinator = status
        has_news = self._trust.announced(status) or bool(self._distrust)
        self._distrust = ""
        return [*([self._status()] if has_news else []), *self._advance(now_s)]

    def _new_manifest(self, manifest: ProgramManifest, now_s: float) -> list[Action]:
        old = self._package.manifest
        self._package.announced(manifest)
        is_other = old is not None and old.package.sha256 != manifest.package.sha256
        forget = self._fetcher.forget(old.package) if old is not None and is_other else ()
        return [*forget, *self._get_package(now_s)]

    def _new_plan(self, plan: RoundPlan, now_s: float) -> list[Action]:
        old = self._plan
        if old is not None and self._plan_order.is_late(plan, old):
            log.info(
                "plan of round %d ignored: that of round %d is newer", plan.round_id, old.round_id
            )
            return []
        actions = [] if old is None else self._replace(old, plan)
        self._plan, self._late_s = plan, now_s + plan.deadline_s
        actions += self._outbox.new_plan(plan, now_s)
        if self._outbox.answers(plan) and plan.task == "train":
            self._answers.by_update(plan)
        actions += self._answers.again(plan)
        if self._job is not None and self._job != plan_key(plan):
            log.info("round %d is over, training stops", self._job[1])
            actions.append(CancelJob())
        return [*actions, *self._advance(now_s)]

    def _replace(self, old: RoundPlan, plan: RoundPlan) -> list[Action]:
        actions: list[Action] = []
        if old.weights.sha256 != plan.weights.sha256:
            actions += self._fetcher.forget(old.weights)
        if self._plan_order.follow(plan, old):
            log.warning(
                "the coordinator goes back from round %d to %d: its state is an earlier one",
                old.round_id,
                plan.round_id,
            )
            actions += self._outbox.gone_back(plan)
        return actions

    # -- blobs ----------------------------------------------------------------------------------

    def _fetch(self, ref: BlobRef, now_s: float, jitter_s: float = 0.0) -> list[Action]:
        try:
            return self._progressed(self._fetcher.begin(ref, now_s, jitter_s), now_s)
        except WireError as error:
            return self._fetch_failed(ref.sha256, str(error), now_s, passing=False)

    def _get_package(self, now_s: float) -> list[Action]:
        """Fetch it, if it is lacking; not while the network is paid by the byte."""
        ref = self._package.wanted
        if ref is None or self.facts.unable or self._limits.metered:
            return []
        return self._fetch(ref, now_s)

    def _progressed(self, progressed: Progressed, now_s: float) -> list[Action]:
        actions: list[Action] = list(progressed.actions)
        if progressed.missing is not None:
            actions += self._ask_for(*progressed.missing)
        if progressed.failed is not None:
            actions += self._fetch_failed(*progressed.failed, now_s, passing=True)
        if progressed.blob is not None:
            sha256, blob = progressed.blob
            if self._package.arrived(sha256):
                actions.append(LoadPackage(sha256, blob))
            elif self._plan is not None and sha256 == self._plan.weights.sha256:
                actions += self._weights_arrived(sha256, blob, now_s)
        return actions

    def _ask_for(self, sha256: str, chunks: tuple[int, ...]) -> list[Action]:
        """Tell the coordinator what the broker does not give."""
        coordinator, plan = self._coordinator, self._plan
        if coordinator is None or coordinator.state != "online":
            return []
        return [self._answers.missing(coordinator, plan, sha256, chunks)]

    def _fetch_failed(self, sha256: str, why: str, now_s: float, *, passing: bool) -> list[Action]:
        self.unreadable += 1
        if self._plan is not None and sha256 == self._plan.weights.sha256:
            return self._decline("weights", why)
        failed = PackageFailed(sha256, "no_program", why, passing=passing)
        return self._package_failed(failed, now_s)

    def _weights_arrived(self, sha256: str, blob: bytes, now_s: float) -> list[Action]:
        theta = np.frombuffer(blob, "<f4").astype(np.float32) if len(blob) % 4 == 0 else None
        if theta is None or not np.isfinite(theta).all():
            return self._decline("weights", "the weights are no finite float32 vector")
        theta.setflags(write=False)
        self._theta = (sha256, theta)
        return self._advance(now_s)

    # -- program and data -----------------------------------------------------------------------

    def _package_loaded(self, event: PackageLoaded, now_s: float) -> list[Action]:
        if not self._package.has_loaded(event):
            return []
        actions = self._outbox.model_is(event.fingerprint)
        if self.facts.fingerprint not in (None, event.fingerprint):
            detail = f"layout {event.fingerprint}, this device trains {self.facts.fingerprint} only"
            self._package.failed = PackageFailed(event.package, "fingerprint", detail)
        log.info(
            "model ready on %s: %d rows to learn from, %d held out",
            event.runtime,
            event.train_examples,
            event.test_examples,
        )
        return [*actions, *self._tell_status(), *self._advance(now_s)]

    def _package_failed(self, event: PackageFailed, now_s: float) -> list[Action]:
        if not self._package.cannot_be_used(event, now_s):
            return []
        return [*self._tell_status(), *self._advance(now_s)]

    # -- rest -----------------------------------------------------------------------------------

    def _felt(self, readings: Readings, now_s: float) -> list[Action]:
        before, was_metered = self._limits.rest, self._limits.metered
        rest = self._limits.judge(readings)
        actions: list[Action] = []
        if self._limits.metered != was_metered:
            actions += [] if was_metered else self._stop_fetching()
        self._package.try_in(readings.available_bytes)
        actions += self._get_package(now_s)
        return actions if rest == before else [*actions, *self._rest_changed(before, rest, now_s)]

    def _rest_changed(self, before: Rest | None, rest: Rest | None, now_s: float) -> list[Action]:
        log.info("the device rests: %s", rest) if rest else log.info("the device rests no more")
        actions = self._tell_status()
        if (rest is None) != (before is None):
            actions.append(PauseJobs() if rest else ResumeJobs())
        return [*actions, *self._advance(now_s)]

    @property
    def _is_paused(self) -> bool:
        plan, rest = self._plan, self._limits.rest
        return plan is not None and self._job == plan_key(plan) and rest is not None

    def _give_up_paused(self) -> list[Action]:
        """The device still rests, and the round's time is up."""
        rest = self._limits.rest
        assert rest is not None, "is paused"
        self._late_s = math.inf
        detail = f"{rest.detail}; still so at the deadline, training was given up"
        return [CancelJob(), *self._decline(rest.reason, detail)]

    def _stop_fetching(self) -> list[Action]:
        """The network is paid by the byte now."""
        refs = [self._package.wanted, self._plan and self._plan.weights]
        return [action for ref in refs if ref for action in self._fetcher.put_off(ref.sha256)]

    # -- a round --------------------------------------------------------------------------------

    def _advance(self, now_s: float) -> list[Action]:
        """The next step of the current plan, if it is for us and everything is there."""
        plan, coordinator = self._plan, self._coordinator
        if (
            plan is None
            or plan.state != "open"
            or coordinator is None
            or coordinator.state != "online"
            or coordinator.session != plan.session  # a plan left over from an earlier run
            or self._job is not None
            or self._answers.has(plan)
            or plan.task not in self.facts.tasks
            or not plan.cohort.includes(self.facts.agent_id)
        ):
            return []
        rest = self._limits.rest
        loaded = self._package.loaded
        if why := refusal(self.facts, plan, loaded, self._package.failed, rest):
            return self._decline(*why)
        if loaded is None or loaded.package != plan.package:
            return []  # the manifest or the package is on its way
        if self._theta is None or self._theta[0] != plan.weights.sha256:
            return self._fetch(plan.weights, now_s, plan.fetch_jitter_s)
        return self._start_job(plan, loaded, self._theta[1])

    def _start_job(self, plan: RoundPlan, loaded: PackageLoaded, theta: F32) -> list[Action]:
        self._job = plan_key(plan)
        if plan.task == "train":
            self._answers.training_begins()
            log.info("round %d: training on %d rows", plan.round_id, loaded.train_examples)
        return [StartJob(plan, theta)]

    def _job_ended(self, event: Trained | Evaluated | JobFailed, now_s: float) -> list[Action]:
        self._job = None
        if self._plan is None or plan_key(event.plan) != plan_key(self._plan):
            return self._advance(now_s)  # the round went on without us
        if self._answers.has(event.plan):
            return []  # given up, and said so
        match event:
            case Trained(plan, result):
                answer = self._answers.trained(plan, result, self._outbox.residual)
                if isinstance(answer, SpooledUpdate):
                    return self._outbox.put(answer, now_s)
                return answer
            case Evaluated(plan, sums):
                return self._answers.measured(plan, sums)
            case JobFailed(plan, detail):
                return self._answers.failed(plan, detail)

    def _decline(self, reason: str, detail: str) -> list[Action]:
        return [] if self._plan is None else self._answers.declined(self._plan, reason, detail)

    def _decline_running(self, reason: str) -> list[Action]:
        return [] if self._job is None else self._decline(reason, "the agent is shutting down")

    def _tell_status(self) -> list[Action]:
        """Of no use while the link is down: the next connection begins with it."""
        return [self._status()] if self._is_connected else []

    def _status(self, *, online: bool = True) -> Publish:
        status = agent_status(
            self.facts,
            self._package.loaded,
            self._package.failed,
            self._limits.rest,
            self._distrust,
            self._trust.key_ids,
            online=online,
        )
        topic = AgentStatusTopic(self.facts.agent_id)
        return Publish(self.topics.name(topic), messages.encode(status), retain=True)
