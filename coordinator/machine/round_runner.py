"""Round runner: announces the phases that the round protocol orders, and acts on its decisions."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

import msgspec
import numpy as np

from broker.protocol.messages import BlobRef, Cohort
from coordinator.config import CoordinatorConfig
from coordinator.machine.central_rows import CentralRows
from coordinator.machine.cohort import Draw, draw_cohort
from coordinator.machine.events import (
    Action,
    Commit,
    Finished,
    RoundEnded,
    SaveOpenRound,
    SaveRound,
)
from coordinator.machine.open_round import ClosedRound, ClosedRounds, OpenRound, Traffic
from coordinator.machine.progress import Progress, StoredRound
from coordinator.machine.publisher import Publisher
from coordinator.machine.round_scheduler import RoundScheduler
from coordinator.machine.standing import Standings
from coordinator.records.records import RoundRecord, new_record
from coordinator.records.results import round_result
from coordinator.rounds import protocol
from coordinator.rounds.plans import PlanMaker
from coordinator.rounds.protocol import PhaseOrder, RoundProtocol
from coordinator.rounds.round import Round
from learning.aggregation.aggregator import Aggregator
from learning.aggregation.norm_bound import NormHistory, RoundNorms
from learning.aggregation.registry import AGGREGATORS
from learning.algorithms.algorithm import Algorithm
from learning.phases.phase import WEIGHTS, CollectorContext, Phase
from learning.phases.registry import PHASES
from learning.vector.parameters import F32
from learning.vector.vectors import Vectors
from models.package.package import ModelPackage

log = logging.getLogger(__name__)


class Intake(Protocol):
    """Takes the answers of the open phase; `UpdateIntake`, or a simulator's."""

    def begin(self, opened: OpenRound) -> None:
        """A phase begins."""

    def refusals(self) -> dict[str, int]:
        """Returns the number of refused answers of the last phase with updates, by reason."""

    def restore(self, opened: OpenRound, frames: Sequence[tuple[str, bytes]]) -> None:
        """Counts the stored updates of a round that was open when the coordinator ended."""


class AskedAgents(Protocol):
    """The agents that a phase asks; `Roster`, or a simulator's."""

    @property
    def standings(self) -> Standings:
        """How they stand."""

    def asked(self, agents: Iterable[str], now_s: float) -> None:
        """Notes that a phase asks agents."""

    def left_out(self, asked: Collection[str], phase: str) -> list[str]:
        """Returns the agents that are online and are not to take part in a phase."""


