"""What the parts of a fleet are asked in a phase, and answer; all of it can be pickled."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from broker.protocol.messages import RoundPlan
from learning.aggregation.norm_bound import RoundNorms
from learning.phases.phase import Collector
from learning.vector.vectors import Vectors

#: `bytes`: every update is a real frame, every agent has its own random numbers. `arrays`: sizes
#: stand for bytes, and a block of agents shares a stream of random numbers.
Mode = Literal["bytes", "arrays"]


@dataclass(eq=False)
class Columns:
    """What changes of n agents from round to round.

    Attributes:
        attempts: updates that each agent made, int32, [n].
        received: bytes that its link took in, int64, [n].
        credited: of these, told to the coordinator before, int64, [n].
        held: blobs of the latest plan that it has in memory, a bit each, int32, [n].
        slots: where its state is, uint8, [n]; see `DeviceStates`.
    """

    attempts: NDArray[np.int32]
    received: NDArray[np.int64]
    credited: NDArray[np.int64]
    held: NDArray[np.int32]
    slots: NDArray[np.uint8]

    @classmethod
    def empty(cls, agents: int) -> Columns:
        """Returns the columns of agents that have just started."""
        return cls(
            np.zeros(agents, np.int32),
            np.zeros(agents, np.int64),
            np.zeros(agents, np.int64),
            np.zeros(agents, np.int32),
            np.zeros(agents, np.uint8),
        )

    def part(self, chosen: Any) -> Columns:
        """Returns some agents: views for a slice, copies for numbers."""
        return Columns(*(column[chosen] for column in self.all()))

    def put(self, chosen: Any, part: Columns) -> None:
        """Replaces the values of some agents."""
        for column, values in zip(self.all(), part.all(), strict=True):
            column[chosen] = values

    def all(self) -> tuple[NDArray[Any], ...]:
        """Returns the columns in the order of the constructor."""
        return (self.attempts, self.received, self.credited, self.held, self.slots)


@dataclass(frozen=True, eq=False)
class PhaseTask:
    """A phase, for one part of the fleet.

    Attributes:
        plan: as announced; its cohort is empty: `asked` says who is asked.
        vectors: θ and what the algorithm shares, by the names of the plan's blobs.
        asked: agents that are asked, by their number in the part, ascending.
        columns: of the agents that are asked.
        norms: bound on the norms of updates, nothing noted yet.
        federation: its name.
    """

    plan: RoundPlan
    vectors: Vectors
    asked: NDArray[np.int64]
    columns: Columns
    norms: RoundNorms
    federation: str


@dataclass(eq=False)
class PartAnswer:
    """Answers of one part of the fleet.

    Attributes:
        collector: what it collected.
        norms: of the updates.
        columns: of the agents that were asked, after the phase.
        counted: answer id of each agent whose answer counts, by id.
        declined: reason and words, by agent.
        refused: reason, by agent whose answer does not count.
        bytes_up: of PUBLISH packets.
        bytes_down: as the agents reported.
        seconds: virtual time of the slowest.
    """

    collector: Collector
    norms: RoundNorms
    columns: Columns
    counted: dict[str, str] = field(default_factory=dict)
    declined: dict[str, tuple[str, str]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0
