"""Availability of a run's agents: those that reported that they cannot take part."""

from __future__ import annotations

from collections.abc import Sequence

from fedge.errors import ConfigError

#: Agents that are named one by one: the same reason usually concerns most of the others too.
_NAMED = 5


class Availability:
    """Collects the agents' reports that they cannot take part, and ends a run without enough.

    Args:
        asked: agents that a round can ask.
        minimum: number of them that a round needs; fewer begin none.

    Attributes:
        unavailable: reason by agent, of the permanent reports.
    """

    def __init__(self, asked: Sequence[str], minimum: int) -> None:
        self.unavailable: dict[str, str] = {}
        self._asked = asked
        self._minimum = max(1, minimum)
        self._named: set[str] = set()

    def report(self, agent_id: str, reason: str, *, is_transient: bool) -> str:
        """Takes an agent's report; returns a line for people, empty after enough lines."""
        if not is_transient:
            self.unavailable[agent_id] = reason
        if agent_id in self._named or len(self._named) > _NAMED:
            return ""
        self._named.add(agent_id)
        if len(self._named) > _NAMED:
            return "more agents cannot take part: see their logs"
        retry = "; the agent tries again" if is_transient else ""
        return f"{agent_id} cannot take part ({reason}){retry}"

    def check(self, ended: set[str]) -> None:
        """Checks that a round can still begin.

        Args:
            ended: agents whose process has ended.

        Raises:
            ConfigError: fewer agents than a round needs are left that run and are not unavailable.
        """
        left = [n for n in self._asked if n not in ended and n not in self.unavailable]
        unavailable = [n for n in self._asked if n in self.unavailable]
        if not unavailable or len(left) >= self._minimum:
            return
        raise ConfigError(
            f"{len(unavailable)} of {len(self._asked)} agents cannot take part, a round needs "
            f"{self._minimum}; {unavailable[0]}: {self.unavailable[unavailable[0]]}"
        )