class RoundRunner:
    """See the module.

    Args:
        config: of the federation.
        package: the model.
        session: of the coordinator's state folder.
        instance: of this process.
        progress: where the federation stands; changed as it goes on.
        algorithm: whose state is shared with devices.
        round_protocol: decides what follows on a closed phase.
        publisher: of blobs and plans.
        intake: told when a phase begins.
        scheduler: told how rounds end.
        roster: of agents that can be asked, and how they stand.
        closed: the rounds before the open one.
        traffic: of the open round.
        central: the coordinator's own rows.

    Attributes:
        open: the round under way.
        finished: why the federation has ended; None before.
    """

    def __init__(
        self,
        config: CoordinatorConfig,
        package: ModelPackage,
        session: str,
        instance: str,
        progress: Progress,
        algorithm: Algorithm,
        round_protocol: RoundProtocol,
        publisher: Publisher,
        intake: Intake,
        scheduler: RoundScheduler,
        roster: AskedAgents,
        closed: ClosedRounds,
        traffic: Traffic,
        central: CentralRows,
    ) -> None:
        self.open: OpenRound | None = None
        self.finished: str | None = None
        self._config = config
        self._package = package
        self._session = session
        self._plans = PlanMaker(config, package, session, instance)
        self._progress = progress
        self._algorithm = algorithm
        self._protocol = round_protocol
        self._publisher = publisher
        self._intake = intake
        self._scheduler = scheduler
        self._roster = roster
        self._closed = closed
        self._traffic = traffic
        self._central = central
        self._norms = NormHistory(config.norm_bound, progress.course.norms)
        self._next_round_id = progress.last_round + 1

    @property
    def next_round_id(self) -> int:
        """Returns the id of the round that begins next."""
        return self._next_round_id

    # -- beginning ------------------------------------------------------------------------------

    def restore(self, stored: StoredRound) -> None:
        """Goes on with a round where the last process left it, unless it is of another package."""
        plan = stored.plan
        if plan.package != self._package.digest:
            log.warning(
                "round %d was for another package of this model and is dropped", plan.round_id
            )
            self._next_round_id = plan.round_id + 1
            return
        self._next_round_id = plan.round_id
        phase: Phase = PHASES.make(plan.phase)
        self.open = OpenRound(
            plan=self._plans.continued(plan),
            settings=PHASES.settings(plan.phase),
            round=Round(
                plan.round_id,
                frozenset(stored.cohort),
                stored.goal,
                self._config.round.minimum,
            ),
            collector=phase.collector(self._collector_context()),
            norms=self._round_norms(),
            is_durable=True,
            started_s=0.0,
            deadline_s=math.inf,  # set when connected: nobody could answer before
            record=self._new_record(len(stored.cohort)),
        )
        self._intake.restore(self.open, stored.frames)
        self._leave_out_quarantined(self.open.round)

    def _leave_out_quarantined(self, opened: Round) -> None:
        """Waits for no agent that an operator shut out while the coordinator was stopped."""
        standings = self._roster.standings
        standings.round_id = opened.round_id
        for agent_id in sorted(filter(standings.is_quarantined, opened.unanswered)):
            why = standings.get(agent_id).quarantine_reason
            opened.decline(agent_id, "quarantined", why)

    def connected(self, now_s: float, *, first: bool) -> list[Action]:
        """Publishes the open round again: the broker may have lost it."""
        opened = self.open
        if opened is None:
            return []
        if first:
            opened.started_s, opened.deadline_s = now_s, now_s + opened.plan.deadline_s
        refs, chunks, removal = self._publish_vectors()
        # This connection may take other chunks than the one before.
        opened.plan = msgspec.structs.replace(opened.plan, blobs=refs)
        return [*chunks, self._publisher.plan(opened.plan), *removal]

    def begin(self, eligible: list[str], now_s: float) -> list[Action]:
        """Announces a round's first phase, when the draw gives enough agents."""
        order = self._protocol.first(eligible)
        round_id = self._next_round_id
        draw = self._draw(order, round_id)
        if len(draw.asked) < order.minimum:
            self._scheduler.too_few_drawn(now_s)
            self._next_round_id += 1
            return []  # by the rule: the round would be abandoned
        return self._announce(order, draw, self._new_record(len(draw.asked)), now_s)

    def _new_record(self, asked: int) -> RoundRecord:
        round_id, self._next_round_id = self._next_round_id, self._next_round_id + 1
        return new_record(round_id, self._progress.version, asked)

    def _draw(self, order: PhaseOrder, round_id: int) -> Draw:
        seed = self._config.cohort.seed
        key = [self._config.seed if seed is None else seed, round_id, order.stream]
        rng = np.random.default_rng(key if order.stream else key[:2])
        phase: Phase = PHASES.make(order.settings)
        capacity = phase.collector(self._collector_context()).capacity
        minimum = order.minimum if order.is_durable else 1
        room = self._publisher.max_cohort_bytes - len(msgspec.json.encode(order.settings))
        left_out = self._roster.left_out(set(order.eligible), order.settings.name)
        return draw_cohort(order.eligible, order.cohort, rng, minimum, room, capacity, left_out)

    def _announce(
        self, order: PhaseOrder, draw: Draw, record: RoundRecord, now_s: float
    ) -> list[Action]:
        refs, chunks, removal = self._publish_vectors()
        version = self._progress.version
        plan = self._plans.plan(order, record.round_id, version, refs, draw.cohort)
        phase: Phase = PHASES.make(order.settings)
        before = self.open
        earlier = {} if before is None else dict(before.earlier)
        if before is not None:
            earlier[before.settings.name] = before.collector
        self.open = OpenRound(
            plan=plan,
            settings=order.settings,
            round=Round(
                record.round_id,
                frozenset(draw.asked),
                draw.goal,
                order.minimum,
                doubtful=self._roster.standings.doubtful(draw.asked, order.settings.name),
            ),
            collector=phase.collector(self._collector_context()),
            norms=self._round_norms(),
            is_durable=order.is_durable,
            started_s=now_s if before is None else before.started_s,
            deadline_s=now_s + order.deadline_s,
            record=record,
            earlier=earlier,
        )
        self._intake.begin(self.open)
        self._roster.asked(draw.asked, now_s)
        actions: list[Action] = [*chunks, self._publisher.plan(plan), *removal]
        if order.is_durable:
            actions.insert(0, SaveOpenRound(plan, draw.asked, draw.goal))
        return actions

    def _round_norms(self) -> RoundNorms:
        return self._norms.open_round(self._progress.theta, self._config.max_update_norm)

    def _collector_context(self) -> CollectorContext:
        sizes = {n: u.size(self._package.spec.size) for n, u in self._algorithm.uploads.items()}

        def aggregator() -> Aggregator:
            made: Aggregator = AGGREGATORS.make(self._config.aggregator, sizes)
            return made

        return CollectorContext(self._algorithm, aggregator, self._config.weighting, sizes)

    def _publish_vectors(
        self, theta: F32 | None = None
    ) -> tuple[dict[str, BlobRef], list[Action], list[Action]]:
        vectors: Vectors = {
            WEIGHTS: self._progress.theta if theta is None else theta,
            **self._algorithm.shared(self._progress.state),
        }
        refs, chunks, removal = self._publisher.vectors(vectors, keep=self._config.max_staleness)
        return refs, [*chunks], [*removal]

    # -- ending ---------------------------------------------------------------------------------

    def close(self, now_s: float) -> list[Action]:
        """Carries out what the protocol makes of the phase that closed."""
        opened = self.open
        assert opened is not None, "a phase closed"
        self._roster.standings.note_round(opened.round, opened.plan.phase_name, opened.held_up)
        progress = self._progress
        closed = opened.closed(progress.course.usual_loss)
        if opened.is_durable:
            self._norms.add(closed.record.norms)
        outcome = self._protocol.close(closed, progress.theta, progress.state)
        match outcome:
            case protocol.HoldBack():
                return self._hold_back(opened, outcome, now_s)
            case protocol.Commit():
                return self._commit(opened, outcome, now_s)
            case protocol.Next(order, record):
                return self._next(order, record, now_s)
            case protocol.Abandon(record, reason):
                return self._abandon(opened, record, reason, now_s)
            case protocol.Result(record):
                return self._end_round(record, now_s, self._remember(opened, committed=False))

    def _commit(self, opened: OpenRound, commit: protocol.Commit, now_s: float) -> list[Action]:
        progress, record = self._progress, commit.record
        if why := self._central.explosion(progress.theta, commit.theta):
            return self._explode(opened, record, why, now_s)
        self._scheduler.committed()
        # After a restart, the intake knows of no refusals before it.
        refusals = self._intake.refusals()
        record = msgspec.structs.replace(record, refusals=refusals, refused=sum(refusals.values()))
        progress.version = record.version
        progress.theta, progress.state = commit.theta, commit.state
        progress.note(record, self._norms.known)
        order = self._protocol.after_commit(record)
        progress.course = msgspec.structs.replace(progress.course, is_unmeasured=order is not None)
        stored = Commit(
            progress.version,
            commit.theta,
            commit.state,
            record,
            self._remember(opened, committed=True),
            progress.course,
            self._roster.standings.take_changed(),
        )
        rest = [] if order is None else self._next(order, record, now_s)
        return [stored, *(rest or self._end_round(record, now_s))]

    def measure(self, record: RoundRecord, now_s: float) -> list[Action]:
        """Goes on with the phase after a commit; nothing when it is not due, or nobody is there."""
        self._roster.standings.round_id = record.round_id
        order = self._protocol.after_commit(record)
        return [] if order is None else self._next(order, record, now_s)

    def _next(self, order: PhaseOrder, record: RoundRecord, now_s: float) -> list[Action]:
        """Announces the next phase; nothing when nobody can be asked."""
        if not order.eligible:
            return []
        draw = self._draw(order, record.round_id)
        return self._announce(order, draw, record, now_s) if draw.asked else []

    def _remember(self, opened: OpenRound, *, committed: bool) -> tuple[ClosedRound, ...]:
        if not opened.is_durable:
            return ()
        stale = [(agent, number, answer) for (agent, number), answer in opened.round.stale.items()]
        return (*self._closed.note_stale(stale), self._closed.add(opened, committed=committed))

    def _abandon(
        self, opened: OpenRound, record: RoundRecord, reason: str, now_s: float
    ) -> list[Action]:
        pause_s = self._scheduler.abandoned(now_s)
        log.warning(
            "round %d abandoned: %s; the next one in %g s", record.round_id, reason, pause_s
        )
        return self._end_round(record, now_s, self._remember(opened, committed=False))

    def _explode(
        self, opened: OpenRound, record: RoundRecord, why: str, now_s: float
    ) -> list[Action]:
        """Ends a round after which the model would be wrecked, whoever it was."""
        record = msgspec.structs.replace(
            record, status="abandoned", version=self._progress.version, held_back=why
        )
        log.error("round %d is held back: %s", record.round_id, why, extra={"event": "held_back"})
        return self._abandon(opened, record, why, now_s)

    def _hold_back(
        self, opened: OpenRound, outcome: protocol.HoldBack, now_s: float
    ) -> list[Action]:
        """Ends a round whose updates would wreck θ; the next one knows what is usual."""
        suspects = outcome.suspects
        why = "; ".join(f"{name}: {reason}" for name, reason in sorted(suspects.items())[:5])
        record = msgspec.structs.replace(
            outcome.record, held_back=why[:500], left_out=dict(suspects)
        )
        log.error(
            "round %d is held back and repeated, it would wreck the model: %s",
            record.round_id,
            why[:500],
            extra={"event": "held_back"},
        )
        for agent_id in suspects:
            self._roster.standings.refused(agent_id, "norm")
        return self._end_round(record, now_s, self._remember(opened, committed=False))

    def _end_round(
        self, record: RoundRecord, now_s: float, closed: tuple[ClosedRound, ...] = ()
    ) -> list[Action]:
        opened, self.open = self.open, None
        started = now_s if opened is None else opened.started_s
        refusals = Counter(record.refusals) | Counter(self._intake.refusals())
        if opened is not None and not opened.is_durable:
            refusals += opened.round.refusals
        up, down = self._traffic.take()
        record = self._central.measured(record, self._progress.theta)
        record = msgspec.structs.replace(
            record,
            refused=refusals.total(),
            refusals=dict(refusals),
            bytes_up=up,
            bytes_down=down,
            seconds=now_s - started,
        )
        if diverged := self._progress.divergence(record):
            log.error("round %d: %s", record.round_id, diverged, extra={"event": "diverged"})
        self._progress.note(record, self._norms.known)
        if (best := self._progress.course.best) is not None and best.version:
            record = msgspec.structs.replace(record, best_round=best.round_id)
        return [
            SaveRound(record, closed, self._progress.course, self._roster.standings.take_changed()),
            RoundEnded(record),
            *self._publisher.results(round_result(record, self._session)),
        ]

    def finish(self, reason: str) -> list[Action]:
        """Announces that the federation has ended, with its best version."""
        self.finished = reason
        version, theta = self._progress.best
        refs, chunks, removal = self._publish_vectors(theta)
        order = PhaseOrder(self._protocol.first([]).settings, (), self._config.cohort, 1.0)
        plan = self._plans.plan(order, self._progress.last_round, version, refs, Cohort(ids=()))
        plan = msgspec.structs.replace(plan, state="finished")
        told = self._publisher.finished(reason)
        return [*chunks, self._publisher.plan(plan), *removal, *told, Finished(reason)]
