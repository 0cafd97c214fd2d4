"""Agents of a simulated fleet as the round protocol sees them: all are there, nobody is silent."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence, Set
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from coordinator.machine.open_round import ClosedRound, ClosedRounds, OpenRound
from coordinator.machine.standing import Standings
from coordinator.rounds.round import Round
from fleet.agent_rows import NumberedNames
from fleet.batched.cohort.agent_data import AgentData


class FleetStandings(Standings):
    """Standings of agents that answer whenever they are asked: only faults are kept."""

    def note_round(self, ended: Round, phase: str, held_up: Set[str] = frozenset()) -> None:
        """See `Standings`."""
        self.round_id = ended.round_id
        for agent_id in sorted(self._known.keys() & ended.counted.keys()):
            self.accepted(agent_id)

    def doubtful(self, agents: Iterable[str], phase: str) -> frozenset[str]:
        """Nobody."""
        return frozenset()


class FleetRoster:
    """Agents of a fleet; see `coordinator.rounds.protocol.Agents`.

    Args:
        names: of all agents.
        only_measure: agents that never train.
        data: rows of all agents.
        standings: of agents with faults.
    """

    def __init__(
        self,
        names: Sequence[str],
        only_measure: Collection[str],
        data: AgentData,
        standings: FleetStandings,
    ) -> None:
        self.standings = standings
        self._names = names
        self._only_measure = frozenset(only_measure)
        self._num_train = data.num_train
        self._num_test = data.num_test

    @cached_property
    def _order(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._names)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self._names)}

    def numbers(self, names: Collection[str]) -> NDArray[np.int64]:
        """Returns the numbers of agents, ascending."""
        if len(names) == len(self._names):
            return np.arange(len(self._names))
        find = self._names.index if isinstance(self._names, NumberedNames) else None
        places = map(find or self._numbers.__getitem__, names)
        return np.sort(np.fromiter(places, np.int64, len(names)))

    @cached_property
    def _able(self) -> dict[str, list[str]]:
        """Names of the agents with rows for a phase, sorted."""
        counts = {"train": self._num_train, "evaluate": self._num_test}
        found = {}
        for phase, rows in counts.items():
            lacking = {self._names[n] for n in np.flatnonzero(rows == 0).tolist()}
            if phase == "train":
                lacking |= self._only_measure
            found[phase] = [name for name in self._order if name not in lacking]
        return found

    def eligible_agents(
        self, phase: str, codec: str | None = None, algorithm: str | None = None
    ) -> list[str]:
        """See `Agents.eligible_agents`."""
        able = self._able[phase]
        shut_out = set(self.standings.left_out(phase))
        return [name for name in able if name not in shut_out] if shut_out else able

    def population(self, phase: str) -> int:
        """See `Agents.population`."""
        return len(self._able[phase])

    def takes_part(self, agent_id: str, phase: str) -> bool:
        """See `Agents.takes_part`."""
        return phase != "train" or agent_id not in self._only_measure

    def asked(self, agents: Iterable[str], now_s: float) -> None:
        """All answer: nothing is watched."""

    def left_out(self, asked: Collection[str], phase: str) -> list[str]:
        """Returns the agents in quarantine."""
        return sorted(name for name in self.standings.left_out(phase) if name not in asked)


class NoClosedRounds(ClosedRounds):
    """Closed rounds of which nothing is remembered: no update comes late, no receipt is lost."""

    def add(self, opened: OpenRound, *, committed: bool) -> ClosedRound:
        """Returns a record without agents."""
        plan = opened.plan
        return ClosedRound(plan.round_id, plan.version, plan.seed, (), {}, committed)
