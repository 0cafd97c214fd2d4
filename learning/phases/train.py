"""Train: devices improve θ on their rows and upload vectors; the coordinator aggregates them."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedge.errors import UpdateRejected
from learning.aggregation.aggregator import (
    Mergeable,
    Update,
    Updates,
    add_many,
    check_update,
)
from learning.aggregation.share_cap import ShareCap, Weighed
from learning.algorithms.algorithm import Aggregate, LocalContext
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


class _Held(NamedTuple):
    """An update as it is folded when it weighs its rows, and what it was made of."""

    update: Update
    received: Received
    rows: float


class TrainCollector:
    """The round's aggregator, and the sums that agents reported of their last epoch.

    The heaviest updates are held back until the end, so that no agent has more than its share of
    the weight (`learning.aggregation.share_cap`), and one that is both heavier and longer than
    usual does not outweigh the others by the product.
    """

    def __init__(self, context: CollectorContext) -> None:
        self._aggregator = context.aggregator()
        self._cap: ShareCap[_Held] = ShareCap()
        self._sums: dict[str, Sums] = {}
        self._tables: list[SumsTable] = []
        self.values: Values = {}
        self._algorithm = context.algorithm
        self._weighting = context.weighting
        self._sizes = context.sizes
        self._rows: list[float] = []

    @property
    def sums(self) -> Mapping[str, Sums]:
        """Sums by agent; those of a stale update too."""
        return joined_sums(self._sums, self._tables)

    @property
    def capacity(self) -> int | None:
        """The aggregator's."""
        return self._aggregator.capacity

    def accept(self, agent_id: str, received: Received) -> None:
        """Adds one update, its weight discounted by its staleness.

        Raises:
            UpdateRejected: `full`, or `shape`: other vectors than the algorithm's.
        """
        if self.capacity is not None and len(self._rows) >= self.capacity:
            detail = f"the round holds {self.capacity} updates already, the aggregator's limit"
            raise UpdateRejected(agent_id, "full", detail)
        rows = float(received.num_examples) if self._weighting == "examples" else 1.0
        held = _Held(self._update(agent_id, received, rows), received, rows)
        try:
            check_update(held.update, self._sizes)
        except ValueError as error:
            raise UpdateRejected(agent_id, "shape", str(error)[:500]) from error
        self._rows.append(rows)
        self._sums[agent_id] = received.sums
        if (passed := self._cap.add(rows, held)) is not None:
            self._fold(passed)

    def accept_many(self, received: ReceivedMany) -> None:
        """Adds the updates of a cohort, equal to one by one but for the order of the sum.

        Raises:
            ValueError: see `Aggregator.add`.
        """
        sums = received.sums
        by_examples = self._weighting == "examples"
        rows = received.num_examples.astype(np.float64) if by_examples else np.ones(len(sums))
        self._rows += rows.tolist()
        self._tables.append(sums)

        def value_of(number: int) -> _Held:
            # A copy: the cohort's array is not to be kept for it.
            vectors = {name: each[number].copy() for name, each in received.vectors.items()}
            examples, length = int(received.num_examples[number]), float(received.lengths[number])
            name = sums.names[number]
            one = Received(vectors, Sums(0.0, 0.0, {}), {}, examples, 0, length)
            weight = float(rows[number])
            return _Held(self._update(name, one, weight), one, weight)

        gone, passes = self._cap.add_many(rows, value_of)
        for weighed in gone:
            self._fold(weighed)
        if not passes.any():
            return
        kept = _as_slice(passes)
        discount = self._algorithm.discount(0)
        weights = {
            name: (1.0 if upload.exact else discount)
            * (rows[kept] if upload.weighting == "examples" else np.ones(int(passes.sum())))
            for name, upload in self._algorithm.uploads.items()
        }
        names = (
            sums.names[kept]
            if isinstance(kept, slice)
            else [sums.names[n] for n in np.flatnonzero(passes)]
        )
        vectors = {name: each[kept] for name, each in received.vectors.items()}
        add_many(self._aggregator, Updates(names, vectors, weights))

    def merge(self, other: TrainCollector) -> None:
        """Takes what another one collected; `other` is not used any more.

        Raises:
            ValueError: the aggregator has no room for it.
        """
        assert isinstance(self._aggregator, Mergeable), "checked before a cohort is cut into parts"
        self._aggregator.merge(other._aggregator)
        for weighed in self._cap.merge(other._cap):
            self._fold(weighed)
        self._rows += other._rows
        self._sums |= other._sums
        self._tables += other._tables

    def _fold(self, weighed: Weighed[_Held]) -> None:
        weight, held = weighed
        update = held.update
        if weight != held.rows:
            update = self._update(update.agent_id, held.received, weight)
        self._aggregator.add(update)

    def _update(self, agent_id: str, received: Received, rows: float) -> Update:
        discount = self._algorithm.discount(received.staleness)
        weights = {
            name: (1.0 if upload.exact else discount)
            * (rows if upload.weighting == self._weighting == "examples" else 1.0)
            for name, upload in self._algorithm.uploads.items()
        }
        return Update(agent_id, received.vectors, weights)

    def aggregate(self, population: int) -> Aggregate:
        """Returns the updates as one; nothing is accepted after it.

        Raises:
            TrainingError: see `Aggregator.result`.
        """
        usual = median(self._rows) if self._rows else 0.0
        for weight, held in self._cap.finish():
            if weight > usual and held.received.length > 1:
                weight = max(usual, weight / held.received.length)
            self._fold(Weighed(weight, held))
        # Right after a start the coordinator may not have heard of all whose updates count.
        answered = len(self._sums) + sum(map(len, self._tables))
        return self._aggregator.result(max(population, answered))


def _as_slice(chosen: NDArray[np.bool_]) -> slice | NDArray[np.bool_]:
    """Returns a mask of which something is chosen as a slice, which copies nothing, if it is one.

    Where agents weigh alike, the last of a cohort are held back.
    """
    first, stop = int(chosen.argmax()), len(chosen) - int(chosen[::-1].argmax())
    return slice(first, stop) if chosen[first:stop].all() else chosen
