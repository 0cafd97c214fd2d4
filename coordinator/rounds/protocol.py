"""Round protocol: which phases a round is made of, and what becomes of each.

A protocol decides; the machine announces, collects and stores (`coordinator/machine`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from broker.protocol.messages import name_of
from coordinator.config import CohortConfig, CoordinatorConfig
from coordinator.records.course import Course
from coordinator.records.records import RoundRecord
from coordinator.rounds.round import Round
from learning.algorithms.algorithm import ServerState
from learning.phases.phase import Collector
from learning.registry import Settings
from learning.vector.parameters import F32


@dataclass(frozen=True, eq=False)
class PhaseOrder:
    """A phase to announce.

    Attributes:
        settings: of the phase.
        eligible: agents that can be asked, sorted.
        cohort: how many of them are asked.
        deadline_s: after the announcement.
        minimum: answers below which the round is abandoned.
        stream: tells the random draws of a round's phases apart.
        is_durable: answers are updates: stored, and answered with receipts.
    """

    settings: Settings
    eligible: Sequence[str]
    cohort: CohortConfig
    deadline_s: float
    minimum: int = 0
    stream: int = 0
    is_durable: bool = False


@dataclass(frozen=True, eq=False)
class ClosedPhase:
    """A phase that takes no more answers.

    Attributes:
        settings: of the phase.
        round: who answered.
        collector: what they answered.
        record: of the round so far.
        earlier: collectors of the round's phases before it, by name.
        suspects: agents whose updates count, and are beyond what the round shows to be usual: the
            reason by agent.
        usual_loss: of the first round that three agents measured; None when there was none.
    """

    settings: Settings
    round: Round
    collector: Collector
    record: RoundRecord
    earlier: Mapping[str, Collector]
    suspects: Mapping[str, str] = field(default_factory=dict)
    usual_loss: float | None = None


@dataclass(frozen=True, eq=False)
class Next:
    """Go on with another phase of the round."""

    order: PhaseOrder
    record: RoundRecord


@dataclass(frozen=True, eq=False)
class Commit:
    """Store a new version of θ; then another phase, or the end of the round."""

    theta: F32
    state: ServerState
    record: RoundRecord


@dataclass(frozen=True, eq=False)
class Result:
    """The round is over."""

    record: RoundRecord


@dataclass(frozen=True, eq=False)
class Abandon:
    """The round gives nothing; another one begins after a pause."""

    record: RoundRecord
    reason: str


class FirstNeeds(NamedTuple):
    """Requirements on agents for the first phase of a round.

    Attributes:
        phase: they take part in it.
        codec: they can encode it; None: any.
        algorithm: they can run it; None: any.
    """

    phase: str
    codec: str | None = None
    algorithm: str | None = None


def first_needs(config: CoordinatorConfig) -> FirstNeeds:
    """Returns what the first phase of a federation's rounds needs of agents."""
    task = name_of(config.task)
    if task == "train":
        return FirstNeeds(task, name_of(config.codec), name_of(config.algorithm))
    return FirstNeeds(task)


@dataclass(frozen=True, eq=False)
class HoldBack:
    """The round's updates would wreck θ: it is repeated.

    Attributes:
        record: of the round.
        suspects: reason by agent whose update would do it.
    """

    record: RoundRecord
    suspects: Mapping[str, str]


Outcome = Next | Commit | Result | Abandon | HoldBack


class Agents(Protocol):
    """The fleet, as a round protocol sees it."""

    def eligible_agents(
        self, phase: str, codec: str | None = None, algorithm: str | None = None
    ) -> list[str]:
        """Agents that can be asked for a phase now, sorted by id."""

    def population(self, phase: str) -> int:
        """Returns the number of agents that take part in a phase, online or not."""

    def takes_part(self, agent_id: str, phase: str) -> bool:
        """Whether an agent says that it takes part in a phase."""


class RoundProtocol(Protocol):
    """Chains the phases of each round."""

    def eligible_agents(self) -> list[str]:
        """Agents that can be asked for the first phase now, sorted by id."""

    def first(self, eligible: Sequence[str]) -> PhaseOrder:
        """The phase that begins a round, for agents that can take part in it."""

    def close(self, closed: ClosedPhase, theta: F32, state: ServerState) -> Outcome:
        """Decides what becomes of a phase that is over."""

    def after_commit(self, record: RoundRecord) -> PhaseOrder | None:
        """The phase after a commit; None when the round is over."""

    def stop_reason(self, course: Course) -> str | None:
        """Returns why the federation ends now; None to go on."""
