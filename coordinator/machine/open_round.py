"""The round under way, with all that came in for it, and the rounds before it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from broker.protocol.messages import RoundPlan
from coordinator.config import KEPT_ROUNDS
from coordinator.records.records import RoundRecord
from coordinator.rounds.protocol import ClosedPhase
from coordinator.rounds.round import Round
from learning.aggregation.norm_bound import RoundNorms
from learning.phases.phase import Collector
from learning.registry import Settings

log = logging.getLogger(__name__)

_LEAST_GRACE_S = 1.0
#: And three times as long as the others took: who leaves later than that has held up a phase.
_HELD_UP_S = 5.0


@dataclass(eq=False)
class OpenRound:
    """A phase's plan, who answered, and what they said.

    Attributes:
        plan: as announced.
        settings: of the phase.
        round: who answered.
        collector: what they answered.
        norms: bound on the norms of updates, and those that came in.
        is_durable: answers are updates: stored, and answered with receipts.
        started_s: when the round's first phase was announced.
        deadline_s: when answers of this phase are late, on the same clock.
        record: as far as it is known.
        earlier: collectors of the round's phases before this one, by name.
        held_up: agents that left, or declined, after all others had long answered.
        grace_until_s: the phase ends then, since it hardly waits for those that are missing;
            infinite while it waits for others.
    """

    plan: RoundPlan
    settings: Settings
    round: Round
    collector: Collector
    norms: RoundNorms
    is_durable: bool
    started_s: float
    deadline_s: float
    record: RoundRecord
    earlier: dict[str, Collector] = field(default_factory=dict)
    held_up: set[str] = field(default_factory=set)
    grace_until_s: float = math.inf
    _counted: int = 0
    _counted_s: float = -math.inf

    @property
    def _announced_s(self) -> float:
        return self.deadline_s - self.plan.deadline_s

    def waits_for(self, agent_id: str, round_id: int) -> bool:
        """Says whether an agent's message of a round may be the answer that the phase lacks."""
        asked = round_id == self.plan.round_id and agent_id in self.round.cohort
        return asked and agent_id not in self.round.counted

    def note_left(self, agent_id: str, now_s: float) -> None:
        """Notes that an agent that was waited for will not answer: did it hold up the phase?"""
        if not self._counted or not self.round.is_waiting_for(agent_id):
            return
        others_s = self._counted_s - self._announced_s
        if now_s - self._announced_s > max(_HELD_UP_S, 3 * others_s):
            self.held_up.add(agent_id)

    def note_counted(self, now_s: float) -> None:
        """Notes when the latest answer counted."""
        if len(self.round.counted) != self._counted:
            self._counted, self._counted_s = len(self.round.counted), now_s

    def watch_grace(self, grace_s: float, now_s: float) -> None:
        """Begins the phase's grace, and ends the phase when that is over.

        Agents that were silent the last time get as long again as the others took; agents that went
        offline, without which the round is abandoned, the whole grace.
        """
        ended = self.round
        too_few = len(ended.counted) < ended.minimum
        if not ended.in_grace or (too_few and ended.waiting_for):
            self.grace_until_s = math.inf
            return
        if now_s >= self.grace_until_s:
            ended.end_grace()
            return
        if self.grace_until_s < math.inf:
            return
        for_silent_s = max(_LEAST_GRACE_S, now_s - self._announced_s)
        self.grace_until_s = now_s + (grace_s if too_few else min(grace_s, for_silent_s))
        if too_few:
            log.warning(
                "round %d: all agents that have not answered are offline, and %d of at least %d "
                "have; it waits %g s for one of them to return",
                self.plan.round_id, len(ended.counted), ended.minimum, grace_s,
                extra={"sender": "", "reason": self.plan.round_id},
            )  # fmt: skip

    def closed(self, usual_loss: float | None) -> ClosedPhase:
        """Returns the phase as the round protocol sees it; see `ClosedPhase.usual_loss`."""
        record = self.record
        if self.is_durable:
            record = msgspec.structs.replace(
                record, norms=self.norms.norms(), clipped=dict(self.norms.clipped)
            )
        return ClosedPhase(
            self.settings,
            self.round,
            self.collector,
            record,
            self.earlier,
            self.norms.suspects() if self.is_durable else {},
            usual_loss,
        )


class ClosedRound(msgspec.Struct, frozen=True):
    """Record of a closed round's updates, for receipts and stale updates; stored.

    Attributes:
        round_id: of the round.
        version: of θ that it began from.
        seed: of its plan.
        cohort: the agents that were asked.
        counted: answer id by agent whose update counts.
        committed: it made the next version of θ. Of an abandoned round nothing is late in time to
            count: the next round asks the same agents at the same version.
    """

    round_id: int
    version: int
    seed: int
    cohort: tuple[str, ...]
    counted: dict[str, str]
    committed: bool = True


class ClosedRounds:
    """The latest closed rounds; of the last one, with what was refused since.

    Args:
        rounds: from the store, in order.
    """

    def __init__(self, rounds: Iterable[ClosedRound] = ()) -> None:
        self._rounds = {closed.round_id: closed for closed in rounds}
        self.latest: Round | None = None

    def add(self, opened: OpenRound, *, committed: bool) -> ClosedRound:
        """Remembers a round that closed."""
        ended = opened.round
        closed = ClosedRound(
            ended.round_id,
            opened.plan.version,
            opened.plan.seed,
            tuple(sorted(ended.cohort)),
            dict(ended.counted),
            committed,
        )
        self._rounds[ended.round_id] = closed
        for round_id in list(self._rounds)[:-KEPT_ROUNDS]:
            del self._rounds[round_id]
        return closed

    def get(self, round_id: int) -> ClosedRound | None:
        """The round, while it is remembered."""
        return self._rounds.get(round_id)

    def may_count_next(self, agent_id: str, round_id: int, max_staleness: int) -> bool:
        """Says whether an update of a closed round may count in the next round of updates."""
        former = self._rounds.get(round_id)
        if former is None or not former.committed or agent_id in former.counted:
            return False
        current = 1 + max(each.version for each in self._rounds.values() if each.committed)
        return current - former.version <= max_staleness and agent_id in former.cohort

    def note_stale(self, counted: Iterable[tuple[str, int, str]]) -> list[ClosedRound]:
        """Remembers (agent, round, answer id) of stale updates that count by now."""
        changed = []
        for agent_id, round_id, answer_id in counted:
            if (closed := self._rounds.get(round_id)) is not None:
                closed.counted[agent_id] = answer_id
                changed.append(closed)
        return changed


#: What messages and JSON readers hold exactly.
_MAX_BYTES = (1 << 53) - 1


@dataclass
class Traffic:
    """Bytes since the last round ended: from agents, and to agents as they reported."""

    up: int = 0
    down: int = 0

    def take(self) -> tuple[int, int]:
        """Returns both, and begins anew; agents may report any number, records hold 2^53 - 1."""
        found = (min(self.up, _MAX_BYTES), min(self.down, _MAX_BYTES))
        self.up = self.down = 0
        return found
