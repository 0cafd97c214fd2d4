"""Budgets of senders: one that floods the coordinator costs the others little.

Every message costs its sender, one that cannot be read costs much. A sender that has spent its
budget is not listened to until time has earned it back: its messages are dropped before they are
decoded. What an answer that counts has cost is given back, so that quick rounds of honest agents
cost nothing; and the answer that a phase waits for has a reserve, so that junk under an honest
agent's id does not silence the agent. What is lost comes again once the flood is over: statuses are
retained, and agents answer anew a plan that is announced again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from fedge.limits import is_power_of_two

log = logging.getLogger(__name__)

#: A message costs one unit, and one more for so many bytes.
_UNIT_BYTES = 16 << 10
#: The cost of a message that cannot be read.
_UNREADABLE = 10.0
#: Units of an agent for what is no update: heartbeats, births, reports, requests for chunks.
_AT_ONCE, _PER_SECOND = 1000.0, 20.0
#: Chunks of an update may be as small as this, at a broker that allows no larger messages.
_SMALLEST_CHUNK = 2 << 10
#: Units of an answer beside its update.
_ANSWER = 10.0
#: Updates that may be sent at once: one that counts is paid back. And seconds to earn another.
_UPDATES, _UPDATE_S = 4, 30.0
#: All agents that were never heard of share this: a fleet of 10,000 may be switched on at once.
_STRANGERS_AT_ONCE, _STRANGERS_PER_SECOND = 20_000.0, 2_000.0
#: Senders with an account of their own, while they owe something. Others share the strangers'.
_MAX_ACCOUNTS = 100_000
_SWEEP_S = 1.0
#: A flood is over when nothing was dropped for so long.
_CALM_S = 1.0
#: Between two recoveries, each of which costs a message from every agent: doubled while it goes on.
_RECOVERY_S, _LONGEST_RECOVERY_S = 2.0, 60.0


@dataclass(slots=True)
class _Account:
    """One sender's debt, in units.

    Attributes:
        at_once: debt up to which it is listened to.
        per_second: units earned.
        debt: at `at_s`.
        at_s: of the last message.
        answer: cost of the messages since its last answer that counted.
        phase: that the reserve was last used in.
        reserve: units used of it.
        dropped: messages, since the account was opened.
    """

    at_once: float
    per_second: float
    at_s: float
    debt: float = 0.0
    answer: float = 0.0
    phase: object = None
    reserve: float = 0.0
    dropped: int = 0

    def pass_time(self, now_s: float) -> None:
        """Earns units."""
        self.debt = max(0.0, self.debt - (now_s - self.at_s) * self.per_second)
        self.at_s = now_s

    def draw_reserve(self, phase: object, cost: float, most: float) -> bool:
        """Returns whether the phase's reserve has room for a message, and takes it."""
        if phase != self.phase:
            self.phase, self.reserve = phase, 0.0
        self.reserve += cost
        return self.reserve <= most

    def is_even(self, now_s: float) -> bool:
        """Whether nothing is owed."""
        return self.debt <= (now_s - self.at_s) * self.per_second


class SenderBudgets:
    """Decides which messages are worth decoding.

    Args:
        update_bytes: of the largest update: what an agent may send for each round.

    Attributes:
        dropped: messages that were dropped, since the start.
    """

    def __init__(self, update_bytes: int) -> None:
        self.dropped = 0
        self._update = update_bytes / _UNIT_BYTES + update_bytes / _SMALLEST_CHUNK
        self._reserve = _UPDATES * (self._update + _ANSWER)
        self._accounts: dict[str, _Account] = {}
        self._strangers = _Account(_STRANGERS_AT_ONCE, _STRANGERS_PER_SECOND, 0.0)
        self._swept_s = 0.0
        self._flood: tuple[float, float] | None = None  # first and last drop
        self._next_recovery_s = 0.0
        self._pause_s = _RECOVERY_S

    def admits(
        self,
        sender: str,
        payload_bytes: int,
        now_s: float,
        *,
        is_known: bool,
        awaited: object = None,
    ) -> bool:
        """Returns whether to listen to a message, and books its cost.

        Args:
            sender: the agent; empty: the topic names none.
            payload_bytes: of the message.
            now_s: when it is handled: while the coordinator stands still, nobody spends.
            is_known: the agent was born, or is asked by the open round.
            awaited: the phase, if it still waits for an answer of this agent under this topic.
        """
        account = self._account(sender, now_s) if is_known else self._strangers
        account.pass_time(now_s)
        cost = 1.0 + payload_bytes / _UNIT_BYTES
        if account.debt < account.at_once:
            account.debt += cost
            account.answer += cost
            return True
        if awaited is not None and account.draw_reserve(awaited, cost, self._reserve):
            return True
        self._drop(account, sender, now_s)
        return False

    def unreadable(self, sender: str, *, is_known: bool) -> None:
        """Books a message that was admitted and could not be read."""
        account = self._accounts.get(sender, self._strangers) if is_known else self._strangers
        account.debt += _UNREADABLE

    def settle(self, agent_ids: Iterable[str]) -> None:
        """Gives back what the answers of agents cost that a round has counted."""
        most = self._update + _ANSWER
        for agent_id in agent_ids:
            if (account := self._accounts.get(agent_id)) is not None:
                account.debt = max(0.0, account.debt - min(account.answer, most))
                account.answer = 0.0

    def recovery_s(self) -> float | None:
        """Returns when `recovers` is due; None when nothing was dropped."""
        if self._flood is None:
            return None
        first_s, last_s = self._flood
        return max(self._next_recovery_s, min(first_s + self._pause_s, last_s + _CALM_S))

    def recovers(self, now_s: float) -> bool:
        """Returns once after a flood, or now and then in a long one, that it is time to recover."""
        due_s = self.recovery_s()
        if due_s is None or now_s < due_s:
            return False
        if now_s > self._next_recovery_s + _LONGEST_RECOVERY_S:
            self._pause_s = _RECOVERY_S  # the flood before this one is long over
        self._flood, self._next_recovery_s = None, now_s + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_RECOVERY_S)
        return True

    def _account(self, sender: str, now_s: float) -> _Account:
        account = self._accounts.get(sender)
        if account is not None:
            return account
        if len(self._accounts) >= _MAX_ACCOUNTS and now_s >= self._swept_s + _SWEEP_S:
            self._swept_s = now_s
            owing = ((name, a) for name, a in self._accounts.items() if not a.is_even(now_s))
            self._accounts = dict(owing)
        if len(self._accounts) >= _MAX_ACCOUNTS:
            return self._strangers
        at_once = _AT_ONCE + _UPDATES * self._update
        account = _Account(at_once, _PER_SECOND + self._update / _UPDATE_S, now_s)
        self._accounts[sender] = account
        return account

    def _drop(self, account: _Account, sender: str, now_s: float) -> None:
        self.dropped += 1
        account.dropped += 1
        self._flood = (now_s if self._flood is None else self._flood[0], now_s)
        if not is_power_of_two(account.dropped):
            return
        who = f"agent {sender} sends"
        if account is self._strangers:
            who = f"unknown agents, {sender or 'without a valid id'} the latest, send"
        log.warning(
            "%s more than %.0f messages a second: %d dropped so far, without reading them; the "
            "broker's log has the address",
            who,
            account.per_second,
            account.dropped,
            extra={"event": "over_budget", "agent_id": sender},
        )
