"""Events that the coordinator handles, and actions that it asks its shell to perform."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from broker.protocol.messages import AgentStatus, RoundPlan
from broker.service.events import (
    BrokerRefused,
    Connected,
    Disconnected,
    LinkAction,
    MessageArrived,
    Started,
    Stopping,
    Tick,
)
from coordinator.machine.open_round import ClosedRound
from coordinator.machine.standing import Standing
from coordinator.records.course import Course
from coordinator.records.records import RoundRecord
from learning.algorithms.algorithm import ServerState
from learning.vector.parameters import F32

Event = Started | Connected | Disconnected | BrokerRefused | MessageArrived | Stopping | Tick


@dataclass(frozen=True)
class SaveOpenRound:
    """Store that a phase with updates is announced, so that a restart goes on with it."""

    plan: RoundPlan
    cohort: tuple[str, ...]
    goal: int


class StoreUpdate(msgspec.Struct, frozen=True):
    """Store an update that counts in the open round; its receipt waits until it is on disk.

    Attributes:
        round_id: of the open round.
        agent_id: the agent.
        version: of θ that training began from.
        frame: as it came.
    """

    round_id: int
    agent_id: str
    version: int
    frame: bytes


@dataclass(frozen=True, eq=False)
class Commit:
    """Store the new θ and what is known of its round, and forget its updates, all in one.

    Attributes:
        version: of θ.
        theta: float32, shape (P,).
        state: of the algorithm's server half.
        record: of the round.
        closed: rounds whose counted answers are to be remembered.
        course: of the federation after it; None: as the record says.
        standings: of agents, that changed with the round.
    """

    version: int
    theta: F32
    state: ServerState
    record: RoundRecord
    closed: tuple[ClosedRound, ...] = ()
    course: Course | None = None
    standings: tuple[tuple[str, Standing], ...] = ()


@dataclass(frozen=True)
class SaveRound:
    """Store a round's record: it was abandoned, or its last phase is complete.

    Attributes:
        record: of the round.
        closed: rounds whose counted answers are to be remembered.
        course: of the federation after it; None: as the record says.
        standings: of agents, that changed with the round.
    """

    record: RoundRecord
    closed: tuple[ClosedRound, ...] = ()
    course: Course | None = None
    standings: tuple[tuple[str, Standing], ...] = ()


@dataclass(frozen=True)
class SaveAgent:
    """Store what an agent said of itself."""

    agent_id: str
    status: AgentStatus


@dataclass(frozen=True)
class ForgetAgent:
    """Forget what an agent said of itself: its retained status was cleared."""

    agent_id: str


@dataclass(frozen=True)
class RoundEnded:
    """Tell people: the record is final."""

    record: RoundRecord


@dataclass(frozen=True)
class Waiting:
    """Tell people: too few agents are here.

    Attributes:
        able: to take part now.
        wanted: before a round begins.
        resting: that are here and say that they pause (too hot, quiet hours, …).
        lacking: what others that are here lack, in words; empty when it is nothing.
    """

    able: int
    wanted: int
    resting: int = 0
    lacking: str = ""


@dataclass(frozen=True)
class AgentUnavailable:
    """Tell people: an agent is here and cannot take part.

    Attributes:
        agent_id: whose word it is.
        why: in words.
        is_transient: it tries again by itself.
    """

    agent_id: str
    why: str
    is_transient: bool


@dataclass(frozen=True)
class Finished:
    """The federation has ended.

    Attributes:
        reason: rounds, target or patience.
    """

    reason: str


Action = (
    LinkAction
    | SaveOpenRound
    | StoreUpdate
    | Commit
    | SaveRound
    | SaveAgent
    | ForgetAgent
    | RoundEnded
    | Waiting
    | AgentUnavailable
    | Finished
)
