"""Algorithm: both halves of a federated learning algorithm, and what passes between them.

All functions are pure. Vectors are float32 with the parameter axis last; device halves broadcast
over leading axes, so that the same lines serve one device ([P]) and a cohort of simulated ones
([n, P]).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from learning.algorithms.training import TrainingPlan
from learning.registry import Settings
from learning.vector.parameters import F32
from learning.vector.vectors import Vectors

#: Nobody means more; beyond float32's range a setting would turn the arithmetic into float64.
MAX_SETTING = 1e6

Weighting = Literal["examples", "agents"]


@dataclass(frozen=True)
class Upload:
    """One vector of an update.

    Attributes:
        length: of the vector; None: P, as θ.
        weighting: "examples" follows the federation's `weighting`; "agents" weighs all alike.
        lossless: sent as float32 whatever the codec.
        feedback: the device adds what the codec lost to the next one (error feedback).
        exact: the coordinator needs the plain mean over agents, whatever their staleness: no
            discount, and no aggregator that leaves values out.
        norm_factor: how much longer than `delta` an honest one may be; times `max_update_norm` it
            bounds the vector.
    """

    length: int | None = None
    weighting: Weighting = "examples"
    lossless: bool = False
    feedback: bool = False
    exact: bool = False
    norm_factor: float = 1.0

    def size(self, parameters: int) -> int:
        """Its length in a model of `parameters` parameters."""
        return parameters if self.length is None else self.length


@dataclass(frozen=True, eq=False)
class ServerState:
    """State of the coordinator's half between rounds; stored with each version of θ.

    Attributes:
        vectors: float32, of any length, by name.
        scalars: by name.
    """

    vectors: Vectors = field(default_factory=dict)
    scalars: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Aggregate:
    """A round's updates as one.

    Attributes:
        vectors: weighted means (or what the aggregator has in their place) by name, float32.
        weight: sum of the weights.
        count: updates in it.
        population: agents that could have been asked.
        left_out: reason by agent that the aggregator left out.
    """

    vectors: Vectors
    weight: float
    count: int
    population: int
    left_out: Mapping[str, str] = field(default_factory=dict)


class GradientAt(Protocol):
    """The gradient of the batch's mean loss."""

    def __call__(self, theta: F32, rows: slice | None = None) -> F32:
        """At any θ; float32, of θ's shape, not to be changed. `rows`: of the batch; None: all."""


class LossAt(Protocol):
    """The mean loss over the device's training rows."""

    def __call__(self, theta: F32) -> float:
        """At any θ."""


@dataclass(frozen=True, eq=False)
class LocalContext:
    """Everything a device's half starts from.

    Attributes:
        theta: float32, [..., P]: the federation's current θ.
        shared: vectors that travel down beside θ.
        state: what this device remembers; empty at first.
        training: steps, rates and the local optimizer.
        rng: of this device and round.
        loss_at: over the training rows; costs an evaluation.
    """

    theta: F32
    shared: Vectors
    state: Vectors
    training: TrainingPlan
    rng: np.random.Generator
    loss_at: LossAt


@dataclass(frozen=True)
class Summary:
    """Summary of a local training.

    Attributes:
        steps: optimizer steps; for a cohort an array of shape [n].
        rate_sum: sum of the learning rates over the steps; likewise.
    """

    steps: Any
    rate_sum: Any


class LocalRun(Protocol):
    """One training on one device, or on a cohort of simulated ones."""

    start: F32

    def direction(self, gradient_at: GradientAt, theta: F32) -> F32:
        """The vector that the optimizer steps along (downhill); float32, of θ's shape."""

    def finish(self, theta: F32, summary: Summary) -> Vectors:
        """The vectors to upload, by the names of `Algorithm.uploads`."""

    def commit(self, decoded: Vectors) -> Vectors:
        """The device's next state, from the uploads as the coordinator will decode them.

        It counts once the update does.
        """


class Algorithm(Protocol):
    """A federated learning algorithm; holds settings only.

    The constructor takes the settings and the training plan.

    Raises:
        ConfigError: (constructor) they do not go together.
    """

    settings_type: ClassVar[type[Settings]]

    @property
    def uploads(self) -> Mapping[str, Upload]:
        """The vectors of an update, by name; `delta` is θ's change."""

    @property
    def learning_rate(self) -> float:
        """The server learning rate: the step from `apply` is multiplied by it."""

    def init(self, theta: F32) -> ServerState:
        """The state before the first round."""

    def shared(self, state: ServerState) -> Vectors:
        """Vectors that travel down beside θ."""

    def local(self, context: LocalContext) -> LocalRun:
        """Begins one training."""

    def personal(self, theta: F32, state: Vectors) -> F32:
        """The parameters with which this device evaluates and predicts."""

    def apply(
        self, theta: F32, state: ServerState, aggregate: Aggregate
    ) -> tuple[F32, ServerState]:
        """The server's step, before its learning rate, and the next state.

        The arguments are left as they are; θ becomes θ + learning_rate × step (`server_step`).
        """

    def without_devices(self, theta: F32, state: ServerState) -> ServerState:
        """The state for devices that begin anew, when an operator goes back to an earlier θ.

        What mirrors the devices' vectors begins anew as well; what is the server's alone stays.
        """

    def discount(self, staleness: int) -> float:
        """The factor on the weight of an update that is `staleness` versions old."""


def column(value: Any) -> Any:
    """A number for each device of a cohort, shaped to broadcast against [..., P]."""
    return np.asarray(value, np.float32)[..., None]
