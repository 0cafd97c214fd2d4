"""One round as a state machine: who was asked, who answered, and when that is enough.

A round is *collecting* until it is *closed*: by reaching its goal, because nobody is left to wait
for, or by its deadline. Whoever owns it decides what closing means (commit, or abandon below the
minimum). The content of an update is judged elsewhere (`coordinator.machine.admission`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["goal", "everyone", "deadline"]


@dataclass(frozen=True)
class Offered:
    """An agent offers an answer; `answer_id` tells a resent one from another."""

    agent_id: str
    answer_id: str = ""


@dataclass(frozen=True)
class Counted:
    """The answer that was admitted is in."""

    agent_id: str
    answer_id: str = ""


@dataclass(frozen=True)
class Refused:
    """The agent's answer was no good; it is not waited for any more."""

    agent_id: str
    reason: str


@dataclass(frozen=True)
class Declined:
    """The agent cannot take part this time; `detail` is for people."""

    agent_id: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Lost:
    """The agent went offline."""

    agent_id: str


@dataclass(frozen=True)
class Returned:
    """The agent came back."""

    agent_id: str


@dataclass(frozen=True)
class DeadlineReached:
    """Time is up."""


RoundEvent = Offered | Counted | Refused | Declined | Lost | Returned | DeadlineReached


@dataclass(frozen=True)
class Admit:
    """Look at the answer; say Counted or Refused afterwards."""

    agent_id: str


@dataclass(frozen=True)
class Again:
    """The very answer that counted already: only its receipt was lost."""

    agent_id: str


@dataclass(frozen=True)
class Reject:
    """The answer must not count, whatever it holds."""

    agent_id: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Closed:
    """Nothing more is taken."""

    outcome: Outcome


RoundAction = Admit | Again | Reject | Closed


@dataclass
class Round:
    """See the module.

    Attributes:
        round_id: of the round.
        asked: agents in the cohort.
        goal: answers that are enough, at least 1.
        minimum: answers below which it is worth waiting for agents that went offline: a short
            outage must not end a long round.
        counted: answer id by agent whose answer is in.
        declined: reason by agent.
        details: by reason, name and words of the first agent that declined for it.
        refused: reason by agent, of answers that were looked at and refused.
        refusals: number by reason, of everything refused, agents outside the cohort included.
        lost: agents that are offline now.
        closed: how it ended; None while collecting.
    """

    round_id: int
    asked: frozenset[str]
    goal: int
    minimum: int = 0
    counted: dict[str, str] = field(default_factory=dict)
    declined: dict[str, str] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    refusals: Counter[str] = field(default_factory=Counter)
    lost: set[str] = field(default_factory=set)
    closed: Outcome | None = None

    def handle(self, event: RoundEvent) -> list[RoundAction]:
        """What an event means for the round."""
        match event:
            case Offered():
                return [self._offered(event)]
            case Counted(agent_id, answer_id):
                self.counted[agent_id] = answer_id
            case Refused(agent_id, reason):
                self.refusals[reason] += 1
                if agent_id in self.asked and agent_id not in self.counted:
                    self.refused[agent_id] = reason
            case Declined(agent_id, reason, detail):
                if agent_id in self.asked and agent_id not in self.counted:
                    self.declined[agent_id] = reason
                    self.details.setdefault(reason, f"{agent_id}: {detail}")
            case Lost(agent_id):
                self.lost.add(agent_id)
            case Returned(agent_id):
                self.lost.discard(agent_id)
            case DeadlineReached():
                return self._close("deadline")
        return self._end_if_done()

    @property
    def unanswered(self) -> frozenset[str]:
        """Agents that have said nothing, offline ones included."""
        return self.asked - set(self.counted) - set(self.declined) - set(self.refused)

    @property
    def waiting_for(self) -> frozenset[str]:
        """Agents that are there and may still answer."""
        return self.unanswered - self.lost

    def _offered(self, event: Offered) -> RoundAction:
        agent_id = event.agent_id
        if self.counted.get(agent_id) == event.answer_id:
            return Again(agent_id)
        if agent_id in self.counted:
            return self._reject(agent_id, "duplicate", "another answer of it counts already")
        if agent_id not in self.asked:
            return self._reject(agent_id, "not_asked", f"round {self.round_id} did not ask for it")
        if self.closed is not None:
            return self._reject(agent_id, "late", f"round {self.round_id} closed ({self.closed})")
        return Admit(agent_id)

    def _reject(self, agent_id: str, reason: str, detail: str) -> Reject:
        self.refusals[reason] += 1
        return Reject(agent_id, reason, detail)

    def _end_if_done(self) -> list[RoundAction]:
        if len(self.counted) >= self.goal:
            return self._close("goal")
        settled = (self.counted, self.declined, self.refused, self.lost)
        if sum(map(len, settled)) < len(self.asked):
            return []  # the common case, without building the sets
        may_return = self.lost & self.unanswered
        if self.waiting_for or (may_return and len(self.counted) < self.minimum):
            return []
        return self._close("everyone")

    def _close(self, outcome: Outcome) -> list[RoundAction]:
        if self.closed is not None:
            return []
        self.closed = outcome
        return [Closed(outcome)]
