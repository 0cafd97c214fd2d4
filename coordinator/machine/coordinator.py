"""Coordinator state machine: rounds one after another, until a reason to stop.

    waiting -> a phase -> (committed) -> the next phase -> … -> waiting -> … -> finished

Events in, actions out; the time is an argument. What a round is made of is the round protocol's
(`coordinator/rounds`); the content of answers is judged by `UpdateIntake`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from broker.link.link import publish_packet_bytes
from broker.protocol import messages
from broker.protocol.messages import AgentStatus, Report
from broker.protocol.topics import AgentStatusTopic, ReportTopic, Topics, UpdateTopic
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
from coordinator.config import CoordinatorConfig, check_choices
from coordinator.machine.central_rows import CentralRows
from coordinator.machine.events import (
    Action,
    AgentUnavailable,
    Event,
    ForgetAgent,
    SaveAgent,
)
from coordinator.machine.noise import SenderBudgets
from coordinator.machine.open_round import ClosedRounds, Traffic
from coordinator.machine.progress import Progress
from coordinator.machine.publisher import Publisher
from coordinator.machine.roster import Roster
from coordinator.machine.round_runner import RoundRunner
from coordinator.machine.round_scheduler import RoundScheduler
from coordinator.machine.standing import Standings
from coordinator.machine.update_intake import IntakeResult, UpdateIntake
from coordinator.rounds.checks import check_model
from coordinator.rounds.registry import make_round_protocol
from coordinator.rounds.stopping import stop_rule
from fedge.errors import WireError
from learning.algorithms.algorithm import Algorithm
from learning.algorithms.registry import ALGORITHMS
from learning.algorithms.server_step import check_state
from learning.vector.metrics import Sums
from learning.vector.parameters import F32
from models.package.package import ModelPackage

log = logging.getLogger(__name__)

_AgentTopic = AgentStatusTopic | UpdateTopic | ReportTopic

#: Between two looks at heartbeats.
_LONGEST_WAIT_S = 10.0
#: More than this between two looks: this process stood still, and received nothing.
_STOOD_STILL_S = 2 * _LONGEST_WAIT_S


class Coordinator:
    """Runs one federation: announces rounds, aggregates updates, commits versions.

    Args:
        config: of the federation.
        package: the model; θ starts as its initial one when `progress` is None.
        session: of the federation's state folder: the same after a restart.
        start: of this process, never used before.
        progress: from the store, when it was started before.
        measure: sums of loss and metrics over the coordinator's own data for a θ; None when it
            has none. Runs inside `handle`.
        keys: public keys, hexadecimal, that the shell signs with; agents are told.

    Raises:
        ConfigError: no such algorithm, codec or aggregator, or the stored state is of another
            algorithm.
    """

    def __init__(
        self,
        config: CoordinatorConfig,
        package: ModelPackage,
        session: str,
        start: str,
        progress: Progress | None = None,
        measure: Callable[[F32], Sums] | None = None,
        keys: tuple[str, ...] = (),
    ) -> None:
        self.config = config
        self.spec = package.spec
        self.topics = Topics(config.federation)
        #: Messages that could not be decoded, since the start.
        self.unreadable = 0
        check_choices(config)
        algorithm: Algorithm = ALGORITHMS.make(config.algorithm, config.training)
        check_model(config, package.spec, algorithm)
        expected = algorithm.init(package.initial)
        self.progress = progress or Progress(0, package.initial, expected)
        check_state(self.progress.state, expected)
        if (rule := stop_rule(config)) != self.progress.course.rule:
            self.progress.course = self.progress.course.by(rule, ())
        standings = Standings(config.quarantine, self.progress.standings, config.max_staleness)
        least = max(config.cohort.at_least, config.round.minimum)
        self.roster = Roster(start, standings, least)
        self._publisher = Publisher(self.topics, package, session, start, keys)
        self._traffic = Traffic()
        sizes = (upload.size(package.spec.size) for upload in algorithm.uploads.values())
        self._budgets = SenderBudgets(4 * sum(sizes))
        closed = ClosedRounds(self.progress.closed)
        self._intake = UpdateIntake(
            config, package.spec, session, self.roster, self._traffic, closed
        )
        self._protocol = make_round_protocol(config, package.spec, algorithm, self.roster)
        self._scheduler = RoundScheduler(config, restarted=progress is not None)
        self._central = CentralRows(package, measure)
        self._rounds = RoundRunner(
            config,
            package,
            session,
            start,
            self.progress,
            algorithm,
            self._protocol,
            self._publisher,
            self._intake,
            self._scheduler,
            self.roster,
            closed,
            self._traffic,
            self._central,
        )
        self._connected = False
        self._looked_s = math.inf
        if self.progress.open is not None:
            stored, self.progress.open = self.progress.open, None
            self._rounds.restore(stored)

    @property
    def finished(self) -> str | None:
        """Reason why the federation has ended; None before."""
        return self._rounds.finished

    @property
    def uploading(self) -> int:
        """Updates that arrived in part."""
        return self._intake.uploading

    @property
    def will(self) -> Publish:
        """Returns what the broker publishes when this process vanishes."""
        return self._publisher.status(self.progress.version, online=False)

    # -- events ---------------------------------------------------------------------------------

    def handle(self, event: Event, now_s: float) -> list[Action]:
        """Returns what to do about an event at `now_s` (any steady clock, in seconds)."""
        actions: list[Action] = []
        self._central.has_measured = False
        match event:
            case MessageArrived(topic, payload):  # most are
                actions = self._message(topic, payload, now_s)
            case Started():
                return [Subscribe(name) for name in self.topics.from_agents]
            case Connected(max_payload_bytes):
                actions = self._connect(max_payload_bytes, now_s)
            case Disconnected():
                self._connected = False
                if self._rounds.open is not None:
                    self._rounds.open.grace_until_s = math.inf  # nobody could be heard
            case Tick():
                actions = self._tick(now_s)
            case Stopping():
                return [self._publisher.status(self.progress.version, online=False)]
        if self._central.has_measured:
            return actions  # it took its time: the next round begins by a clock that was read since
        return actions + self._maybe_start(now_s)

    def wait_s(self, now_s: float) -> float:
        """Returns the seconds until a Tick is due."""
        opened = self._rounds.open
        moments = [now_s if self._central.has_measured else now_s + _LONGEST_WAIT_S]
        recovery_s = self._budgets.recovery_s()
        if recovery_s is not None and self._connected:
            moments.append(recovery_s)
        if opened is not None:
            waits_for_grace = opened.round.closed is not None
            due_s = min(opened.deadline_s, opened.grace_until_s)
            moments.append(self._scheduler.pause_until_s if waits_for_grace else due_s)
            moments += [due for due in (self._intake.next_s(),) if due is not None]
        elif self.finished is None:
            due_s = self._scheduler.due_s()
            moments.append(due_s if due_s > now_s else now_s + 1.0)
        return max(0.0, min(moments) - now_s)

    def _connect(self, max_payload_bytes: int, now_s: float) -> list[Action]:
        # Everything retained is published again: the broker may have lost it.
        self._publisher.limit(max_payload_bytes)
        first = self._scheduler.connected(now_s)
        self._connected = True
        self._looked_s = now_s
        self.roster.restart_heartbeat_timers(now_s)
        return self._publish_all(now_s, first=first)

    def _publish_all(self, now_s: float, *, first: bool = False) -> list[Action]:
        return [
            self._publisher.status(self.progress.version),
            *self._publisher.package(),
            *self._publisher.results(),
            *self._rounds.connected(now_s, first=first),
        ]

    def _tick(self, now_s: float) -> list[Action]:
        opened = self._rounds.open
        actions: list[Action] = [*self._intake.tick(opened, now_s)]
        actions += self._recover(now_s)
        for agent_id in self._silent(now_s):
            facts = {"sender": agent_id}
            log.warning("agent %s missed its heartbeats; marked offline", agent_id, extra=facts)
            if (entry := self.roster.get(agent_id)) is not None:
                actions.append(SaveAgent(agent_id, entry.status))
            if opened is not None:
                opened.note_left(agent_id, now_s)
                opened.round.set_offline(agent_id, offline=True)
        if opened is not None and opened.round.closed is None and now_s >= opened.deadline_s:
            opened.round.reach_deadline()
        return actions + self._close_if_done(now_s)

    def _silent(self, now_s: float) -> list[str]:
        """Agents whose heartbeats stopped, while we were connected."""
        if now_s - self._looked_s > _STOOD_STILL_S:
            self.roster.restart_heartbeat_timers(now_s)  # their heartbeats wait to be read
        self._looked_s = now_s
        return self.roster.expire(now_s) if self._connected else []

    def _close_if_done(self, now_s: float) -> list[Action]:
        opened = self._rounds.open
        if opened is None:
            return []
        opened.note_counted(now_s)
        if self._connected:
            opened.watch_grace(self.config.round.grace_s, now_s)
        if opened.round.closed is None:
            return []
        if now_s < self._scheduler.pause_until_s:
            return []  # restarted: an update that was queued came before the births
        self._budgets.settle(opened.round.counted)
        return self._rounds.close(now_s)

    def _maybe_start(self, now_s: float) -> list[Action]:
        if self._rounds.open is not None or self.finished is not None or not self._connected:
            return []
        if self.progress.unmeasured is not None:
            if now_s < self._scheduler.pause_until_s:
                return []  # who is there has yet to say so
            record, self.progress.unmeasured = self.progress.unmeasured, None
            if actions := self._rounds.measure(record, now_s):
                return actions
        if reason := self._protocol.stop_reason(self.progress.course):
            return self._rounds.finish(reason)
        if now_s < self._scheduler.due_s():
            return []
        self.roster.standings.round_id = self._rounds.next_round_id
        first = not self.progress.version  # what was abandoned has shown nothing
        eligible = self._scheduler.eligible_agents(
            self._protocol.eligible_agents, self.roster, now_s, first=first
        )
        if not isinstance(eligible, list):
            return [] if eligible is None else [eligible]
        return self._rounds.begin(eligible, now_s)

    # -- messages -------------------------------------------------------------------------------

    def _message(self, name: str, payload: bytes, now_s: float) -> list[Action]:
        topic = self._topic_of(name)
        expiry_s = 1 if isinstance(topic, UpdateTopic) else None
        self._traffic.up += publish_packet_bytes(name, len(payload), expiry_s)
        sender = "" if topic is None else topic.agent_id
        is_known = bool(sender) and self._is_known(sender)
        awaited = None if topic is None else self._awaited(topic)
        if not self._budgets.admits(
            sender, len(payload), now_s, is_known=is_known, awaited=awaited
        ):
            return []
        try:
            match topic:
                case None:
                    raise WireError("not a topic that agents write to")
                case AgentStatusTopic(agent_id):
                    return self._agent_status(agent_id, payload, now_s)
                case UpdateTopic(agent_id):
                    returned = self._heard(agent_id, now_s)
                    result = self._intake.update(self._rounds.open, topic, payload, now_s)
                    return [*returned, *self._taken(result, now_s)]
                case ReportTopic(agent_id, round_id):
                    returned = self._heard(agent_id, now_s)
                    return [*returned, *self._report(agent_id, round_id, payload, now_s)]
        except WireError as error:
            self.unreadable += 1
            self._budgets.unreadable(sender, is_known=is_known)
            facts = {"event": "unreadable", "sender": sender, "reason": "unreadable"}
            log.warning("message on %s dropped: %s", name[:120], error, extra=facts)
            return []

    def _topic_of(self, name: str) -> _AgentTopic | None:
        """Returns the topic of an agent behind a name; None for every other."""
        try:
            topic = self.topics.parse(name)
        except WireError:
            return None
        return topic if isinstance(topic, _AgentTopic) else None

    def _is_known(self, agent_id: str) -> bool:
        """Says whether an agent was born, or is asked by the open round."""
        opened = self._rounds.open
        is_asked = opened is not None and agent_id in opened.round.cohort
        return is_asked or self.roster.get(agent_id) is not None

    def _awaited(self, topic: _AgentTopic) -> tuple[int, str] | None:
        """Returns the open phase, when it may wait for a message on this topic."""
        opened = self._rounds.open
        if opened is None or isinstance(topic, AgentStatusTopic):
            return None
        waits = opened.waits_for(topic.agent_id, topic.round_id)
        return (opened.plan.round_id, opened.plan.phase_name) if waits else None

    def _recover(self, now_s: float) -> list[Action]:
        """Has the broker repeat what is retained, and agents what is not, after a flood."""
        if not self._connected or not self._budgets.recovers(now_s):
            return []
        statuses, opened = self.topics.from_agents[0], self._rounds.open
        again: list[Action] = [Unsubscribe(statuses), Subscribe(statuses)]
        if opened is not None and opened.round.closed is None:
            again.append(self._publisher.plan(opened.plan))
        return again

    def _heard(self, agent_id: str, now_s: float) -> list[Action]:
        if not self.roster.heard(agent_id, now_s):
            return []
        entry = self.roster.get(agent_id)
        assert entry is not None, "it was heard"
        if self._rounds.open is not None:
            self._rounds.open.round.set_offline(agent_id, offline=False)
        return [SaveAgent(agent_id, entry.status)]

    def _report(self, agent_id: str, round_id: int, payload: bytes, now_s: float) -> list[Action]:
        report = messages.decode(payload, Report)
        if report.kind == "declined" and self._rounds.open is not None:
            self._rounds.open.note_left(agent_id, now_s)
        if report.kind == "missing":
            return [*self._publisher.again(report.sha256 or "", report.chunks, now_s)]
        return self._taken(
            self._intake.report(self._rounds.open, agent_id, round_id, report), now_s
        )

    def _taken(self, result: IntakeResult, now_s: float) -> list[Action]:
        stored = [] if result.store is None else [result.store]
        return [*stored, *result.receipts, *self._close_if_done(now_s)]

    def _agent_status(self, agent_id: str, payload: bytes, now_s: float) -> list[Action]:
        if not payload:
            return self._removed(agent_id, now_s)
        status = messages.decode(payload, AgentStatus)
        if status.state == "offline" and self.roster.get(agent_id) is None:
            # It went offline while this process was away; a round that was open then asked it.
            return self._presence(agent_id, now_s, offline=True)
        change = self.roster.update(agent_id, status, now_s)
        if change == "duplicate":
            log.error(
                "two processes use the id %s (instances %s and another); stop one of them",
                agent_id,
                status.agent_instance,
                extra={"event": "duplicate_id", "sender": agent_id},
            )
        if change in ("none", "heartbeat"):
            return []
        log.debug("%s is %s", agent_id, status.state)
        told: list[Action] = []
        if self._publisher.takes(status.max_payload_bytes) and self._connected:
            size = status.max_payload_bytes
            log.info("%s takes messages of %d bytes: all is cut smaller", agent_id, size)
            told += self._publish_all(now_s)
        if status.unavailable_reason and status.state == "online":
            told.append(AgentUnavailable(agent_id, status.unavailable_reason, status.is_transient))
        # A paused agent may go on within the round: like an offline one, it is not waited for.
        gone = status.state == "offline" or bool(status.pause_reason)
        return [
            SaveAgent(agent_id, status),
            *told,
            *self._presence(agent_id, now_s, offline=gone),
        ]

    def _removed(self, agent_id: str, now_s: float) -> list[Action]:
        """Drops an agent whose retained status was cleared: nobody is there, nor will be."""
        entry, opened = self.roster.get(agent_id), self._rounds.open
        is_asked = opened is not None and agent_id in opened.round.cohort
        if entry is None or (is_asked and not entry.online):
            return []
        if is_asked:
            # What it may send for this round is judged by what it said before.
            self.roster.set_offline(agent_id)
        else:
            self.roster.forget(agent_id)
        log.info(
            "agent %s: its status was cleared; it is forgotten until its next one",
            agent_id,
            extra={"event": "cleared", "sender": agent_id, "reason": "cleared"},
        )
        return [ForgetAgent(agent_id), *self._presence(agent_id, now_s, offline=True)]

    def _presence(self, agent_id: str, now_s: float, *, offline: bool) -> list[Action]:
        if self._rounds.open is not None:
            if offline:
                self._rounds.open.note_left(agent_id, now_s)
            self._rounds.open.round.set_offline(agent_id, offline=offline)
        return self._close_if_done(now_s)
