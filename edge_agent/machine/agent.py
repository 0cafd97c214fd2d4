"""State machine of an agent: events in, actions out; no sockets, threads, files or clocks."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from random import Random
from typing import TypeVar

from broker.link.link import publish_packet_bytes
from broker.protocol import blobs, messages
from broker.protocol.messages import CoordinatorStatus, ProgramManifest, RoundPlan
from broker.protocol.topics import (
    AgentStatusTopic,
    ChunkTopic,
    CoordinatorStatusTopic,
    InboxTopic,
    ProgramTopic,
    RoundTopic,
    Topic,
    Topics,
    UpdateTopic,
)
from broker.service.events import (
    BrokerRefused,
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
from edge_agent.machine.blob_fetcher import Fetcher
from edge_agent.machine.broker_watch import Absence, PublishRights
from edge_agent.machine.decoded_plan import CommonBlobs
from edge_agent.machine.downloads import Downloads
from edge_agent.machine.events import (
    Action,
    BlobRecalled,
    Event,
    JobDone,
    JobFailed,
    PackageFailed,
    PackageLoaded,
    PauseJobs,
    ResumeJobs,
    SaveTrust,
)
from edge_agent.machine.limits import DeviceReadings, Limits, PauseReason
from edge_agent.machine.package import CurrentPackage
from edge_agent.machine.pending_update import AgentMemory
from edge_agent.machine.rounds import Rounds
from edge_agent.machine.status import AgentFacts, agent_status
from edge_agent.machine.trust import Trust
from fedge.errors import UntrustedError, WireError

log = logging.getLogger(__name__)

M = TypeVar("M")


def _decode_status(payload: bytes) -> CoordinatorStatus:
    return messages.decode(payload, CoordinatorStatus)


def _decode_manifest(payload: bytes) -> ProgramManifest:
    return messages.decode(payload, ProgramManifest)


def _decode_plan(payload: bytes) -> RoundPlan:
    return messages.decode(payload, RoundPlan)


class Agent:
    """State machine of one device in one federation.

    Args:
        facts: of this instance.
        memory: of earlier instances.
        rng: for jitter.
        common: blobs that other agents of the process hold; None: there are no others.

    Attributes:
        facts: of this instance.
        topics: of the federation.
        rounds: plans, jobs and answers.
    """

    def __init__(
        self,
        facts: AgentFacts,
        memory: AgentMemory | None = None,
        rng: Random | None = None,
        common: CommonBlobs | None = None,
    ) -> None:
        self.facts = facts
        self.topics = Topics(facts.federation)
        self._inbox = InboxTopic(facts.agent_id)
        self._inbox_name = self.topics.name(self._inbox)
        memory = memory or AgentMemory()
        self._trust = Trust(self.topics, facts.trusted_keys, memory.trust)
        #: Why the coordinator that is online is not trusted; empty when it is.
        self._distrust = ""
        rng = rng or Random()  # noqa: S311  jitter
        self._package = CurrentPackage(rng)
        self._limits = Limits(facts.limits)
        common = common or CommonBlobs()
        self._recent = common.recent
        self._fetcher = Fetcher(
            self.topics, facts.max_blob_bytes, rng, facts.stall_s, common.chunks
        )
        self.rounds = Rounds(
            facts,
            self.topics,
            memory,
            self._package,
            self._limits,
            self._fetcher,
            rng,
            common.vectors,
        )
        self._downloads = Downloads(
            facts, self._fetcher, self._package, self._limits, self.rounds, self._tell_status
        )
        self._rights = PublishRights(self.topics, facts.agent_id, rng)
        self._unreadable = 0
        #: Bytes that had come when the coordinator's start was seen.
        self._received_before = 0
        self._heartbeat_s = math.inf
        self._is_connected = False
        self._absence = Absence(self.topics)
        self._max_payload_bytes = 0

    def handle(self, event: Event, now_s: float) -> list[Action]:
        """Returns what to do about an event at `now_s` (any steady clock, in seconds)."""
        match event:
            case MessageArrived(topic, payload):  # most are
                return self._message(topic, payload, now_s)
            case JobDone() | JobFailed():
                return self.rounds.job_ended(event, now_s)
            case Started():
                return self._start()
            case Connected(max_payload_bytes):
                return self._connected(max_payload_bytes, now_s)
            case Disconnected():
                return self._disconnected()
            case Tick():
                return self._tick(now_s)
            case BrokerRefused():
                return self._broker_refused(event, now_s)
            case BlobRecalled(sha256, payloads):
                return self._downloads.progressed(
                    self._fetcher.recalled(sha256, payloads, now_s), now_s
                )
            case PackageLoaded():
                return self._downloads.package_loaded(event, now_s)
            case PackageFailed():
                return self._downloads.package_failed(event, now_s)
            case DeviceReadings():
                return self._take_readings(event, now_s)
            case Stopping():
                declined = self.rounds.decline_running("stopping", "the agent is shutting down")
                return [*declined, self._status(online=False)]

    def wait_s(self, now_s: float) -> float:
        """Returns the seconds until a Tick is due."""
        package = self._package
        due = min(
            self._heartbeat_s,
            self._rights.due_s,
            self.rounds.next_s(),
            self._fetcher.next_s(),
            package.again_s if self._is_connected else math.inf,
            self._absence.due_s if package.manifest is None else math.inf,
        )
        return due - now_s if due > now_s else 0.0

    @property
    def needs_readings(self) -> bool:
        """Whether it wants to be told the device's readings."""
        failed = self._package.failed
        return self.facts.limits.watched or bool(failed and failed.needs_bytes)

    @property
    def unreadable(self) -> int:
        """Messages and blobs that could not be read, since the start."""
        return self._unreadable + self._downloads.failures

    @property
    def plan(self) -> RoundPlan | None:
        """The newest plan."""
        return self.rounds.plan

    @property
    def trusted_keys(self) -> tuple[str, ...]:
        """Names of the keys of which one must have signed a message; none: any message will do."""
        return self._trust.key_ids

    @property
    def fetching(self) -> int:
        """Number of blobs that are being fetched."""
        return len(self._fetcher)

    @property
    def will(self) -> Publish:
        """The message that the broker publishes when the agent vanishes."""
        return self._status(online=False)

    # -- the link -------------------------------------------------------------------------------

    def _start(self) -> list[Action]:
        topics = [CoordinatorStatusTopic(), ProgramTopic(), self._inbox, RoundTopic()]
        return [Subscribe(self.topics.name(topic)) for topic in topics]

    def _connected(self, max_payload_bytes: int, now_s: float) -> list[Action]:
        self._is_connected = True
        self._max_payload_bytes = max_payload_bytes
        self._absence.connected(now_s)
        self._fetcher.connected(max_payload_bytes, now_s)
        self._rights.connected(now_s)
        self.rounds.outbox.connected(blobs.chunk_bytes_for(max_payload_bytes), now_s)
        return [self._heartbeat(now_s), *self._downloads.try_again(now_s)]

    def _disconnected(self) -> list[Action]:
        """Stops sending: it would wait in the link's queue, and a day of it fill the queue. The
        next connection begins with a status, and the plan that comes again has the update sent.
        """
        self._is_connected = False
        self._heartbeat_s = math.inf
        self._absence.disconnected()
        self._fetcher.disconnected()
        self._rights.disconnected()
        self.rounds.outbox.disconnected()
        return []

    def _tick(self, now_s: float) -> list[Action]:
        actions: list[Action] = []
        if now_s >= self._heartbeat_s:
            actions += [self._heartbeat(now_s), *self._subscribe_again()]
        if self._is_connected and now_s >= self._package.again_s:
            actions += self._downloads.try_again(now_s)
        for progressed in self._fetcher.tick(now_s):
            actions += self._downloads.progressed(progressed, now_s)
        if now_s >= self._absence.due_s:
            self._absence.tell(self.rounds.coordinator, self._package.manifest)
        if now_s >= self._rights.due_s:
            actions += self._try_rights(now_s)
        return actions + self.rounds.tick(now_s)

    def _heartbeat(self, now_s: float) -> Publish:
        every = self.facts.heartbeat_s
        self._heartbeat_s = now_s + every if every else math.inf
        return self._status()

    def _subscribe_again(self) -> list[Action]:
        """Subscribes again to retained messages that should have come: a broker whose queue is full
        drops them silently, and delivers them to whoever subscribes again.
        """
        coordinator, manifest, plan = self.rounds.coordinator, self._package.manifest, self.plan
        lacking: list[Topic] = []
        if coordinator is None or coordinator.state != "online":
            lacking.append(CoordinatorStatusTopic())
        if manifest is None or (plan is not None and plan.package != manifest.package.sha256):
            lacking.append(ProgramTopic())
        if plan is None or (coordinator is not None and coordinator.session != plan.session):
            lacking.append(RoundTopic())
        names = [self.topics.name(topic) for topic in lacking]
        return [action for name in names for action in (Unsubscribe(name), Subscribe(name))]

    # -- messages -------------------------------------------------------------------------------

    def _message(self, name: str, payload: bytes, now_s: float) -> list[Action]:
        self.rounds.reports.received_bytes += publish_packet_bytes(name, len(payload))
        if not payload:
            return []  # a retained message was cleared
        try:
            topic = self._inbox if name == self._inbox_name else self.topics.parse(name)
            try:
                message = self._trust.opened(topic, payload)
            except UntrustedError as error:
                return self._untrusted(topic, error)
            actions = self._trusted(topic, message, now_s)
            record = self._trust.unsaved()
            return actions if record is None else [SaveTrust(record), *actions]
        except WireError as error:
            self._unreadable += 1
            log.warning(
                "message on %s dropped: %s",
                name[:120],
                str(error)[:500],
                extra={"event": "unreadable", "sender": name[:120]},
            )
            return []

    def _trusted(self, topic: Topic, payload: bytes, now_s: float) -> list[Action]:
        match topic:
            case CoordinatorStatusTopic():
                return self._new_status(self._decoded(payload, _decode_status), now_s)
            case ProgramTopic():
                return self._downloads.new_manifest(self._decoded(payload, _decode_manifest), now_s)
            case RoundTopic():
                return self.rounds.new_plan(self._decoded(payload, _decode_plan), now_s)
            case InboxTopic():
                return self.rounds.inbox(self._decoded(payload, messages.decode_inbox), now_s)
            case ChunkTopic(sha256):
                return self._downloads.progressed(
                    self._fetcher.chunk(sha256, payload, now_s), now_s
                )
        return []

    def _decoded(self, payload: bytes, decode: Callable[[bytes], M]) -> M:
        """Returns a message that other agents get, too."""
        return decode(payload) if self._recent is None else self._recent.decoded(payload, decode)

    def _untrusted(self, topic: Topic, error: UntrustedError) -> list[Action]:
        """Ignores a message; tells the coordinator when no trusted one is online."""
        self._trust.refused(topic, error)
        coordinator = self.rounds.coordinator
        is_served = coordinator is not None and coordinator.state == "online"
        is_birth = isinstance(topic, CoordinatorStatusTopic)
        if is_served or not is_birth or self._distrust == error.reason:
            return []
        self._distrust = error.reason
        return [self._status()]

    def _new_status(self, status: CoordinatorStatus, now_s: float) -> list[Action]:
        before, self.rounds.coordinator = self.rounds.instance, status
        has_news = self._trust.announced(status) or bool(self._distrust)
        # A coordinator that has just started cannot tell who of those it hears of is still there.
        if status.state == "online" and self.rounds.instance != before:
            has_news = True
            self._received_before = self.rounds.reports.received_bytes
        self._distrust = ""
        return [*([self._status()] if has_news else []), *self.rounds.advance(now_s)]

    # -- refusals of the broker -----------------------------------------------------------------

    def _broker_refused(self, event: BrokerRefused, now_s: float) -> list[Action]:
        """Gives up what the broker refuses, and tells the coordinator if updates are refused."""
        if event.is_subscription:
            given_up = self._fetcher.refused(event.topic, event.reason)
            return self._downloads.progressed(given_up, now_s)
        try:
            topic = self.topics.parse(event.topic)
        except WireError:
            return []
        if not isinstance(topic, UpdateTopic):
            return []
        is_new = self._rights.refused(event.reason, now_s)
        self.rounds.refusal = self._rights.refusal
        declined = self.rounds.update_refused(topic.round_id, self._rights.refusal)
        # The status first: a round that the answer closes is followed by one that asks others.
        return [*(self._tell_status() if is_new else []), *declined]

    def _try_rights(self, now_s: float) -> list[Action]:
        trial, is_granted = self._rights.tick(now_s)
        if trial is not None:
            return [trial]
        if not is_granted:
            return []
        log.info("the broker takes this device's updates again")
        self.rounds.refusal = ""
        return [*self._tell_status(), *self.rounds.advance(now_s)]

    # -- pauses ---------------------------------------------------------------------------------

    def _take_readings(self, readings: DeviceReadings, now_s: float) -> list[Action]:
        before, was_metered = self._limits.pause, self._limits.metered
        pause = self._limits.update(readings)
        actions: list[Action] = []
        if self._limits.metered and not was_metered:
            actions += self._downloads.stop()
        self._package.try_in(readings.available_bytes)
        actions += self._downloads.get_package(now_s)
        if pause == before:
            return actions
        return [*actions, *self._pause_changed(before, pause, now_s)]

    def _pause_changed(
        self, before: PauseReason | None, pause: PauseReason | None, now_s: float
    ) -> list[Action]:
        log.info("paused: %s", pause) if pause else log.info("the pause is over")
        actions = self._tell_status()
        if (pause is None) != (before is None):
            actions.append(PauseJobs() if pause else ResumeJobs())
        return [*actions, *self.rounds.advance(now_s)]

    # -- status ---------------------------------------------------------------------------------

    def _tell_status(self) -> list[Action]:
        """Publishes the status; a connection that is down begins with it when it is up again."""
        return [self._status()] if self._is_connected else []

    def _status(self, *, online: bool = True) -> Publish:
        status = agent_status(
            self.facts,
            self._package.loaded,
            self._package.failed,
            self._limits.pause,
            f"coordinator not trusted: {self._distrust}"
            if self._distrust
            else self._rights.refusal,
            self._trust.key_ids,
            self._max_payload_bytes,
            self.rounds.instance,
            self._received_before,
            online=online,
        )
        topic = AgentStatusTopic(self.facts.agent_id)
        return Publish(self.topics.name(topic), messages.encode(status), retain=True)
