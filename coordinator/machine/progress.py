"""Progress of a federation: what the store keeps and a restart goes on with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from broker.protocol.messages import RoundPlan
from coordinator.machine.open_round import ClosedRound
from coordinator.machine.standing import Standing
from coordinator.records.course import Course
from coordinator.records.records import RoundRecord
from learning.aggregation.norm_bound import KnownNorms
from learning.algorithms.algorithm import ServerState
from learning.vector.parameters import F32

#: A loss of so many times that of the first round is no loss of a model that learns.
_FAR_WORSE = 100.0


@dataclass(eq=False)
class Progress:
    """Everything a restart goes on with.

    Attributes:
        version: of θ.
        theta: float32, shape (P,).
        state: of the algorithm's server half.
        course: how far the federation is, and its best version.
        open: the round that was collecting updates when the coordinator ended.
        unmeasured: record of the last round, if its version was not measured when it ended.
        closed: the latest rounds with those whose updates count.
        standings: of the agents that have one, by id.
        best_theta: θ of the best version, where that is not the current one.
    """

    version: int
    theta: F32
    state: ServerState
    course: Course = field(default_factory=Course)
    open: StoredRound | None = None
    unmeasured: RoundRecord | None = None
    closed: tuple[ClosedRound, ...] = ()
    standings: dict[str, Standing] = field(default_factory=dict)
    best_theta: F32 | None = None
    #: Course and θ of the best version before the last round.
    _before: tuple[Course, F32 | None] | None = None

    @property
    def last_round(self) -> int:
        """The last round's id; 0 before the first."""
        return self.course.last_round

    def note(self, record: RoundRecord, norms: Mapping[str, KnownNorms] | None = None) -> None:
        """Takes up what is known of a round; one that is noted again is known better.

        Args:
            record: of the round.
            norms: usual ones of updates, by vector.
        """
        if self._before is not None and record.round_id == self.last_round:
            self.course, self.best_theta = self._before
        self._before = (self.course, self.best_theta)
        self.course = msgspec.structs.replace(self.course.after(record), norms=dict(norms or {}))
        if self.course.best_version == self.version:
            self.best_theta = self.theta

    def divergence(self, record: RoundRecord) -> str:
        """Returns how to go back from a version that devices find far worse than the first.

        Empty when they do not. The round has been noted.
        """
        first, best = self.course.first_loss, self.course.best_version
        if not record.evaluated or not first or record.loss is None:
            return ""
        if record.loss <= _FAR_WORSE * first:
            return ""
        back = f" with 'fedge coordinator rollback --to {best}'" if best else ""
        return (
            f"loss {record.loss:.6g} on the devices' rows, {first:.6g} in the first round: version "
            f"{record.version} has diverged; go back{back}, and lower training.learning_rate"
        )

    @property
    def best(self) -> tuple[int, F32]:
        """Version and θ to hand out: the best known, else the current one."""
        if not self.course.best_version or self.best_theta is None:
            return self.version, self.theta
        return self.course.best_version, self.best_theta


@dataclass(frozen=True, eq=False)
class StoredRound:
    """A learning phase that was announced and not committed.

    Attributes:
        plan: as announced.
        cohort: agents that were asked.
        goal: reports that are enough.
        frames: (agent, update frame) of those that count, in the order of their arrival.
    """

    plan: RoundPlan
    cohort: tuple[str, ...]
    goal: int
    frames: tuple[tuple[str, bytes], ...]
