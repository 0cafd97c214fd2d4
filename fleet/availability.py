"""Who of a run's agents can still take part in its rounds."""

from __future__ import annotations

from collections.abc import Sequence

from fedge.errors import ConfigError

#: So many agents are told one by one; what keeps one from it keeps most others too.
_TOLD = 5


class Attendance:
    """Takes agents' word that they cannot take part.

    Args:
        asked: agents that a round can ask.
        least: of them without which no round begins.

    Attributes:
        unavailable: why, by agent, of those that said so for good.
    """

    def __init__(self, asked: Sequence[str], least: int) -> None:
        self.unavailable: dict[str, str] = {}
        self._asked = asked
        self._least = max(1, least)
        self._told: set[str] = set()

    def cannot(self, agent_id: str, why: str, *, is_transient: bool) -> str:
        """Take an agent's word; returns a line for people, empty when enough was said."""
        if not is_transient:
            self.unavailable[agent_id] = why
        if agent_id in self._told or len(self._told) > _TOLD:
            return ""
        self._told.add(agent_id)
        if len(self._told) > _TOLD:
            return "more agents cannot take part: see their logs"
        again = "; it tries again" if is_transient else ""
        return f"{agent_id} cannot take part ({why}){again}"

    def check(self, gone: set[str]) -> None:
        """Looks whether a round may still begin.

        Args:
            gone: agents whose process has ended.

        Raises:
            ConfigError: too few are left that can take part, or have not said yet.
        """
        left = [n for n in self._asked if n not in gone and n not in self.unavailable]
        hindered = [n for n in self._asked if n in self.unavailable]
        if not hindered or len(left) >= self._least:
            return
        raise ConfigError(
            f"{len(hindered)} of {len(self._asked)} agents cannot take part, a round needs "
            f"{self._least}; {hindered[0]}: {self.unavailable[hindered[0]]}"
        )
