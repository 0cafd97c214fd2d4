"""Evaluate: devices measure θ on their held-out rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from learning.phases.phase import (
    WEIGHTS,
    Answer,
    Collector,
    CollectorContext,
    Device,
    Received,
    ReceivedMany,
    Request,
    Values,
)
from learning.registry import Settings
from learning.vector.metrics import Sums
from learning.vector.sums_table import SumsTable, joined_sums

#: Value of a report, beside its sums: see `EvaluateCollector.label_shifts`.
LABEL_SHIFT = "label_shift"
#: More classes than any model has.
_LARGEST_SHIFT = 1_000_000


class EvaluateSettings(Settings, frozen=True, tag="evaluate"):
    """Evaluation has none."""


class Evaluate:
    """Asks devices for sums of loss and metrics over their held-out rows."""

    settings_type: ClassVar[type[Settings]] = EvaluateSettings
    rows: ClassVar[Literal["train", "test", "any"]] = "test"

    def __init__(self, settings: EvaluateSettings) -> None:
        del settings

    def answer(self, request: Request, device: Device) -> Answer:
        """Measures θ, or what the algorithm keeps for this device in its place."""
        theta = request.algorithm.personal(request.blobs[WEIGHTS], device.state)
        return Answer(sums=device.evaluate(theta))

    def collector(self, context: CollectorContext) -> Collector:
        """Keeps the sums of each agent."""
        del context
        return EvaluateCollector()


class EvaluateCollector:
    """Sums over held-out rows.

    Attributes:
        sums: by agent; agents whose rows weigh nothing are not in it.
        label_shifts: of agents that say so: label minus predicted class in most of their rows.
    """

    capacity: int | None = None

    def __init__(self) -> None:
        self._sums: dict[str, Sums] = {}
        self._tables: list[SumsTable] = []
        self.label_shifts: dict[str, int] = {}
        self.values: Values = {}

    @property
    def sums(self) -> Mapping[str, Sums]:
        """Sums by agent."""
        return joined_sums(self._sums, self._tables)

    def accept_many(self, received: ReceivedMany) -> None:
        """Keeps a cohort's sums."""
        self._tables.append(received.sums.select(received.sums.weight > 0))

    def merge(self, other: EvaluateCollector) -> None:
        """Takes what another one collected."""
        self._sums |= other._sums
        self._tables += other._tables
        self.label_shifts |= other.label_shifts

    def accept(self, agent_id: str, received: Received) -> None:
        """Keeps one agent's sums."""
        if received.sums.weight > 0:
            self._sums[agent_id] = received.sums
        shift = (*received.values.get(LABEL_SHIFT, ()), 0.0)[0]
        if shift and abs(shift) <= _LARGEST_SHIFT:
            self.label_shifts[agent_id] = int(shift)
