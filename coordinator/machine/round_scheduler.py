"""Round scheduler: when the next round may start."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from coordinator.config import CoordinatorConfig
from coordinator.machine.events import Waiting
from coordinator.machine.roster import Roster, lacking_text
from coordinator.rounds.protocol import first_needs
from fedge.limits import TokenBucket

#: After an abandoned round the next one waits 1, 2, 4 … s, at most this.
_LONGEST_PAUSE_S, _MOST_DOUBLINGS = 60.0, 6
_GRACE_S = 1.0
_TOO_FEW_DRAWN_S = 1.0
#: Too few agents can take part: a look at who can costs 1 to 2 µs an agent, and with every birth of
#: a large fleet it would be most of the work. So long an agent until the next look; and while even
#: all that are here would be too few, until the next look at what they lack, which is only told.
_LOOK_S, _TELL_S = 1e-5, 1e-4
_SMALL_FLEET, _FEW = 100, 10
#: Changes of what a round waits for that are told at once, and then in a second: one agent may come
#: and go for ever.
_TOLD_AT_ONCE = 10
_TOLD_PER_SECOND = 1 / 5


class RoundScheduler:
    """Decides when the next round may start: enough agents online, back-off elapsed.

    Args:
        config: of the federation.
        restarted: retained births need a moment to arrive.

    Attributes:
        pause_until_s: no round begins, and none that a restart found complete ends, before it.
        started_s: when the first connection stood; None: not yet.
    """

    def __init__(self, config: CoordinatorConfig, *, restarted: bool) -> None:
        self.pause_until_s = 0.0
        self.started_s: float | None = None
        self._config = config
        self._grace_s = _GRACE_S if restarted else 0.0
        self._abandoned_in_a_row = 0
        self._look_again_s = self._tell_again_s = -math.inf
        self._needs = first_needs(config)
        self._told: Waiting | None = None
        self._lines = TokenBucket(_TOLD_PER_SECOND, _TOLD_AT_ONCE)

    def connected(self, now_s: float) -> bool:
        """A connection stands; whether it is the first."""
        if self.started_s is not None:
            return False
        self.started_s = now_s
        self.pause_until_s = now_s + self._grace_s
        return True

    def due_s(self) -> float:
        """Returns the time before which no round can start."""
        return max(self.pause_until_s, self._look_again_s)

    def eligible_agents(
        self, eligible_agents: Callable[[], list[str]], roster: Roster, now_s: float, *, first: bool
    ) -> list[str] | Waiting | None:
        """Returns the agents of a round that may begin now.

        Args:
            eligible_agents: the agents that can be asked now.
            roster: counts the agents that pause, and those that lack something.
            now_s: the time.
            first: no round has ended yet.

        Returns:
            Their ids; or that too few are here, or None when that was told before, or too
            much was told of late.
        """
        wanted = self._wanted(now_s, first)
        if roster.present(self._needs[0]) < wanted and now_s < self._tell_again_s:
            return None  # who can take part need not be looked for
        eligible = eligible_agents()
        if len(eligible) >= wanted:
            self._told = None
            return eligible
        agents = len(roster)
        self._look_again_s = now_s + _LOOK_S * max(0, agents - _SMALL_FLEET)
        self._tell_again_s = now_s + _TELL_S * max(0, agents - _FEW)
        lacking = lacking_text(roster.lacking(*self._needs))
        waiting = Waiting(len(eligible), wanted, roster.resting, lacking)
        if self._told is not None and replace(waiting, resting=self._told.resting) == self._told:
            return None
        if not self._lines.take(now_s):
            return None  # later, if it is still so
        self._told = waiting
        return waiting

    def _wanted(self, now_s: float, first: bool) -> int:
        # Agents without which a round is not worth announcing.
        least = max(self._config.cohort.at_least, self._config.round.minimum)
        start = self._config.start
        began = self.started_s if self.started_s is not None else now_s
        if first and now_s - began < start.timeout_s:
            return max(least, start.agents)
        return least

    def too_few_drawn(self, now_s: float) -> None:
        """The rule drew nobody, or too few: the next one may draw more."""
        self.pause_until_s = now_s + _TOO_FEW_DRAWN_S

    def committed(self) -> None:
        """A round went well."""
        self._abandoned_in_a_row = 0

    def abandoned(self, now_s: float) -> float:
        """A round failed; seconds until the next."""
        self._abandoned_in_a_row += 1
        doublings = min(self._abandoned_in_a_row - 1, _MOST_DOUBLINGS)
        pause_s = min(_LONGEST_PAUSE_S, 2.0**doublings)
        self.pause_until_s = now_s + pause_s
        return pause_s
