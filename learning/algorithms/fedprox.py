"""FedProx: a proximal term keeps local training near θ.

Li et al. 2020, "Federated optimization in heterogeneous networks", MLSys, arXiv 1812.06127,
Algorithm 2: each device minimises F(θ) + μ/2·|θ - θ₀|².
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from msgspec import Meta

from learning.algorithms.algorithm import Aggregate, GradientAt, LocalContext, LocalRun, ServerState
from learning.algorithms.fedavg import FedAvg, PlainRun
from learning.algorithms.servers import SERVERS
from learning.algorithms.training import TrainingPlan
from learning.registry import Choice, Settings
from learning.vector.parameters import F32


@dataclass(eq=False)
class ProximalRun(PlainRun):
    """Steps along g + μ (θ - θ₀)."""

    mu: np.float32

    def direction(self, gradient_at: GradientAt, theta: F32) -> F32:
        """See the class."""
        return gradient_at(theta) + self.mu * (theta - self.start)


class FedProxSettings(Settings, frozen=True, tag="fedprox"):
    """Settings of FedProx.

    Attributes:
        mu: weight μ of the proximal term; 0 is the server's algorithm alone.
        server: the algorithm whose coordinator half is used.
    """

    mu: Annotated[float, Meta(ge=0, le=1e6)] = 0.01
    server: Choice = "fedavg"


class FedProx(FedAvg):
    """FedProx on the devices, any server optimizer on the coordinator."""

    settings_type: ClassVar[type[Settings]] = FedProxSettings

    def __init__(self, settings: FedProxSettings, training: TrainingPlan) -> None:
        self._mu = np.float32(settings.mu)
        server = SERVERS.settings(settings.server, key="algorithm.server")
        self._server = SERVERS.make(server, training)
        self.learning_rate = self._server.learning_rate

    def init(self, theta: F32) -> ServerState:
        """The server optimizer's."""
        return self._server.init(theta)

    def local(self, context: LocalContext) -> LocalRun:
        """Training from θ with the proximal term."""
        return ProximalRun(context.theta, self._mu)

    def apply(
        self, theta: F32, state: ServerState, aggregate: Aggregate
    ) -> tuple[F32, ServerState]:
        """The server optimizer's."""
        return self._server.apply(theta, state, aggregate)
