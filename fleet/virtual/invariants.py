"""Checker of the protocol's invariants after every event of a simulation, under any faults.

Pass it every entry (`fleet.virtual.event_trace`) in order, then call `check_quiescence` once
nothing happens any more. It keeps its own record from the entries alone, and never asks the
machines that it checks.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import msgspec

from broker.link.link import publish_packet_bytes
from broker.protocol import messages
from broker.protocol.messages import Receipt, Report, RoundPlan, UpdateHeader
from broker.protocol.topics import InboxTopic, ReportTopic, RoundTopic, Topics, UpdateTopic
from broker.service.events import MessageArrived
from coordinator.config import CoordinatorConfig
from coordinator.machine.events import Commit, RoundEnded, SaveOpenRound, SaveRound, StoreUpdate
from coordinator.machine.uploads import ExpectedVectors, Upload, peek_header
from coordinator.records.records import RoundRecord
from coordinator.records.results import MOST_AGENTS
from edge_agent.machine.events import (
    CancelJob,
    JobDone,
    JobFailed,
    SpoolUpdate,
    StartJob,
)
from fedge.errors import FederationError, WireError
from fleet.virtual.event_trace import (
    COHORT,
    Began,
    Ended,
    Entry,
    Flushed,
    Handled,
    Sent,
    trace_line,
)
from fleet.virtual.faults import COORDINATOR
from fleet.virtual.quiescence import SimulatedFederation, bound_problems, quiescence_problems
from learning.aggregation.norm_bound import NormBoundSettings, NormHistory
from learning.aggregation.registry import AGGREGATORS
from learning.algorithms.algorithm import Algorithm, ServerState
from learning.algorithms.registry import ALGORITHMS
from learning.algorithms.server_step import server_step
from learning.phases.phase import CollectorContext, Received
from learning.phases.train import TrainCollector
from learning.vector.metrics import Sums
from learning.vector.parameters import F32
from models.package.package import ModelPackage

#: Entries that are shown with a violation.
LAST = 40
#: Agents that a violation names.
_LISTED = 10


class InvariantViolated(FederationError):
    """A promise of the protocol was broken: a defect in a machine.

    Attributes:
        seed: of the simulation.
        time_s: virtual time.
        what: the violation, in words.
        last: the entries before the violation, as trace lines.
    """

    exit_code = 7

    def __init__(self, seed: int, time_s: float, what: str, last: tuple[str, ...] = ()) -> None:
        super().__init__(f"seed {seed}, {time_s:.6f} s: {what}")
        self.seed = seed
        self.time_s = time_s
        self.what = what
        self.last = last


@dataclass
class _Bytes:
    """Bytes that one instance of a process received."""

    fed: int = 0
    since_round: int = 0
    seen: set[int] = field(default_factory=lambda: {0})  # every value that `fed` has had


@dataclass
class _Book:
    """The checker's own record of the coordinator's disk."""

    version: int
    theta: F32
    state: ServerState
    #: Frames by (agent, base version) of the open round: on disk, and not flushed yet.
    frames: dict[tuple[str, int], bytes] = field(default_factory=dict)
    fresh: dict[tuple[str, int], bytes] = field(default_factory=dict)
    plans: dict[int, RoundPlan] = field(default_factory=dict)
    round_id: int = -1
    committed: set[int] = field(default_factory=set)
    norms: NormHistory = field(default_factory=lambda: NormHistory(NormBoundSettings()))

    def derived(
        self, config: CoordinatorConfig, package: ModelPackage, population: int
    ) -> tuple[F32, ServerState]:
        """Returns what the stored frames make of θ and the server state."""
        algorithm: Algorithm = ALGORITHMS.make(config.algorithm, config.training)
        plan = self.plans[self.round_id]
        expected = ExpectedVectors(plan, package.spec.size)
        collector = TrainCollector(
            CollectorContext(
                algorithm,
                lambda: AGGREGATORS.make(config.aggregator, expected.sizes),
                config.weighting,
                expected.sizes,
            )
        )
        norms = self.norms.open_round(self.theta, config.max_update_norm)
        for (name, version), frame in self.frames.items():
            upload = Upload.from_frame(frame)
            header = upload.header
            vectors = upload.vectors(name, expected, self.plans[header.round_id].seed, norms)
            sums = Sums(header.loss_sum, header.weight_sum, header.metric_sums)
            staleness = plan.version - version
            examples, length = header.num_examples, norms.length(name)
            collector.accept(name, Received(vectors, sums, {}, examples, staleness, length))
        aggregate = collector.aggregate(population)
        return server_step(algorithm, package.spec.layout, self.theta, self.state, aggregate)


class Invariants:
    """Observer that raises when an invariant is violated.

    Args:
        config: of the federation.
        package: its model.
        seed: named in the error.
    """

    def __init__(self, config: CoordinatorConfig, package: ModelPackage, seed: int = 0) -> None:
        self._config = config
        self._topics = Topics(config.federation)
        self._package = package
        self._seed = seed
        algorithm: Algorithm = ALGORITHMS.make(config.algorithm, config.training)
        self._book = _Book(0, package.initial, algorithm.init(package.initial))
        self._book.norms = NormHistory(config.norm_bound)
        self._last: deque[Entry] = deque(maxlen=LAST)
        self._bytes: dict[str, _Bytes] = {}
        #: (agent, round, instance, attempt) of all updates ever on the coordinator's disk.
        self._stored: set[tuple[str, int, str, int]] = set()
        self._fresh: set[tuple[str, int, str, int]] = set()
        self._spooled: dict[str, tuple[int, str, int]] = {}
        self._running: dict[str, RoundPlan] = {}
        self._announced = (-1, -1)
        self._now_s = 0.0
        self._federation: SimulatedFederation | None = None
        #: Number of checks, so that a test can tell that there were some.
        self.checks = 0

    def __call__(self, entry: Entry) -> None:
        """Checks the next entry.

        Raises:
            InvariantViolated: an invariant does not hold after the entry.
        """
        self._last.append(entry)
        self._check(entry.time_s >= self._now_s, f"time runs backwards from {self._now_s:.6f} s")
        self._now_s = entry.time_s
        match entry:
            case Handled(_, node, event, actions):
                self._handled(node, event, actions)
            case Sent(_, node, topic, payload):
                self._sent(node, topic, payload)
            case Flushed():
                self._flush()
            case Began():
                self._began(entry)
            case Ended(_, node, how):
                self._ended(node, how)

    def watch(self, federation: SimulatedFederation) -> None:
        """Also checks the memory of a simulation's processes, after every event."""
        self._federation = federation

    def check_quiescence(self, federation: SimulatedFederation) -> None:
        """Checks a federation that has finished, once no fault or message is under way.

        Raises:
            InvariantViolated: an agent lacks the newest plan without a reason, a queue is too
                long, or byte counters disagree.
        """
        for problem in quiescence_problems(
            federation, {name: b.fed for name, b in self._bytes.items()}
        ):
            self._fail(problem)
        self.checks += 1

    # -- processes ------------------------------------------------------------------------------

    def _began(self, entry: Began) -> None:
        self._bytes[entry.node] = _Bytes()
        self._running.pop(entry.node, None)
        if entry.node == COORDINATOR and entry.theta is not None:
            book = self._book
            self._check(
                entry.version == book.version and entry.theta.tobytes() == book.theta.tobytes(),
                f"the coordinator loads version {entry.version} after {book.version} was committed,"
                " or another θ",
            )

    def _ended(self, node: str, how: str) -> None:
        self._running.pop(node, None)
        if node == COORDINATOR and how == "crash":
            self._book.fresh.clear()
            self._fresh.clear()

    def _flush(self) -> None:
        self._book.frames |= self._book.fresh
        self._book.fresh.clear()
        self._stored |= self._fresh
        self._fresh.clear()

    # -- events and actions ---------------------------------------------------------------------

    def _handled(self, node: str, event: Any, actions: tuple[Any, ...]) -> None:
        if self._federation is not None:
            for problem in bound_problems(self._federation, node):
                self._fail(problem)
        if isinstance(event, MessageArrived):
            size = publish_packet_bytes(
                event.topic, len(event.payload), self._expiry_s(event.topic)
            )
            count = self._bytes.setdefault(node, _Bytes())
            count.fed += size
            count.since_round += size
            count.seen.add(count.fed)
        if node != COORDINATOR:
            self._agent(node, event, actions)
            return
        for action in actions:
            match action:
                case StoreUpdate():
                    self._store_update(action)
                case SaveOpenRound(plan):
                    self._open_round(plan)
                case Commit():
                    self._commit(action)
                case SaveRound(record):
                    self._book.norms.add(record.norms)
                    self._forget_open_round()
                case RoundEnded(record):
                    self._round_ended(record)

    def _expiry_s(self, topic: str) -> int | None:
        return 1 if "/updates/" in topic else None

    def _store_update(self, action: StoreUpdate) -> None:
        book, name = self._book, action.agent_id
        key = (name, action.version)
        self._check(
            action.round_id == book.round_id,
            f"update of {name} stored for round {action.round_id}, {book.round_id} is open",
        )
        self._check(
            key not in book.frames and key not in book.fresh,
            f"a second update of {name} counts in round {action.round_id}",
        )
        header, _ = messages.decode_update(action.frame)
        book.fresh[key] = action.frame
        self._fresh.add(_identity(name, header))

    def _open_round(self, plan: RoundPlan) -> None:
        book = self._book
        self._check(plan.round_id > book.round_id, f"round {plan.round_id} opened again")
        self._check(
            plan.version == book.version,
            f"round {plan.round_id} is for version {plan.version}, {book.version} is current",
        )
        book.round_id = plan.round_id
        book.plans[plan.round_id] = plan
        self._forget_open_round()

    def _forget_open_round(self) -> None:
        self._flush()
        self._book.frames = {}

    def _commit(self, action: Commit) -> None:
        """Checks that the new θ follows from the old one and the stored frames, to the last bit."""
        book = self._book
        self._flush()
        frames, record = book.frames, action.record
        self._check(
            action.version == book.version + 1,
            f"version {action.version} committed after {book.version}",
        )
        self._check(
            record.round_id == book.round_id and record.round_id not in book.committed,
            f"round {record.round_id} committed, {book.round_id} was open",
        )
        named, stored = set(record.agents), {name for name, _ in frames}
        if not named and len(stored) > MOST_AGENTS:
            named = stored  # a record names no agents of a huge cohort
        self._check(
            record.reported + record.stale == len(frames),
            f"round {record.round_id} counts {record.reported + record.stale} updates,"
            f" {len(frames)} are stored",
        )
        self._check(
            named == stored,
            f"round {record.round_id} names other agents than its stored updates:"
            f" {', '.join(sorted(named ^ stored)[:_LISTED])}",
        )
        theta, state = book.derived(self._config, self._package, record.population)
        self._check(
            theta.tobytes() == action.theta.tobytes(),
            f"version {action.version} does not follow from its {len(frames)} stored updates",
        )
        book.version, book.theta, book.state = action.version, theta, state
        book.committed.add(record.round_id)
        book.frames = {}

    def _round_ended(self, record: RoundRecord) -> None:
        count = self._bytes[COORDINATOR]
        self._check(
            record.bytes_up == count.since_round,
            f"round {record.round_id} counts {record.bytes_up} bytes up,"
            f" {count.since_round} arrived",
        )
        count.since_round = 0

    # -- agents ---------------------------------------------------------------------------------

    def _agent(self, node: str, event: Any, actions: tuple[Any, ...]) -> None:
        if isinstance(event, JobDone | JobFailed):
            self._running.pop(node, None)
        for action in actions:
            match action:
                case StartJob(plan):
                    self._check(node not in self._running, f"{node} runs two jobs at once")
                    self._running[node] = plan
                case CancelJob():
                    self._check(node in self._running, f"{node} cancels a job that is not running")
                case SpoolUpdate(update):
                    self._spooled[node] = (update.round_id, update.agent_instance, update.attempt)

    # -- messages -------------------------------------------------------------------------------

    def _sent(self, node: str, name: str, payload: bytes) -> None:
        topic = self._topics.parse(name)
        match topic:
            case InboxTopic(agent_id):
                message = messages.decode_inbox(payload)
                if isinstance(message, Receipt) and message.accepted:
                    identity = (agent_id, message.round_id, message.agent_instance, message.attempt)
                    self._check(
                        identity in self._stored,
                        f"{agent_id} gets a receipt for round {message.round_id} before its update"
                        " is on disk",
                    )
            case RoundTopic():
                self._plan_sent(messages.decode(payload, RoundPlan))
            case UpdateTopic() | ReportTopic() if node.startswith(COHORT):
                pass  # it has no spool, and one link for all of its agents
            case UpdateTopic(agent_id, round_id, 0):
                self._update_sent(agent_id, round_id, payload)
            case ReportTopic(agent_id):
                report = messages.decode(payload, Report)
                self._received_bytes(node, report.received_bytes)

    def _plan_sent(self, plan: RoundPlan) -> None:
        round_id, version = self._announced
        self._check(
            plan.round_id >= round_id and (plan.version >= version or plan.state == "finished"),
            f"round {plan.round_id} of version {plan.version} announced after {self._announced}",
        )
        self._announced = (plan.round_id, max(version, plan.version))  # at the end the best one
        self._check(
            plan.version <= self._book.version,
            f"version {plan.version} announced, {self._book.version} is committed",
        )

    def _update_sent(self, agent_id: str, round_id: int, payload: bytes) -> None:
        header = peek_header(payload)
        if header is None:
            self._fail(f"{agent_id} sends an unreadable update")
            return
        self._check(
            self._spooled.get(agent_id) == (round_id, header.agent_instance, header.attempt),
            f"{agent_id} sends an update of round {round_id} that is not in its spool",
        )

    def _received_bytes(self, node: str, counted: int) -> None:
        count = self._bytes[node]  # a resent answer repeats its first count
        self._check(
            counted in count.seen,
            f"{node} counts {counted} bytes received, its link delivered {count.fed}",
        )

    # -- failing --------------------------------------------------------------------------------

    def _check(self, holds: bool, what: str) -> None:
        self.checks += 1
        if not holds:
            self._fail(what)

    def _fail(self, what: str) -> None:
        raise InvariantViolated(self._seed, self._now_s, what, self.last_lines())

    def last_lines(self) -> tuple[str, ...]:
        """Returns the last entries, as lines of a trace."""
        last = []
        for entry in self._last:
            try:
                last.append(trace_line(entry))
            except (TypeError, ValueError, AttributeError, WireError, msgspec.MsgspecError):
                last.append(repr(entry)[:200])  # a test may pass malformed entries
        return tuple(last)


def _identity(agent_id: str, header: UpdateHeader) -> tuple[str, int, str, int]:
    return agent_id, header.round_id, header.agent_instance, header.attempt
