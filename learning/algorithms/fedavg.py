"""FedAvg and FedAvgM: plain local training; the server steps along the mean delta, or its sum.

McMahan et al. 2017, "Communication-efficient learning of deep networks from decentralized data",
AISTATS, arXiv 1602.05629, Algorithm 1. The server learning rate η is from Reddi et al. 2021,
arXiv 2003.00295, Algorithm 1 with SGD on the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from msgspec import Meta

from learning.algorithms.algorithm import (
    MAX_SETTING,
    Aggregate,
    GradientAt,
    LocalContext,
    LocalRun,
    ServerState,
    Summary,
    Upload,
)
from learning.algorithms.training import TrainingPlan
from learning.registry import Settings
from learning.vector.parameters import F32
from learning.vector.vectors import Vectors

Rate = Annotated[float, Meta(gt=0, le=MAX_SETTING)]
Decay = Annotated[float, Meta(ge=0, lt=1)]


@dataclass(eq=False)
class PlainRun:
    """Local training along the gradient; uploads θ's change."""

    start: F32

    def direction(self, gradient_at: GradientAt, theta: F32) -> F32:
        """The gradient at θ."""
        return gradient_at(theta)

    def finish(self, theta: F32, summary: Summary) -> Vectors:
        """`delta`: θ after - θ before."""
        del summary
        return {"delta": theta - self.start}

    def commit(self, decoded: Vectors) -> Vectors:
        """Nothing is remembered."""
        del decoded
        return {}


class FedAvgSettings(Settings, frozen=True, tag="fedavg"):
    """Settings of FedAvg.

    Attributes:
        learning_rate: η of the server.
    """

    learning_rate: Rate = 1.0


class FedAvg:
    """θ' = θ + η Δ; with η = 1 the plain average of the cohort's models."""

    settings_type: ClassVar[type[Settings]] = FedAvgSettings

    uploads: Mapping[str, Upload] = {"delta": Upload(feedback=True)}

    def __init__(self, settings: FedAvgSettings, training: TrainingPlan | None = None) -> None:
        del training
        self.learning_rate = settings.learning_rate

    def init(self, theta: F32) -> ServerState:
        """Nothing is remembered."""
        del theta
        return ServerState()

    def shared(self, state: ServerState) -> Vectors:
        """θ travels alone."""
        del state
        return {}

    def local(self, context: LocalContext) -> LocalRun:
        """Plain training from θ."""
        return PlainRun(context.theta)

    def personal(self, theta: F32, state: Vectors) -> F32:
        """θ itself."""
        del state
        return theta

    def apply(
        self, theta: F32, state: ServerState, aggregate: Aggregate
    ) -> tuple[F32, ServerState]:
        """The mean delta."""
        del theta
        return aggregate.vectors["delta"], state

    def without_devices(self, theta: F32, state: ServerState) -> ServerState:
        """The state as it is: it is the server's alone."""
        del theta
        return state

    def discount(self, staleness: int) -> float:
        """1 / √(1 + s) (Nguyen et al. 2022, arXiv 2106.06639, section 5.1)."""
        return float((1 + staleness) ** -0.5)


class FedAvgMSettings(Settings, frozen=True, tag="fedavgm"):
    """Settings of FedAvgM.

    Attributes:
        learning_rate: η of the server.
        momentum: β.
    """

    learning_rate: Rate = 1.0
    momentum: Decay = 0.9


class FedAvgM(FedAvg):
    """v' = β v + Δ, θ' = θ + η v': momentum on the server.

    Hsu et al. 2019, arXiv 1909.06335 (without Nesterov's look-ahead). In the long run a steady Δ
    moves θ by η Δ / (1 - β) a round: lower the learning rate when raising the momentum.
    """

    settings_type: ClassVar[type[Settings]] = FedAvgMSettings

    def __init__(self, settings: FedAvgMSettings, training: TrainingPlan | None = None) -> None:
        del training
        self.learning_rate = settings.learning_rate
        self._momentum = settings.momentum

    def init(self, theta: F32) -> ServerState:
        """`velocity`: zeros."""
        return ServerState({"velocity": np.zeros_like(theta)})

    def apply(
        self, theta: F32, state: ServerState, aggregate: Aggregate
    ) -> tuple[F32, ServerState]:
        """The velocity."""
        del theta
        velocity = self._momentum * state.vectors["velocity"] + aggregate.vectors["delta"]
        return velocity, ServerState({"velocity": velocity})
