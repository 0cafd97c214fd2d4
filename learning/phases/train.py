"""Train: devices improve θ on their rows and upload vectors; the coordinator aggregates them."""

from __future__ import annotations

from typing import ClassVar, Literal

from fedge.errors import UpdateRejected
from learning.aggregation.aggregator import Update
from learning.algorithms.algorithm import LocalContext
from learning.phases.phase import (
    WEIGHTS,
    Answer,
    Collector,
    CollectorContext,
    Device,
    Received,
    Request,
    Values,
)
from learning.registry import Settings
from learning.vector.metrics import Sums


class TrainSettings(Settings, frozen=True, tag="train"):
    """Training has none: plan, algorithm and codec say it all."""


class Train:
    """Asks devices to train, and aggregates the vectors that they upload."""

    settings_type: ClassVar[type[Settings]] = TrainSettings
    rows: ClassVar[Literal["train", "test", "any"]] = "train"

    def __init__(self, settings: TrainSettings) -> None:
        del settings

    def answer(self, request: Request, device: Device) -> Answer:
        """Trains from θ, as the algorithm says."""
        shared = {name: blob for name, blob in request.blobs.items() if name != WEIGHTS}
        context = LocalContext(
            request.blobs[WEIGHTS],
            shared,
            device.state,
            request.training,
            device.rng,
            device.loss,
        )
        run = request.algorithm.local(context)
        trained = device.train(run, request.training)
        return Answer(
            run.finish(trained.theta, trained.summary),
            run.commit,
            trained.sums,
            num_examples=trained.num_examples,
            seconds=trained.seconds,
        )

    def collector(self, context: CollectorContext) -> Collector:
        """Aggregates updates."""
        return TrainCollector(context)


class TrainCollector:
    """The round's aggregator, and the sums that agents reported of their last epoch.

    Attributes:
        aggregator: holds the updates so far.
        sums: by agent; those of a stale update too.
    """

    def __init__(self, context: CollectorContext) -> None:
        self.aggregator = context.aggregator()
        self.sums: dict[str, Sums] = {}
        self.values: Values = {}
        self._algorithm = context.algorithm
        self._weighting = context.weighting
        self._count = 0

    @property
    def capacity(self) -> int | None:
        """The aggregator's."""
        return self.aggregator.capacity

    def accept(self, agent_id: str, received: Received) -> None:
        """Adds one update, its weight discounted by its staleness.

        Raises:
            UpdateRejected: `full`, or `shape`: other vectors than the algorithm's.
        """
        if self.capacity is not None and self._count >= self.capacity:
            detail = f"the round holds {self.capacity} updates already, the aggregator's limit"
            raise UpdateRejected(agent_id, "full", detail)
        discount = self._algorithm.discount(received.staleness)
        weights = {
            name: (1.0 if upload.exact else discount)
            * (received.num_examples if upload.weighting == self._weighting == "examples" else 1.0)
            for name, upload in self._algorithm.uploads.items()
        }
        try:
            self.aggregator.add(Update(agent_id, received.vectors, weights))
        except ValueError as error:
            raise UpdateRejected(agent_id, "shape", str(error)[:500]) from error
        self._count += 1
        self.sums[agent_id] = received.sums
