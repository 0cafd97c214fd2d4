"""Phase: one request to a cohort and its answers; the device's half and the coordinator's half.

A phase is named in a plan and decoded late: a device that does not know it declines. A round
protocol (`coordinator/rounds`) chains phases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from learning.aggregation.aggregator import Aggregator
from learning.algorithms.algorithm import Algorithm, LocalRun, Summary, Weighting
from learning.algorithms.training import TrainingPlan
from learning.registry import Settings
from learning.vector.metrics import Sums
from learning.vector.parameters import F32, F64
from learning.vector.sums_table import SumsTable
from learning.vector.vectors import Vectors

#: The blob with θ; the others of a plan are what its algorithm shares.
WEIGHTS = "weights"

Values = Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, eq=False)
class Columns:
    """A device's columns.

    Attributes:
        values: by name, shape (n,) or (n, k): k numbers a row; NaN is missing.
        weights: of the n rows; None: all 1.
    """

    values: Mapping[str, NDArray[Any]]
    weights: F64 | None = None


@dataclass(frozen=True, eq=False)
class Trained:
    """A local training.

    Attributes:
        theta: float32, [P]: where it ended.
        summary: steps and rates.
        sums: of loss and metrics over the last epoch, each batch measured before its step.
        num_examples: rows learned from.
        seconds: wall time.
    """

    theta: F32
    summary: Summary
    sums: Sums
    num_examples: int
    seconds: float


class Device(Protocol):
    """A device's rows and model, as a phase's device half uses them."""

    @property
    def state(self) -> Vectors:
        """The algorithm's state on this device; empty at first."""

    @property
    def rng(self) -> np.random.Generator:
        """Random generator of this device and round."""

    def train(self, run: LocalRun, training: TrainingPlan) -> Trained:
        """Trains on the device's training rows.

        Raises:
            TrainingError: no rows, cancelled, or the loss or θ is no longer finite.
        """

    def loss(self, theta: F32) -> float:
        """The mean loss over the training rows."""

    def evaluate(self, theta: F32) -> Sums:
        """Sums of loss and metrics over the held-out rows."""

    def columns(self) -> Columns:
        """The numeric columns of the device's data as they are stored, before normalising.

        Raises:
            DeclinedError: the device's owner does not allow statistics.
        """


@dataclass(frozen=True, eq=False)
class Request:
    """A plan's request, decoded.

    Attributes:
        blobs: vectors of the plan's blobs; θ is `weights`.
        algorithm: with its settings.
        training: steps, rates and the local optimizer.
    """

    blobs: Vectors
    algorithm: Algorithm
    training: TrainingPlan


@dataclass(frozen=True, eq=False)
class Answer:
    """A device's answer: with vectors an update, kept until its receipt; else a report.

    Attributes:
        vectors: to upload, by name.
        commit: the algorithm's next device state, from the vectors as the receiver decodes them.
        sums: of loss and metrics over rows.
        values: numbers by name, for phases without θ.
        num_examples: rows behind the answer.
        seconds: wall time.
    """

    vectors: Vectors = field(default_factory=dict)
    commit: Callable[[Vectors], Vectors] | None = None
    sums: Sums | None = None
    values: Values = field(default_factory=dict)
    num_examples: int = 0
    seconds: float = 0.0


class Received(msgspec.Struct, frozen=True, eq=False):
    """An answer as the coordinator decoded it.

    Attributes:
        vectors: float32, finite; empty in a report.
        sums: of loss and metrics over rows.
        values: numbers by name.
        num_examples: rows behind it.
        staleness: versions that θ has moved on since the device began.
        length: norm of `delta`, in units of the usual one.
    """

    vectors: Vectors
    sums: Sums
    values: Values
    num_examples: int
    staleness: int = 0
    length: float = 1.0


@dataclass(frozen=True, eq=False)
class ReceivedMany:
    """Answers of a simulated cohort, as the coordinator decoded them; none is stale.

    Attributes:
        vectors: float32, finite, [n, length], by name; empty in reports.
        sums: of loss and metrics over rows, of the n agents.
        num_examples: rows behind each answer, [n].
        lengths: norm of each `delta`, in units of the usual one, [n].
    """

    vectors: Vectors
    sums: SumsTable
    num_examples: NDArray[np.int64]
    lengths: F64


class Collector(Protocol):
    """The coordinator's half: takes the answers of one phase."""

    @property
    def capacity(self) -> int | None:
        """The most answers it can hold; None: any number."""

    @property
    def values(self) -> Values:
        """The result of a phase that is a task by itself: numbers by name; empty for others."""

    def accept(self, agent_id: str, received: Received) -> None:
        """Takes one answer.

        Raises:
            UpdateRejected: the answer does not fit the phase.
        """


@dataclass(frozen=True, eq=False)
class CollectorContext:
    """Everything a coordinator's half starts from.

    Attributes:
        algorithm: with its settings.
        aggregator: of this round, empty.
        weighting: "examples" or "agents", for uploads that follow the federation's.
        sizes: length of each vector of an update.
    """

    algorithm: Algorithm
    aggregator: Callable[[], Aggregator]
    weighting: Weighting
    sizes: Mapping[str, int]


class Phase(Protocol):
    """Both halves of a phase; the constructor takes the settings.

    Attributes:
        rows: the part of the device's rows that it needs; a device without any declines.
    """

    settings_type: ClassVar[type[Settings]]
    rows: ClassVar[Literal["train", "test", "any"]]

    def answer(self, request: Request, device: Device) -> Answer:
        """The device's half.

        Raises:
            FederationError: the device cannot answer; it declines with the error's words.
        """

    def collector(self, context: CollectorContext) -> Collector:
        """The coordinator's half, empty."""
