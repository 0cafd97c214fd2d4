"""State machine of one phase's answers: the cohort, who answered, and when that is enough.

A round is *collecting* until it is *closed*: by reaching its goal, because no agent is left to wait
for, by its deadline, or by the grace of agents that it hardly waits for.
The content of an answer is judged elsewhere (`coordinator.machine`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import msgspec

Outcome = Literal["goal", "everyone", "deadline", "grace"]

#: A record is kept for ever and printed: what agents say in their own words is bounded.
_MAX_DETAILS = 50
_MAX_DETAIL_CHARACTERS = 500
_REASON = re.compile(r"[a-z0-9_]{1,64}")


class Accept(msgspec.Struct, frozen=True):
    """The answer may count: look at its content, then call `count` or `refuse`."""


class Duplicate(msgspec.Struct, frozen=True):
    """The very answer that counted already: only its receipt was lost."""


class Reject(msgspec.Struct, frozen=True):
    """The answer must not count, whatever it holds."""

    reason: str
    detail: str


Verdict = Accept | Duplicate | Reject


@dataclass
class Round:
    """See the module.

    Attributes:
        round_id: of the round.
        cohort: the agents that were asked.
        goal: answers that are enough, at least 1.
        minimum: answers below which it is worth waiting for agents that went offline: a short
            outage must not end a long round.
        counted: answer id by agent whose answer counts.
        stale: answer id by (agent, round) of updates that began in an earlier round.
        declined: reason by agent; `other` for one that is no short machine name.
        details: by reason, name and words of the first agent that declined for it; of an agent's
            first decline, of 50 reasons.
        refused: reason by agent, of answers that were looked at and refused.
        refusals: number by reason, of everything refused, agents outside the cohort included.
        offline: agents that are offline now.
        doubtful: agents that did not answer the last time they were asked.
        closed: how it ended; None while collecting.
    """

    round_id: int
    cohort: frozenset[str]
    goal: int
    minimum: int = 0
    counted: dict[str, str] = field(default_factory=dict)
    stale: dict[tuple[str, int], str] = field(default_factory=dict)
    declined: dict[str, str] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    refusals: Counter[str] = field(default_factory=Counter)
    offline: set[str] = field(default_factory=set)
    doubtful: frozenset[str] = frozenset()
    closed: Outcome | None = None

    def offer(self, agent_id: str, answer_id: str = "") -> Verdict:
        """Says whether an answer may count; `answer_id` tells a resent one from another."""
        if self.counted.get(agent_id) == answer_id:
            return Duplicate()
        if agent_id in self.counted:
            return self._reject("duplicate", "another answer of this agent counts already")
        if agent_id not in self.cohort:
            return self._reject("not_asked", f"round {self.round_id} did not ask this agent")
        if self.closed is not None:
            return self._reject("late", f"round {self.round_id} closed ({self.closed})")
        return Accept()

    def offer_stale(self, agent_id: str, round_id: int, answer_id: str) -> Verdict:
        """Says whether an update that began in an earlier round may count in this one."""
        counted = self.stale.get((agent_id, round_id))
        if counted == answer_id:
            return Duplicate()
        if counted is not None:
            return self._reject("duplicate", "another answer of this agent counts already")
        if self.closed is not None:
            return self._reject("late", f"round {self.round_id} closed ({self.closed})")
        return Accept()

    def count(self, agent_id: str, answer_id: str = "") -> None:
        """Counts an accepted answer."""
        self.counted[agent_id] = answer_id
        self._close_if_done()

    def count_all(self, answers: Mapping[str, str]) -> None:
        """Counts accepted answers of a simulated cohort: answer id by agent."""
        self.counted.update(answers)
        self._close_if_done()

    def count_stale(self, agent_id: str, round_id: int, answer_id: str) -> None:
        """Counts an accepted update of an earlier round; it is no answer to this one."""
        self.stale[agent_id, round_id] = answer_id

    def refuse(self, agent_id: str, reason: str) -> None:
        """Notes that an answer was no good; the agent is not waited for any more."""
        self.refusals[reason] += 1
        if agent_id in self.cohort and agent_id not in self.counted:
            self.refused[agent_id] = reason
        self._close_if_done()

    def decline(self, agent_id: str, reason: str, detail: str = "") -> None:
        """Notes that an agent cannot take part; `detail` is for people."""
        if agent_id in self.cohort and agent_id not in self.counted:
            if not _REASON.fullmatch(reason):
                reason, detail = "other", f"{reason}: {detail}"
            is_first = agent_id not in self.declined
            self.declined[agent_id] = reason
            if is_first and len(self.details) < _MAX_DETAILS:
                words = f"{agent_id}: {detail}"[:_MAX_DETAIL_CHARACTERS]
                self.details.setdefault(reason, words)
        self._close_if_done()

    def set_offline(self, agent_id: str, *, offline: bool) -> None:
        """Notes that an agent went offline, or reconnected."""
        if offline:
            self.offline.add(agent_id)
        else:
            self.offline.discard(agent_id)
        self._close_if_done()

    def reach_deadline(self) -> None:
        """Closes the round: time is up."""
        self._close("deadline")

    def end_grace(self) -> None:
        """Closes the round: those that it hardly waits for had their time."""
        self._close("grace")

    @property
    def in_grace(self) -> bool:
        """Whether only agents are missing that are offline, or did not answer the last time."""
        # Asked after every message of a large cohort: by numbers where these are enough, and the
        # look at the agents stops at the first that is waited for.
        if self.closed is not None or self._settled < len(self._certain):
            return False
        return not any(map(self.is_waiting_for, self._certain))

    @property
    def _settled(self) -> int:
        """At least the number of agents that are not waited for."""
        return len(self.counted) + len(self.declined) + len(self.refused) + len(self.offline)

    @cached_property
    def _certain(self) -> frozenset[str]:
        return self.cohort - self.doubtful

    def is_waiting_for(self, agent_id: str) -> bool:
        """Whether an agent is online and may still answer; see `waiting_for`."""
        return (
            agent_id in self.cohort
            and agent_id not in self.counted
            and agent_id not in self.declined
            and agent_id not in self.refused
            and agent_id not in self.offline
        )

    @property
    def unanswered(self) -> frozenset[str]:
        """Agents that have said nothing, offline ones included."""
        return self.cohort - set(self.counted) - set(self.declined) - set(self.refused)

    @property
    def waiting_for(self) -> frozenset[str]:
        """Agents that are online and may still answer."""
        return self.unanswered - self.offline

    def _reject(self, reason: str, detail: str) -> Reject:
        self.refusals[reason] += 1
        return Reject(reason, detail)

    def _close_if_done(self) -> None:
        if len(self.counted) >= self.goal:
            self._close("goal")
            return
        if self._settled < len(self.cohort):
            return  # the common case, without building the sets
        may_return = self.offline & self.unanswered
        if self.waiting_for or (may_return and len(self.counted) < self.minimum):
            return
        self._close("everyone")

    def _close(self, outcome: Outcome) -> None:
        if self.closed is None:
            self.closed = outcome
