"""The coordinator as a state machine: rounds one after another, until a reason to stop.

    waiting -> training -> (committed) -> evaluating -> waiting -> … -> finished

Events in, actions out; the time is an argument. Content of updates is judged by `admission`, who
answered by `round`, what the updates become by `aggregation` and `strategies`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import msgspec
import numpy as np

from broker.link.link import publish_packet_bytes
from broker.protocol import messages
from broker.protocol.messages import (
    AgentStatus,
    BlobRef,
    Cohort,
    Report,
    RoundPlan,
    Task,
)
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
)
from coordinator.config import CohortConfig, CoordinatorConfig
from coordinator.machine.cohort import Draw, draw_cohort
from coordinator.machine.events import (
    Action,
    Commit,
    Event,
    Finished,
    RoundEnded,
    SaveAgent,
    SaveOpenRound,
    SaveRound,
    Unable,
)
from coordinator.machine.open_round import OpenRound, Traffic
from coordinator.machine.progress import Progress, StoredRound
from coordinator.machine.publisher import Publisher
from coordinator.machine.roster import Roster
from coordinator.machine.round_scheduler import Turnout
from coordinator.machine.stopping import stop_reason
from coordinator.machine.update_intake import Intake, Taken
from coordinator.records.records import RoundRecord, new_record
from coordinator.records.results import with_central, with_evaluation, with_training
from coordinator.rounds.round import (
    Closed,
    DeadlineReached,
    Lost,
    Returned,
    Round,
    RoundEvent,
)
from fedge.errors import ConfigError, TrainingError, WireError
from learning.aggregation import make_aggregator
from learning.algorithms import State, check_state, make_strategy, with_tracked
from learning.vector.metrics import Sums
from learning.vector.parameters import F32
from models.package.package import ModelPackage
from models.package.spec import ModelSpec

log = logging.getLogger(__name__)

#: Between two looks at who has fallen silent.
_LONGEST_WAIT_S = 10.0
#: More than this between two looks: this process stood still, and heard nobody.
_STOOD_STILL_S = 2 * _LONGEST_WAIT_S


class Coordinator:
    """One federation's middle.

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
        ConfigError: no such strategy, codec or aggregator, or the stored state is of another
            strategy.
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
        self._measure = measure
        self.topics = Topics(config.federation)
        self.roster = Roster()
        #: Messages that were not understood, since the start.
        self.unreadable = 0
        self.finished: str | None = None
        self._spec = package.spec
        self._session = session
        self._start = start
        _check_metric(config.stop.metric, package.spec)
        self._strategy = make_strategy(config.strategy)
        make_aggregator(config.aggregator, 1)  # a wrong name is told now, not after a round
        state = self._strategy.initial_state(package.spec.size)
        self.progress = progress or Progress(0, package.initial, state)
        # As is a stored state of another strategy.
        check_state(self.progress.strategy_state, tuple(state), package.spec.size)
        self._publisher = Publisher(self.topics, package, session, keys)
        self._package_digest = package.digest
        self._traffic = Traffic()
        self._intake = Intake(config, package.spec, session, self.roster, self._traffic)
        self._open: OpenRound | None = None
        self._next_round_id = self.progress.last_round + 1
        self._turnout = Turnout(config, restarted=progress is not None)
        self._connected = False
        self._looked_s = math.inf
        self._has_measured = False
        if progress is not None and progress.open is not None:
            self._restore(progress.open)

    # -- events ---------------------------------------------------------------------------------

    def handle(self, event: Event, now_s: float) -> list[Action]:
        """What to do about an event at `now_s` (any steady clock, in seconds)."""
        actions: list[Action] = []
        self._has_measured = False
        match event:
            case Started():
                return [Subscribe(name) for name in self.topics.from_agents]
            case Connected(max_payload_bytes):
                actions = self._connect(max_payload_bytes, now_s)
            case Disconnected():
                self._connected = False
            case MessageArrived(topic, payload):
                actions = self._message(topic, payload, now_s)
            case Tick():
                actions = self._tick(now_s)
            case Stopping():
                return [self._publisher.status(self.progress.version, online=False)]
        if self._has_measured:
            return actions  # it took its time: the next round begins by a clock that was read since
        return actions + self._maybe_start(now_s)

    def wait_s(self, now_s: float) -> float:
        """Seconds until a Tick is due."""
        moments = [now_s if self._has_measured else now_s + _LONGEST_WAIT_S]
        if self._open is not None:
            waits_for_grace = self._open.round.closed is not None
            moments.append(
                self._turnout.pause_until_s if waits_for_grace else self._open.deadline_s
            )
            moments += [due for due in (self._intake.next_s(),) if due is not None]
        elif self.finished is None:
            due_s = self._turnout.due_s()
            moments.append(due_s if due_s > now_s else now_s + 1.0)
        return max(0.0, min(moments) - now_s)

    @property
    def uploading(self) -> int:
        """Updates that are half there."""
        return self._intake.uploading

    @property
    def will(self) -> Publish:
        """What the broker says for us when we vanish."""
        return self._publisher.status(self.progress.version, online=False)

    def _connect(self, max_payload_bytes: int, now_s: float) -> list[Action]:
        # Everything retained is published again: the broker may have lost it.
        self._publisher.limit(max_payload_bytes)
        if self._turnout.connected(now_s) and self._open is not None:
            self._open.started_s = now_s
            self._open.deadline_s = now_s + self._open.plan.deadline_s
        self._connected = True
        self._excuse_silence(now_s)
        actions: list[Action] = [
            self._publisher.status(self.progress.version),
            *self._publisher.package(),
        ]
        if self._open is not None:
            ref, chunks, removal = self._publisher.weights(self.progress.theta)
            # This connection may take other chunks than the one before.
            self._open.plan = msgspec.structs.replace(self._open.plan, weights=ref)
            actions += [*chunks, self._publisher.plan(self._open.plan), *removal]
        return actions

    def _restore(self, stored: StoredRound) -> None:
        """Go on with a round where the last process left it, unless it is of another package."""
        self.progress.open = None
        if stored.plan.package != self._package_digest:
            log.warning(
                "round %d was for another package of this model and is dropped",
                stored.plan.round_id,
            )
            self._next_round_id = stored.plan.round_id + 1
            return
        self._next_round_id = stored.plan.round_id
        self._open = OpenRound(
            task="train",
            plan=msgspec.structs.replace(stored.plan, start=self._start),
            round=Round(
                stored.plan.round_id,
                frozenset(stored.asked),
                stored.goal,
                self.config.round.minimum,
            ),
            started_s=0.0,
            deadline_s=math.inf,  # set when connected: nobody could answer before
            record=self._new_record(len(stored.asked)),
            aggregator=make_aggregator(self.config.aggregator, self._spec.size),
        )
        self._intake.restore(self._open, stored.frames)

    def _tick(self, now_s: float) -> list[Action]:
        actions: list[Action] = [*self._intake.tick(self._open, now_s)]
        for agent_id in self._silent(now_s):
            log.warning("%s has not been heard of, it counts as lost", agent_id)
            if (entry := self.roster.get(agent_id)) is not None:
                actions.append(SaveAgent(agent_id, entry.status))
            actions += self._advance(Lost(agent_id), now_s)
        return actions + self._end_when_due(now_s)

    def _silent(self, now_s: float) -> list[str]:
        """Agents that have been silent too long, while we could hear."""
        if now_s - self._looked_s > _STOOD_STILL_S:
            self._excuse_silence(now_s)  # their heartbeats wait to be read
        self._looked_s = now_s
        return self.roster.expire(now_s) if self._connected else []

    def _excuse_silence(self, now_s: float) -> None:
        self._looked_s = now_s
        self.roster.hear_everybody(now_s)

    def _end_when_due(self, now_s: float) -> list[Action]:
        restored = self._open
        if restored is not None and restored.round.closed and self._is_settled(now_s):
            return self._close(restored, now_s)  # its last update was stored, its end was not
        if self._open is not None and now_s >= self._open.deadline_s:
            return self._advance(DeadlineReached(), now_s)
        return []

    def _is_settled(self, now_s: float) -> bool:
        return now_s >= self._turnout.pause_until_s

    def _message(self, name: str, payload: bytes, now_s: float) -> list[Action]:
        try:
            topic = self.topics.parse(name)
            if isinstance(topic, UpdateTopic | ReportTopic):
                self.roster.heard(topic.agent_id, now_s)
            expiry_s = 1 if isinstance(topic, UpdateTopic) else None
            self._traffic.up += publish_packet_bytes(name, len(payload), expiry_s)
            match topic:
                case AgentStatusTopic(agent_id):
                    return self._agent_status(agent_id, payload, now_s)
                case UpdateTopic():
                    return self._taken(
                        self._intake.update(self._open, topic, payload, now_s), now_s
                    )
                case ReportTopic(agent_id, round_id):
                    report = messages.decode(payload, Report)
                    if report.kind == "missing":
                        return [*self._publisher.again(report.sha256 or "", report.chunks, now_s)]
                    taken = self._intake.report(self._open, agent_id, round_id, report)
                    return self._taken(taken, now_s)
            return []
        except WireError as error:
            self.unreadable += 1
            log.warning("message on %s dropped: %s", name[:120], error)
            return []

    def _agent_status(self, agent_id: str, payload: bytes, now_s: float) -> list[Action]:
        if not payload:
            return []  # an operator removed the agent's retained status
        status = messages.decode(payload, AgentStatus)
        if status.state == "offline" and self.roster.get(agent_id) is None:
            # Lost while this process was away; a round that was open then asked it.
            return self._advance(Lost(agent_id), now_s)
        change = self.roster.update(agent_id, status, now_s)
        if change == "duplicate":
            log.error(
                "two processes use the id %s (boots %s and another); stop one of them",
                agent_id,
                status.boot,
                extra={"event": "duplicate_id"},
            )
        if change in ("none", "heartbeat"):
            return []
        log.debug("%s is %s", agent_id, status.state)
        told = []
        if status.unable and status.state == "online":
            told.append(Unable(agent_id, status.unable, status.passing))
        # One that rests may go on within the round: like one that is away, it is not waited for.
        gone = status.state == "offline" or bool(status.paused)
        event = Lost(agent_id) if gone else Returned(agent_id)
        return [SaveAgent(agent_id, status), *told, *self._advance(event, now_s)]

    # -- starting a round -----------------------------------------------------------------------

    def _maybe_start(self, now_s: float) -> list[Action]:
        if self._open is not None or self.finished is not None or not self._connected:
            return []
        if reason := stop_reason(self.config, self.progress.records):
            return self._finish(reason)
        if now_s < self._turnout.due_s():
            return []
        able = self._turnout.able(self.roster, now_s, first=not self.progress.records)
        if not isinstance(able, list):
            return [] if able is None else [able]
        rng = np.random.default_rng([self.config.seed, self._next_round_id])
        minimum, room = self.config.round.minimum, self._publisher.max_cohort_bytes
        draw = draw_cohort(able, self.config.cohort, rng, minimum, room)
        if len(draw.asked) < minimum:
            self._turnout.too_few_drawn(now_s)
            self._next_round_id += 1
            return []  # by the rule: the round would be abandoned
        record = self._new_record(len(draw.asked))
        return self._announce("train", draw, record, self.config.round.deadline_s, now_s)

    def _new_record(self, asked: int) -> RoundRecord:
        round_id, self._next_round_id = self._next_round_id, self._next_round_id + 1
        return new_record(round_id, self.progress.version, asked)

    def _announce(
        self, task: Task, draw: Draw, record: RoundRecord, deadline_s: float, now_s: float
    ) -> list[Action]:
        ref, chunks, removal = self._publisher.weights(self.progress.theta)
        plan = self._plan(task, record.round_id, ref, draw.cohort, deadline_s)
        before = self._open
        self._open = OpenRound(
            task=task,
            plan=plan,
            round=Round(
                record.round_id,
                frozenset(draw.asked),
                draw.goal,
                self.config.round.minimum if task == "train" else 0,
            ),
            started_s=now_s if before is None else before.started_s,
            deadline_s=now_s + deadline_s,
            record=record,
            trained={} if before is None else before.trained,
        )
        if task == "train":
            size = self._spec.size
            self._open.aggregator = make_aggregator(self.config.aggregator, size)
        self._intake.begin(self._open)
        actions: list[Action] = [*chunks, self._publisher.plan(plan), *removal]
        return (
            [SaveOpenRound(plan, draw.asked, draw.goal), *actions] if task == "train" else actions
        )

    def _plan(
        self, task: Task, round_id: int, weights: BlobRef, cohort: Cohort, deadline_s: float
    ) -> RoundPlan:
        return RoundPlan(
            session=self._session,
            start=self._start,
            round_id=round_id,
            state="open",
            task=task,
            version=self.progress.version,
            weights=weights,
            package=self._package_digest,
            fingerprint=self._spec.fingerprint,
            cohort=cohort,
            training=self.config.training,
            codec=self.config.codec,
            deadline_s=deadline_s,
            fetch_jitter_s=self.config.round.fetch_jitter_s,
            seed=int(np.random.default_rng([self.config.seed, round_id, 1]).integers(1 << 53)),
        )

    def _taken(self, taken: Taken, now_s: float) -> list[Action]:
        stored = [] if taken.store is None else [taken.store]
        ended = [] if taken.event is None else self._advance(taken.event, now_s)
        return [*stored, *taken.receipts, *ended]

    def _advance(self, event: RoundEvent, now_s: float) -> list[Action]:
        """Feed the open round; close it when the event did."""
        if self._open is None:
            return []
        actions = self._open.round.handle(event)
        if not any(isinstance(action, Closed) for action in actions):
            return []
        if not self._is_settled(now_s):
            return []  # restarted: an update that was queued came before the births
        return self._close(self._open, now_s)

    # -- the end of a round ---------------------------------------------------------------------

    def _close(self, opened: OpenRound, now_s: float) -> list[Action]:
        if opened.task == "train":
            return self._close_training(opened, now_s)
        return self._close_evaluation(opened, now_s)

    def _close_training(self, opened: OpenRound, now_s: float) -> list[Action]:
        ended = opened.round
        record = msgspec.structs.replace(
            opened.record,
            reported=len(ended.counted),
            declined=ended.declined,
            details=ended.details,
            closed=str(ended.closed),
        )
        if len(ended.counted) < self.config.round.minimum:
            return self._abandon(record, now_s)
        try:
            theta, state = self._step(opened)
        except TrainingError as error:
            log.error("round %d: %s", record.round_id, error)
            return self._abandon(record, now_s)
        self._turnout.committed()
        self.progress.version += 1
        record = msgspec.structs.replace(
            with_training(record, opened.trained, self._spec.metrics),
            status="committed",
            version=self.progress.version,
        )
        self.progress.theta, self.progress.strategy_state = theta, state
        self.progress.records.append(record.summary)
        commit = Commit(self.progress.version, theta, state, record)
        opened.record = record
        return [commit, *self._evaluate(opened, now_s)]

    def _step(self, opened: OpenRound) -> tuple[F32, State]:
        assert opened.aggregator is not None, "training rounds have one"
        progress = self.progress
        delta = opened.aggregator.mean()
        theta, state = self._strategy.apply(progress.theta, delta, progress.strategy_state)
        return with_tracked(self._spec.layout, progress.theta, delta, theta), state

    def _abandon(self, record: RoundRecord, now_s: float) -> list[Action]:
        pause_s = self._turnout.abandoned(now_s)
        log.warning(
            "round %d abandoned: %d updates, minimum %d; the next one in %g s",
            record.round_id,
            record.reported,
            self.config.round.minimum,
            pause_s,
        )
        self.progress.records.append(record.summary)
        return self._end_round(record, now_s)

    def _evaluate(self, opened: OpenRound, now_s: float) -> list[Action]:
        """Ask the devices how good the new θ is, when that is due; else the round is over."""
        evaluation = self.config.evaluation
        version = self.progress.version
        last = version >= self.config.rounds
        due = evaluation.every and (version % evaluation.every == 0 or last)
        able = self.roster.able("evaluate") if due else []
        if not able:
            return self._end_round(opened.record, now_s)
        rng = np.random.default_rng([self.config.seed, opened.plan.round_id, 2])
        # By rule where the rounds are: the ids of a large fleet would travel to every agent of it.
        asked = CohortConfig(fraction=evaluation.fraction, announce=self.config.cohort.announce)
        draw = draw_cohort(able, asked, rng, max_bytes=self._publisher.max_cohort_bytes)
        if not draw.asked:
            return self._end_round(opened.record, now_s)  # the rule drew nobody
        return self._announce("evaluate", draw, opened.record, evaluation.deadline_s, now_s)

    def _close_evaluation(self, opened: OpenRound, now_s: float) -> list[Action]:
        unseen = {
            name
            for name in opened.evaluations
            if (entry := self.roster.get(name)) is not None and "train" not in entry.status.tasks
        }
        before, ended = opened.record, opened.round
        record = msgspec.structs.replace(
            with_evaluation(before, opened.trained, opened.evaluations, unseen, self._spec.metrics),
            declined=before.declined | ended.declined,
            details=before.details | ended.details,
        )
        return self._end_round(record, now_s)

    def _end_round(self, record: RoundRecord, now_s: float) -> list[Action]:
        opened, self._open = self._open, None
        started = now_s if opened is None else opened.started_s
        refusals = self._intake.refusals()
        up, down = self._traffic.take()
        if record.status == "committed" and self._measure is not None:
            record = self._measured(record, self._measure)
        record = msgspec.structs.replace(
            record,
            refused=sum(refusals.values()),
            refusals=refusals,
            bytes_up=up,
            bytes_down=down,
            seconds=now_s - started,
        )
        self.progress.records[-1] = record.summary
        return [SaveRound(record), RoundEnded(record)]

    def _measured(self, record: RoundRecord, measure: Callable[[F32], Sums]) -> RoundRecord:
        """With the figures of the coordinator's own rows, if they can be had."""
        self._has_measured = True
        try:
            sums = measure(self.progress.theta)
        except Exception:
            # θ has moved on, and the actions that store it are not done yet.
            log.exception("round %d: the coordinator's own rows are not measured", record.round_id)
            return record
        return with_central(record, sums, self._spec.metrics)

    def _finish(self, reason: str) -> list[Action]:
        self.finished = reason
        ref, chunks, removal = self._publisher.weights(self.progress.theta)
        plan = self._plan("train", self.progress.last_round, ref, Cohort(ids=()), 1.0)
        plan = msgspec.structs.replace(plan, state="finished")
        return [*chunks, self._publisher.plan(plan), *removal, Finished(reason)]


def _check_metric(metric: str, spec: ModelSpec) -> None:
    plain = ("loss", *(m.name for m in spec.metrics if m.kind != "confusion"))
    known = [*plain, *(f"unseen_{name}" for name in plain), *(f"central_{name}" for name in plain)]
    if metric not in known:
        raise ConfigError(f"stop.metric: {metric!r} is none of {spec.name}: {', '.join(known)}")
