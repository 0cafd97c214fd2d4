"""A federation of cohorts: the coordinator's own rounds, over the parts of a fleet.

Rounds are announced, closed, committed and recorded by `coordinator.machine.RoundRunner`, as in
the real coordinator; agents answer as columns of arrays, a part of the fleet at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from broker.protocol.messages import Cohort
from broker.protocol.topics import Topics
from coordinator.config import CoordinatorConfig
from coordinator.machine.central_rows import CentralRows
from coordinator.machine.events import (
    Action,
    Commit,
    Finished,
    RoundEnded,
    SaveRound,
)
from coordinator.machine.open_round import OpenRound, Traffic
from coordinator.machine.progress import Progress
from coordinator.machine.publisher import Publisher
from coordinator.machine.round_runner import RoundRunner
from coordinator.machine.round_scheduler import RoundScheduler
from coordinator.records.records import RoundRecord
from coordinator.rounds.checks import check_model
from coordinator.rounds.registry import make_round_protocol
from coordinator.rounds.round import Round
from coordinator.rounds.stopping import stop_rule
from coordinator.storage.durability import Durability
from coordinator.storage.store import Store
from fedge.errors import FleetError
from fleet.batched.checkpoint import Checkpoints, Position, Stage
from fleet.batched.cohort.intake import INSTANCE
from fleet.batched.cohort.task import Columns, PartAnswer, PhaseTask
from fleet.batched.fleet_roster import FleetRoster, NoClosedRounds
from fleet.batched.fleet_setup import FleetSetup
from fleet.batched.traffic import Downloads
from fleet.batched.workers import Workers
from fleet.runs.abandoned import AbandonedRounds
from learning.algorithms.algorithm import Algorithm
from learning.algorithms.registry import ALGORITHMS
from learning.phases.evaluate import EvaluateCollector
from learning.phases.phase import WEIGHTS
from learning.phases.train import TrainCollector
from learning.vector.metrics import Sums
from learning.vector.parameters import F32
from models.package.package import ModelPackage


@dataclass(frozen=True, eq=False)
class Inputs:
    """Inputs of a federation of cohorts.

    Attributes:
        config: of the federation.
        package: its model.
        setup: of the fleet.
        roster: its agents.
        store: of rounds and versions.
        is_kept: whether a later process may go on with it.
        measure: evaluates θ on the coordinator's own data; None without such data.
        births_bytes: of what the agents say of themselves at their start, by the bytes that they
            have seen then.
        on_round: called with the record of each round that has ended.
        on_part: called with the phase, the parts that have answered, and their number.
    """

    config: CoordinatorConfig
    package: ModelPackage
    setup: FleetSetup
    roster: FleetRoster
    store: Store
    is_kept: bool
    measure: Callable[[F32], Sums] | None
    births_bytes: Callable[[int], int]
    on_round: Callable[[RoundRecord], None]
    on_part: Callable[[str, int, int], None]


class Federation:
    """See the module.

    Args:
        inputs: of the federation.
        session: of its state.
        workers: of the parts.

    Attributes:
        progress: where it stands.
        now_s: virtual time.
    """

    def __init__(self, inputs: Inputs, session: str, workers: Workers) -> None:
        config, package = inputs.config, inputs.package
        self.now_s = 0.0
        self._inputs = inputs
        self._workers = workers
        self._columns = Columns.empty(len(inputs.setup.names))
        folder, states = inputs.setup.folder, inputs.setup.states_folder
        self._checkpoints = Checkpoints(folder, states) if inputs.is_kept else None
        self._abandoned = AbandonedRounds()
        self._durability = Durability(inputs.store)
        algorithm: Algorithm = ALGORITHMS.make(config.algorithm, config.training)
        self._algorithm = algorithm
        check_model(config, package.spec, algorithm)
        stored = inputs.store.load(package.spec.size, stop_rule(config))
        self.progress = stored or Progress(0, package.initial, algorithm.init(package.initial))
        if stored is None:
            inputs.store.begin(self.progress.theta, self.progress.state)
        inputs.store.finish("")
        if (rule := stop_rule(config)) != self.progress.course.rule:
            self.progress.course = self.progress.course.by(rule, ())
        self._traffic = Traffic()
        self._publisher = Publisher(Topics(config.federation), package, session, INSTANCE)
        self._downloads = Downloads(config.federation, self._columns)
        self._protocol = make_round_protocol(config, package.spec, algorithm, inputs.roster)
        self._scheduler = RoundScheduler(config, restarted=False)
        self._runner = RoundRunner(
            config,
            package,
            session,
            INSTANCE,
            self.progress,
            algorithm,
            self._protocol,
            self._publisher,
            _NoIntake(),
            self._scheduler,
            inputs.roster,
            NoClosedRounds(),
            self._traffic,
            CentralRows(package, inputs.measure),
        )
        self._started_s = 0.0
        if self.progress.last_round:
            self._go_on()
        else:  # also where a simulation was interrupted before its first round ended
            self._begin()

    def _begin(self) -> None:
        """The agents start."""
        status = self._publisher.status(self.progress.version)
        seen = self._downloads.started(status, self._publisher.package())
        self._traffic.up += self._inputs.births_bytes(seen)

    def _go_on(self) -> None:
        """Everything goes on from the checkpoint of the last round."""
        assert self._checkpoints is not None, "what is not kept is not resumed"
        self._inputs.births_bytes(0)  # what is odd about the agents' data is said again
        stage: Stage = "ended" if self.progress.unmeasured is None else "committed"
        position = self._checkpoints.load(self.progress.last_round, stage, self._columns)
        self.now_s, self._started_s = position.now_s, position.started_s
        self._scheduler.pause_until_s = position.pause_until_s
        self._abandoned.in_a_row = position.abandoned
        self._traffic.up, self._traffic.down = position.bytes_up, position.bytes_down
        self._downloads.blobs = position.blobs

    def _save(self, round_id: int, stage: Stage) -> None:
        """Writes the checkpoint of a round that is committed, or has ended."""
        if self._checkpoints is None:
            return
        position = Position(
            self.now_s,
            self._started_s,
            self._scheduler.pause_until_s,
            self._abandoned.in_a_row,
            self._traffic.up,
            self._traffic.down,
            self._downloads.blobs,
        )
        self._checkpoints.save(round_id, stage, self._columns, position)

    # -- rounds ---------------------------------------------------------------------------------

    def run(self) -> str:
        """Runs until the federation has finished; returns the reason of its end.

        Raises:
            FleetError: too few agents can take part, or round after round is abandoned.
        """
        if self.progress.unmeasured is not None:
            record, self.progress.unmeasured = self.progress.unmeasured, None
            self._perform(self._runner.measure(record, self.now_s))
            if self._runner.open is not None:
                self._runner.open.started_s = self._started_s
            self._phases()
        while (reason := self._protocol.stop_reason(self.progress.course)) is None:
            self._begin_round()
            self._phases()
        self._perform(self._runner.finish(reason))
        return reason

    def _begin_round(self) -> None:
        config = self._inputs.config
        self.now_s = self._started_s = max(self.now_s, self._scheduler.pause_until_s)
        # Before anybody is looked for: who is in quarantine depends on the round.
        self._inputs.roster.standings.round_id = self._runner.next_round_id
        eligible = self._protocol.eligible_agents()
        least = max(config.cohort.at_least, config.round.minimum)
        if len(eligible) < least:
            roster = self._inputs.roster
            shut_out = roster.left_out((), "train")
            why = roster.standings.get(shut_out[0]).quarantine_reason if shut_out else ""
            raise FleetError(
                f"{len(eligible)} agents can take part, a round needs {least}; {len(shut_out)} are "
                f"in quarantine ({why}): lower training.learning_rate, or loosen norm_bound"
            )
        self._perform(self._runner.begin(eligible, self.now_s))

    def _phases(self) -> None:
        """Carries out the phases of the round that is open."""
        while (opened := self._runner.open) is not None:
            self._answer(opened)
            if opened.round.closed is None:
                opened.round.reach_deadline()
            self._perform(self._runner.close(self.now_s))

    def _answer(self, opened: OpenRound) -> None:
        """Has the parts of the fleet answer the open phase."""
        plan = opened.plan
        asked = self._inputs.roster.numbers(opened.round.cohort)
        self._downloads.fetched(plan, asked)
        jobs = self._jobs(opened, asked)
        seconds = 0.0
        counted: dict[str, str] = {}
        self._inputs.on_part(plan.phase_name, 0, len(jobs))
        for number, (job, answer) in enumerate(
            zip(jobs, self._workers.run([(n, task) for n, _, task in jobs]), strict=True), 1
        ):
            self._merge(opened, answer)
            self._columns.put(job[1], answer.columns)
            counted |= answer.counted
            seconds = max(seconds, answer.seconds)
            self._inputs.on_part(plan.phase_name, number, len(jobs))
        self.now_s += seconds
        opened.round.count_all(counted)

    def _jobs(
        self, opened: OpenRound, asked: NDArray[np.int64]
    ) -> list[tuple[int, NDArray[np.int64], PhaseTask]]:
        """Returns the part, the agents and the task of each part that is asked."""
        vectors = {WEIGHTS: self.progress.theta, **self._shared()}
        plan = msgspec.structs.replace(opened.plan, cohort=Cohort())
        federation = self._inputs.config.federation
        jobs = []
        for number, (start, stop) in enumerate(self._inputs.setup.bounds):
            own = asked[np.searchsorted(asked, start) : np.searchsorted(asked, stop)]
            if len(own):
                columns, norms = self._columns.part(own), opened.norms.part()
                task = PhaseTask(plan, vectors, own - start, columns, norms, federation)
                jobs.append((number, own, task))
        return jobs

    def _shared(self) -> dict[str, F32]:
        return dict(self._algorithm.shared(self.progress.state))

    def _merge(self, opened: OpenRound, answer: PartAnswer) -> None:
        collector = opened.collector
        if isinstance(collector, TrainCollector):
            assert isinstance(answer.collector, TrainCollector), "of this phase"
            collector.merge(answer.collector)
        elif isinstance(collector, EvaluateCollector):
            assert isinstance(answer.collector, EvaluateCollector), "of this phase"
            collector.merge(answer.collector)
        opened.norms.merge(answer.norms)
        for agent_id, (reason, words) in answer.declined.items():
            opened.round.decline(agent_id, reason, words)
        for agent_id, reason in answer.refused.items():
            self._inputs.roster.standings.refused(agent_id, reason)
            opened.round.refuse(agent_id, reason)
        self._traffic.up += answer.bytes_up
        self._traffic.down += answer.bytes_down

    # -- actions --------------------------------------------------------------------------------

    def _perform(self, actions: Sequence[Action]) -> None:
        ended = next((each for each in actions if isinstance(each, SaveRound)), None)
        for action in actions:
            self._downloads.published(action)
            match action:
                case Commit() if ended is not None:
                    # All in one: a process that is killed between the two leaves no half a record.
                    self._save(action.record.round_id, "ended")
                    whole = replace(
                        action,
                        record=ended.record,
                        course=ended.course,
                        standings=action.standings + ended.standings,
                    )
                    self._durability.perform(whole)
                case Commit():
                    self._save(action.record.round_id, "committed")
                    self._durability.perform(action)
                case SaveRound(record):
                    self._abandoned.count(record)
                    self._save(record.round_id, "ended")
                    self._durability.perform(action)
                case Finished():
                    self._durability.perform(action)
                case RoundEnded(record):
                    self._durability.flush()
                    self._inputs.on_round(record)
                    self._abandoned.check(record)


class _NoIntake:
    """No message comes in: answers are merged."""

    def __init__(self) -> None:
        self._latest: Round | None = None

    def begin(self, opened: OpenRound) -> None:
        """Remembers the round of updates."""
        if opened.is_durable:
            self._latest = opened.round

    def refusals(self) -> dict[str, int]:
        """See `UpdateIntake.refusals`."""
        return {} if self._latest is None else dict(self._latest.refusals)

    def restore(self, opened: OpenRound, frames: Sequence[tuple[str, bytes]]) -> None:
        """Nothing was stored."""
